"""A cube: the table of the cells, whatever is stored, appended or selected, and one clear line for what is no cube."""

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
from dataclasses import replace
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from pyro_zilognormal.singlecell import (
    Cube,
    HurdleDE,
    SingleCellError,
    differential_expression,
    extend_cube,
    open_cells,
    reduce,
)
from pyro_zilognormal.singlecell.whole_folder import one_writer
from pyro_zilognormal.svi import InUseError

pytestmark = [
    pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning"),
    pytest.mark.filterwarnings("ignore::pyro_zilognormal.singlecell.DepthWarning"),
]

STIM = ("condition", "stim", "ctrl")
BY = ["donor", "cell_type", "condition"]
FAST: dict[str, Any] = {"steps": 10, "draws": 100}
LAST_DIGIT = 2.0**-23  # of float32, relative


def cells(n: int = 480, counts: bool = True, seed: int = 0) -> anndata.AnnData:
    """Six genes of six donors, three a condition, of two cell types, at three doses."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame({"donor": rng.choice([f"d{i}" for i in range(6)], n)}, index=np.arange(n).astype(str))
    obs["condition"] = np.where(obs["donor"].str[1].astype(int) % 2, "stim", "ctrl")
    obs["cell_type"] = pd.Categorical(rng.choice(["T", "B"], n), ["T", "B"])  # T is the reference
    obs["dose"] = rng.choice([0.0, 1.0, 2.5], n)
    obs["umis"] = rng.lognormal(8, 0.5, n)
    obs["size"] = np.log(obs["umis"]) - 8
    mean = obs["umis"].to_numpy()[:, None] / 2000 * np.array([1.0, 2.0, 0.5, 1.0, 4.0, 8.0])
    mean[obs["condition"] == "stim", 0] *= 4
    x = rng.negative_binomial(2, 2 / (2 + mean)).astype(float)
    x[:, 5] += 1  # no cell is empty
    values = x if counts else np.log1p(x / obs["umis"].to_numpy()[:, None] * 3000)
    return anndata.AnnData(values, obs, pd.DataFrame(index=[f"g{i}" for i in range(6)]))


def compare(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    """Compare tables to the last digit of float32."""
    assert found.columns.tolist() == wanted.columns.tolist()
    for name in wanted:
        if wanted[name].dtype.kind == "f":
            np.testing.assert_allclose(found[name], wanted[name], rtol=LAST_DIGIT, atol=0, err_msg=name)
        else:
            assert found[name].tolist() == wanted[name].tolist(), name


def same(a: Cube, b: Cube, rtol: float = 0.0) -> None:
    """Compare cubes, to rounding or bit for bit."""
    assert (a.genes, a.obs.astype(str).to_dict("list")) == (b.genes, b.obs.astype(str).to_dict("list"))
    assert a.settings == b.settings
    close = {"rtol": rtol, "atol": 1e-10 if rtol else 0.0}
    torch.testing.assert_close(a.statistics.value, b.statistics.value, **close)
    pairs = [(a.cells, b.cells), (a.totals, b.totals), (a.log_cubes, b.log_cubes)]
    if b.depth:
        assert a.depth
        assert a.depth.name == b.depth.name
        pairs += [(a.depth.value, b.depth.value), (a.depth.log, b.depth.log), (a.depth.bin, b.depth.bin)]
    for one, other in pairs:
        np.testing.assert_allclose(one, other, **close)


CUBE = reduce(cells(), BY)

# --- The table is that of the cells

# Formula, donor, arguments of the reduction, and of the fit.
GOOD: dict[str, tuple[str, str | None, dict[str, Any], dict[str, Any]]] = {
    "counts": ("~ condition", "donor", {}, {}),
    "bins of depth": ("~ condition", "donor", {}, {"depth": "auto"}),
    "a number and a type": ("~ condition + dose + cell_type", None, {}, {"depth": "auto"}),
    "nested effects": ("~ condition * cell_type + (1 | donor:cell_type)", "donor", {}, {}),
    "logarithms": ("~ condition", "donor", {"scale": "log1p", "depth": "umis"}, {"depth": "umis"}),
    "an offset": ("~ condition + C(dose)", None, {"offset": "size", "scale": "linear", "depth": None}, {}),
    "a threshold": ("~ condition", None, {"detection_threshold": 0.7}, {}),
}


def both(name: str) -> tuple[HurdleDE, HurdleDE]:
    """Read a cube, and its cells."""
    formula, donor, of_cells, of_fit = GOOD[name]
    adata = cells(counts=of_cells.get("scale") != "log1p")
    cube = reduce(adata, [*BY, "dose"], **of_cells)
    more = {key: value for key, value in of_cells.items() if key != "depth"} | of_fit
    draws = FAST["draws"]
    return HurdleDE(cube, formula, donor=donor, draws=draws, **of_fit), HurdleDE(
        adata, formula, donor=donor, draws=draws, **more
    )


@pytest.mark.parametrize("name", GOOD)
def test_what_is_fitted_is_that_of_the_cells(name: str) -> None:
    cube, wanted = both(name)
    for field in ("value", "design", "zero_design", "scale_design", "factors", "offset"):
        torch.testing.assert_close(getattr(cube.data, field), getattr(wanted.data, field), rtol=1e-12, atol=1e-12)
    for field in ("totals", "cubes", "count"):
        np.testing.assert_allclose(getattr(cube.cells, field), getattr(wanted.cells, field), rtol=1e-12, atol=1e-12)
    assert cube.settings == wanted.settings
    assert cube.cond().levels == wanted.cond().levels
    np.testing.assert_allclose(cube.cond().design, wanted.cond().design, rtol=1e-14)


@pytest.mark.parametrize("name", ["bins of depth", "a number and a type"])
def test_the_table_is_that_of_the_cells(name: str) -> None:
    cube, wanted = (de.fit(steps=FAST["steps"]) for de in both(name))
    compare(cube.test(STIM), wanted.test(STIM))
    ends = [cube.cond(condition=level) for level in ("stim", "ctrl")]
    compare(cube.predict(*ends, quantiles=[0.5, 0.9]), wanted.predict(*ends, quantiles=[0.5, 0.9]))
    compare(cube.predictive_check(*ends), wanted.predictive_check(*ends))


def test_groups_as_in_scanpy(stored: tuple[pathlib.Path, Cube]) -> None:
    wanted = differential_expression(cells(), groupby="cell_type", reference="B", copy=True, **FAST)
    with open_cells(stored[0]) as found:  # the AnnData of a cube is a cube
        compare(differential_expression(found, groupby="cell_type", reference="B", **FAST), wanted)
        assert "ziln_de" not in found.uns


def test_a_selected_level_gives_the_table_of_its_cells() -> None:
    adata = cells()
    cube = reduce(adata, BY, depth_within="cell_type")
    found = differential_expression(
        cube.select(cell_type="B"), "~ condition", STIM, donor="donor", depth="auto", **FAST
    )
    own = adata[adata.obs["cell_type"] == "B"].copy()
    wanted = differential_expression(own, "~ condition", STIM, donor="donor", depth="auto", copy=True, **FAST)
    # Size factors are relative to the median of all cells, not to that of the level.
    unit = np.median(own.X.sum(1)) / np.median(adata.X.sum(1))
    assert unit != 1
    for name in ("mean_test", "mean_ref"):
        found[name] *= unit
    compare(found, wanted)


# --- Cells that come later


def test_cells_reduced_in_parts_are_those_reduced_together() -> None:
    adata = cells()
    half = np.random.default_rng(1).random(adata.n_obs) < 0.5
    parts = [adata[half].copy(), adata[~half, ::-1].copy()]  # genes stand in another order
    same(reduce(parts, BY), reduce(adata, BY), rtol=1e-12)
    donors = adata.obs["donor"].isin(["d0", "d3"])
    first, then = adata[~donors].copy(), adata[donors].copy()
    cube = reduce(first, BY)
    more = cube.append(reduce(then, like=cube))
    assert more.cells.sum() == adata.n_obs
    assert more.settings == cube.settings
    # Without bins and size factors, which are those of the first part, nothing depends on the order.
    plain = {"scale": "linear", "offset": "size", "depth": None}
    one = reduce(first, BY, **plain)
    same(one.append(reduce(then, like=one)), reduce(adata, BY, **plain), rtol=1e-12)
    assert one.append(reduce(then, like=one)).obs["donor"].cat.categories.tolist() == [f"d{i}" for i in range(6)]


def test_cells_are_not_counted_twice_unless_asked() -> None:
    adata = cells()
    cube = reduce(adata, BY)
    again = reduce(adata[:100].copy(), like=cube)
    with pytest.raises(SingleCellError, match="groups of donor:cell_type:condition are in the cube already: d0:T:ctrl"):
        cube.append(again)
    both = cube.append(again, merge=True)
    assert (len(both.cells), both.cells.sum()) == (len(cube.cells), 580)
    wanted = reduce([adata, adata[:100].copy()], like=cube)
    same(both, wanted, rtol=1e-12)


def test_new_levels_have_bins_of_their_own() -> None:
    adata = cells()
    kind = adata.obs["cell_type"] == "B"
    cube = reduce(adata[~kind].copy(), BY, depth_within="cell_type")
    more = cube.append(reduce(adata[kind].copy(), like=cube))
    assert list(cube.settings["edges"]) == ["T"]
    assert more.settings["edges"] == reduce(adata, BY, depth_within="cell_type").settings["edges"]


# --- Files

ROOT = pathlib.Path(__file__).parents[2]
KILLED = """
import os, signal, sys
import anndata
from pyro_zilognormal.singlecell import extend_cube, whole_folder
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
    with pytest.raises(OSError, match="no space left"):
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


def _nan(array: Any) -> Any:
    array = np.array(array, dtype=float)
    array[3] = np.nan
    return array


def _settings(**changes: Any) -> Callable[[Cube], Cube]:
    return lambda cube: replace(cube, settings=cube.settings | changes)


# Files whose hash is right, as hostile ones can have it.
HOSTILE: dict[str, Callable[[Cube], Cube]] = {
    "negative sums": lambda c: replace(c, totals=-c.totals),
    "NaN": lambda c: replace(c, log_cubes=_nan(c.log_cubes)),
    "groups of no cells": lambda c: replace(c, cells=0 * c.cells),
    "fewer cells than positive values": lambda c: replace(c, cells=c.cells // 9 + 1),
    "negative squares": lambda c: replace(c, statistics=replace(c.statistics, m2=-c.statistics.m2 - 1)),
    "depth of 0": lambda c: replace(c, depth=replace(c.depth, value=0 * c.depth.value)),
    "NaN depth": lambda c: replace(c, depth=replace(c.depth, log=_nan(c.depth.log))),
    "bins below 0": lambda c: replace(c, depth=replace(c.depth, bin=c.depth.bin - 9)),
    "a scale of a number": _settings(scale=3),
    "an unknown scale": _settings(scale="log3"),
    "edges of text": _settings(edges={"": ["a"]}),
    "a unit of 0": _settings(unit=0.0),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_sums_that_no_cells_have_are_refused(name: str) -> None:
    with pytest.raises(SingleCellError, match=r"is a damaged cube \("):
        Cube.from_anndata(HOSTILE[name](CUBE).to_anndata())


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


# --- What cannot be used


def _odd(**columns: Any) -> anndata.AnnData:
    adata = cells()
    adata.obs = adata.obs.assign(**columns)
    return adata


def _empty() -> anndata.AnnData:
    adata = cells()
    adata.X[7] = 0
    return adata


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "no key": (lambda: reduce(cells(), []), r"by is \[\]; needed one or more columns"),
    "an unknown key": (
        lambda: reduce(cells(), ["donr"]),
        "by: 'donr' is not .* did you mean 'donor'",
    ),
    "a key twice": (lambda: reduce(cells(), ["donor", "donor"]), "each once"),
    "a key of a cube's name": (lambda: reduce(_odd(n_cells=1), ["n_cells"]), "'n_cells' is the name of a column that"),
    "missing levels": (lambda: reduce(_odd(donor=np.nan), ["donor"]), r"by: obs\['donor'\] is missing in 480 of 480"),
    "a level a cell": (
        lambda: reduce(cells(), ["umis"]),
        "480 groups of 480 cells; needed groups of two",
    ),
    "no cells": (lambda: reduce([], BY), "adata is an empty list"),
    "a cube of a cube": (lambda: reduce(CUBE, BY), "adata is a cube already"),
    "no AnnData": (lambda: reduce(cells().obs, BY), "needed an AnnData"),
    "a cell without counts": (lambda: reduce(_empty(), BY), "needed a number > 0, which 1 of 480 cells have not"),
    "other genes": (lambda: reduce([cells(), cells()[:, 2:].copy()], BY), "genes differ: 2 .* g0, g1; needed the same"),
    "two scales": (lambda: reduce([cells(), cells(counts=False)], BY, scale=None), "scale"),
    "two depths": (
        lambda: reduce([_odd(total_counts=1.0), cells()], BY, scale="linear", offset="size"),
        "depth: the inputs have .*'None', 'total_counts'",
    ),
    "within another column": (lambda: reduce(cells(), BY, depth_within="dose"), "depth_within: 'dose' is not one of"),
    "within, without depth": (
        lambda: reduce(cells(), BY, depth=None, depth_within="donor"),
        "depth_within is given, but the depth",
    ),
    "counts with an offset": (lambda: reduce(cells(), BY, scale="counts", offset="size"), "offset is given with scale"),
    "another scale for a cube": (
        lambda: HurdleDE(CUBE, "~ condition", scale="log1p"),
        "scale is 'log1p', but",
    ),
    "an array for a cube": (lambda: HurdleDE(CUBE, "~ condition", offset=np.zeros(480)), "offset is a ndarray, but"),
    "another depth": (lambda: HurdleDE(CUBE, "~ condition", depth="umis"), "has the depth 'total counts'"),
    "an array of offsets": (lambda: reduce(cells(), BY, offset=np.zeros(480)), "needed the name of a column of obs"),
    "no bins": (
        lambda: HurdleDE(reduce(cells(), BY, depth=None), "~ condition", depth="auto"),
        "the cube has no bins; needed reduce",
    ),
    "no key of the formula": (lambda: HurdleDE(CUBE, "~ dose"), "formula: 'dose' is not one of the columns"),
    "a mean over cells": (
        lambda: HurdleDE(reduce(cells(), [*BY, "dose"]), "~ condition + center(dose)"),
        "takes means or quantiles over cells",
    ),
    "a spline of cells": (
        lambda: HurdleDE(reduce(cells(), [*BY, "dose"]), "~ condition + poly(dose, 2)"),
        "takes means or quantiles over cells",
    ),
    "an unknown level": (lambda: CUBE.select(cell_type="b"), "cell_type: 'b' is not one of the levels"),
    "no group": (lambda: CUBE.select(donor="d0", condition="stim"), "no group has"),
    "other keys": (
        lambda: CUBE.append(reduce(cells(), "donor")),
        "by: the cube has the keys donor, cell_type, ",
    ),
    "another unit": (lambda: CUBE.append(reduce(cells(seed=1), BY)), "differs: .* needed cells that are reduced as"),
    "like, by other keys": (lambda: reduce(cells(), "donor", like=CUBE), "by is 'donor', but the cube has the keys"),
    "like, on another scale": (lambda: reduce(cells(), like=CUBE, scale="linear"), "scale is 'linear', but the cells"),
    "extending nothing": (lambda: extend_cube("/nowhere/cube.zarr", cells()), "path is '/nowhere/cube.zarr'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_refused(name: str) -> None:
    call, says = BAD[name]
    with pytest.raises(SingleCellError, match=says) as refused:
        call()
    assert "\n" not in str(refused.value)


def test_a_cube_has_no_cells_to_draw() -> None:
    de = HurdleDE(CUBE, "~ condition", draws=100).fit(steps=10)
    with pytest.raises(SingleCellError, match="adata is a cube, which has no single cells to draw genes of"):
        de.gene_fits(["g0"], STIM)


def test_a_design_is_refused_only_if_it_depends_on_the_numbers_of_cells() -> None:
    cube = reduce(cells(), [*BY, "dose"], depth=None)
    for formula in ("~ np.log(dose + 1)", "~ dose**2", "~ C(dose)", "~ I(dose > 0):condition"):
        HurdleDE(cube, f"{formula} + cell_type")


def test_two_processes_do_not_write_at_once(stored: tuple[pathlib.Path, Cube]) -> None:
    path, cube = stored
    with one_writer(path), pytest.raises(InUseError):
        cube.save(path)
