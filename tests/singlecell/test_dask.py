"""An AnnData of dask arrays is read like one in memory: values, totals, genes, errors, and files on workers."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import anndata
import cloudpickle
import dask
import dask.array as da
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from distributed import KilledWorker, LocalCluster

from pyro_zilognormal.models import HurdleModel
from pyro_zilognormal.models.hurdle import data
from pyro_zilognormal.models.hurdle.cells import CellLikelihood
from pyro_zilognormal.singlecell import HurdleDE, SingleCellError, open_cells
from pyro_zilognormal.singlecell.cli.cluster import cluster
from pyro_zilognormal.singlecell.embed import embed
from pyro_zilognormal.singlecell.files import stored_matrix
from tests.cli.cli_cases import ASKED, file_of, run
from tests.singlecell import hostile_files
from tests.singlecell.cell_cases import experiment, values

FORMS: dict[str, Callable[[np.ndarray], Any]] = {"dense": np.asarray, "csr": sp.csr_matrix, "csc": sp.csc_array}
COUNTS = np.round(values() * 100)


def blocked(x: np.ndarray, form: str = "csr", chunks: Any = (50, 4)) -> Any:
    return da.from_array(x, chunks=chunks).map_blocks(FORMS[form], meta=np.zeros((0, 0), x.dtype))


def travelling(graph: Any, keys: Any, **options: Any) -> Any:
    """A scheduler whose tasks have been pickled and unpickled, as on a cluster."""
    return dask.get(cloudpickle.loads(cloudpickle.dumps(dict(graph.__dask_graph__()))), keys)


@contextmanager
def on_workers() -> Iterator[None]:
    with dask.config.set(scheduler=travelling):
        yield


def assert_same_cells(found: HurdleDE, wanted: HurdleDE) -> None:
    torch.testing.assert_close(found.data.value, wanted.data.value, rtol=1e-12, atol=1e-12)
    columns = [5, 0, 3, 4]  # in an order that chunks of columns have not
    np.testing.assert_allclose(found.cells.genes(columns), wanted.cells.genes(columns), rtol=1e-12)
    np.testing.assert_allclose(found.cells.log_skewness, wanted.cells.log_skewness, rtol=1e-9)
    np.testing.assert_allclose(found.cells.arms([{}])[0].mean, wanted.cells.arms([{}])[0].mean, rtol=1e-12)


@pytest.mark.parametrize("place", ["X", "layer", "raw"])
@pytest.mark.parametrize("form", FORMS)
def test_dask_arrays_are_read_where_they_are(form: str, place: str) -> None:
    array = blocked(values(), form)
    adata = experiment(x=array if place == "X" else np.ones((160, 6)))
    if place == "layer":
        adata.layers["linear"] = array
    elif place == "raw":
        adata.raw = experiment(x=array)
    chosen = {"X": {}, "layer": {"layer": "linear"}, "raw": {"use_raw": True}}[place]
    with on_workers():
        assert_same_cells(
            HurdleDE(adata, "~ condition", donor="donor", **chosen),
            HurdleDE(experiment(), "~ condition", donor="donor"),
        )


@pytest.mark.parametrize("form", FORMS)
def test_counts_have_their_totals(form: str) -> None:
    found = HurdleDE(experiment(x=blocked(COUNTS, form)), "~ condition", depth="auto")
    assert (found.settings["scale"], found.settings["depth"]) == ("counts", "total counts")
    assert_same_cells(found, HurdleDE(experiment(x=COUNTS), "~ condition", depth="auto"))


@pytest.mark.parametrize("chunks", [(50, 4), (50, -1)], ids=["columns", "rows"])
@pytest.mark.parametrize("form", FORMS)
def test_single_cells_are_kept_where_covariates_are_their_own(form: str, chunks: Any) -> None:
    """On the workers, if chunks have whole rows."""
    found = HurdleDE(experiment(x=blocked(values(), form, chunks)), "~ condition + age").data.value
    assert getattr(found, "on_dask", False) == (chunks == (50, -1))
    order = np.random.default_rng(0).permutation(160)
    for rows in (slice(None), order):
        np.testing.assert_allclose(sp.csr_matrix(found[rows]).toarray(), values()[rows], rtol=1e-15)


@pytest.mark.parametrize("form", ["dense", "csr"])
def test_passes_over_cells_run_on_workers(form: str) -> None:
    """Log density, score and information are those from memory, of all genes and of some, with donors' strata."""
    found = []
    for x in (FORMS[form](values()), blocked(values(), form, (50, -1))):
        de = HurdleDE(experiment(x=x), "~ condition + age", donor="donor", scale="linear")
        model = HurdleModel(de.data)
        block = model.hierarchy.coefficients
        theta = 0.3 * torch.randn(6, block.width, generator=torch.Generator().manual_seed(0)).double()
        likelihood, slope, some = CellLikelihood(model.centred(de.data), block), torch.ones(1).double(), [4, 1]
        with on_workers():
            whole = likelihood.derivatives(theta, slope)
            part = likelihood.derivatives(theta[some], slope, observed=True, genes=torch.tensor(some))
        torch.testing.assert_close(part[0], whole[0][some], rtol=1e-12, atol=1e-12)
        found.append((*whole, *part))
    for own, wanted in zip(*found, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-10, atol=1e-10)


def test_the_table_with_covariates_of_cells_is_that_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide starts from half of the cells, and passes over all of them follow."""
    monkeypatch.setattr(data, "_MOST_CELLS", 80)
    tables = []
    for x in (sp.csr_matrix(values()), blocked(values(), "csr", (50, -1))):
        adata = experiment(x=x)[:, ["same", "up"]]
        fitted = HurdleDE(adata, "~ condition + age", scale="linear", draws=100).fit(steps=10)
        tables.append(fitted.test({"age": ("age=70", "age=60")}))
    pd.testing.assert_frame_equal(*tables, rtol=1e-9)


def test_a_view_is_read() -> None:
    view = experiment(x=blocked(values()))[::-1, ["same", "up"]]
    wanted = HurdleDE(experiment()[:, ["same", "up"]], "~ condition").data.value
    torch.testing.assert_close(HurdleDE(view, "~ condition").data.value, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("form", "kind"), [*((form, "h5ad") for form in FORMS), ("csr", "zarr")])
@pytest.mark.filterwarnings("ignore:Writing zarr v2 data will no longer be the default:UserWarning")
def test_workers_read_a_file_by_themselves(
    form: str, kind: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_matrix, "_VALUES_A_TASK", 100)
    monkeypatch.chdir(tmp_path)
    adata = experiment(x=FORMS[form](values()))
    adata.layers["l"], adata.raw = adata.X.copy(), adata.copy()
    getattr(adata, f"write_{kind}")("cells." + kind)
    with open_cells(f"cells.{kind}", dask=True) as cells, on_workers():
        monkeypatch.chdir("/")  # workers may have another folder
        for chosen in ({}, {"layer": "l"}, {"use_raw": True}):
            assert_same_cells(
                HurdleDE(cells, "~ condition", scale="linear", **chosen), HurdleDE(experiment(), "~ condition")
            )
        assert all(max(matrix.numblocks) > 2 for matrix in (cells.X, cells.layers["l"], cells.raw.X))


@pytest.mark.parametrize("name", ["an index of 10^8", "an index of -1"])
@pytest.mark.parametrize("form", ["csr", "csc"])
def test_damaged_indices_are_refused_by_whoever_reads_them(name: str, form: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cells.h5ad"
    hostile_files.cells(form).write_h5ad(path)
    with h5py.File(path, "a") as file:
        hostile_files.SPARSE[name](file["X"])
    refused = pytest.raises(SingleCellError, match=r"adata\.X is damaged: ")
    with open_cells(path, dask=True) as adata, on_workers(), refused:
        HurdleDE(adata, "~ condition", scale="linear")
    with h5py.File(path, "r") as file, on_workers(), refused:
        lazy = experiment(x=anndata.experimental.read_elem_lazy(file["X"]))
        HurdleDE(lazy, "~ condition", scale="linear")


def test_a_damaged_indptr_is_told_when_the_file_is_opened_and_refused_when_it_is_used(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cells.h5ad"
    hostile_files.cells().write_h5ad(path)
    with h5py.File(path, "a") as file:
        hostile_files.SPARSE["an indptr that falls"](file["X"])
    with pytest.warns(UserWarning, match=r"left out .*: X \(adata\.X is damaged: its indptr"):
        adata = open_cells(path, dask=True)
    with pytest.raises(SingleCellError, match=r"adata: X cannot be read: adata\.X is damaged: its indptr"):
        HurdleDE(adata, "~ condition", scale="linear")


def test_a_file_that_a_worker_lacks_is_told(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cells.h5ad"
    experiment().write_h5ad(path)
    with open_cells(path, dask=True) as adata, on_workers():
        path.unlink()
        with pytest.raises(SingleCellError, match=r"adata\.X cannot be read; .*No such file"):
            HurdleDE(adata, "~ condition", scale="linear")


BAD: dict[str, tuple[float, dict[str, Any], str]] = {
    "negative": (-1.0, {"scale": "linear"}, "-1 in cell 'cell117', gene 'often': values are centred"),
    "NaN": (np.nan, {"scale": "linear"}, "nan in cell 'cell117', gene 'often'; needed finite"),
    "infinite": (np.inf, {"scale": "log1p"}, "inf in cell 'cell117', gene 'often'; needed finite"),
    "no logarithm": (1000.0, {"scale": "log1p"}, "once scale='log1p' is undone"),
    "no count": (0.5, {"scale": "counts"}, "0.5 in cell 'cell117', gene 'often'; needed whole numbers"),
    "unknown scale": (1.5, {"scale": "log"}, "needed one of 'linear', 'log1p'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_is_named_as_in_memory(name: str) -> None:
    value, chosen, words = BAD[name]
    x = COUNTS.copy() if chosen["scale"] == "counts" else np.log1p(values())
    x[117, 4] = value
    with pytest.raises(SingleCellError, match=words) as in_memory:
        HurdleDE(experiment(x=x), "~ condition", **chosen)
    with on_workers(), pytest.raises(SingleCellError) as on_dask:
        HurdleDE(experiment(x=blocked(x)), "~ condition", **chosen)
    assert str(on_dask.value) == str(in_memory.value)


@pytest.mark.parametrize(("stored", "scale"), [(np.log1p(values()), "log1p"), (values(), "linear")])
def test_the_scale_is_found_on_workers(stored: np.ndarray, scale: str) -> None:
    """Logarithms are known as such by the largest of all values, of more blocks than this process looks at."""
    adata = experiment(x=blocked(stored, chunks=(10, 4)))
    if scale == "log1p":
        with on_workers(), pytest.raises(SingleCellError, match=f"largest value is {stored.max():.3g}"):
            HurdleDE(adata, "~ condition")
        adata.uns["log1p"] = {}
    with on_workers():
        assert HurdleDE(adata, "~ condition").settings["scale"] == scale


def test_all_values_together_are_checked() -> None:
    with pytest.raises(SingleCellError, match="holds whole numbers, as raw counts do"):
        HurdleDE(experiment(x=blocked(COUNTS)), "~ condition", scale="linear")
    with pytest.raises(SingleCellError, match="no value above the detection threshold"):
        HurdleDE(experiment(x=blocked(values())), "~ condition", scale="linear", detection_threshold=1e9)


def test_an_embedding_of_a_dask_array_is_refused() -> None:
    with pytest.raises(SingleCellError, match=r"adata\.X is a dask array.*open_cells\(path\)"):
        embed(experiment(x=blocked(values())))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("--workers", "0"), "'0' is not a whole number of at least 1"),
        (("--workers", "2", "--cluster", "tcp://localhost:8786"), "not allowed with argument"),
        (("--cluster", "localhost"), "cluster: 'localhost' is no address"),
    ],
)
def test_the_command_line_refuses(asked: tuple[str, ...], says: str, tmp_path: pathlib.Path) -> None:
    ran = run("de", file_of(tmp_path), *ASKED, *asked, "--out", tmp_path / "out")
    assert (ran.code, ran.problems.count("\n")) == (2, 1), ran
    assert says in ran.problems


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
@pytest.mark.parametrize("shape", [(0, 6), (160, 0)])
def test_an_empty_file_is_told(shape: tuple[int, int], form: str, tmp_path: pathlib.Path) -> None:
    empty = experiment()[: shape[0], : shape[1]].copy()
    empty.X = FORMS[form](empty.X)
    empty.write_h5ad(tmp_path / "cells.h5ad")
    refused = pytest.raises(SingleCellError, match=r"adata\.X is empty, of shape")
    with open_cells(tmp_path / "cells.h5ad", dask=True) as adata, refused:
        HurdleDE(adata, "~ condition")


@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (
            KilledWorker("a task", SimpleNamespace(address="tcp://there"), 3),
            ChildProcessError,
            "lack of memory; use fewer --workers",
        ),
        (CancelledError("lost"), ConnectionError, "the connection to .* was lost"),
    ],
)
def test_a_cluster_that_fails_is_told(error: Exception, raised: type[Exception], words: str) -> None:
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as scheduler,
        pytest.raises(raised, match=words),
        cluster(None, scheduler.scheduler_address),
    ):
        raise error


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*left out what anndata cannot read:UserWarning")
def test_each_hostile_file_is_refused_by_workers_too(tmp_path: pathlib.Path) -> None:
    for name, place, path in hostile_files.write_all(tmp_path):
        with on_workers():
            said = hostile_files.read(path, place, dask=True)
        assert "\n" not in said
        assert (said == "") is name.startswith("good"), (name, said)


@pytest.mark.slow
def test_the_command_line_on_workers_writes_the_same_table(tmp_path: pathlib.Path) -> None:
    path = file_of(tmp_path)
    for out, more in (("here", ()), ("there", ("--workers", "2"))):
        assert run("de", path, *ASKED, *more, "--out", tmp_path / out).code == 0
    here, there = ((tmp_path / out / "de.csv").read_text() for out in ("here", "there"))
    assert here == there
