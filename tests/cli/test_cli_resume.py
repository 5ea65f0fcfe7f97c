"""A run that is killed and resumed gives the table of one that is not, to the last bit."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyro_zilognormal.svi import storage
from tests.cli.cli_cases import ASKED, file_of, run

# A checkpoint at each step that takes longer than a hundredth of a second.
SCRIPT = "import sys; from pyro_zilognormal.singlecell import job; from pyro_zilognormal.singlecell.cli import main; "
SCRIPT += "job._SECONDS_A_SAVE = 0.01; sys.exit(main(sys.argv[1:]))"


STEPS = 40
ASKED_LONG = (*ASKED[:-1], STEPS, "--quiet")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("whole")
    path, out = file_of(folder), folder / "out"
    assert run("de", path, *ASKED_LONG, "--out", out).code == 0
    return path, out


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_goes_on(how: signal.Signals, whole: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ["de", str(whole[0]), *map(str, ASKED_LONG)]
    child = subprocess.Popen([sys.executable, "-c", SCRIPT, *asked, "--out", str(out)], stderr=subprocess.PIPE)
    while not (out / "fit.ckpt").exists() and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(how)
    child.communicate(timeout=60)
    assert child.returncode == -how
    assert {file.name.split(".")[0] for file in out.iterdir()} == {"fit"}  # no table, no picture
    assert 0 < int(storage.read(out / "fit.ckpt")["run"]["step"]) < STEPS
    assert run(*asked, "--out", out, "--resume").code == 0
    assert (out / "de.csv").read_bytes() == (whole[1] / "de.csv").read_bytes()
    assert {file.name for file in out.iterdir()} == {file.name for file in whole[1].iterdir()}


@pytest.mark.parametrize("seed", range(2))
def test_runs_killed_at_random_moments_end_in_the_same_table(
    seed: int, whole: tuple[Path, Path], tmp_path: Path
) -> None:
    moment, out = random.Random(seed), tmp_path / "out"
    asked = ["de", str(whole[0]), *map(str, ASKED_LONG[:-1]), "--out", str(out)]
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", SCRIPT, *asked, "--resume"], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()  # what it has read: from here on it fits, summarises, draws and writes
        time.sleep(moment.uniform(0, 2.5))
        child.kill()
        child.communicate(timeout=60)
        assert child.returncode in (-signal.SIGKILL, 0)
        table = out / "de.csv"
        assert not table.exists() or table.read_bytes() == (whole[1] / "de.csv").read_bytes()  # whole, or not there
    assert run(*asked, "--resume").code == 0
    assert (out / "de.csv").read_bytes() == (whole[1] / "de.csv").read_bytes()
    assert {file.name for file in out.iterdir()} == {file.name for file in whole[1].iterdir()}


def test_a_run_that_is_done_can_be_resumed(whole: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole[1], out)
    (out / "de.csv").unlink()
    assert run("de", whole[0], *ASKED_LONG, "--out", out, "--resume").code == 0
    assert (out / "de.csv").read_bytes() == (whole[1] / "de.csv").read_bytes()


def test_without_resume_it_starts_anew_and_replaces_the_results(whole: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole[1], out)
    assert run("de", whole[0], *ASKED_LONG, "--seed", "1", "--out", out).code == 0
    assert (out / "de.csv").read_bytes() != (whole[1] / "de.csv").read_bytes()
