"""Item 4: killed by SIGKILL at random times, with a full disk and with any bit of a file flipped."""

import os
import pathlib
import random
import resource
import subprocess
import sys

import numpy as np
import pytest
from svi_cases import Killed, adam, data, killer, normal_guide, normal_model, same
from test_svi_resume import OPTIMIZERS, SCHEDULES

from pyro_zilognormal.svi import Checkpoint, CheckpointError, EarlyStopping, Schedule, fit, storage


def killed_fits(folder, seed, names):
    """Run svi_kill_script.py, and return by name how often it was killed, and whether the end is the same."""
    here = pathlib.Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])])}
    command = [sys.executable, str(here / "svi_kill_script.py"), str(folder), str(seed), *names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    return {name: (int(kills), int(late), equal == "True") for name, kills, late, equal in lines}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_every_optimizer_and_schedule_outlives_sigkill_at_random_times(tmp_path):
    names = [*OPTIMIZERS, *SCHEDULES]
    found = killed_fits(tmp_path, 1, names)
    assert found.keys() == set(names)
    assert [name for name, (_, _, equal) in found.items() if not equal] == []
    # Most were killed, and more than once, after a file was there to go on from.
    assert sum(late for _, late, _ in found.values()) > len(names)


def plain(*callbacks, steps=20):
    return fit(normal_model, normal_guide, data(), steps=steps, optimizer=adam, callbacks=callbacks)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "a.ckpt"
    with pytest.raises(Killed):
        plain(Checkpoint(path, steps=4), killer(13))
    return path.read_bytes()


def test_every_single_bit_flip_of_a_checkpoint_is_refused(saved, tmp_path):
    # All of the magic, the checksum and the header, and a large sample of the tensors.
    size = 8 * (56 + int.from_bytes(saved[48:56], "little"))
    bits = [*range(size), *random.Random(0).sample(range(size, 8 * len(saved)), 5000)]
    path = tmp_path / "a.ckpt"
    flipped = bytearray(saved)
    for bit in bits:
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(storage.CorruptFileError):
            storage.decode(flipped)
        flipped[bit // 8] ^= 1 << bit % 8
    for bit in random.Random(1).sample(bits, 20):  # and by what a user calls
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="no checkpoint can be read"):
            plain(Checkpoint(path))
        flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)
    same(plain(), plain(Checkpoint(path)))


@pytest.fixture
def full_disk():
    """Return a function that lets no file grow beyond so many bytes, as a full disk would not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_disk_that_is_full_leaves_the_file_before_and_no_part_of_another(share, saved, tmp_path, full_disk):
    path = tmp_path / "a.ckpt"

    def fill(run):
        if run.step == 10:
            full_disk(int(share * len(saved)))

    with pytest.raises(OSError, match="too large"):
        plain(fill, Checkpoint(path, steps=4))
    full_disk(resource.RLIM_INFINITY)
    assert sorted(os.listdir(tmp_path)) == ["a.ckpt", "a.ckpt.previous"]
    assert Checkpoint.read(path).step == 8
    same(plain(), plain(Checkpoint(path)))


@pytest.mark.parametrize("callbacks_first", [True, False])
def test_a_checkpoint_may_stand_anywhere_among_the_callbacks(callbacks_first, tmp_path):
    def run(*save):
        others = [Schedule(SCHEDULES["OneCycleLR"]), EarlyStopping(data(7), every=4, patience=99)]
        return plain(*([*others, *save] if callbacks_first else [*save, *others]))

    with pytest.raises(Killed):
        run(Checkpoint(tmp_path / "a.ckpt", steps=3), killer(8))
    same(run(), run(Checkpoint(tmp_path / "a.ckpt")))


def test_two_checkpoints_of_one_fit_serve_both(tmp_path):
    def run(*more):
        often, seldom = Checkpoint(tmp_path / "often", steps=2), Checkpoint(tmp_path / "seldom", steps=7)
        return plain(Schedule(SCHEDULES["StepLR"]), seldom, often, *more)

    with pytest.raises(Killed):
        run(killer(10))
    assert Checkpoint.read(tmp_path / "often").step == 8
    assert Checkpoint.read(tmp_path / "seldom").step == 7
    resumed = run()
    assert np.array_equal(resumed.losses, plain(Schedule(SCHEDULES["StepLR"])).losses)
