"""Item 2: data keep their precision, and take another only where that is asked for."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
from svi_cases import Killed, adam, data, delta_guide, killer, normal_model

from pyro_zilognormal.svi import BatchStream, Checkpoint, CheckpointError, Minibatches, fit
from pyro_zilognormal.svi.data import as_source

# 1 + 2**-40 is 1 in single precision.
FINE = np.array([[1.0 + 2.0**-40], [2.0], [0.0]])

KINDS = {
    "numpy": lambda x: x,
    "csr matrix": scipy.sparse.csr_matrix,
    "csr array": scipy.sparse.csr_array,
    "tensor": torch.from_numpy,
}

SOURCES = {
    "all at once": lambda x, **settings: as_source((x,)),
    "minibatches": lambda x, **settings: Minibatches(x, batch_size=2, plate="rows", shuffle=False, **settings),
    "stream": lambda x, **settings: BatchStream([x[:2], x[2:]], plate="rows", **settings),
}


def read(source):
    return torch.cat([batch.args[0] for batch in source.epoch(0, 0)])


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.int32, np.uint8, np.bool_])
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_batch_has_the_dtype_and_every_digit_of_the_data(kind, source, dtype):
    table = FINE.astype(dtype)
    found = read(source(kind(table)))
    assert found.dtype == torch.from_numpy(table).dtype
    assert np.array_equal(found.numpy(), table)


@pytest.mark.parametrize("source", ["minibatches", "stream"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_another_dtype_is_given_to_floating_arrays_on_request(kind, source):
    floating = SOURCES[source](kind(FINE), dtype=torch.float32)
    assert torch.equal(read(floating), torch.tensor([[1.0], [2.0], [0.0]]))
    whole = SOURCES[source](kind(FINE.astype(np.int64)), dtype=torch.float32)
    assert read(whole).dtype == torch.int64


def test_double_precision_reaches_the_loss():
    def losses(x):
        def model(x):
            with pyro.plate("rows", len(x)):
                pyro.sample("x", dist.Normal(pyro.param("m", torch.zeros((), dtype=x.dtype)), 1.0), obs=x)

        return fit(model, lambda x: None, x, steps=1).losses

    x = np.random.default_rng(0).normal(size=100)
    expected = -float(dist.Normal(0.0, 1.0).log_prob(torch.from_numpy(x)).sum())
    assert losses(x)[0] == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (np.array([1, 2**63], dtype=np.uint64), ValueError, "holds 9223372036854775808; needed whole numbers of at"),
        (np.zeros(2, dtype=np.longdouble), TypeError, "needed numbers of at most 64 bits"),
        (np.zeros(2, dtype=np.complex64), TypeError, "numpy dtype complex64"),
    ],
)
def test_numbers_that_torch_would_change_are_refused(array, error, message):
    with pytest.raises(error, match=message):
        as_source((array,))


@pytest.mark.parametrize("dtype", [torch.int64, "float32", np.float32])
def test_what_is_no_floating_dtype_is_refused(dtype):
    with pytest.raises(TypeError, match="needed a floating dtype"):
        Minibatches(data(), batch_size=2, plate="rows", dtype=dtype)


def test_another_dtype_is_another_fit(tmp_path):
    def run(dtype, callbacks=()):
        source = Minibatches(data().double(), batch_size=5, plate="rows", dtype=dtype)
        save = Checkpoint(tmp_path / "a.ckpt", steps=1)
        fit(normal_model, delta_guide, source, steps=3, optimizer=adam, callbacks=[save, *callbacks])

    with pytest.raises(Killed):
        run(torch.float32, [killer(2)])
    with pytest.raises(CheckpointError, match=r"'dtype': torch.float32.* in the checkpoint"):
        run(None)
    run(torch.float32)
