"""Fits that are killed for good, again and again: `python svi_kill_script.py FOLDER SEED NAME...`.

Each named optimiser or schedule is fitted once without an interruption, then in child processes that get a SIGKILL
after random times, in the middle of steps and of saves, until one of them comes to the end. Prints a line for each: its
name, how many children were killed, how many of them after a file had been saved, and whether the end is the same to
the last bit.
"""

import hashlib
import os
import pathlib
import random
import signal
import sys
import time

import torch
from svi_cases import adam, auto, data, normal_model
from test_svi_resume import OPTIMIZERS, SCHEDULES, STEPS

from pyro_zilognormal.svi import Checkpoint, Minibatches, Schedule, fit


def run(name, callbacks):
    """Fit with the optimiser or schedule of that name."""
    optimizer = OPTIMIZERS.get(name, adam)
    schedule = [Schedule(SCHEDULES[name])] if name in SCHEDULES else []
    source = Minibatches(data(23), batch_size=5, plate="rows")
    return fit(normal_model, auto(), source, steps=STEPS, optimizer=optimizer, callbacks=[*schedule, *callbacks])


def digest(result):
    """Return what two fits share only if they are the same to the last bit."""
    parts = [result.losses.tobytes(), *(v.numpy().tobytes() for v in result.values.values())]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def child(name, path, seconds):
    """Return whether a fit in a process of its own was killed before its end, after so many seconds."""
    process = os.fork()
    if process == 0:
        save = Checkpoint(path, steps=1)
        path.with_suffix(".digest").write_text(digest(run(name, [save])))
        os._exit(0)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return os.WIFSIGNALED(status)


def main(folder, seed, names):
    torch.set_num_threads(1)
    draws = random.Random(seed)
    for name in names:
        path, start = pathlib.Path(folder) / f"{name}.ckpt", time.monotonic()
        whole, took = digest(run(name, [])), time.monotonic() - start
        kills = late = 0
        while child(name, path, took * draws.uniform(0.3, 1.0 + kills / 4)):
            kills += 1
            late += path.exists()
        print(name, kills, late, path.with_suffix(".digest").read_text() == whole, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
