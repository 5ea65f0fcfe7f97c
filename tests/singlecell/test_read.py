"""What is read from an AnnData is what stands in it, in whatever form it is stored."""

from __future__ import annotations

import pathlib
import tracemalloc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from pyro_zilognormal import SufficientStatistics
from pyro_zilognormal.singlecell import HurdleDE, SingleCellError, open_cells
from pyro_zilognormal.sufficient import rows as rows_module
from tests.singlecell.cell_cases import GENES, experiment, frame, values


def expected(x: np.ndarray | None = None) -> torch.Tensor:
    groups = (frame()["condition"] == "stim").astype(int).to_numpy()
    return SufficientStatistics.from_cells(values() if x is None else x, groups, 2).value


def with_duplicates(x: np.ndarray) -> sp.csr_matrix:
    """Every value as two entries that add up to it, in no order."""
    rows, columns = x.nonzero()
    data = x[rows, columns]
    order = np.random.default_rng(0).permutation(2 * len(data))
    parts = np.concatenate([data / 4, data * 3 / 4])[order]
    index = (np.tile(rows, 2)[order], np.tile(columns, 2)[order])
    coo = sp.coo_matrix((parts, index), shape=x.shape)
    counts = np.bincount(index[0], minlength=x.shape[0])
    by_row = np.argsort(coo.row, kind="stable")
    pointers = np.concatenate([[0], np.cumsum(counts)])
    return sp.csr_matrix((coo.data[by_row], coo.col[by_row], pointers), shape=x.shape)


IN_MEMORY: dict[str, Callable[[np.ndarray], Any]] = {
    "dense": lambda x: x,
    "columns first": np.asfortranarray,
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "csr array": sp.csr_array,
    "csc array": sp.csc_array,
    "duplicates": with_duplicates,
}


@pytest.mark.parametrize("form", IN_MEMORY)
def test_forms_in_memory(form: str) -> None:
    de = HurdleDE(experiment(x=IN_MEMORY[form](values())), "~ condition")
    torch.testing.assert_close(de.data.value, expected(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("how", ["backed", "h5ad", "zarr"])
@pytest.mark.parametrize(
    ("place", "form"),
    [("X", "dense"), ("X", "csr"), ("X", "csc"), ("layer", "csr"), ("layer", "dense"), ("raw", "csr")],
)
@pytest.mark.filterwarnings("ignore:Writing zarr v2 data will no longer be the default:UserWarning")
def test_forms_on_disk(form: str, how: str, place: str, tmp_path: pathlib.Path) -> None:
    adata = experiment(x=IN_MEMORY[form](values()))
    if place != "X":
        adata.layers["linear"], adata.raw, adata.X = adata.X.copy(), adata.copy(), np.ones(adata.shape)
    path = tmp_path / f"cells.{'zarr' if how == 'zarr' else 'h5ad'}"
    (adata.write_zarr if how == "zarr" else adata.write_h5ad)(path)
    chosen = {"X": {}, "layer": {"layer": "linear"}, "raw": {"use_raw": True}}[place]
    if how == "backed":
        value = HurdleDE(anndata.read_h5ad(path, backed="r"), "~ condition", **chosen).data.value
    else:
        with open_cells(path) as cells:
            value = HurdleDE(cells, "~ condition", **chosen).data.value
    torch.testing.assert_close(value, expected(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("form", ["dense", "csr", "csc"])
def test_a_view_is_read_and_left_as_it_is(form: str) -> None:
    adata = experiment(x=IN_MEMORY[form](values()))
    view = adata[::-1, ["same", "up"]]
    de = HurdleDE(view, "~ condition")
    assert view.is_view
    assert de.genes == ["same", "up"]
    torch.testing.assert_close(de.data.value, expected()[:, [3, 0]], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("form", IN_MEMORY)
@pytest.mark.parametrize(
    ("scale", "store"),
    [
        ("log1p", np.log1p),
        ("log2p1", lambda x: np.log1p(x) / np.log(2)),
        ("log10p1", lambda x: np.log1p(x) / np.log(10)),
    ],
)
def test_logarithms_are_undone(form: str, scale: str, store: Callable[[Any], Any]) -> None:
    stored = store(values())
    adata = experiment(x=IN_MEMORY[form](stored))
    before = adata.X.copy()
    de = HurdleDE(adata, "~ condition", scale=scale)
    torch.testing.assert_close(de.data.value, expected(), rtol=1e-12, atol=1e-12)
    assert abs(adata.X - before).max() == 0


def test_tiny_logarithms_lose_no_digits() -> None:
    tiny = np.where(values() > 0, values() * 1e-12, 0)
    de = HurdleDE(experiment(x=np.log1p(tiny)), "~ condition", scale="log1p")
    torch.testing.assert_close(de.data.value, expected(tiny), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", IN_MEMORY)
def test_threshold_is_on_the_linear_scale(form: str) -> None:
    threshold = float(np.median(values()[values() > 0]))  # a value that is there: at most it is a zero
    cut = np.where(values() > threshold, values(), 0)
    linear = HurdleDE(experiment(x=IN_MEMORY[form](values())), "~ condition", detection_threshold=threshold)
    torch.testing.assert_close(linear.data.value, expected(cut), rtol=1e-12, atol=1e-12)
    logged = experiment(x=IN_MEMORY[form](np.log1p(values())))
    de = HurdleDE(logged, "~ condition", scale="log1p", detection_threshold=threshold * (1 + 1e-9))
    torch.testing.assert_close(de.data.value, expected(cut), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.float32, bool])
@pytest.mark.parametrize("make", [np.asarray, sp.csr_matrix])
def test_dtypes(dtype: Any, make: Any) -> None:
    counts = np.minimum(values().round(), 9).astype(dtype)
    de = HurdleDE(experiment(x=make(counts)), "~ condition", offset=np.zeros(160))
    torch.testing.assert_close(de.data.value, expected(counts.astype(float)), rtol=1e-12, atol=1e-12)


class Watched:
    """A matrix that notes which slices are asked for."""

    def __init__(self, matrix: Any, **attributes: Any) -> None:
        self.matrix, self.shape, self.slices = matrix, matrix.shape, []
        self.__dict__.update(attributes)

    def __getitem__(self, key: Any) -> Any:
        self.slices.append(key)
        return self.matrix[key]


def test_rows_are_read_once_in_bounded_blocks_and_counts_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "VALUES_A_BLOCK", 60)
    blocks = [(i, i + 10) for i in range(0, 160, 10)]
    watched = Watched(values())
    cells = Lookalike(experiment(), watched)
    de = HurdleDE(cells, "~ condition", scale="linear")
    torch.testing.assert_close(de.data.value, expected(), rtol=1e-13, atol=1e-13)
    assert [(s.start, s.stop) for s in watched.slices] == blocks
    watched = Watched(np.ceil(values()))
    HurdleDE(Lookalike(experiment(), watched), "~ condition", scale="counts")
    assert [(s.start, s.stop) for s in watched.slices] == 2 * blocks
    declared = Lookalike(experiment(), Watched(np.log1p(values())))
    declared.uns["log1p"] = {"base": None}
    assert HurdleDE(declared, "~ condition").settings["scale"] == "log1p"
    assert [(s.start, s.stop) for s in declared.X.slices] == blocks


def test_an_infinite_logarithm_in_a_later_block_is_named_as_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "VALUES_A_BLOCK", 60)
    stored = np.log1p(values())
    stored[17, 3] = np.inf
    with pytest.raises(SingleCellError, match="inf in cell 'cell17', gene 'same'; needed finite"):
        HurdleDE(experiment(x=stored), "~ condition", scale="log1p")


def test_columns_are_read_once_in_bounded_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "VALUES_A_BLOCK", 150)
    matrix = sp.csc_matrix(values())
    watched = Watched(matrix.T, indptr=matrix.indptr)
    cells = Lookalike(experiment(), SimpleNamespace(shape=matrix.shape, format="csc", T=watched))
    de = HurdleDE(cells, "~ condition", scale="linear")
    torch.testing.assert_close(de.data.value, expected(), rtol=1e-13, atol=1e-13)
    columns = watched.slices
    assert [c.start for c in columns] == [0, *(c.stop for c in columns[:-1])]
    assert columns[-1].stop == len(GENES)
    counts = [matrix.indptr[c.stop] - matrix.indptr[c.start] for c in columns]
    assert all(n <= 150 or c.stop == c.start + 1 for n, c in zip(counts, columns, strict=True))
    assert len(columns) > 2


class Lookalike:
    """An AnnData but for its matrix."""

    def __init__(self, adata: anndata.AnnData, matrix: Any) -> None:
        self.obs, self.var_names, self.obs_names = adata.obs, adata.var_names, adata.obs_names
        self.layers, self.uns, self.raw, self.X = {}, {}, None, matrix


@pytest.mark.parametrize("settings", [{"offset": np.zeros(4000)}, {}])
@pytest.mark.parametrize("form", ["dense", "csr", "csc"])
def test_memory_is_bounded_whatever_the_file(
    form: str, settings: dict[str, Any], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "VALUES_A_BLOCK", 1 << 15)
    cells, genes = 4000, 500
    x = sp.random(cells, genes, 1.0 if form == "dense" else 0.5, random_state=0, format="csr")
    x.data = np.ceil(np.exp(9 * x.data))
    obs = pd.DataFrame({"condition": ["a", "b"] * (cells // 2)}, index=np.arange(cells).astype(str))
    adata = anndata.AnnData(x.toarray() if form == "dense" else IN_MEMORY[form](x), obs)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with open_cells(tmp_path / "cells.h5ad") as file:
        tracemalloc.start()
        HurdleDE(file, "~ condition", **settings)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < (16e6 if form == "dense" else 12e6) / 2.0  # what the values alone would take


def test_offsets_are_taken_from_logs() -> None:
    adata = experiment()
    adata.obs["size"] = np.linspace(-1, 1, 160)
    groups = (frame()["condition"] == "stim").astype(int).to_numpy()
    wanted = SufficientStatistics.from_cells(values(), groups, 2, adata.obs["size"].to_numpy()).value
    by_name = HurdleDE(adata, "~ condition", offset="size")
    by_value = HurdleDE(adata, "~ condition", offset=adata.obs["size"].to_numpy())
    for de in (by_name, by_value):
        torch.testing.assert_close(de.data.value, wanted, rtol=1e-13, atol=1e-13)
    assert by_name.settings["offset"] == "size"
    assert by_value.settings["offset"] == "array"


@pytest.mark.parametrize("form", ["dense", "csr", "csc"])
def test_cells_are_kept_where_each_has_its_own_row(form: str) -> None:
    de = HurdleDE(experiment(x=IN_MEMORY[form](values())), "~ condition + age", donor="donor")
    kept = de.data.value if form == "dense" else torch.from_numpy(de.data.value.toarray())
    assert torch.equal(kept, torch.from_numpy(values()))
    assert not de.data.reduced
    assert de.data.levels == (8,)
    assert torch.equal(de.data.design[:, 2], torch.from_numpy(frame()["age"].to_numpy()))


@pytest.mark.filterwarnings("ignore:the sd of log x")
@pytest.mark.parametrize(("value", "shown"), [(1e-50, "1e-50"), (1e50, r"1e\+50")])
def test_kept_values_must_fit_in_minibatches(value: float, shown: str, tmp_path: pathlib.Path) -> None:
    """Those of sparse cells, in memory and on disk, have torch's default dtype."""
    x = values()
    x[3, 2] = value
    experiment(x=sp.csr_matrix(x)).write_h5ad(tmp_path / "cells.h5ad")
    says = rf"{shown} in cell 'cell3', gene 'seen', which float32 cannot hold; needed other units"
    with open_cells(tmp_path / "cells.h5ad") as on_disk:
        for adata in (experiment(x=sp.csr_matrix(x)), on_disk):
            with pytest.raises(SingleCellError, match=says):
                HurdleDE(adata, "~ condition + age")
    HurdleDE(experiment(x=x), "~ condition + age")  # dense ones keep their dtype
    HurdleDE(experiment(x=sp.csr_matrix(x)), "~ condition")
    if value < 1:
        HurdleDE(experiment(x=sp.csr_matrix(x)), "~ condition + age", detection_threshold=1e-30)


@pytest.mark.parametrize("formula", ["~ condition", "~ condition + age"])
def test_arms_are_what_the_cells_show(formula: str) -> None:
    de = HurdleDE(experiment(), formula, donor="donor")
    obs, x = frame(), values()
    for levels in ({"condition": "stim"}, {"condition": "ctrl"}, {}):
        mask = np.all([obs[k] == v for k, v in levels.items()], axis=0) if levels else np.ones(160, bool)
        arm = de.cells.arms([levels])[0]
        assert arm.cells == mask.sum()
        np.testing.assert_array_equal(arm.positive, (x[mask] > 0).sum(0))
        np.testing.assert_allclose(arm.mean, x[mask].mean(0), rtol=1e-12)
        np.testing.assert_allclose(arm.detection, (x[mask] > 0).mean(0), rtol=1e-12)
