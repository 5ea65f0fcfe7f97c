"""Results in an AnnData: where other tools look for them, and through files."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from pyro_zilognormal.singlecell import (
    SingleCellError,
    differential_expression,
    result_parameters,
    to_scanpy,
    write_results,
)
from tests.singlecell.cell_cases import GENES, experiment, fitted, frame
from tests.singlecell.scanpy_reader import groups, rank_genes_groups_df

STIM = ("condition", "stim", "ctrl")
WRITERS = ["h5ad", "zarr"]
zarr2 = pytest.mark.filterwarnings("ignore:Writing zarr v2 data will no longer be the default:UserWarning")


@functools.cache
def _done() -> tuple[anndata.AnnData, pd.DataFrame]:
    adata = experiment()
    contrasts = [STIM, ("sex", "m", "f")]
    table = differential_expression(adata, "~ condition + sex", contrasts, donor="donor", steps=10)
    return adata, table


def done() -> tuple[anndata.AnnData, pd.DataFrame]:
    adata, table = _done()
    return adata.copy(), table


def through(adata: anndata.AnnData, kind: str, folder: pathlib.Path) -> anndata.AnnData:
    path = folder / f"cells.{kind}"
    getattr(adata, f"write_{kind}")(path)
    return getattr(anndata, f"read_{kind}")(path)


def test_uns_and_varm() -> None:
    adata, table = done()
    pd.testing.assert_frame_equal(adata.uns["ziln_de"]["table"], table, check_exact=True)
    names = ["condition: stim vs ctrl", "sex: m vs f"]
    assert adata.uns["ziln_de"]["params"]["contrasts"].tolist() == names
    for column in ("log_fc", "log_fc_sd", "prob_de", "lfsr", "expected_fdr", "pval", "padj"):
        array = adata.varm[f"ziln_de_{column}"]
        assert array.shape == (6, 2)
        for i, name in enumerate(names):
            part = table[table["contrast"] == name].set_index("variable")[column]
            np.testing.assert_array_equal(array[:, i], part.loc[list(GENES)])


def test_parameters_tell_what_was_done() -> None:
    params = done()[0].uns["ziln_de"]["params"]
    wanted = {
        "formula": "~ condition + sex",
        "donor": "donor",
        "scale": "linear",
        "use_raw": False,
        "detection_threshold": 0.0,
        "draws": 1000,
        "seed": 0,
        "steps": 10,
        "delta": 0.25,
        "fdr": 0.05,
        "max_error": 0.2,
        "credible": 0.99,
        "n_cells": 160,
        "n_genes": 6,
        "n_rows": 8,
        "n_donors": 8,
    }
    assert {k: params[k] for k in wanted} == wanted
    assert params["columns"].tolist() == ["condition", "sex"]
    assert params["test_levels"].tolist() == ["stim", "m"]
    assert params["reference_levels"].tolist() == ["ctrl", "f"]
    assert "layer" not in params  # files hold no None


@zarr2
@pytest.mark.parametrize("kind", WRITERS)
def test_round_trip(kind: str, tmp_path: pathlib.Path) -> None:
    adata, table = done()
    to_scanpy(adata)
    back = through(adata, kind, tmp_path)
    pd.testing.assert_frame_equal(back.uns["ziln_de"]["table"], table, check_exact=True, check_index_type=False)
    for name, value in adata.uns["ziln_de"]["params"].items():
        assert np.array_equal(back.uns["ziln_de"]["params"][name], value), name
    np.testing.assert_array_equal(back.varm["ziln_de_log_fc"], adata.varm["ziln_de_log_fc"])
    for name in ("names", "scores", "logfoldchanges", "pvals", "pvals_adj"):
        one, other = adata.uns["rank_genes_groups"][name], back.uns["rank_genes_groups"][name]
        assert one.dtype.names == other.dtype.names
        assert one.tolist() == other.tolist()
    to_scanpy(back, key_added="again")  # also from what comes back from a file
    assert back.uns["again"]["names"].tolist() == adata.uns["rank_genes_groups"]["names"].tolist()


def test_the_layout_of_scanpy() -> None:
    adata, table = done()
    to_scanpy(adata)
    found = adata.uns["rank_genes_groups"]
    groups = ("condition stim vs ctrl", "sex m vs f")
    assert found["names"].dtype.names == groups
    for name, kind in (("scores", "f4"), ("logfoldchanges", "f4"), ("pvals", "f8"), ("pvals_adj", "f8")):
        assert found[name].dtype == np.dtype([(g, kind) for g in groups])
        assert found[name].shape == (6,)
    part = table[table["contrast"] == "condition: stim vs ctrl"].set_index("variable")
    assert (np.diff(found["scores"][groups[0]]) <= 0).all()
    ordered = part.loc[list(found["names"][groups[0]])]
    np.testing.assert_allclose(found["logfoldchanges"][groups[0]], ordered["log_fc"], rtol=1e-6)
    np.testing.assert_allclose(found["scores"][groups[0]], ordered["log_fc"] / ordered["log_fc_sd"], rtol=1e-6)
    np.testing.assert_array_equal(found["pvals"][groups[0]], ordered["pval"])
    np.testing.assert_array_equal(found["pvals_adj"][groups[0]], ordered["padj"])
    assert found["params"]["corr_method"] == "benjamini-hochberg"
    np.testing.assert_array_equal(found["pts"][groups[0]].loc[list(GENES)], part["detection_test"].loc[list(GENES)])
    np.testing.assert_array_equal(found["pts_rest"][groups[0]].loc[list(GENES)], part["detection_ref"].loc[list(GENES)])


def test_groups_are_levels_where_they_can_be() -> None:
    adata, de = experiment(), fitted()
    write_results(adata, de.test(STIM), result_parameters(de, de.cells.design.contrasts(STIM)))
    to_scanpy(adata, key_added="mine")
    assert adata.uns["mine"]["names"].dtype.names == ("stim",)
    table = adata.uns["ziln_de"]["table"].set_index("variable").loc[list(adata.uns["mine"]["names"]["stim"])]
    np.testing.assert_array_equal(adata.uns["mine"]["pvals"]["stim"], table["lfsr"])  # without random effects
    np.testing.assert_array_equal(adata.uns["mine"]["pvals_adj"]["stim"], table["expected_fdr"])
    assert adata.uns["mine"]["params"] == {
        "groupby": "condition",
        "reference": "ctrl",
        "method": "pyro_zilognormal",
        "use_raw": False,
        "corr_method": "expected_fdr",
    }


def test_genes_of_raw() -> None:
    adata = experiment()
    adata.raw = adata.copy()
    adata = adata[:, ["same", "up"]].copy()
    table = differential_expression(adata, "~ condition", STIM, steps=10, use_raw=True, key_added="r")
    assert sorted(table["variable"]) == sorted(GENES)
    wanted = table.set_index("variable")["log_fc"].loc[["same", "up"]]
    np.testing.assert_array_equal(adata.varm["r_log_fc"][:, 0], wanted)


def types() -> anndata.AnnData:
    adata = experiment()
    adata.obs["type"] = pd.Categorical(np.resize(["CD4+/CD25 T Reg", "B: naive", "NK"], 160))
    return adata


@zarr2
@pytest.mark.parametrize(("reference", "kind"), [("rest", "h5ad"), ("NK", "zarr")])
def test_groups_of_any_name(reference: str, kind: str, tmp_path: pathlib.Path) -> None:
    adata = types()
    groups = ["CD4+/CD25 T Reg", "B: naive"]
    table = differential_expression(adata, groupby="type", groups=groups, reference=reference, steps=10)
    assert table["contrast"].unique().tolist() == [f"{g} vs {reference}" for g in groups]
    to_scanpy(adata)
    back = through(adata, kind, tmp_path)
    assert back.uns["rank_genes_groups"]["names"].dtype.names == ("CD4+/CD25 T Reg", "B naive")
    assert back.uns["rank_genes_groups"]["params"]["groupby"] == "type"
    assert back.uns["rank_genes_groups"]["params"]["reference"] == reference
    assert list(adata.obs.columns) == [*frame().columns, "type"]


# Levels, and the groups that scanpy reads.
NAMED = {
    "none": (["", "b"], [" vs ref", "b vs ref"]),
    "any": (
        ["1:10", "1_10", "a/b", "b", "-TNF", "$\\frac{$", "基因😀", "\n", " lead"],
        ["110", "1_10", "a/b", "b", "-TNF", "$\\frac{$", "基因😀", "\n", " lead"],
    ),
}


@zarr2
@pytest.mark.parametrize("case", NAMED)
def test_each_level_is_a_group_of_its_own(case: str, tmp_path: pathlib.Path) -> None:
    levels, wanted = NAMED[case]
    adata = experiment()
    adata.obs["type"] = pd.Categorical(np.resize([*levels, "ref"], 160))
    table = differential_expression(adata, groupby="type", reference="ref", steps=10)
    to_scanpy(adata)
    for back in (adata, *(through(adata, kind, tmp_path) for kind in WRITERS)):
        found = back.uns["rank_genes_groups"]
        assert sorted(groups(found)) == sorted(wanted)
        assert len(rank_genes_groups_df(found, None)) == len(table)
        for level, group in zip(levels, wanted, strict=True):
            own = table[table["contrast"] == f"{level} vs ref"].set_index("variable")["log_fc"]
            part = rank_genes_groups_df(found, group).set_index("names")["logfoldchanges"]
            np.testing.assert_allclose(part, own.loc[part.index], rtol=1e-6)


def test_levels_that_are_one_without_colons_are_refused() -> None:
    adata = experiment()
    adata.obs["type"] = pd.Categorical(np.resize(["1:1", "11", "ref"], 160))
    differential_expression(adata, groupby="type", reference="ref", steps=10)
    with pytest.raises(SingleCellError, match=r"1:1.* are one without colons.*rename a level"):
        to_scanpy(adata)
    assert "rank_genes_groups" not in adata.uns


def test_groups_are_contrasts() -> None:
    adata = types()
    members = adata.obs["type"] == "NK"
    by_group = differential_expression(adata, groupby="type", groups="NK", steps=10, copy=True)
    assert not list(adata.uns)  # a copy leaves the data as they are
    assert not list(adata.varm)
    assert list(adata.obs.columns) == [*frame().columns, "type"]
    adata.obs["is_nk"] = np.where(members, "yes", "no")
    by_formula = differential_expression(adata, "~ is_nk", ("is_nk", "yes", "no"), steps=10, copy=True)
    pd.testing.assert_frame_equal(by_group.drop(columns="contrast"), by_formula.drop(columns="contrast"))
    against: Any = differential_expression(adata, groupby="type", reference="NK", steps=10, copy=True)
    assert against["contrast"].unique().tolist() == ["B: naive vs NK", "CD4+/CD25 T Reg vs NK"]
    contrasts = [("type", g, "NK") for g in ("B: naive", "CD4+/CD25 T Reg")]
    same = differential_expression(adata, "~ type", contrasts, steps=10, copy=True)
    pd.testing.assert_frame_equal(against.drop(columns="contrast"), same.drop(columns="contrast"))
