"""A fit that a test kills: `python svi_resume_script.py PATH STEPS PAUSE`, with a pause after each step."""

import signal
import sys
import time

from svi_cases import adam, data, normal_guide, normal_model

from pyro_zilognormal.svi import Checkpoint, EarlyStopping, Minibatches, fit


def run(callbacks, steps=30):
    """Fit with a minibatch order, held-out looks and the given callbacks."""
    source = Minibatches(data(23), batch_size=5, plate="rows")
    stop = EarlyStopping(data(7, seed=3), every=10, patience=100)
    return fit(normal_model, normal_guide, source, steps=steps, optimizer=adam, callbacks=[stop, *callbacks])


def main(path, steps, pause):
    def slow(state):
        print(state.step, flush=True)
        time.sleep(pause)

    run([slow, Checkpoint(path, steps=5)], steps)
    print("done")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell takes from what runs in the background
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
