"""Hostile files: none ends the process, hangs, raises another error than ours, or is read as something else."""

from __future__ import annotations

import collections
import pathlib
import resource
import subprocess
import sys

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from pyro_zilognormal.singlecell import HurdleDE, SingleCellError, differential_expression, open_cells
from tests.singlecell import hostile_files
from tests.singlecell.cell_cases import STIM, experiment, values
from tests.singlecell.hostile_files import GENES, GOOD, SPARSE, X, cells, read

ROOT = pathlib.Path(__file__).parents[2]
SECONDS_A_FILE = 60


def _read_all(folder: pathlib.Path, lines: list[str]) -> dict[str, str]:
    """Read files in another process, begun anew where one ends it; return what came of each, "" for the end."""
    found: dict[str, str] = {}
    left = list(lines)
    while left:
        command = [sys.executable, "-W", "ignore", "-m", "tests.singlecell.hostile_files", str(folder)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
        ) as child:
            try:
                said, _ = child.communicate("\n".join(left), timeout=SECONDS_A_FILE + len(left))
            except subprocess.TimeoutExpired as late:
                child.kill()
                said = (late.stdout or b"").decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        begun = [line.partition(" ") for line in said.splitlines()] or [(left[0], "", "")]
        found |= {name: rest for name, _, rest in begun}
        left = left[len(begun) :]
    return found


def _flips(folder: pathlib.Path, numbers: range) -> collections.Counter[str]:
    for form in ("csr", "csc", "dense"):
        hostile_files.small_file(folder / f"{form}.h5ad", form)
    found = _read_all(folder, [str(number) for number in numbers])
    assert len(found) == len(numbers)
    said = ("ended" if not r else "read" if r in ("read", "wrong") else "refused" for r in found.values())
    return collections.Counter(said)


def test_a_flipped_bit_crashes_nothing(tmp_path: pathlib.Path) -> None:
    assert _flips(tmp_path, range(24))["ended"] == 0


@pytest.mark.slow
def test_2000_flipped_bits_crash_nothing(tmp_path: pathlib.Path) -> None:
    found = _flips(tmp_path, range(2000))
    assert found["ended"] == 0, found
    assert found["refused"] > 50, found  # the flips that matter are there


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*left out what anndata cannot read:UserWarning")
def test_each_hostile_file_is_refused_and_each_good_one_read(tmp_path: pathlib.Path) -> None:
    files = hostile_files.write_all(tmp_path)
    assert len(files) >= 140
    for name, place, path in files:
        said = read(path, place)
        assert "\n" not in said
        assert said != "wrong", name
        assert (said == "") is name.startswith("good"), (name, said)


@pytest.mark.parametrize("form", ["csr", "csc"])
@pytest.mark.parametrize(
    "name", ["an index of 10^8", "an index of -1", "an indptr that falls", "an indptr that ends early"]
)
def test_damaged_indices_are_refused_on_disk_in_memory_and_in_views(
    name: str, form: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "cells.h5ad"
    cells(form).write_h5ad(path)
    with h5py.File(path, "a") as file:
        SPARSE[name](file["X"])
    with open_cells(path) as adata:
        for found in (adata, adata[:80, ::2], anndata.read_h5ad(path, backed="r")):
            with pytest.raises(SingleCellError, match=r"adata\.X is damaged: "):
                HurdleDE(found, "~ condition", scale="linear")
    memory = cells(form)
    if "index" in name:  # scipy itself checks lengths
        memory.X.indices[5] = 10**8 if "10^8" in name else -1
        with pytest.raises(SingleCellError, match=r"adata\.X is damaged: "):
            HurdleDE(memory, "~ condition", scale="linear")


@pytest.mark.parametrize("name", GOOD)
def test_dtypes_that_scipy_does_not_compute_with_are_read(name: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cells.h5ad"
    cells("csc").write_h5ad(path)
    with h5py.File(path, "a") as file:
        GOOD[name](file["X"])
    assert read(path) == ""


@pytest.mark.parametrize("form", ["csr", "csc"])
@pytest.mark.parametrize("dtype", ["f2", ">f4", ">f8", "g"])
def test_dtypes_that_scipy_does_not_compute_with_are_read_in_memory(dtype: str, form: str) -> None:
    adata = cells(form)
    adata.X.data = adata.X.data.astype(dtype)
    np.testing.assert_allclose(HurdleDE(adata, "~ condition", scale="linear").data.value, hostile_files.expected())


def test_a_matrix_of_another_width_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cells.h5ad"
    made = experiment(x=X)
    made.raw = made.copy()
    made.write_h5ad(path)
    with h5py.File(path, "a") as file:
        for name in ("X", "raw/X"):
            del file[name]
            file[name] = X[:, :-1]
    backed = anndata.read_h5ad(path, backed="r")
    with pytest.raises(SingleCellError, match=r"adata\.X has shape \(160, 5\); needed 160 cells, .* x 6 genes"):
        HurdleDE(backed, "~ condition", scale="linear")
    backed.file.close()
    with h5py.File(path, "a") as file:
        del file["X"]
        file["X"] = X
    with pytest.warns(UserWarning, match=r"left out .* raw \(its X has shape \(160, 5\), its var 6 genes"):
        assert open_cells(path).raw is None


def test_what_cannot_be_read_is_left_out_with_a_warning(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cells.h5ad"
    made = experiment(x=X)
    made.uns["log1p"], made.layers["odd"] = {"base": None}, X
    made.write_h5ad(path)
    with h5py.File(path, "a") as file:
        for where in ("obs/donor", "uns/log1p", "layers/odd"):
            file[where].attrs["encoding-type"] = "of tomorrow"
    with pytest.warns(UserWarning, match="left out what anndata cannot read: ") as told:
        adata = open_cells(path)
    assert all(name in str(told[0].message) for name in ("obs['donor']", "uns['log1p']", "layers['odd']"))
    assert "\n" not in str(told[0].message)
    assert list(adata.obs) == ["condition", "sex", "age"]
    for asked in ({"donor": "donor"}, {"layer": "odd"}):
        with pytest.raises(SingleCellError, match=r"cannot be read: .*of tomorrow"):
            HurdleDE(adata, "~ condition", **asked)
    np.testing.assert_array_equal(HurdleDE(adata, "~ condition", scale="linear").data.value, hostile_files.expected())


def test_links_are_followed_only_when_asked_for(tmp_path: pathlib.Path) -> None:
    other, path = tmp_path / "other.h5ad", tmp_path / "cells.h5ad"
    cells().write_h5ad(other)
    for spoil in (hostile_files.FILES["an external link"], hostile_files.FILES["a virtual dataset"]):
        cells("dense").write_h5ad(path)
        if spoil is hostile_files.FILES["a virtual dataset"]:
            cells("dense").write_h5ad(other)
        with h5py.File(path, "a") as file:
            spoil(file)
        assert "which may reach other files" in read(path)
        assert read(path, follow_links=True) == ""


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data will no longer be the default:UserWarning")
def test_links_out_of_a_zarr_folder_are_refused(tmp_path: pathlib.Path) -> None:
    path, layer = tmp_path / "cells.zarr", tmp_path / "cells.zarr" / "X"
    cells().write_zarr(path)
    layer.rename(tmp_path / "elsewhere")
    layer.symlink_to(tmp_path / "elsewhere")
    assert "holds a symbolic link, 'X', which may reach other files" in read(path)
    assert read(path, follow_links=True) == ""


def test_a_file_of_old_anndata_is_read(tmp_path: pathlib.Path) -> None:
    path, made = tmp_path / "cells.h5ad", experiment(x=X)
    with h5py.File(path, "w") as file:
        file["X"] = X
        for name, table in (("obs", made.obs[["condition"]]), ("var", made.var)):
            kinds = [("index", "S20"), *((column, "S20") for column in table)]
            rows = [tuple(str(v).encode() for v in row) for row in table.itertuples()]
            file[name] = np.array(rows, dtype=kinds)
    assert read(path) == ""


@pytest.mark.slow
def test_a_chunk_beyond_memory_is_told(tmp_path: pathlib.Path) -> None:
    path, made = tmp_path / "cells.h5ad", experiment(x=X)
    made.write_h5ad(path)
    with h5py.File(path, "a") as file:
        del file["X"]
        file.create_dataset("X", X.shape, "f8", maxshape=(None, None), chunks=(2**16, 2**12), compression="gzip")
        file["X"][:] = X
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    with open_cells(path) as adata:
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, before[1]))
        try:
            with pytest.raises(SingleCellError, match=r"adata\.X cannot be read; .* is larger than memory"):
                HurdleDE(adata, "~ condition", scale="linear")
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("with_it", [True, False])
def test_open_cells_in_one_call(with_it: bool, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cells.h5ad"
    experiment(x=sp.csr_matrix(values())).write_h5ad(path)
    adata = open_cells(path)
    if with_it:
        with adata:
            table = differential_expression(adata, "~ condition", STIM, scale="linear", steps=10)
    else:
        table = differential_expression(adata, "~ condition", STIM, scale="linear", steps=10)
    assert len(table) == GENES
    assert "ziln_de" in adata.uns
