"""The scale of a matrix: as it is given, declared by the file, or shown by the values; contradictions are refused."""

from __future__ import annotations

import math
from typing import Any

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import torch

from pyro_zilognormal.singlecell import HurdleDE, ScaleWarning, SingleCellError
from pyro_zilognormal.singlecell.files import scale as scale_module
from pyro_zilognormal.sufficient import rows as rows_module
from tests.singlecell.cell_cases import experiment, values

LINEAR = values() * 3
COUNTS = np.round(LINEAR)
LOGS = {"log1p": np.log1p(LINEAR), "log2p1": np.log1p(LINEAR) / math.log(2), "log10p1": np.log1p(LINEAR) / math.log(10)}
SMALL = values() / 10
BASES = {
    "log1p": (None, math.e, np.float64(math.e)),
    "log2p1": (2, 2.0, np.int64(2), np.array(2)),
    "log10p1": (10, np.array([10])),
}
ZERO = np.zeros(160)


def cells(x: Any, base: Any = "nothing") -> anndata.AnnData:
    adata = experiment(x=x)
    if not isinstance(base, str):
        adata.uns["log1p"] = {"base": base}
    return adata


def linear_sum(de: HurdleDE) -> np.ndarray:
    """The sums of linear values that were read."""
    return de.cells.arms([{}])[0].total


# The stored values, the base that uns declares, the arguments, and the scale that is used.
KNOWN: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "whole numbers": (COUNTS, "nothing", {}, "counts"),
    "whole numbers of int": (COUNTS.astype(np.int32), "nothing", {}, "counts"),
    "sparse whole numbers": (sp.csr_matrix(COUNTS), "nothing", {}, "counts"),
    "small whole numbers": (np.minimum(COUNTS, 5), "nothing", {}, "counts"),
    "whole numbers with size factors": (COUNTS, "nothing", {"offset": ZERO}, "linear"),
    "large fractions": (LINEAR, "nothing", {}, "linear"),
    "large fractions, sparse by column": (sp.csc_matrix(LINEAR), "nothing", {}, "linear"),
    **{f"declared {name}, base {base!r}": (LOGS[name], base, {}, name) for name in LOGS for base in BASES[name]},
    **{f"given {name}": (LOGS[name], "nothing", {"scale": name}, name) for name in LOGS},
    **{f"given and declared {name}": (LOGS[name], BASES[name][0], {"scale": name}, name) for name in LOGS},
    "given counts, though another matrix was logged": (COUNTS, None, {"scale": "counts"}, "counts"),
    "given linear, though another matrix was logged": (LINEAR, None, {"scale": "linear"}, "linear"),
    "given linear and small": (SMALL, "nothing", {"scale": "linear"}, "linear"),
}


@pytest.mark.parametrize("case", KNOWN)
def test_the_scale_is_known(case: str) -> None:
    x, base, given, wanted = KNOWN[case]
    de = HurdleDE(cells(x, base), "~ condition", **given)
    assert de.settings["scale"] == wanted
    assert (de.settings["scale_from"] == "given") is ("scale" in given)
    dense = x.toarray() if hasattr(x, "toarray") else np.asarray(x, dtype=float)
    if wanted == "counts":
        size = dense.sum(1) / np.median(dense.sum(1))
        dense = dense / size[:, None]
    linear = LINEAR if wanted in LOGS else dense
    np.testing.assert_allclose(linear_sum(de), linear.sum(0), rtol=1e-9)


# The stored values, the base that uns declares, the arguments, and what the error says.
REFUSED: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "logs or small values": (
        LOGS["log1p"],
        "nothing",
        {},
        "scale is not given, and adata.X does not show it: its largest",
    ),
    "small values": (SMALL, "nothing", {}, "pass scale='log1p' for .*'linear' for normalised values"),
    "counts that are said to be linear": (
        COUNTS,
        "nothing",
        {"scale": "linear"},
        "whole numbers.*pass scale='counts', or",
    ),
    **{
        f"counts that are said to be {name}": (
            COUNTS,
            "nothing",
            {"scale": name},
            "holds whole numbers.*scale='counts'",
        )
        for name in LOGS
    },
    **{
        f"linear that is said to be {name}": (
            LINEAR,
            "nothing",
            {"scale": name},
            "is no logarithm; pass scale='linear'",
        )
        for name in LOGS
    },
    "fractions that are said to be counts": (LINEAR, "nothing", {"scale": "counts"}, "needed whole numbers"),
    "another base than declared": (
        LOGS["log2p1"],
        2,
        {"scale": "log1p"},
        r"uns\['log1p'\] says that adata.X is 'log2p1'",
    ),
    "no base, another is given": (
        LOGS["log1p"],
        None,
        {"scale": "log10p1"},
        r"says that adata.X is 'log1p'; needed that",
    ),
    "linear, declared a log": (SMALL, None, {"scale": "linear"}, "if uns is wrong, del adata.uns"),
    "counts, declared a log": (COUNTS, 2, {}, r"'log2p1' \(see adata.uns\['log1p'\]\), but .* whole .*scale='counts'"),
    "large, declared a log": (LINEAR, 2, {}, r"\(see adata.uns\['log1p'\]\), but .* no logarithm; pass scale='linear'"),
    "counts said to be a log and declared another": (COUNTS, 2, {"scale": "log1p"}, "holds whole numbers"),
    "base 3": (LOGS["log1p"], 3, {}, r"\['base'\] is 3; needed e, 2 or 10"),
    "base of text": (LOGS["log1p"], np.array("two"), {}, "needed e, 2 or 10"),
    "many bases": (LOGS["log1p"], [2, 10], {"scale": "log2p1"}, "needed e, 2 or 10"),
    "nothing": (LINEAR * 0, "nothing", {}, "no value above the detection threshold"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_scale_that_is_not_known_is_refused(case: str) -> None:
    x, base, given, says = REFUSED[case]
    with pytest.raises(SingleCellError, match=says):
        HurdleDE(cells(x, base), "~ condition", **given)


def test_only_x_is_declared() -> None:
    adata = cells(LOGS["log2p1"], 2)
    adata.layers["counts"], adata.layers["logs"] = COUNTS, LOGS["log1p"]
    assert HurdleDE(adata, "~ condition", layer="counts").settings["scale"] == "counts"
    with pytest.raises(SingleCellError, match=r"scale is not given, and adata\.layers"):
        HurdleDE(adata, "~ condition", layer="logs")
    HurdleDE(adata, "~ condition", layer="logs", scale="log1p")


def test_values_that_look_logged_warn_where_they_are_said_to_be_linear() -> None:
    with pytest.warns(ScaleWarning, match=r"scale is 'linear', but adata.X looks logged: .*pass scale='log1p'"):
        HurdleDE(experiment(x=np.log1p(values() * 20)), "~ condition", scale="linear")


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_values_of_later_blocks_count_too(form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large value that alone tells the scale, and a fraction among counts, in the last block."""
    monkeypatch.setattr(rows_module, "VALUES_A_BLOCK", 60)
    late = SMALL.copy()
    late[-1, -1] = 31.5
    assert HurdleDE(experiment(x=form(late)), "~ condition").settings["scale"] == "linear"
    with pytest.raises(SingleCellError, match=r"31\.5, which is no logarithm"):
        HurdleDE(experiment(x=form(late)), "~ condition", scale="log1p")
    fraction = COUNTS.copy()
    fraction[-1, -1] = 0.5
    monkeypatch.setattr(scale_module, "_ENOUGH_WHOLE", 50)  # so that the first blocks are taken for counts
    with pytest.raises(SingleCellError, match=r"0\.5 in cell 'cell159', gene 'rare'; needed whole numbers"):
        HurdleDE(experiment(x=form(fraction)), "~ condition")


def test_a_scale_that_is_told_gives_the_fit_of_one_that_is_given() -> None:
    told, given = (HurdleDE(experiment(x=COUNTS), "~ condition", **s) for s in ({}, {"scale": "counts"}))
    torch.testing.assert_close(told.data.value, given.data.value, rtol=0, atol=0)
