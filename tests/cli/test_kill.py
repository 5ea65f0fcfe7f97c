"""A run that is killed and resumed gives the table of one that is not, to the last bit."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyro_zilognormal.singlecell.cli import de
from tests.cli.cli_cases import ASKED, file_of, run, undrawn

# A shell may have set SIGINT to be ignored. A checkpoint is written at each step that ends 0.01 s after the last.
SCRIPT = """
import signal, sys
from pyro_zilognormal.singlecell.cli import console, de, main
from tests.cli.cli_cases import undrawn
signal.signal(signal.SIGINT, signal.default_int_handler)
console.SECONDS_A_SAVE = 0.01
de.draw = undrawn
sys.exit(main.main(sys.argv[1:]))
"""
ROOT = Path(__file__).parents[2]
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


def _start(*arguments: object, **pipes: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *map(str, arguments)], text=True, cwd=ROOT, **pipes)


def _same(out: Path, whole: Path) -> bool:
    names = {file.name for file in out.iterdir()} == {file.name for file in whole.iterdir()}
    return names and (out / "de.csv").read_bytes() == (whole / "de.csv").read_bytes()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_is_resumed(how: signal.Signals, whole: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ["de", whole[0], *ASKED_LONG, "--out", out]
    child = _start(*asked, stderr=subprocess.PIPE)
    while not (out / "fit.ckpt").exists() and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(how)
    _, problems = child.communicate(timeout=60)
    assert child.returncode == (130 if how == signal.SIGINT else -how), problems
    assert ("run it again with --resume" in problems) is (how == signal.SIGINT)
    assert {file.name.split(".")[0] for file in out.iterdir()} <= {"fit", "run"}  # no table, no picture
    if how == signal.SIGKILL:
        _kill_at_a_random_moment([*asked[:-3], *asked[-2:], "--resume"])
        table = out / "de.csv"
        assert not table.exists() or table.read_bytes() == (whole[1] / "de.csv").read_bytes()  # whole, or not there
    assert run(*asked, "--resume").code == 0
    assert _same(out, whole[1])


def _kill_at_a_random_moment(asked: list[object]) -> None:
    child = _start(*asked, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()  # printed once the cells are read: from here on it fits, summarises and writes
    time.sleep(random.Random(0).uniform(0, 0.5))
    child.kill()
    child.communicate(timeout=60)
    assert child.returncode in (-signal.SIGKILL, 0)


def test_a_finished_run_can_be_resumed(whole: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole[1], out)
    (out / "de.csv").unlink()
    assert run("de", whole[0], *ASKED_LONG, "--out", out, "--resume").code == 0
    assert _same(out, whole[1])
