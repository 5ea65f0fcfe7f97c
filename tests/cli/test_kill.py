"""A run that is killed and resumed gives the table of one that is not, to the last bit."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyro_zilognormal.singlecell.cli import de
from tests.cli.cli_cases import ASKED, FORKS, file_of, in_a_process, run, undrawn

STEPS = 20
ASKED_LONG = (*ASKED[:-1], STEPS, "--quiet")


@pytest.fixture(autouse=True, scope="module")
def _no_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(de, "draw", undrawn)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("whole")
    path, out = file_of(folder), folder / "out"
    assert run("de", path, *ASKED_LONG, "--out", out).code == 0
    return path, out


def _start(folder: Path, *arguments: object) -> multiprocessing.Process:
    child = FORKS.Process(target=in_a_process, args=([*map(str, arguments)], folder))
    child.start()
    return child


def _wait_for(path: Path, child: multiprocessing.Process) -> None:
    """Wait until a file has something in it, or its process has ended."""
    while not (path.exists() and path.stat().st_size) and child.is_alive():
        time.sleep(0.005)


def _same(out: Path, whole: Path) -> bool:
    names = {file.name for file in out.iterdir()} == {file.name for file in whole.iterdir()}
    return names and (out / "de.csv").read_bytes() == (whole / "de.csv").read_bytes()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_is_resumed(how: signal.Signals, whole: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ["de", whole[0], *ASKED_LONG, "--out", out]
    child = _start(tmp_path, *asked)
    _wait_for(out / "fit.ckpt", child)
    os.kill(child.pid, how)
    child.join(60)
    problems = (tmp_path / "problems").read_text()
    assert child.exitcode == (130 if how == signal.SIGINT else -how), problems
    assert ("run it again with --resume" in problems) is (how == signal.SIGINT)
    assert {file.name.split(".")[0] for file in out.iterdir()} <= {"fit", "run"}  # no table, no picture
    if how == signal.SIGKILL:
        _kill_at_a_random_moment(tmp_path, [*asked[:-3], *asked[-2:], "--resume"])
        table = out / "de.csv"
        assert not table.exists() or table.read_bytes() == (whole[1] / "de.csv").read_bytes()  # whole, or not there
    assert run(*asked, "--resume").code == 0
    assert _same(out, whole[1])


def _kill_at_a_random_moment(folder: Path, asked: list[object]) -> None:
    child = _start(folder, *asked)
    _wait_for(folder / "said", child)  # once the cells are read: from here on it fits, summarises and writes
    time.sleep(random.Random(0).uniform(0, 0.5))
    child.kill()
    child.join(60)
    assert child.exitcode in (-signal.SIGKILL, 0)


def test_a_finished_run_can_be_resumed(whole: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole[1], out)
    (out / "de.csv").unlink()
    assert run("de", whole[0], *ASKED_LONG, "--out", out, "--resume").code == 0
    assert _same(out, whole[1])
