"""The commands that make a cube, append to it, and compare conditions in each level of one."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from pyro_zilognormal.singlecell import Cube, differential_expression
from pyro_zilognormal.singlecell.cli import de
from pyro_zilognormal.singlecell.cli.each import folders
from tests.cli.cli_cases import ASKED, FORKS, cells, file_of, run, undrawn

BY = ("--by", "donor,condition,type")
EACH = ("--each", "type")
TYPES = ["../B cell", "T", "rare"]


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(de, "draw", undrawn)


def typed() -> anndata.AnnData:
    """Cells of three types, of which the last has one condition only."""
    adata = cells()
    kind = np.where(np.arange(adata.n_obs) % 5 < 2, TYPES[0], TYPES[1])
    adata.obs["type"] = np.where((np.arange(adata.n_obs) > 50) & (adata.obs["condition"] == "stim"), TYPES[2], kind)
    return adata


def tables(path: Path) -> pd.DataFrame:
    return pd.read_csv(path / "de.csv")


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cube of two files, the second one appended."""
    folder, adata = tmp_path_factory.mktemp("cube"), typed()
    later = adata.obs["donor"] == "d3"
    first = file_of(folder, adata[~later].copy(), "first.h5ad")
    then = file_of(folder, adata[later].copy(), "then.h5ad")
    made = run("reduce", first, *BY, "--out", folder / "cube.zarr", "--scale", "linear")
    assert made.code == 0, made.problems
    assert "46 cells in " in made.said
    assert "by donor, condition, type)\nscale: linear; no bins of depth" in made.said
    made = run("reduce", then, "--append", "--out", folder / "cube.zarr")
    assert (made.code, made.problems) == (0, "")
    again = run("reduce", then, "--append", "--out", folder / "cube.zarr", *BY)
    assert again.code == 2
    assert "groups of donor:condition:type are in the cube already: d3:ctrl:" in again.problems
    assert "pass --merge if these are other cells" in again.problems
    assert Cube.load(folder / "cube.zarr").cells.sum() == 60
    return folder / "cube.zarr"


def api_table(cells: anndata.AnnData | Cube, donor: str | None = None) -> pd.DataFrame:
    """The table that the command has to write."""
    scale = None if isinstance(cells, Cube) else "linear"
    contrast = ("condition", "stim", "ctrl")
    return differential_expression(cells, "~ condition", contrast, donor=donor, scale=scale, steps=10, copy=True)


def test_the_table_of_a_cube_is_that_of_the_file(cube: Path, tmp_path: Path) -> None:
    assert run("de", cube, *ASKED, "--quiet", "--donor", "donor", "--out", tmp_path).code == 0
    pd.testing.assert_frame_equal(tables(tmp_path), api_table(typed(), "donor"), rtol=2.0**-23, atol=0)
    assert json.loads((tmp_path / "metrics.json").read_text())["settings"]["n_cells"] == 60
    assert "The most certain genes</h3>" not in (tmp_path / "report.html").read_text()


def test_each_level_is_compared_in_a_folder_of_its_own(tmp_path: Path) -> None:
    adata = typed()
    done = run(
        "de", file_of(tmp_path, adata), *ASKED, "--scale", "linear", *EACH, "--jobs", 1, "--out", tmp_path / "out"
    )
    assert done.code == 0
    assert "warning: rare: formula: obs['condition'] has one value only, 'stim'" in done.problems
    assert "../B cell: condition: stim vs ctrl, " in done.said
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert summary["level"].tolist() == TYPES
    assert summary["report"].tolist()[:2] == ["B_cell/report.html", "T/report.html"]
    assert summary["problem"].isna().tolist() == [True, True, False]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"summary.csv", "B_cell", "T", "cube.zarr"}
    stored = Cube.load(tmp_path / "out" / "cube.zarr")
    assert [*stored.obs.columns] == ["type", "condition"]
    for level, folder in zip(TYPES[:2], ("B_cell", "T"), strict=True):
        wanted = api_table(adata[adata.obs["type"] == level].copy())
        pd.testing.assert_frame_equal(tables(tmp_path / "out" / folder), wanted, rtol=2.0**-23, atol=0)


@pytest.mark.parametrize("jobs", [1, 2])
def test_no_level_can_be_compared(jobs: int, cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: FORKS)
    each = ("--each", "condition", "--jobs", jobs)
    done = run("de", cube, *ASKED, *each, "--out", tmp_path)
    assert done.code == 2
    assert done.problems.count("has one value only") == 2
    assert pd.read_csv(tmp_path / "summary.csv").columns.tolist() == ["level", "problem"]


def test_folders_hold_any_level() -> None:
    levels = ["..", "", "/etc", "a/b", "a b", "A_B", "summary.csv", "x" * 300, "Ζ", "run.lock"]
    found = folders(levels)
    assert len({name.lower() for name in found}) == len(levels)
    assert not any("/" in name or name.startswith(".") or len(name) > 100 or not name for name in found)
    assert not {"summary.csv", "cube.zarr", "run.lock"} & set(found)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["reduce", "FILE", "--out", "new.zarr"], "by is not given"),
        (["reduce", "FILE", "--by", "donr", "--out", "new.zarr"], "did you mean 'donor'"),
        (["reduce", "FILE", "--by", "donor", "--out", "CUBE"], "exists; needed a new name, or --append"),
        (["reduce", "FILE", "--by", "age", "--out", "new.zarr"], "60 groups of 60 cells"),
        (["reduce", "FILE", "--by", "donor", "--out", ""], "--out: '' is empty; needed the name of a folder"),
        (["embed", "FILE", "--out", ""], "--out: '' is empty; needed the name of a folder"),
        (["reduce", "FILE", "--by", "donor", "--merge", "--out", "new.zarr"], "merge is given without --append"),
        (["reduce", "FILE", "--append", "--out", "new.zarr"], "does not exist; needed a cube"),
        (["reduce", "FILE", "--append", "--by", "donor", "--out", "CUBE"], "but the cube has the keys"),
        (["reduce", "FILE", "--append", "--scale", "log1p", "--out", "CUBE"], "were reduced with --scale linear"),
        (["reduce", "FILE", "--by", "donor\ntype", "--out", "new.zarr"], "is no list of columns"),
        (["reduce", "FILE", "--by", 'donor,"type', "--out", "new.zarr"], "is no list of columns"),
        (["reduce", "FILE", "FILE", "--by", "donor", "--out", "new.zarr"], "needed each file once"),
        (["embed", "CUBE", "--layer", "mean", "--out", "out"], "adata is a cube, which has no single cells"),
        (["reduce", "CUBE", "--by", "donor", "--out", "new.zarr"], "is a cube already"),
        (["reduce", "gone.h5ad", "--by", "donor", "--out", "new.zarr"], "does not exist"),
        (["de", "CUBE", *ASKED, "--layer", "counts", "--out", "out"], "layer is 'counts', but the cells of the cube"),
        (["de", "CUBE", *ASKED, "--each", "tpye", "--out", "out"], "each: 'tpye' is not one of"),
        (["de", "CUBE", *ASKED, "--each", "type", "--jobs", "0", "--out", "out"], "whole number of at least 1"),
    ],
)
def test_bad_calls_are_one_line(arguments: list[str], says: str, cube: Path, tmp_path: Path) -> None:
    path = file_of(tmp_path, typed())
    new = {"FILE": path, "CUBE": cube, "new.zarr": tmp_path / "new.zarr", "out": tmp_path / "out"}
    before = {file.name for file in tmp_path.iterdir()}
    done = run(*(new.get(argument, argument) for argument in arguments))
    assert (done.code, done.said) == (2, "")
    assert says in done.problems
    assert done.problems.count("\n") == 1
    assert {file.name for file in tmp_path.iterdir()} == before
