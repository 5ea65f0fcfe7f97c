"""A fit that a test kills: `python resume_script.py PATH STEPS PAUSE`; prints what came of it."""

import json
import sys
import time

import torch
from svi_cases import adam, data, normal_guide, normal_model

from pyro_zilognormal.svi import Checkpoint, EarlyStopping, Minibatches, fit


def main(path, steps, pause):
    def slow(run):
        print(run.step, flush=True)
        time.sleep(pause)

    torch.set_num_threads(1)
    save = Checkpoint(path, steps=5)
    source = Minibatches(data(23), batch_size=5, plate="rows")
    stop = EarlyStopping(data(7, seed=3), every=10, patience=100)
    result = fit(
        normal_model, normal_guide, source, steps=steps, optimizer=adam, callbacks=[slow, stop, save]
    )
    values = {k: v.item() for k, v in result.params.items()}
    print("done", json.dumps([result.losses.tolist(), result.held_out, values]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
