"""Files that are none of cells, and packages that are not there: one line that says so, and what to do."""

from __future__ import annotations

import json
import os
import pathlib
import warnings
from collections.abc import Callable

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from pyro_zilognormal.singlecell import HurdleDE, SingleCellError, open_cells
from tests.singlecell.cell_cases import experiment, values


# What is no file of cells, and what is said of it.
def _missing(path: pathlib.Path) -> None: ...


def _text(path: pathlib.Path) -> None:
    path.write_text("gene,cell\n")


def _empty(path: pathlib.Path) -> None:
    path.write_bytes(b"")


def _truncated(path: pathlib.Path) -> None:
    experiment().write_h5ad(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _other_hdf5(path: pathlib.Path) -> None:
    with h5py.File(path, "w") as file:
        file["data"] = [1, 2]


def _obs_is_no_table(path: pathlib.Path) -> None:
    with h5py.File(path, "w") as file:
        file["obs"] = [1, 2]
        file["var"] = [1, 2]


def _pipe(path: pathlib.Path) -> None:
    os.mkfifo(path)


def _folder(path: pathlib.Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_missing, "does not exist; needed an h5ad or zarr file"),
        (_pipe, "is no file; needed an h5ad or zarr file"),
        (_text, "cannot be read as an AnnData .*; needed a whole file that anndata wrote"),
        (_empty, "cannot be read as an AnnData"),
        (_truncated, "cannot be read as an AnnData"),
        (_other_hdf5, "cannot be read as an AnnData .*it has no obs"),
        (_obs_is_no_table, "cannot be read as an AnnData .its obs is not a table"),
        (_folder, "cannot be read as an AnnData"),
    ],
)
def test_bad_files(spoil: Callable[[pathlib.Path], None], says: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cells.h5ad"
    spoil(path)
    with pytest.raises(SingleCellError, match=says) as caught:
        open_cells(path)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data will no longer be the default:UserWarning")
@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_an_open_file_is_an_anndata_whose_matrices_are_on_disk(kind: str, tmp_path: pathlib.Path) -> None:
    made = experiment(x=sp.csr_matrix(values()))
    made.layers["dense"], made.raw, made.uns["log1p"] = values(), made.copy(), {"base": None}
    made.obsm["pca"], made.obsm["table"] = values()[:, :2], made.obs[["age"]]
    getattr(made, f"write_{kind}")(tmp_path / f"cells.{kind}")
    cells = open_cells(tmp_path / f"cells.{kind}")
    assert isinstance(cells, anndata.AnnData)
    for matrix in (cells.X, cells.layers["dense"], cells.raw.X, cells.obsm["pca"]):
        assert not isinstance(matrix, np.ndarray | sp.spmatrix)
    pd.testing.assert_frame_equal(cells.obs, made.obs, check_categorical=False, check_dtype=False)
    pd.testing.assert_frame_equal(cells.obsm["table"], made.obsm["table"])
    assert "log1p" in cells.uns
    view, memory = cells[10:20, ["up", "same"]], cells.to_memory()
    np.testing.assert_array_equal(view.X.toarray(), values()[10:20][:, [0, 3]])
    np.testing.assert_array_equal(memory.X.toarray(), values())
    np.testing.assert_array_equal(memory.layers["dense"], values())
    if kind == "h5ad":
        with cells as same:
            assert same is cells
        assert not cells.layers["dense"]  # closed


def test_a_file_whose_matrix_is_damaged(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cells.h5ad"
    experiment(x=sp.csr_matrix(values())).write_h5ad(path, compression="gzip")
    with h5py.File(path, "r") as file:
        block = file["X/data"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[block.byte_offset : block.byte_offset + block.size] = b"\xff" * block.size
    path.write_bytes(bytes(content))
    with (
        open_cells(path) as cells,
        pytest.raises(SingleCellError, match=r"adata\.X cannot be read; the file is damaged"),
    ):
        HurdleDE(cells, "~ condition")


def _with_unknown_filter(path: pathlib.Path, name: str) -> None:
    """Write a dataset again, its one chunk as if a filter had made it that HDF5 keeps for tests and nothing has."""
    with h5py.File(path, "a") as file:
        old = file[name]
        content, attributes, kind, space = old[()], dict(old.attrs), old.id.get_type(), old.id.get_space()
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        created.set_chunk(old.shape)
        created.set_filter(300, h5py.h5z.FLAG_OPTIONAL)
        del file[name]
        new = h5py.Dataset(h5py.h5d.create(file.id, name.encode(), kind, space, created))
        new.id.write_direct_chunk((0,) * content.ndim, content.tobytes())
        new.attrs.update(attributes)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("X", "adata.X cannot be read"),
        ("raw/X/data", "adata.raw.X cannot be read"),
        ("layers/dense", r"adata.layers\['dense'\] cannot be read"),
        ("obs/condition/codes", r"formula: obs\['condition'\] cannot be read"),
        ("obs/_index", "dataset"),
        ("obs/age", None),
        ("var/length", None),
        ("obsm/pca", None),
        ("uns/note", None),
    ],
)
def test_a_filter_that_is_not_installed(name: str, argument: str | None, tmp_path: pathlib.Path) -> None:
    """The dataset, the filter and the way out are named; what is not needed does no harm."""
    path, made = tmp_path / "cells.h5ad", experiment()
    made.layers["dense"], made.obsm["pca"], made.uns["note"] = values(), values()[:, :2], np.arange(5.0)
    made.var["length"], made.raw = 1.0, experiment(x=sp.csr_matrix(values()))
    made.write_h5ad(path)
    _with_unknown_filter(path, name)
    chosen = {"raw/X/data": {"use_raw": True}, "layers/dense": {"layer": "dense"}}.get(name, {})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*left out what anndata cannot read: .*HDF5 filter 300", UserWarning)
        if argument is None:
            with open_cells(path) as cells:
                found = HurdleDE(cells, "~ condition").data.value
            assert found.equal(HurdleDE(made, "~ condition").data.value)
            return
        said = f"^{argument}.* '.*{name}' is compressed by a filter .HDF5 filter 300.,.*: pip install hdf5plugin"
        with pytest.raises(SingleCellError, match=said), open_cells(path) as cells:
            HurdleDE(cells, "~ condition", **chosen)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_a_file_that_has_been_closed(form: Callable[[np.ndarray], object], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cells.h5ad"
    experiment(x=form(values())).write_h5ad(path)
    with open_cells(path) as cells:
        view, de = cells[10:], HurdleDE(cells, "~ condition").fit(steps=10)
    for read in (
        lambda: HurdleDE(cells, "~ condition"),
        lambda: HurdleDE(view, "~ condition"),
        lambda: de.gene_fits(["up"], ("condition", "stim", "ctrl")),
    ):
        with pytest.raises(SingleCellError, match=r"adata\.X: its file has been closed; open it anew"):
            read()


def _zarr(path: pathlib.Path, name: str, x: object) -> pathlib.Path:
    """Write a zarr folder, one of its arrays in chunks of 16 and without metadata elsewhere; return its chunks."""
    made = experiment(x=x)
    made.layers["linear"] = values()
    made.write_zarr(path)
    (path / ".zmetadata").unlink()
    group = zarr.open_group(path, mode="a", use_consolidated=False)
    old, attributes = group[name][:], dict(group[name].attrs)
    del group[name]
    group.create_array(name, data=old, chunks=(16,) * old.ndim).attrs.update(attributes)
    return path / name


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data will no longer be the default:UserWarning")
@pytest.mark.parametrize("name", ["X/data", "X/indices"])
@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix])
def test_a_zarr_folder_that_lost_a_chunk(
    name: str, form: Callable[[np.ndarray], object], tmp_path: pathlib.Path
) -> None:
    """Zarr reads it as zeros: in a sparse matrix, as other genes."""
    path = tmp_path / "cells.zarr"
    chunks = _zarr(path, name, form(values()))
    assert HurdleDE(open_cells(path), "~ condition").data.value.equal(HurdleDE(experiment(), "~ condition").data.value)
    (chunks / "3").unlink()
    with pytest.raises(SingleCellError, match=r"adata\.X is damaged: chunks of its arrays are not in the folder"):
        HurdleDE(open_cells(path), "~ condition")


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data will no longer be the default:UserWarning")
def test_a_dense_zarr_folder_that_lost_a_chunk(tmp_path: pathlib.Path) -> None:
    """It may have been one of zeros."""
    path = tmp_path / "cells.zarr"
    (_zarr(path, "X", values()) / "3.0").unlink()
    with pytest.warns(UserWarning, match=r"adata\.X: 1 of 10 chunks are not in the folder and read as zeros"):
        HurdleDE(open_cells(path), "~ condition")


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data will no longer be the default:UserWarning")
@pytest.mark.parametrize(("name", "form"), [("X", np.asarray), ("X/data", sp.csr_matrix)])
def test_a_codec_that_is_not_installed(name: str, form: Callable[[np.ndarray], object], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cells.zarr"
    described = _zarr(path, name, form(values())) / ".zarray"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"compressor": {"id": "of tomorrow"}}))
    with pytest.warns(UserWarning, match="left out what anndata cannot read: X .*of tomorrow"):
        cells = open_cells(path)
    with pytest.raises(SingleCellError, match=r"adata: X cannot be read: .*of tomorrow"):
        HurdleDE(cells, "~ condition")
    found = HurdleDE(cells, "~ condition", layer="linear").data.value
    assert found.equal(HurdleDE(experiment(), "~ condition").data.value)
