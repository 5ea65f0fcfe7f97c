"""Every bad call ends with exit code 2, one line that says why, and nothing written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest

from tests.cli.cli_cases import ASKED, N, Ran, cells, file_of, run, values_with

CONTRAST = ("--contrast", "condition", "stim", "ctrl")


def _not_h5ad(folder: Path) -> Path:
    path = folder / "notes.h5ad"
    path.write_text("these are no cells\n" * 200)
    return path


def _truncated(folder: Path) -> Path:
    path = file_of(folder)
    path.write_bytes(path.read_bytes()[:3000])
    return path


def _of(**made: Any) -> Callable[[Path], Path]:
    return lambda folder: file_of(folder, cells(**made))


def _duplicate(folder: Path) -> Path:
    adata = cells()
    adata.var_names = ["up", "down", "up", "rare"]
    return file_of(folder, adata)


def _some(rows: int, columns: int = 4) -> Callable[[Path], Path]:
    return lambda folder: file_of(folder, cells()[:rows, :columns].copy())


def _cut(share: float) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = file_of(folder)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        return path

    return make


def _damaged(folder: Path) -> Path:
    """Garbage where the compressed values are."""
    adata = cells(x=values_with(0, 0, 1.0, True))
    path = folder / "cells.h5ad"
    adata.write_h5ad(path, compression="gzip")
    with h5py.File(path, "r") as file:
        chunk = file["X/data"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    path.write_bytes(bytes(content))
    return path


def _other_hdf5(folder: Path) -> Path:
    path = folder / "cells.h5ad"
    with h5py.File(path, "w") as file:
        file["data"] = [1, 2]
    return path


def _no_matrix(folder: Path) -> Path:
    path = folder / "cells.h5ad"
    anndata.AnnData(obs=cells().obs, var=cells().var).write_h5ad(path)
    return path


def _unreadable(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        adata = cells()
        adata.raw = adata
        path = file_of(folder, adata)
        with h5py.File(path, "a") as file:
            file[name].attrs["encoding-type"] = "of tomorrow"
        return path

    return make


MISSING = ["a", None] * (N // 2)

# What is wrong with the file.
BAD_FILES: dict[str, tuple[Callable[[Path], Path], tuple[str, ...], str]] = {
    "no file": (lambda folder: folder / "none.h5ad", ASKED, "does not exist"),
    "not h5ad": (_not_h5ad, ASKED, "cannot be read as an AnnData"),
    "truncated": (_truncated, ASKED, "cannot be read as an AnnData"),
    "all but the end": (_cut(0.98), ASKED, "cannot be read as an AnnData"),
    "damaged inside": (_damaged, ASKED, "adata.X cannot be read; the file is damaged"),
    "other HDF5": (_other_hdf5, ASKED, "it has no obs"),
    "a folder": (lambda folder: folder, ASKED, "cannot be read as an AnnData"),
    "a name that is too long": (lambda folder: folder / ("x" * 300), ASKED, "does not exist"),
    "no matrix": (_no_matrix, ASKED, "adata has no X"),
    "nothing but zeros": (_of(x=np.zeros((N, 4))), ASKED, "no value above the detection threshold"),
    "NaN": (_of(x=values_with(5, 2, np.nan)), ASKED, "nan in cell 'cell5', gene 'same'"),
    "negative, sparse": (_of(x=values_with(9, 3, -0.5, True)), ASKED, "-0.5 in cell 'cell9', gene 'rare'"),
    "duplicate genes": (_duplicate, ASKED, "'up'"),
    "one level": (_of(condition="stim"), ASKED, "has one value only, 'stim'"),
    "missing values": (_of(condition=MISSING), ASKED, "is missing in 30 of 60 cells, the first 'cell1'"),
    "missing numbers": (
        _of(age=np.where(np.arange(N) == 3, np.nan, 50.0 + np.arange(N))),
        (*ASKED, "--formula", "~ condition + age"),
        "obs['age'] is missing in 1 of 60 cells, the first 'cell3'",
    ),
    "an unreadable column": (_unreadable("obs/condition"), ASKED, "formula: obs['condition'] cannot be read: "),
    "an unreadable layer": (
        _unreadable("layers/counts"),
        (*ASKED, "--layer", "counts"),
        "layer: layers['counts'] cannot be read: ",
    ),
    "an unreadable raw": (_unreadable("raw/var/_index"), (*ASKED, "--use-raw"), "use_raw: raw cannot be read: "),
    "missing donor": (_of(donor=MISSING), (*ASKED, "--donor", "donor"), "obs['donor'] is missing in 30 of 60"),
    "one donor": (_of(donor="d"), (*ASKED, "--donor", "donor"), "names one donor only, 'd'; pass no --donor"),
    "confounded donor": (
        _of(donor=["one", "two"] * (N // 2)),
        (*ASKED, "--donor", "donor"),
        "the 2 donors of obs['donor'] are confounded with condition",
    ),
    "not estimable": (
        _of(batch=["x", "y"] * (N // 2)),
        ("--formula", "~ condition + batch", *CONTRAST),
        "is not estimable",
    ),
    "logarithms without scale": (
        _of(x=np.log1p(np.asarray(cells().X))),
        ASKED,
        "scale is not given, and adata.X does not",
    ),
    "counts as linear": (
        _of(x=np.ceil(np.asarray(cells().X))),
        (*ASKED, "--scale", "linear"),
        "pass --scale counts, or --offset, the log size factors",
    ),
    "linear as log1p": (file_of, (*ASKED, "--scale", "log1p"), "the stored values are not logarithms: --scale linear?"),
    "integer levels": (
        _of(dose=np.arange(N) % 3),
        ("--formula", "~ dose", "--contrast", "dose", "2", "0"),
        "write C(dose)",
    ),
}

# What is wrong with the call, of a good file.
BAD_CALLS: dict[str, tuple[tuple[str, ...], str]] = {
    "no column": (("--formula", "~ conditoin", *CONTRAST), "did you mean 'condition'?"),
    "no level": (("--formula", "~ condition", "--contrast", "condition", "stimm", "ctrl"), "did you mean 'stim'?"),
    "not in formula": (("--formula", "~ condition", "--contrast", "donor", "d1", "d0"), "donor"),
    "no layer": ((*ASKED, "--layer", "count"), "did you mean 'counts'?"),
    "no raw": ((*ASKED, "--use-raw"), "adata.raw is None; pass no --use-raw, or name a layer"),
    "layer and raw": ((*ASKED, "--use-raw", "--layer", "counts"), "needed one of them"),
    "no donor": ((*ASKED, "--donor", "patient"), "'patient'"),
    "no offset": ((*ASKED, "--offset", "size"), "'size'"),
    "itself": (("--formula", "~ condition", "--contrast", "condition", "stim", "stim"), "itself"),
    "twice": ((*ASKED, *CONTRAST), "each once"),
    "formula": (("--formula", "~ condition +", *CONTRAST), "cannot be read"),
    "no intercept": (("--formula", "~ 0 + condition", *CONTRAST), "has no intercept"),
    "delta": ((*ASKED, "--delta", "-1"), "delta is -1.0"),
    "fdr": ((*ASKED, "--fdr", "2"), "fdr is 2.0"),
    "max error": ((*ASKED, "--max-error", "0"), "max_error is 0.0"),
    "threshold": ((*ASKED, "--detection-threshold", "nan"), "detection_threshold is nan"),
    "all below": ((*ASKED, "--detection-threshold", "1e9"), "no value above the detection threshold"),
    "device": ((*ASKED, "--device", "abacus"), "device is 'abacus'"),
    "device without numbers": ((*ASKED, "--device", "meta"), "device is 'meta', which cannot be used here"),
    "scale": ((*ASKED, "--scale", "log"), "invalid choice: 'log'"),
    "steps": ((*ASKED, "--steps", "3"), "'3' is not a whole number of at least 10"),
    "seed": ((*ASKED, "--seed", "-1"), "'-1'"),
    "no formula": (CONTRAST, "required: --formula"),
    "half a contrast": (("--formula", "~ condition", "--contrast", "condition"), "needed a column and two levels"),
    "half a pair": (("--formula", "~ condition", "--contrast", "condition=a"), "or two conditions, such as condition="),
    "half a difference": (
        ("--formula", "~ condition", "--contrast", "condition=stim", "condition=ctrl", "-", "condition=stim"),
        "got 'condition=stim condition=ctrl - condition=stim'; needed a column and two levels",
    ),
    "interaction": (
        ("--formula", "~ condition * donor", *CONTRAST),
        "the value of donor in a pair of conditions, --contrast 'condition=stim,donor=...' 'condition=ctrl,donor=...'",
    ),
    "a call in the formula": (("--formula", "~ .system('x') + condition", *CONTRAST), "cannot be read"),
    "control characters": (("--formula", "~ \x1b[31m", *CONTRAST), "\\x1b"),
    "shortened options": ((*ASKED, "--detection", "0.1"), "unrecognized arguments"),
    "no folder": ((*ASKED, "--out", ""), "argument --out: '' is empty; needed the name of a folder"),
    "cells as donors": ((*ASKED, "--donor", "age"), "donor: obs['age'] has 60 levels in 60 cells"),
    "unknown option": ((*ASKED, "--colour"), "unrecognized arguments: --colour"),
}


def _refused(out: Path, fragment: str, *arguments: Any) -> None:
    before = sorted(out.parent.rglob("*"))
    ran = run(*arguments[:1], "--out", out, *arguments[1:])
    assert ran.code == 2, ran
    assert ran.problems.startswith("pyro-zilognormal")
    assert ran.problems.count("\n") == 1, ran.problems
    assert ran.problems.endswith("\n")
    assert fragment in ran.problems
    assert not ran.said
    assert sorted(out.parent.rglob("*")) == before


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused(name: str, tmp_path: Path) -> None:
    made, asked, fragment = BAD_FILES[name]
    _refused(tmp_path / "out", fragment, "de", made(tmp_path), *asked)


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_bad_call_is_refused(name: str, tmp_path: Path) -> None:
    asked, fragment = BAD_CALLS[name]
    _refused(tmp_path / "out", fragment, "de", file_of(tmp_path), *asked)


@pytest.mark.parametrize("where", ["file", "file/out", "file/deep/out"])
def test_a_folder_that_cannot_be_is_refused(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    _refused(tmp_path / where, "is a file", "de", file_of(tmp_path), *ASKED)
    _refused(tmp_path / where, "is a file", "demo")


@pytest.mark.parametrize("name", ["x" * 300, "a/" + "x" * 300])
def test_a_name_that_is_too_long_is_refused(name: str, tmp_path: Path) -> None:
    ran = run("de", file_of(tmp_path), *ASKED, "--quiet", "--out", tmp_path / name)
    assert (ran.code, ran.problems.count("\n")) == (2, 1)
    assert "cannot be written to (File name too long)" in ran.problems


def test_a_folder_that_cannot_be_made_is_refused() -> None:
    ran = run("demo", "--out", "/proc/none/out")  # where not even root can make one
    assert (ran.code, ran.problems.count("\n")) == (2, 1)
    assert "cannot be written to" in ran.problems or "not writable" in ran.problems


def test_a_folder_that_is_there_and_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    ran = run("de", file_of(tmp_path), *ASKED, "--out", "/proc")  # where not even root can write
    assert (ran.code, ran.problems.count("\n")) == (2, 1)
    assert "cannot be written to" in ran.problems or "not writable" in ran.problems


def test_the_checkpoint_of_another_fit_is_refused_and_kept(done: tuple[Ran, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(done[1], out)
    before = {file: file.read_bytes() for file in out.iterdir()}
    ran = run("de", file_of(tmp_path), *ASKED, "--donor", "donor", "--seed", "1", "--out", out, "--resume")
    assert (ran.code, ran.problems.count("\n")) == (2, 1)
    assert "is the checkpoint of another fit: seed" in ran.problems
    assert "Use another path, or no --resume to replace it" in ran.problems
    assert {file: file.read_bytes() for file in out.iterdir()} == before


def test_a_missing_package_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = file_of(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "formulaic", None)
    _refused(tmp_path / "out", 'pip install "pyro-zilognormal[singlecell]"', "de", path, *ASKED)
