"""A cube on disk: what is stored is read again, whatever fails or is damaged is refused, and the old one is left."""

from __future__ import annotations

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pytest

from pyro_zilognormal.singlecell import (
    Cube,
    SingleCellError,
    differential_expression,
    extend_cube,
    open_cells,
    reduce,
)
from pyro_zilognormal.singlecell.cube.whole_folder import one_writer
from pyro_zilognormal.svi import InUseError
from tests.singlecell.cube_cases import BY, CUBE, FAST, cells, compare, same

pytestmark = [
    pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning"),
    pytest.mark.filterwarnings("ignore::pyro_zilognormal.singlecell.DepthWarning"),
]


# --- Files

ROOT = pathlib.Path(__file__).parents[2]
KILLED = """
import os, signal, sys
import anndata
from pyro_zilognormal.singlecell import extend_cube
from pyro_zilognormal.singlecell.cube import whole_folder
path, cells, calls = sys.argv[1], anndata.read_h5ad(sys.argv[2]), []

def rename(old, new, rename=os.rename):
    calls.append(old)
    if len(calls) == 2:  # the old cube has made way, the new one is not there yet
        os.kill(os.getpid(), signal.SIGKILL)
    rename(old, new)

whole_folder.os.rename = rename
extend_cube(path, cells)
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("saved") / "cube.zarr"
    CUBE.save(path)
    return path


@pytest.fixture
def stored(saved: pathlib.Path, tmp_path: pathlib.Path) -> tuple[pathlib.Path, Cube]:
    """A stored cube of its own, and what it holds."""
    return shutil.copytree(saved, tmp_path / "cube.zarr"), CUBE


def test_a_stored_cube_is_the_same_cube(stored: tuple[pathlib.Path, Cube]) -> None:
    path, cube = stored
    same(Cube.load(path), cube)
    assert repr(Cube.load(path)) == "Cube(480 cells in 48 groups x 6 genes, by donor, cell_type, condition)"
    table = anndata.read_zarr(path)
    assert table.obs["n_cells"].tolist() == cube.cells.tolist()
    np.testing.assert_array_equal(table.layers["total"], cube.totals)
    cube.save(path)
    assert [file.name for file in path.parent.iterdir()] == ["cube.zarr"]


def test_a_save_replaces_nothing_else(tmp_path: pathlib.Path) -> None:
    cells().write_zarr(tmp_path / "cells.zarr")
    with pytest.raises(SingleCellError, match=r"exists and is no cube, and is left as it is"):
        reduce(cells(), BY).save(tmp_path / "cells.zarr")
    assert anndata.read_zarr(tmp_path / "cells.zarr").n_obs == 480


@pytest.mark.parametrize("call", [0, 1, 2])
def test_a_failed_append_leaves_the_old_cube(
    call: int, stored: tuple[pathlib.Path, Cube], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cube = stored
    calls = []

    def fails(*arguments: Any, real: Callable[..., Any] = os.rename) -> None:
        calls.append(arguments)
        if len(calls) == max(call, 1):
            raise OSError("no space left on device")
        real(*arguments)

    monkeypatch.setattr(*((anndata.AnnData, "write_zarr") if call == 0 else (os, "rename")), fails)
    with pytest.raises(OSError, match=r"no space left on device; the one before is whole: .*cube\.zarr"):
        extend_cube(path, cells(seed=1), merge=True)
    monkeypatch.undo()
    same(Cube.load(path), cube)
    assert extend_cube(path, cells(seed=1), merge=True).cells.sum() == 960
    assert Cube.load(path).cells.sum() == 960
    assert [file.name for file in path.parent.iterdir()] == ["cube.zarr"]


def test_a_killed_append_leaves_the_old_cube(stored: tuple[pathlib.Path, Cube]) -> None:
    path, cube = stored
    new = cells(seed=1)
    new.obs["donor"] = "e" + new.obs["donor"].str[1:]
    new.write_h5ad(path.parent / "new.h5ad")
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(path), str(path.parent / "new.h5ad")]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert not path.exists()
    same(Cube.load(path), cube)
    assert len(extend_cube(path, new).cells) == 2 * len(cube.cells)
    assert {file.name for file in path.parent.iterdir()} == {"cube.zarr", "new.h5ad"}


HEADS: dict[str, tuple[dict[str, Any], str]] = {
    "a newer version": ({"format": 2}, "cube format 2, newer than the 1 of this version; upgrade"),
    "no format": ({"format": "1"}, "damaged cube"),
    "other settings": ({"settings": {}}, "damaged cube"),
    "other keys": ({"by": ["donor"]}, "its hash does not match"),
}


@pytest.mark.parametrize("name", HEADS)
def test_odd_heads_are_refused(name: str) -> None:
    changes, says = HEADS[name]
    table = CUBE.to_anndata()
    table.uns["ziln_cube"] = json.dumps(json.loads(table.uns["ziln_cube"]) | changes)
    with pytest.raises(SingleCellError, match=says):
        Cube.from_anndata(table)


def _remove(pattern: str) -> Callable[[pathlib.Path], None]:
    return lambda path: next(path.glob(pattern)).unlink()


def _without(part: str) -> Callable[[pathlib.Path], None]:
    return lambda path: shutil.rmtree(path / part)


def _link(path: pathlib.Path) -> None:
    os.rename(path / "obs", path.parent / "elsewhere")
    os.symlink(path.parent / "elsewhere", path / "obs")


DAMAGED: dict[str, tuple[Callable[[pathlib.Path], Any], str]] = {
    "a lost chunk": (_remove("layers/mean/0*"), "its hash does not match its content"),
    "a lost layer": (_without("layers/m2"), "damaged cube"),
    "a lost key": (_without("obs/donor"), "damaged cube"),
    "no obs": (_without("obs"), "damaged cube"),
    "cells": (lambda path: (shutil.rmtree(path), cells().write_zarr(path)), "holds no cube"),
    "nothing": (shutil.rmtree, "does not exist; needed a cube"),
    "a link": (_link, "symbolic link"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_cube_is_refused_in_one_line(name: str, stored: tuple[pathlib.Path, Cube]) -> None:
    path, _ = stored
    damage, says = DAMAGED[name]
    damage(path)
    with pytest.raises(SingleCellError) as refused:
        Cube.load(path)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_flipped_bit_is_refused_or_changes_nothing(stored: tuple[pathlib.Path, Cube]) -> None:
    path, cube = stored
    files = sorted(file for file in path.rglob("*") if file.is_file())
    chunks = [file for file in files if not file.name.startswith(".")]  # all else says how they are stored
    refused, draw = 0, random.Random(0)
    for file in draw.sample(files, 8) + draw.sample(chunks, 8):
        whole = file.read_bytes()
        at = draw.randrange(8 * len(whole))
        file.write_bytes(whole[: at // 8] + bytes([whole[at // 8] ^ (1 << at % 8)]) + whole[at // 8 + 1 :])
        try:
            same(Cube.load(path), cube)
        except SingleCellError:
            refused += 1
        file.write_bytes(whole)
    assert refused >= 4
    same(Cube.load(path), cube)


def test_groups_as_in_scanpy(stored: tuple[pathlib.Path, Cube]) -> None:
    wanted = differential_expression(cells(), groupby="cell_type", reference="B", copy=True, **FAST)
    with open_cells(stored[0]) as found:  # the AnnData of a cube is a cube
        compare(differential_expression(found, groupby="cell_type", reference="B", **FAST), wanted)
        assert "ziln_de" not in found.uns


def test_two_processes_do_not_write_at_once(stored: tuple[pathlib.Path, Cube]) -> None:
    path, cube = stored
    with one_writer(path), pytest.raises(InUseError):
        cube.save(path)
