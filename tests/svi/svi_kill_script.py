"""A fit that a test kills: `python svi_kill_script.py OPTIMIZER PATH PAUSE`, with a pause after each step."""

import functools
import signal
import sys
import time

import torch
from svi_cases import auto, data, normal_model

from pyro_zilognormal.svi import Checkpoint, EarlyStopping, Minibatches, Schedule, fit

OPTIMIZERS = {
    "Adam": functools.partial(torch.optim.Adam, lr=0.05),
    "SGD": functools.partial(torch.optim.SGD, lr=0.001, momentum=0.9),
}


def run(name, callbacks):
    """Fit on minibatches with a schedule and held-out evaluations."""
    torch.set_num_threads(1)
    source = Minibatches(data(23), batch_size=5, plate="rows")
    halve = Schedule(functools.partial(torch.optim.lr_scheduler.StepLR, step_size=7, gamma=0.5))
    stop = EarlyStopping(data(7, seed=3), every=10, patience=100)
    return fit(normal_model, auto(), source, steps=30, optimizer=OPTIMIZERS[name], callbacks=[halve, stop, *callbacks])


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored in what runs in the background
    _, name, path, pause = sys.argv

    def slow(state):
        print(state.step, flush=True)
        time.sleep(float(pause))

    run(name, [slow, Checkpoint(path, steps=5)])
    print("done")
