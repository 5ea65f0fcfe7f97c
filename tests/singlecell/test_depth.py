"""Raw counts and depth: size factors, bins, and the column that explains zeros."""

from __future__ import annotations

import pathlib
import re
import warnings
from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from pyro_zilognormal import SufficientStatistics
from pyro_zilognormal.models import draw_coefficients, log_fold_change
from pyro_zilognormal.singlecell import DepthWarning, HurdleDE, SingleCellError, open_cells
from pyro_zilognormal.singlecell.design.depth import Depth
from pyro_zilognormal.singlecell.files.scale import Cleaner
from pyro_zilognormal.sufficient import rows as rows_module
from tests.singlecell.cell_cases import GENES, experiment, frame, values

COUNTS = np.round(values() * 1000)
TOTAL = COUNTS.sum(1)
SIZE = TOTAL / np.median(TOTAL)
QUARTER = np.argsort(np.argsort(TOTAL)) // 40
STIM = (frame()["condition"] == "stim").to_numpy().astype(int)
FORMS: dict[str, Callable[[np.ndarray], Any]] = {"dense": np.asarray, "csr": sp.csr_matrix, "csc": sp.csc_matrix}


def with_depth(**columns: Any) -> anndata.AnnData:
    adata = experiment()
    for name, column in columns.items():
        adata.obs[name] = column
    return adata


def check_counts(cells: Any, **options: Any) -> HurdleDE:
    """Compare the statistics of counts with those of cells normalised by hand."""
    de = HurdleDE(cells, "~ condition", scale="counts", **({"depth": "auto"} | options))
    wanted = SufficientStatistics.from_cells(COUNTS / SIZE[:, None], 4 * STIM + QUARTER, 8).value
    # The last statistic is the sum of offsets, which cells normalised by hand do not have.
    torch.testing.assert_close(de.data.value[..., :4], wanted[..., :4], rtol=1e-12, atol=1e-12)
    return de


def test_totals_are_of_distinct_cells() -> None:
    assert len(np.unique(TOTAL)) == 160


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int32, np.uint32])
@pytest.mark.parametrize("form", FORMS)
def test_counts_are_normalised_by_their_totals(form: str, dtype: Any) -> None:
    de = check_counts(experiment(x=FORMS[form](COUNTS.astype(dtype))))
    np.testing.assert_allclose(de.cells.factor, SIZE, rtol=1e-14)
    np.testing.assert_allclose(de.cells.genes([3, 0]), (COUNTS / SIZE[:, None])[:, [3, 0]], rtol=1e-14)
    assert (de.settings["depth"], de.settings["depth_bins"]) == ("total counts", 4)


@pytest.mark.parametrize("how", ["h5ad", "backed"])
@pytest.mark.parametrize("form", FORMS)
def test_counts_on_disk(form: str, how: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "VALUES_A_BLOCK", 60)
    path = tmp_path / "cells.h5ad"
    experiment(x=FORMS[form](COUNTS)).write_h5ad(path)
    if how == "backed":
        check_counts(anndata.read_h5ad(path, backed="r"))
    else:
        with open_cells(path) as cells:
            check_counts(cells)


def test_counts_of_a_layer_and_a_column_of_totals() -> None:
    adata = with_depth(umis=TOTAL)
    adata.layers["counts"] = COUNTS
    check_counts(adata, layer="counts")
    assert check_counts(adata, layer="counts", depth="umis").settings["depth"] == "umis"
    double = HurdleDE(with_depth(umis=2 * TOTAL), "~ condition", depth="umis")
    np.testing.assert_allclose(double.data.zero_design[:, 2].unique(), np.unique(COLUMN), rtol=1e-9)


LOG = np.log(TOTAL)
COLUMN = np.array([LOG[q == QUARTER].mean() for q in range(4)])[QUARTER] - LOG.mean()


@pytest.mark.parametrize("formula", ["~ condition", "~ condition + age"])
def test_depth_is_a_column_of_the_zero_part_alone(formula: str) -> None:
    de = HurdleDE(experiment(x=COUNTS), formula, donor="donor", scale="counts", depth="auto")
    data, wanted = de.data, np.column_stack([de.cells.design.matrix, COLUMN])
    np.testing.assert_allclose(data.zero_design[de.cells.row], wanted, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(data.design[de.cells.row], de.cells.design.matrix)
    assert torch.equal(data.scale_design, data.design)
    assert abs(wanted[:, -1].mean()) < 1e-14
    assert de.cells.design.has_depth
    condition = de.cond(condition="stim")
    assert condition.zero_design.tolist() == [*condition.design.tolist(), 0]
    assert condition.scale_design.tolist() == condition.design.tolist()
    for end in (lambda c: c.test, lambda c: c.reference):
        found = end(de.contrast("condition", baseline="ctrl", group_to_compare="stim"))
        assert found.zero_design.tolist() == [*found.design.tolist(), 0]


def test_without_depth_all_designs_are_that_of_the_formula() -> None:
    de = HurdleDE(experiment(), "~ condition")
    assert torch.equal(de.data.zero_design, de.data.design)
    assert torch.equal(de.data.scale_design, de.data.design)
    assert de.cond(condition="stim").zero_design.tolist() == [1, 1]
    assert (de.settings["depth"], de.settings["depth_bins"]) == (None, 0)


@pytest.mark.parametrize("formula", ["~ condition", "~ condition + age"])
def test_arms_of_counts_are_normalised(formula: str) -> None:
    for form in (np.asarray, sp.csr_matrix):
        arm = HurdleDE(experiment(x=form(COUNTS)), formula, scale="counts").cells.arms([{"condition": "stim"}])[0]
        np.testing.assert_allclose(arm.mean, (COUNTS / SIZE[:, None])[STIM == 1].mean(0), rtol=1e-12)
        np.testing.assert_allclose(arm.detection, (COUNTS > 0)[STIM == 1].mean(0), rtol=1e-12)


# Columns of obs, the argument, and which depth is used.
NAMES: dict[str, tuple[tuple[str, ...], str | None, str | None]] = {
    "scanpy's": (("total_counts", "n_counts"), "auto", "total_counts"),
    "old scanpy's": (("n_counts", "nCount_RNA"), "auto", "n_counts"),
    "Seurat's": (("nCount_RNA",), "auto", "nCount_RNA"),
    "none is there": ((), "auto", None),
    "another name": (("umis",), "auto", None),
    "another name that is given": (("umis", "total_counts"), "umis", "umis"),
    "none is wanted": (("total_counts",), None, None),
}


@pytest.mark.parametrize("case", NAMES)
def test_depth_is_known_from_columns(case: str) -> None:
    columns, given, wanted = NAMES[case]
    de = HurdleDE(with_depth(**dict.fromkeys(columns, TOTAL)), "~ condition", depth=given)
    assert de.settings["depth"] == wanted
    assert de.data.zero_design.shape == ((8, 3) if wanted else (2, 2))


# Depths of some cells, and the numbers of cells in their bins.
BINS: dict[str, tuple[Any, list[int]]] = {
    "distinct": (np.exp(np.random.default_rng(0).normal(size=1000)), [250] * 4),
    "few": ([1.0, 2.0, 3.0], [1, 1, 1]),
    "integers": (np.arange(1, 9), [2, 2, 2, 2]),
    "shares": (np.linspace(0.01, 0.5, 12), [3, 3, 3, 3]),
    "two values": ([1.0] * 3 + [2.0] * 5, [3, 5]),
    "ties are not parted": ([1.0] * 6 + [2.0, 3.0], [6, 2]),
    "one value": ([7.0] * 5, [5]),
    "one value but for rounding": (1e4 * (1 + 1e-7 * np.arange(8)), [8]),
}


@pytest.mark.parametrize("case", BINS)
def test_bins_are_of_equal_size(case: str) -> None:
    value, sizes = BINS[case]
    obs = pd.DataFrame({"umis": np.asarray(value)})
    depth = Depth.find(obs, "umis", Cleaner(None, "linear", 0.0))
    assert np.bincount(depth.bin).tolist() == sizes
    order = np.argsort(obs["umis"].to_numpy(), kind="stable")
    assert (np.diff(depth.bin[order]) >= 0).all()
    assert abs(depth.column.mean()) < 1e-12


def test_one_depth_is_no_column() -> None:
    de = HurdleDE(with_depth(total_counts=1e4), "~ condition", depth="total_counts")
    assert torch.equal(de.data.zero_design, de.data.design)
    assert de.cond().zero_design.tolist() == [1, 0]
    assert (de.settings["depth"], de.settings["depth_bins"]) == ("total_counts", 1)


def many_genes(share: Any, genes: int = 200, value: float = 50.5) -> anndata.AnnData:
    """Cells that have this value in this share of genes."""
    seen = np.random.default_rng(0).random((160, genes)) < np.broadcast_to(share, 160)[:, None]
    return anndata.AnnData(np.where(seen, value, 0.0), frame())


SPLIT = np.where(STIM == 1, 0.5, 0.3)
ONE_DONOR = np.where(frame()["donor"] == "stim2", 0.5, 0.3)
MORE = np.where(STIM == 1, 3000, 2000) + np.arange(160)

# Which cells, and what is warned of.
WARNS: dict[str, tuple[Callable[[], Any], str | None]] = {
    "alike": (lambda: HurdleDE(many_genes(0.4), "~ condition", donor="donor"), None),
    "conditions": (
        lambda: HurdleDE(many_genes(SPLIT), "~ condition"),
        r"share of positive values: means of 0.2.* to 0.5.* in levels of condition",
    ),
    "a donor": (lambda: HurdleDE(many_genes(ONE_DONOR), "~ condition", donor="donor"), "in levels of donor"),
    "a donor that is not told": (lambda: HurdleDE(many_genes(ONE_DONOR), "~ condition"), None),
    "kept cells": (lambda: HurdleDE(many_genes(SPLIT), "~ condition + age"), "in levels of condition"),
    "sparse kept cells": (
        lambda: HurdleDE(anndata.AnnData(sp.csr_matrix(many_genes(SPLIT).X), frame()), "~ condition + age"),
        "in levels of condition",
    ),
    "too few genes": (lambda: HurdleDE(many_genes(SPLIT, 90), "~ condition"), None),
    "a number": (lambda: HurdleDE(many_genes(SPLIT), "~ age"), None),
    "depth": (lambda: HurdleDE(with_share(SPLIT), "~ condition", depth="umis"), None),
    "counts": (lambda: HurdleDE(many_genes(SPLIT, value=5.0), "~ condition", scale="counts", depth="auto"), None),
    "counts without depth": (
        lambda: HurdleDE(many_genes(SPLIT, value=5.0), "~ condition", scale="counts"),
        "total counts: means of .* in levels of condition",
    ),
    "totals that are known and not used": (
        lambda: HurdleDE(with_known(MORE), "~ condition"),
        r"total_counts: means of 2\.04e\+03 to 3\.12e\+03 in levels of condition",
    ),
    "totals of which some are 0": (lambda: HurdleDE(with_known(MORE - 2000), "~ condition"), None),
    "one depth": (
        lambda: HurdleDE(with_share(SPLIT, umis=7), "~ condition", depth="umis"),
        "share of positive .* of condition",
    ),
}


def with_share(share: Any, **columns: Any) -> anndata.AnnData:
    adata = many_genes(share)
    adata.obs["umis"] = columns.get("umis", MORE)
    return adata


def with_known(totals: Any) -> anndata.AnnData:
    adata = many_genes(0.4)
    adata.obs["total_counts"] = totals
    return adata


@pytest.mark.parametrize("case", WARNS)
def test_depths_that_differ_are_warned_of_where_nothing_explains_them(case: str) -> None:
    make, says = WARNS[case]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make()
    assert [w.category for w in caught] == ([DepthWarning] if says else [])
    assert all(re.search(f"{says}, and no depth explains zeros, .* pass depth=", str(w.message)) for w in caught)


def test_depth_of_another_kind() -> None:
    with pytest.raises(TypeError, match="depth is a ndarray; needed 'auto' or the name of a column of obs, or None"):
        HurdleDE(experiment(), "~ condition", depth=TOTAL)


@pytest.mark.parametrize("form", FORMS)
def test_a_fraction_in_a_later_block_is_named(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "VALUES_A_BLOCK", 60)
    x = COUNTS.copy()
    x[17, 3] = 0.5
    with pytest.raises(SingleCellError, match=r"0\.5 in cell 'cell17', gene 'same'; needed whole numbers"):
        HurdleDE(experiment(x=FORMS[form](x)), "~ condition", scale="counts")


def test_a_fit_of_counts_has_effects_of_depth_and_of_all_levels() -> None:
    adata = experiment(x=np.random.default_rng(0).poisson(COUNTS / 200).astype(float))
    adata.obs["patient"] = np.tile(list("pqrs"), 40)
    de = HurdleDE(adata, "~ condition", donor="patient", scale="counts", depth="auto").fit(steps=10)
    # 2,000 draws have 100 values of the sds; 100 draws would have 5.
    draws = draw_coefficients(de.result, de.data, 2000, random=2000)
    widths = {"effects": 1, "zero_effects": 2, "log_sigma": 2, "random": 4 + 8, "zero_random": 4 + 8}
    assert {name: draws[name].shape for name in widths} == {name: (2000, 6, width) for name, width in widths.items()}
    contrast = de.contrast("condition", baseline="ctrl", group_to_compare="stim")
    change = log_fold_change(draws, contrast.test, contrast.reference)
    assert change.total.isfinite().all()
    prob_up = (change.total > 0).double().mean(0)
    assert prob_up[GENES.index("up")] > 0.99
    assert prob_up[GENES.index("down")] < 0.01
