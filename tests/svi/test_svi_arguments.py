"""Arguments of the wrong kind or out of range are refused by name, with what was needed."""

import math

import numpy as np
import pyro.infer
import pytest
import torch
from svi_cases import data, normal_guide, normal_model
from torch.optim.lr_scheduler import StepLR

from pyro_zilognormal.svi import (
    BatchStream,
    Checkpoint,
    EarlyStopping,
    Minibatches,
    Objective,
    Progress,
    Schedule,
    SkipBadSteps,
    fit,
)


def fitted(**arguments):
    return fit(normal_model, normal_guide, data(), **{"steps": 2, **arguments})


MASKED = np.ma.masked_array(np.ones(6), mask=np.arange(6) == 2)

BAD = {
    "a mask": (lambda: fit(normal_model, normal_guide, MASKED, steps=1), TypeError, "data argument 0 is a masked"),
    "a mask in batches": (
        lambda: fit(normal_model, normal_guide, Minibatches(MASKED, batch_size=2, plate="rows"), steps=1),
        TypeError,
        "array 0 is a masked array, whose mask a tensor would lose; pass its .data",
    ),
    "a sparse tensor": (
        lambda: fit(normal_model, normal_guide, torch.eye(6).to_sparse(), steps=1),
        TypeError,
        "data argument 0 is a torch.sparse_coo tensor; needed a dense tensor or a scipy CSR matrix",
    ),
    "window 0": (lambda: Progress(window=0), ValueError, "window is 0; needed a whole number of at least 1"),
    "window below": (lambda: Progress(window=-3), ValueError, "window is -3; needed a whole number of at least 1"),
    "show": (lambda: Progress(show="yes"), TypeError, "show is 'yes'; needed True, False, or None"),
    "in_a_row text": (lambda: SkipBadSteps(in_a_row="3"), ValueError, "in_a_row is '3'; needed a whole number"),
    "in_a_row nan": (lambda: SkipBadSteps(in_a_row=math.nan), ValueError, "in_a_row is nan; needed a whole number"),
    "in_a_row part": (lambda: SkipBadSteps(in_a_row=2.5), ValueError, "in_a_row is 2.5; needed a whole number"),
    "every text": (lambda: EarlyStopping(every="3"), ValueError, "every is '3'; needed a whole number of at least 2"),
    "noise text": (lambda: EarlyStopping(noise="3"), ValueError, "noise is '3'; needed a number of at least 0"),
    "seed": (lambda: EarlyStopping(seed=2**70), ValueError, "seed is .*; needed a whole number from 0 to 4294967295"),
    "steps true": (lambda: Checkpoint("a", steps=True), ValueError, "steps is True; needed a whole number"),
    "seconds": (lambda: Checkpoint("a", seconds="3"), ValueError, "seconds is '3'; needed a positive number"),
    "a folder": (lambda: Checkpoint("."), ValueError, "path is '.', a folder; needed the name of a file"),
    "every true": (lambda: Schedule(StepLR, every=True), ValueError, "every is True; needed a whole number"),
    "no schedule": (
        lambda: fitted(callbacks=[Schedule(lambda optimizer: None)]),
        TypeError,
        "make gave a NoneType; needed a schedule of torch.optim.lr_scheduler",
    ),
    "max_seconds": (lambda: fitted(max_seconds="a"), ValueError, "max_seconds is 'a'; needed a positive number"),
    "loss": (lambda: fitted(loss="elbo"), TypeError, "loss is a str; needed a loss of pyro.infer"),
    "plate": (lambda: Minibatches(data(), batch_size=2, plate=3), TypeError, "plate is a int; needed the name"),
    "plate of a stream": (lambda: BatchStream([data()], plate=3), TypeError, "plate is a int; needed the name"),
    "no rows in a batch": (
        lambda: BatchStream([data(), data()[:0]], plate="rows"),
        ValueError,
        "iterable gave a batch of 0 rows; needed at least one row in each",
    ),
    "a plate of no rows": (
        lambda: Objective(normal_model, normal_guide, pyro.infer.Trace_ELBO(), plate="rows"),
        ValueError,
        "rows is 0; needed a whole number of at least 1",
    ),
    "a plate that is no name": (
        lambda: Objective(normal_model, normal_guide, pyro.infer.Trace_ELBO(), plate=torch.tensor(1), rows=2),
        TypeError,
        "plate is a Tensor; needed the name",
    ),
}

GOOD = {
    "a window of one": lambda: Progress(window=1),
    "all shown": lambda: Progress(show=True),
    "one in a row": lambda: SkipBadSteps(in_a_row=1),
    "no noise": lambda: EarlyStopping(noise=0, min_delta=0.0),
    "the largest seed": lambda: EarlyStopping(seed=2**32 - 1),
    "half a second": lambda: Checkpoint("a", seconds=0.5, steps=1),
    "no interval": lambda: Checkpoint("a", seconds=None, steps=None),
    "a function as loss": lambda: fitted(loss=pyro.infer.Trace_ELBO().differentiable_loss),
    "one second": lambda: fitted(max_seconds=1),
    "no plate": lambda: Minibatches(data(), batch_size=2, plate=None),
    "an objective without rows": lambda: Objective(normal_model, normal_guide, pyro.infer.Trace_ELBO()),
}


@pytest.mark.parametrize(("make", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("make", GOOD.values(), ids=GOOD)
def test_good_arguments_are_taken(make):
    assert make() is not None


def test_the_largest_seed_of_held_out_looks_serves():
    stop = EarlyStopping(data(9), every=2, seed=2**32 - 1)
    assert len(fitted(steps=4, callbacks=[stop]).held_out) == 2
