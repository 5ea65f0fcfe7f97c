"""Item 2: data and plates that would be silently wrong are refused."""

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from svi_cases import data, local_model
from torch.utils.data import DataLoader

from pyro_zilognormal.svi import (
    BatchStream,
    Minibatches,
    fit,
)
from pyro_zilognormal.svi.data import as_source

ROWS = 10

BAD_DATA = [
    (lambda: Minibatches(data(), batch_size=0, plate="rows"), ValueError, "batch_size is 0; needed"),
    (lambda: Minibatches(data(), batch_size=2.5, plate="rows"), ValueError, "batch_size is 2.5; needed"),
    (lambda: Minibatches(data(), batch_size=True, plate="rows"), ValueError, "batch_size is True"),
    (lambda: Minibatches(batch_size=2, plate="rows"), ValueError, "got no array"),
    (lambda: Minibatches(torch.zeros(0), batch_size=2, plate="rows"), ValueError, "0 rows"),
    (lambda: Minibatches(torch.tensor(1.0), batch_size=2, plate="rows"), ValueError, "no axis of rows"),
    (
        lambda: Minibatches(data(3), data(4), batch_size=2, plate="rows"),
        ValueError,
        "different numbers of rows: {0: 3, 1: 4}",
    ),
    (lambda: Minibatches([1.0, 2.0], batch_size=2, plate="rows"), TypeError, "array 0 is a list"),
    (
        lambda: Minibatches(scipy.sparse.csc_array(np.eye(3)), batch_size=2, plate="rows"),
        TypeError,
        "csc format; call .tocsr",
    ),
    (
        lambda: Minibatches(torch.eye(3).to_sparse(), batch_size=2, plate="rows"),
        TypeError,
        "needed a dense tensor or a scipy CSR matrix",
    ),
    (
        lambda: next(Minibatches(np.array(["a"]), batch_size=1, plate="rows").epoch(0, 0)),
        TypeError,
        "numpy dtype <U1; needed numbers",
    ),
    (lambda: BatchStream(iter([data()]), plate="rows"), TypeError, "can be read only once"),
    (lambda: BatchStream(5, plate="rows"), TypeError, "iterable is a int"),
    (lambda: BatchStream([], plate="rows"), ValueError, "holds no rows"),
    (lambda: BatchStream([("a",)], plate="rows"), TypeError, "no array with rows"),
    (lambda: as_source((DataLoader(data()),)), TypeError, "wrap it as BatchStream"),
    (lambda: as_source((Minibatches(data(), batch_size=2, plate="r"), 1)), TypeError, "came with other data"),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD_DATA)
def test_bad_data_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def other_plate(x):
    with pyro.plate("cells", len(x)):
        pyro.sample("x", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0), obs=x)


def wrong_size(x):
    with pyro.plate("rows", 7, subsample_size=len(x)):
        pyro.sample("x", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0), obs=x)


def fixed_size(x):
    with pyro.plate("rows", ROWS, subsample_size=4):
        pyro.sample("x", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0), obs=x)


def batch_sized_local(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def no_guide(x):
    pass


BAD_PLATES = [
    (other_plate, no_guide, 4, r"plate is 'rows', but the model's plates are \['cells'\]"),
    (wrong_size, no_guide, 4, "declared with size 7; it needs 10"),
    (fixed_size, no_guide, 4, "subsample_size is not the 2 rows"),
    (batch_sized_local, AutoNormal(batch_sized_local), 5, "all minibatches would share them"),
    (batch_sized_local, AutoDiagonalNormal(batch_sized_local), 5, "cannot be trained on minibatches"),
    (local_model(ROWS), AutoDiagonalNormal(local_model(ROWS)), 5, "cannot be trained on minibatches"),
]


@pytest.mark.parametrize(("model", "guide", "batch_size", "message"), BAD_PLATES)
def test_plates_that_would_be_silently_wrong_are_refused(model, guide, batch_size, message):
    with pytest.raises(ValueError, match=message):
        fit(model, guide, Minibatches(data(ROWS), batch_size=batch_size, plate="rows"), steps=5)


def test_parameters_of_rows_need_to_know_the_rows():
    model = local_model(ROWS)
    with pytest.raises(ValueError, match="nothing says which rows these are"):
        fit(model, AutoNormal(model), BatchStream(list(data(ROWS).split(5)), plate="rows"), steps=5)


def test_a_local_site_in_another_plate_of_the_guide_is_refused():
    def guide(x, plate="cells"):
        pyro.sample("loc", dist.Delta(pyro.param("q_loc", torch.tensor(0.0))))
        with pyro.plate(plate, len(x)):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.0)) * x, 1.0))

    source = Minibatches(data(ROWS), batch_size=5, plate="rows")
    with pytest.raises(ValueError, match=r"site 'z' is inside plate 'rows' in the model.*plates are \['cells'\]"):
        fit(local_model(ROWS), guide, source, steps=1)
    assert fit(local_model(ROWS), functools.partial(guide, plate="rows"), source, steps=1).steps == 1
