"""Seeded bad calls of all three front ends: each ends in one line that says what is wrong, before any fit."""

from __future__ import annotations

import decimal
import fractions
import functools
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from pyro_zilognormal.models import Condition
from pyro_zilognormal.singlecell import HurdleDE, SingleCellError, api, differential_expression, embed
from pyro_zilognormal.singlecell.embed import CellBatches
from pyro_zilognormal.svi import CheckpointError
from tests.cli.cli_cases import cells, file_of, run
from tests.singlecell.cell_cases import experiment, fitted, frame, values

FEW, MANY = 20, 340


class Accepted(Exception):
    """The call was good enough to be fitted."""


@pytest.fixture(autouse=True)
def _no_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted("donor", "~ condition")

    def fit(*_: Any, **__: Any) -> Any:
        raise Accepted

    monkeypatch.setattr(api, "fit_hurdle", fit)
    monkeypatch.setattr(sys.modules[CellBatches.__module__], "fit_vae", fit)


class Pool:
    """Values that are drawn with a seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def one(self, of: Any) -> Any:
        """Draw one; those that are functions are made."""
        return of[int(self.rng.integers(len(of)))]

    def text(self) -> str:
        """Letters and signs, some of which mean something in formulas and file names."""
        signs = [
            *"ab1~+-*:/|()[]{}`'\"=.,;%$\\ \t\n\0\x1b\x07\u202eéμµ基😀",
            "condition",
            "donor",
            "sex",
            "age",
            "C(",
            "Q(",
        ]
        return "".join(self.one(signs) for _ in range(int(self.rng.integers(0, 9))))

    def anything(self) -> Any:
        """A value of any type."""
        return self.one([self.text, *(lambda v=v: v for v in ANYTHING)])()

    def name(self) -> Any:
        """A column or level that may exist."""
        return self.one([*NAMES, self.text(), self.anything()])

    def formula(self) -> Any:
        """A formula that may be one."""
        parts = [self.one(FORMULAS) if self.rng.random() < 0.8 else self.text() for _ in range(self.rng.integers(1, 4))]
        return self.one([*(["~ " + self.one([" + ", ":", " * ", " | "]).join(parts)] * 5), self.anything()])

    def condition(self) -> Any:
        """A condition in any of its forms."""
        forms = [
            lambda: {self.one(["condition", "sex", "age", self.text()]): self.name()},
            lambda: f"{self.one(['condition', 'sex', 'age', ''])}={self.name()},{self.text()}={self.name()}",
            lambda: Condition(self.one([[1.0], [1.0, 0.0], np.eye(2), "x", None])),
            self.anything,
        ]
        return self.one(forms)()

    def contrast(self) -> Any:
        """A contrast in any of its forms."""
        forms: list[Callable[[], Any]] = [
            lambda: (self.name(), self.name(), self.name()),
            lambda: ("condition", self.name(), "ctrl"),
            lambda: (self.condition(), self.condition()),
            lambda: (self.contrast(), self.contrast()),
            lambda: [self.contrast() for _ in range(self.rng.integers(0, 3))],
            lambda: {"a": self.contrast()},
            self.anything,
        ]
        return self.one(forms)()


_LOOP: list[Any] = []
_LOOP.append(_LOOP)
ANYTHING: list[Any] = [
    *(None, True, False, 0, -1, 5, 200, 10**30, 0.5, -0.5, 1e300, math.nan, math.inf, -math.inf, 1 + 2j, b"bytes", ...),
    *(np.int64(5), np.float32(0.5), np.array([]), np.array([1, 2]), np.array(3), np.datetime64("2020-01-01"), np.nan),
    *(torch.tensor(3), torch.tensor([1.0, 2.0]), pd.NA, pd.NaT, pd.Series([1]), pd.DataFrame(), pd.Interval(0, 1)),
    *(
        [],
        [1],
        ["condition"],
        (),
        (1, 2),
        ("condition", "stim", "ctrl"),
        {},
        {"a": 1},
        {1: 2},
        set(),
        frozenset(),
        _LOOP,
    ),
    *(
        object(),
        int,
        len,
        slice(1),
        range(3),
        Exception("x"),
        anndata.AnnData,
        Path("/nowhere/file"),
        SimpleNamespace(),
    ),
    *(decimal.Decimal("0.1"), fractions.Fraction(1, 3), "", " ", "\0", "\x1b[31m", "none", "auto", "cuda:9", "a/b"),
]
NAMES = ["condition", "stim", "ctrl", "sex", "f", "donor", "age", 50, "rest", "all", "no such name", "<NA>"]
FORMULAS = re.split(
    r";\s+",
    """condition; donor; sex; age; 1; 0; -1; (1 | donor); (1 | condition); (1 |; (| donor); (0|donor); C(condition);
    C(age); Q('sex'); Q(''); Q(1); `sex`; `; ``; `no`; np.log(age); log(age - 60); .system('x'); os.system('x');
    age.abs(); age.abs; age[0]; {age / 0}; {; center(age); poly(age, 99); bs(age, df=4); age ** 2; age ** age;
    condition ** -1; lambda: 0; 'text'; (age | donor); (1 | donor/sex); C(sex, contr.poly);
    C(sex, contr.treatment('x')); hashed(sex); lag(age); .; sex ~ age; exit(); print; __import__('os');
    [x for x in age]; sex %in% age; 1e400; age < 3; (1 | `donor`:Q('sex')); (); * * *""",
)


def _matrix(pool: Pool) -> Any:
    x = values()
    odd = pool.one([math.nan, math.inf, -math.inf, -1.0, 1e308, 1e-320, 0.5, 0.0])
    x[int(pool.rng.integers(160)), int(pool.rng.integers(6))] = odd
    forms: list[Callable[[Any], Any]] = [
        *(np.asarray, sp.csr_matrix, sp.csc_matrix, np.round, np.log1p, lambda v: v * 0, lambda v: v > 1, lambda v: -v),
        *(lambda v: v.astype(str), lambda v: v.astype(object), lambda v: v + 0j, lambda v: v.astype(np.float16)),
        *(lambda v: v[:, :1], lambda v: v[:1], lambda v: v[:0], lambda v: v[:, :0], lambda v: None),
        *(lambda v: v.astype(">f4"), np.asfortranarray, lambda v: np.round(v).astype(np.int8)),
    ]
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pool.one(forms)(x)


def _column(pool: Pool, cells: int) -> Any:
    kinds = [
        *(
            ["a"] * cells,
            [None] * cells,
            ["a", None],
            [1, "a"],
            [[], []],
            [True, False],
            [1j, 2j],
            [0, 1],
            [math.inf, 1],
        ),
        *(
            [pd.Interval(0, 1), pd.Interval(1, 2)],
            [b"a", b"b"],
            ["", " "],
            ["a,sex=f", "b=c"],
            [1e300, -1e300],
            [pd.NA, 1],
        ),
        *(
            pd.Categorical(["x", "y"]),
            pd.array([1, None], dtype="Int64"),
            pd.array(["a", "b"], dtype="string"),
            [np.nan, 1],
        ),
        *(pd.to_datetime(["2020-01-01", "2021-01-01"]), pd.to_timedelta([1, 2]), pd.Categorical([1, 2]), [10**30, 1]),
    ]
    kind = pool.one(kinds)
    return pd.Series(kind).take(np.arange(cells) % len(kind)).to_numpy()


def bad_data(pool: Pool) -> Any:
    """An AnnData with something odd in it."""
    if pool.rng.random() < 0.1:
        return pool.anything()
    x = _matrix(pool)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if x is None:
            return anndata.AnnData(obs=frame())
        obs = frame().iloc[: x.shape[0]].copy()
        if pool.rng.random() < 0.5:
            obs[pool.one(["condition", "donor", "sex", "age"])] = _column(pool, len(obs))
        adata = anndata.AnnData(x, obs)
    if pool.rng.random() < 0.2:
        adata.uns["log1p"] = pool.one([{}, {"base": pool.anything()}, {"base": 2}, {"base": 10}, pool.anything()])
    if pool.rng.random() < 0.2:
        adata.layers["other"] = adata.X
    if pool.rng.random() < 0.1:
        adata.raw = adata
    if pool.rng.random() < 0.1:
        adata.obs = pd.concat([adata.obs, adata.obs], axis=1)
    return adata


MODEL = ("donor", "layer", "use_raw", "scale", "offset", "depth", "detection_threshold", "priors", "draws", "device")
CALL = ("groupby", "groups", "reference", "delta", "fdr", "max_error", "credible", "key_added", "copy", "seed", "steps")
EMBED = ("batch", "layer", "use_raw", "scale", "depth", "detection_threshold", "latent", "hidden", "linear", "denoise")
EMBED += ("steps", "seed", "device", "callbacks", "checkpoint", "key_added")
FIT = ("seed", "steps", "batch_size", "callbacks", "checkpoint")


def settings(pool: Pool, names: tuple[str, ...], fewest: int = 0) -> dict[str, Any]:
    """Some arguments of any type."""
    number = int(pool.rng.choice([fewest, fewest, 1, 2]))
    return {str(name): pool.one([pool.name, pool.anything])() for name in pool.rng.choice(names, number, replace=False)}


def one_call(pool: Pool) -> None:
    """Call the function."""
    data = experiment() if pool.rng.random() < 0.6 else bad_data(pool)
    formula, contrast = pool.one([("~ condition", pool.contrast()), (pool.formula(), ("condition", "stim", "ctrl"))])
    options = settings(pool, (*MODEL, *CALL, "callbacks", "checkpoint"))
    if pool.rng.random() < 0.2:
        formula, contrast, options = None, None, options | {"groupby": pool.name()}
    differential_expression(data, formula, contrast, **options)


def step_by_step(pool: Pool) -> None:
    """Call the class, or a method of a fitted one."""
    de, bad = fitted("donor", "~ condition"), pool.one([pool.anything, pool.name])
    numbers = settings(pool, ("delta", "fdr", "max_error", "credible"))
    credible = {"credible": bad()}
    calls: list[Callable[[], Any]] = [
        lambda: HurdleDE(bad_data(pool), pool.formula(), **settings(pool, MODEL)),
        lambda: HurdleDE(experiment(), pool.formula(), **settings(pool, MODEL)),
        lambda: HurdleDE(experiment(), "~ condition", **settings(pool, MODEL, 1)),
        lambda: HurdleDE(experiment(), "~ condition").fit(**settings(pool, FIT, 1)),
        lambda: de.test(pool.contrast(), **numbers),
        lambda: de.test(("condition", "stim", "ctrl"), **settings(pool, ("delta", "fdr", "max_error", "credible"), 1)),
        lambda: de.cond(**{pool.one(["condition", "sex", "x y"]): bad()}),
        lambda: de.contrast(bad(), baseline=bad(), group_to_compare=bad(), name=bad()),
        lambda: de.contrast("condition", baseline=bad(), group_to_compare=bad()),
        lambda: de.predict(bad(), quantiles=bad()),
        lambda: de.predict(de.cond(), quantiles=bad(), **credible),
        lambda: de.predictive_check(bad(), **credible),
        lambda: de.gene_fits(bad(), pool.contrast(), **credible),
        lambda: de.gene_fits(["up"], ("condition", "stim", "ctrl"), **credible),
    ]
    pool.one(calls)()


def embedding(pool: Pool) -> None:
    """Embed cells."""
    embed(experiment() if pool.rng.random() < 0.6 else bad_data(pool), **settings(pool, EMBED, 1))


FRONT_ENDS = {"one call": one_call, "step by step": step_by_step, "embedding": embedding}


@functools.cache
def end_of(front_end: str, seed: int) -> tuple[type[Exception] | None, str]:
    """Return the error with which a call ends, and what it says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            FRONT_ENDS[front_end](Pool(seed))
        except Exception as error:
            return type(error), str(error)
    return None, ""


def is_good(kind: type[Exception] | None, said: str) -> bool:
    """Whether that is one line that a user can read, or no error."""
    refused = kind is not None and issubclass(kind, (SingleCellError, CheckpointError))
    return kind in (None, Accepted) or (refused and said.isprintable() and 10 < len(said) < 2000)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize(
    "seeds", [range(FEW), pytest.param(range(FEW, MANY), marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_a_bad_call_ends_in_one_line(front_end: str, seeds: range) -> None:
    ends = {seed: end_of(front_end, seed) for seed in seeds}
    assert not {seed: end for seed, end in ends.items() if not is_good(*end)}


def test_the_calls_are_mixed() -> None:
    """Some are refused and some are not, or the test would see nothing."""
    ends = [kind for seed in range(FEW) for front_end in FRONT_ENDS if (kind := end_of(front_end, seed)[0])]
    assert len({*ends}) >= 3
    assert sum(issubclass(end, SingleCellError) for end in ends) > FEW


GOOD = {"de": ("--formula", "~ condition", "--contrast", "condition", "stim", "ctrl"), "embed": ()}
SHARED = ("--layer", "--scale", "--depth", "--seed", "--steps", "--device", "--use-raw", "--resume", "--strict")
OPTIONS = {
    "de": (*SHARED, "--formula", "--contrast", "--donor", "--offset", "--delta", "--fdr", "--max-error"),
    "embed": (*SHARED, "--batch", "--label", "--latent", "--linear", "--follow-links"),
}


def words(pool: Pool, options: tuple[str, ...]) -> Iterator[str]:
    """Arguments of a process, which hold no zero."""
    for option in pool.rng.choice(options, int(pool.rng.integers(0, 4))):
        yield str(option)
        number = int(pool.rng.integers(0, 6)) if option == "--contrast" else int(pool.rng.integers(0, 2))
        for _ in range(number):
            drawn = [
                pool.text(),
                str(pool.name()),
                str(pool.condition()),
                str(pool.formula()),
                "-",
                "-1",
                "counts",
                "nan",
            ]
            yield pool.one(drawn).replace("\0", "").encode(errors="replace").decode()


@pytest.mark.parametrize("verb", GOOD)
@pytest.mark.parametrize(
    "seeds", [range(FEW), pytest.param(range(FEW, MANY), marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_a_bad_command_ends_in_one_line(seeds: range, verb: str, tmp_path: Path) -> None:
    path, problems = file_of(tmp_path, cells(sex=np.where(np.arange(60) % 4 < 2, "f", "m"))), []
    good = GOOD[verb]
    for seed in seeds:
        pool = Pool(seed)
        base = good if pool.rng.random() < 0.7 else good[: int(pool.rng.integers(6))]
        given = (verb, path, *base, *words(pool, OPTIONS[verb]), "--out", tmp_path / "out")
        try:
            ran = run(*given)
            line = ran.problems.removesuffix("\n")
            if ran.code != 2 or not line.isprintable() or not 10 < len(line) < 2000 or (tmp_path / "out").exists():
                problems.append(f"{seed}: {given[2:]}: {ran}")
        except Accepted:
            (tmp_path / "out").rmdir()
        except Exception as error:
            problems.append(f"{seed}: {given[2:]}: {type(error).__name__}: {error}")
    assert not problems, "\n".join(problems)
