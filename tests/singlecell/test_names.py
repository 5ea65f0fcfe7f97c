"""Names of columns and levels that look like syntax: in formulas, random effects, groups and contrasts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from pyro_zilognormal.models import log_fold_change
from pyro_zilognormal.singlecell import HurdleDE, SingleCellError
from pyro_zilognormal.singlecell.design.design import Design
from pyro_zilognormal.singlecell.design.formula import unquoted
from pyro_zilognormal.singlecell.design.random_effects import random_terms, split_formula
from pyro_zilognormal.singlecell.one_call import _group_fits
from tests.singlecell.cell_cases import experiment, frame

NAMES = [
    *(
        "orig.ident",
        "percent.mito",
        "a b",
        "a+b",
        "a:b",
        "a|b",
        "a/b",
        "1st",
        "class",
        "C(d)",
        "x$y",
        "µm",
        "μm",
        "😀",
        "_x",
    ),
    *(
        'quo"te',
        "it's",
        "x=1,y",
        "self.matrix",
        "np",
        "log",
        "back\\slash",
        "new\nline",
        "基因",
        "Q",
        "quoted_0_",
        "(1 | d)",
    ),
]
LEVELS = ["-TNF", "a,b=c", "=", "$\\frac{$", "", "1:10", "1e3", "\x1b[31m", "None", "True"]


# Names that Python reads as something else, or not at all, where they are arguments of a function.
NO_ARGUMENTS = ["class", "µm", "it's"]


def with_column(name: str, values: Any) -> pd.DataFrame:
    return frame().assign(**{name: values})


def quotes(name: str) -> list[str]:
    """All ways to say a name."""
    return [f"`{name}`", f"Q({name!r})"] + ([name] if name.isidentifier() else [])


@pytest.mark.parametrize("name", NO_ARGUMENTS)
def test_a_name_that_cannot_be_an_argument_is_a_column_or_refused(name: str) -> None:
    obs = with_column(name, np.where(np.arange(160) % 3 == 0, "q", "p"))
    assert list(Design(f"~ `{name}` + condition", obs).variables) == sorted(["condition", name])
    with pytest.raises(SingleCellError, match=r"cannot be read: |is not one of the columns .*µm"):
        Design(f"~ C(`{name}`, contr.treatment('p'))", obs)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NO_ARGUMENTS])
def test_a_column_of_any_name_is_that_column(name: str) -> None:
    rng = np.random.default_rng(0)
    number, category = rng.normal(size=160), np.where(rng.random(160) < 0.5, "q", "p")
    for said in quotes(name):
        design = Design(f"~ condition + center({said}) ", with_column(name, number))
        np.testing.assert_allclose(design.matrix[:, 2], number - number.mean(), atol=1e-12)
        assert list(design.variables) == sorted(["condition", name])
        assert design.condition({name: 2.0}).design[2] == pytest.approx(2 - number.mean())
    for formula in (f"~ `{name}` + condition", f"~ C(Q({name!r}), contr.treatment('p'))"):
        design = Design(formula, with_column(name, category))
        (column,) = (i for i, c in enumerate(design.columns) if name in c)
        np.testing.assert_array_equal(design.matrix[:, column], category == "q")
        assert design.contrast(name, "q", "p").direction[column] == 1
        (texts,) = design.contrasts((f"{name}=q", f"{name}=p"))
        np.testing.assert_array_equal(texts.direction, design.contrast(name, "q", "p").direction)


@pytest.mark.parametrize("name", NAMES)
def test_random_effects_of_any_name(name: str) -> None:
    obs = with_column(name, frame()["donor"])
    design = Design("~ condition", obs)
    for said in quotes(name):
        for formula in (
            f"~ condition + (1 | {said})",
            f"~ condition + (1|sex/{said})",
            f"~ ({said} | sex) + condition",
        ):
            fixed, bars = split_formula(formula)
            assert fixed.strip().strip("~ ") == "condition"
            terms, _ = random_terms(obs, design, None, bars)
            assert any(name in term.columns for term in terms), formula
            assert len(terms[-1].names) in (8, 16)
    assert random_terms(obs, design, name, [])[0][0].columns == (name,)


@pytest.mark.parametrize("name", ["orig.ident", "a:b", "µm", "class"])
def test_groups_of_any_name(name: str) -> None:
    adata = experiment()
    adata.obs[name] = np.where(adata.obs["condition"] == "stim", "-TNF", "$x$")
    for groups, reference in ((["-TNF"], "$x$"), ("all", "rest")):
        for cells, formula, contrasts in _group_fits(adata, name, groups, reference):
            de = HurdleDE(cells, formula)
            (contrast,) = de.cells.design.contrasts(contrasts)
            assert contrast.name in (f"-TNF vs {reference}", "$x$ vs rest")
            sizes = [int(de.cells.count[de.cells.rows(end.levels)].sum()) for end in contrast.ends]
            assert sizes == [80, 80]


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_of_any_name(level: str) -> None:
    obs = with_column("orig.ident", np.where(np.arange(160) % 3 == 0, level, "other"))
    design = Design("~ `orig.ident` * condition", obs)
    ends: Any = f"condition=stim,orig.ident={level}", f"orig.ident={level},condition=ctrl"
    contrast = design.contrasts(ends)[0]
    assert contrast.test.levels == {"condition": "stim", "orig.ident": level}
    assert contrast.reference.levels == {"condition": "ctrl", "orig.ident": level}
    with pytest.raises(SingleCellError, match="is not one of the levels") as caught:
        design.contrast("orig.ident", level + "x", level)
    assert str(caught.value).isprintable()


def test_a_level_that_the_formula_would_leave_out_is_refused() -> None:
    """Formulaic skips columns of such names, so that their cells were of the first level."""
    obs = with_column("t", np.resize(["ctrl", "stim", "__x"], 160))
    for formula in ("~ t", "~ condition + C(t)"):
        with pytest.raises(SingleCellError, match=r"level '__x' of .*'t'.* starts with two underscores.*rename"):
            Design(formula, obs)
    Design("~ condition", obs)


UNREAD = {
    "dots without quotes": ("~ orig.ident", r"'orig.ident' needs quotes in '~ orig.ident': write `orig.ident`"),
    "no such name in backticks": ("~ `orig.idnt`", r"'orig.idnt' is not one of the columns .* mean 'orig.ident'"),
    "no such name in Q": ("~ Q('x y')", "'x y' is not one of the columns of adata.obs"),
    "a call of nothing": ("~ .system('x') + condition", r"cannot be read: "),
    "a call of another module": ("~ os.system('x')", "'os' is not one of the columns"),
    "an attribute that is not there": ("~ condition.nothing()", "does not fit adata.obs: .*nothing"),
    "a single backtick": ("~ `orig.ident", "cannot be read: .*quote context"),
    "an index": ("~ condition[None]", "does not fit adata.obs: "),
    "a division": ("~ {age / (1 - 1)} + {1 // 0}", "does not fit adata.obs: .*ZeroDivisionError"),
    "an assertion": ("~ I(exec('assert 0'))", "does not fit adata.obs: |is not one of"),
    "control characters": ("~ \x1b[31m", r"cannot be read: .*\\x1b"),
}


@pytest.mark.parametrize("case", UNREAD)
def test_what_cannot_be_read_is_told_in_a_line(case: str) -> None:
    formula, says = UNREAD[case]
    with pytest.raises(SingleCellError, match=says) as caught:
        Design(formula, with_column("orig.ident", frame()["sex"]))
    assert str(caught.value).isprintable()


def test_columns_of_one_name_are_refused() -> None:
    obs = pd.concat([frame(), frame()["sex"]], axis=1)
    with pytest.raises(SingleCellError, match="obs has 2 columns named 'sex'; needed one"):
        Design("~ condition + sex", obs)
    Design("~ condition", obs)


def test_quotes_are_taken_off() -> None:
    assert [unquoted(said) for name in NAMES for said in quotes(name)] == [name for name in NAMES for _ in quotes(name)]


# --- Pairs of conditions, and differences of contrasts


def interaction() -> HurdleDE:
    return HurdleDE(experiment(), "~ condition * sex")


def test_conditions_are_said_in_three_ways() -> None:
    de = interaction()
    ends = {"condition": "stim", "sex": "f"}, {"condition": "ctrl", "sex": "f"}
    forms = [ends, tuple(de.cond(**end) for end in ends), ("condition=stim,sex=f", "sex=f, condition=ctrl")]
    for one in forms:
        (contrast,) = de.cells.design.contrasts(one)
        np.testing.assert_array_equal(contrast.direction, [0, 1, 0, 0])
        assert [end.levels for end in contrast.ends] == list(ends)


def test_a_difference_of_two_contrasts_is_the_interaction() -> None:
    de = interaction().fit(steps=10)
    pairs = [(f"condition=stim,sex={sex}", f"condition=ctrl,sex={sex}") for sex in "mf"]
    table = de.test({"m": pairs[0], "f": pairs[1], "more": tuple(pairs), "less": tuple(pairs[::-1])})
    parts = ["log_fc", "log_fc_detection", "log_fc_abundance", "log_fc_dispersion", "dispersion_fc"]
    of = {name: part.set_index("variable").sort_index() for name, part in table.groupby("contrast")}
    np.testing.assert_allclose(of["more"][parts], of["m"][parts] - of["f"][parts], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(of["less"][parts], -of["more"][parts], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(of["less"]["log_fc_low"], -of["more"]["log_fc_high"], rtol=1e-9)
    (contrast,) = de.cells.design.contrasts(tuple(pairs))
    np.testing.assert_allclose(contrast.direction, [0, 0, 0, 1], atol=1e-12)
    drawn = [log_fold_change(de.draws, *de.cells.design.contrasts(pair)[0].ends).total for pair in pairs]
    wanted = dict(zip(de.genes, (drawn[0] - drawn[1]).std(0).tolist(), strict=True))
    np.testing.assert_allclose(of["more"]["log_fc_sd"], [wanted[gene] for gene in of["more"].index], rtol=1e-9)
    assert (of["more"]["n_test"] == 80).all()
    assert (of["more"]["n_ref"] == 80).all()
    assert of["more"][["detection_test", "detection_ref", "mean_test", "mean_ref"]].isna().all(axis=None)
    assert (contrast.column, contrast.labels[0]) == (None, "condition=stim, sex=m vs condition=ctrl, sex=m")
    fit = de.gene_fits(["up"], tuple(pairs))[0]
    assert [c.name for c in fit.conditions] == [end.name for end in contrast.ends]
    assert fit.samples == ()


BAD: dict[str, tuple[Any, str]] = {
    "no such variable": (("dose=1", "dose=2"), "contrast: 'dose' is not one of the variables"),
    "no such level": (("condition=stim,sex=x", "condition=ctrl,sex=f"), "'x' is not one of the levels"),
    "a variable twice": (("sex=f,sex=m", "sex=m"), "'sex=f,sex=m' names a variable twice"),
    "half of a pair": (("condition=stim,sex=f",) * 2, "compares a condition with itself"),
    "the same twice": ((("condition=stim,sex=f", "condition=ctrl,sex=f"),) * 2, "compares a condition with itself"),
    "differences": (
        ((("sex=f,condition=stim", "sex=m,condition=stim"),) * 2, ("sex=f,condition=stim", "sex=m,condition=stim")),
        "itself|difference of differences",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_pairs(case: str) -> None:
    contrast, says = BAD[case]
    with pytest.raises(SingleCellError, match=says):
        interaction().cells.design.contrasts(contrast)
