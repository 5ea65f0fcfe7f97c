"""The same study gives the same table, wherever its cells are and in whatever order they come."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import anndata
import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from pyro_zilognormal.singlecell import Cube, differential_expression, open_cells, reduce
from pyro_zilognormal.singlecell.files import stored_matrix
from pyro_zilognormal.sufficient import rows
from tests.singlecell.cell_cases import STIM, experiment, values


def study() -> anndata.AnnData:
    """Logarithms of the expression of six genes in two conditions, as a CSR."""
    return experiment(x=sp.csr_matrix(np.log1p(values())))


def from_file(folder: Path, kind: str, dask: bool = False) -> AbstractContextManager[Any]:
    path = folder / f"cells.{kind}"
    getattr(study(), f"write_{kind}")(path)
    opened: AbstractContextManager[Any] = open_cells(path, dask=dask)
    return opened


def on_dask(make: Callable[[np.ndarray], Any]) -> AbstractContextManager[Any]:
    adata = study()
    adata.X = da.from_array(adata.X.toarray(), chunks=(50, 4)).map_blocks(make, meta=make(np.zeros((0, 0))))
    return nullcontext(adata)


def in_another_order() -> AbstractContextManager[Any]:
    return nullcontext(study()[np.random.default_rng(0).permutation(160)].copy())


def reduced(folder: Path) -> Cube:
    """A cube that has been to disk."""
    reduce(study(), ["condition"], scale="log1p").save(folder / "cube.zarr")
    return Cube.load(folder / "cube.zarr")


# Where the cells may be: each makes an AnnData, with a folder for files.
SOURCES: dict[str, Callable[[Path], AbstractContextManager[Any]]] = {
    "h5ad": lambda folder: from_file(folder, "h5ad"),
    "zarr": lambda folder: from_file(folder, "zarr"),
    "h5ad on Dask": lambda folder: from_file(folder, "h5ad", dask=True),
    "dask array": lambda folder: on_dask(sp.csr_matrix),
    "another order": lambda folder: in_another_order(),
    "cube": lambda folder: nullcontext(reduced(folder)),
}


def table_of(adata: Any) -> pd.DataFrame:
    with dask.config.set(scheduler="threads"):  # not a cluster to which a client of another test is connected
        table = differential_expression(adata, "~ condition", STIM, scale="log1p", draws=200, steps=10, copy=True)
    found: pd.DataFrame = table.sort_values("variable", ignore_index=True)
    return found


@functools.cache
def from_memory() -> pd.DataFrame:
    """The table from one block in memory."""
    return table_of(study())


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data will no longer be the default:UserWarning")
@pytest.mark.parametrize("source", SOURCES)
def test_the_table_does_not_depend_on_where_the_cells_are(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = from_memory()
    monkeypatch.setattr(rows, "VALUES_A_BLOCK", 150)
    monkeypatch.setattr(stored_matrix, "_VALUES_A_TASK", 150)
    with SOURCES[source](tmp_path) as adata:
        found = table_of(adata)
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-9, atol=1e-9)
