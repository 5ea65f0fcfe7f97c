"""Item 2: minibatches of anything, with the right scale and in bounded memory."""

import functools
import tracemalloc

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from svi_cases import adam, data, delta_guide, local_model, normal_guide, normal_model, sized_model
from torch.utils.data import DataLoader, TensorDataset

from pyro_zilognormal.svi import (
    BatchStream,
    Minibatches,
    Objective,
    Schedule,
    fit,
)
from pyro_zilognormal.svi.data import as_source

ROWS = 10


def table(kind, batch_size):
    x = data(ROWS).double()
    if kind == "tensor":
        return Minibatches(x, batch_size=batch_size, plate="rows")
    if kind == "numpy":
        return Minibatches(x.numpy(), batch_size=batch_size, plate="rows")
    if kind == "csr":
        return Minibatches(scipy.sparse.csr_array(x.numpy()[:, None]), batch_size=batch_size, plate="rows")
    if kind == "loader":
        return BatchStream(DataLoader(x, batch_size=batch_size, shuffle=True), plate="rows")
    return BatchStream(list(x.split(batch_size)), plate="rows")


def flat(fn):
    return lambda x: fn(x.flatten())


def gradient(objective, batches):
    for parameter in objective.trainable().values():
        parameter.grad = None
    count = 0
    for count, batch in enumerate(batches, 1):  # noqa: B007 - counted
        objective.backward(*batch.args, indices=batch.indices, weight=batch.weight)
    return {k: p.grad / count for k, p in objective.trainable().items()}


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("loss", [Trace_ELBO, TraceGraph_ELBO, RenyiELBO])
@pytest.mark.parametrize("model", [normal_model, sized_model(ROWS)], ids=["len(x)", "N"])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 10, 64])
@pytest.mark.parametrize("kind", ["tensor", "numpy", "csr", "loader", "list"])
def test_mean_gradient_of_an_epoch_is_the_full_gradient(kind, batch_size, model, loss):
    loss = loss(alpha=0.5, num_particles=2) if loss is RenyiELBO else loss()
    source = table(kind, batch_size)
    objective = Objective(flat(model), flat(delta_guide), loss, "rows", ROWS)
    objective.setup(data(ROWS))
    full = gradient(objective, as_source((data(ROWS).double(),)).epoch(0, 0))["q_loc"]
    # The gradient by hand: d/dm of m^2 / 200 + sum (x - m)^2 / 2 at m = 0.3.
    by_hand = 0.3 / 100 - (data(ROWS).double() - objective.constrained()["q_loc"]).sum()
    torch.testing.assert_close(full, by_hand, rtol=1e-12, atol=1e-12)
    for epoch in range(3):
        batches = gradient(objective, source.epoch(epoch, seed=5))["q_loc"]
        torch.testing.assert_close(batches, full, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("guide", [AutoDelta, AutoNormal])
def test_parameters_of_rows_meet_their_own_rows(guide):
    # With one value a row, the gradient of row i must not depend on the other rows nor on the order.
    x, model = data(ROWS).double(), local_model(ROWS)
    grads = []
    for size in (ROWS, 4):
        source = Minibatches(x, batch_size=size, plate="rows")
        objective = Objective(model, AutoDelta(model), Trace_ELBO(), "rows", ROWS)
        pyro.set_rng_seed(0)
        objective.setup(x, indices=torch.arange(ROWS))
        grads.append(gradient(objective, source.epoch(0, 0)))
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name], rtol=1e-12, atol=1e-12)
    source = Minibatches(x, batch_size=3, plate="rows")
    fast = functools.partial(adam, lr=0.3)
    calm = Schedule(functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.99))
    result = fit(model, guide(model), source, steps=600, optimizer=fast, callbacks=[calm])
    loc = next(v for k, v in result.params.items() if k.endswith((".z", "locs.z")))
    # The posterior mean of z given loc, by conjugacy.
    m = next(v for k, v in result.params.items() if k.endswith((".loc", "locs.loc")))
    assert torch.allclose(loc, (m + 4 * x) / 5, atol=0.15)


@pytest.mark.parametrize("model", [normal_model, sized_model(ROWS)], ids=["len(x)", "N"])
def test_the_last_short_batch_has_the_scale_of_its_size(model):
    for size in (4, 2):
        objective = Objective(model, delta_guide, Trace_ELBO(), "rows", ROWS)
        x = data(ROWS)[:size]
        objective.setup(x)
        prior = -dist.Normal(0.0, 10.0).log_prob(torch.tensor(0.3))
        likelihood = -dist.Normal(0.3, 1.0).log_prob(x).sum()
        assert objective(x).item() == pytest.approx(float(prior + ROWS / size * likelihood), rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 9])
def test_every_row_comes_once_an_epoch_in_an_order_of_the_seed(batch_size):
    source = Minibatches(torch.arange(ROWS), batch_size=batch_size, plate="rows")

    def order(epoch, seed):
        batches = list(source.epoch(epoch, seed))
        assert all(torch.equal(b.args[0], b.indices) for b in batches)
        assert sum(b.weight for b in batches) == pytest.approx(source.batches)
        return torch.cat([b.args[0] for b in batches]).tolist()

    assert sorted(order(0, 0)) == list(range(ROWS))
    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(e, s)) for e in range(3) for s in range(3)}) == 9


def test_without_shuffle_rows_come_in_order():
    source = Minibatches(torch.arange(5), batch_size=2, plate="rows", shuffle=False)
    assert [b.args[0].tolist() for b in source.epoch(3, 1)] == [[0, 1], [2, 3], [4]]


def test_several_arrays_and_none_are_passed_in_order():
    x, y = np.arange(6.0).reshape(3, 2), scipy.sparse.csr_matrix(np.eye(3, dtype=np.int64))
    batch = Minibatches(x, None, y, batch_size=2, plate="rows", shuffle=False).batch(torch.tensor([2, 0]))
    assert batch.args[0].tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert batch.args[1] is None
    assert batch.args[2].tolist() == [[0, 0, 1], [1, 0, 0]]
    assert batch.args[0].dtype == torch.float64
    assert batch.args[2].dtype == torch.int64


@pytest.mark.parametrize(
    "array",
    [
        np.arange(4.0)[::-1],
        np.arange(4, dtype=">f8"),
        np.arange(4, dtype=np.uint16),
        np.array([True, False]),
        np.arange(4.0).astype(np.float16),
    ],
)
def test_odd_numpy_arrays_are_read(array):
    array.setflags(write=False)
    read = as_source((array,)).args[0]
    assert read.tolist() == [pytest.approx(v) for v in array.tolist()]


def peak_of_an_epoch(rows):
    x = scipy.sparse.random_array((rows, 400), density=0.01, format="csr", rng=0, dtype=np.float32)
    source = Minibatches(x, batch_size=50, plate="rows")
    tracemalloc.start()
    for batch in source.epoch(0, 0):
        del batch
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_of_csr_batches_does_not_grow_with_rows():
    small, large = peak_of_an_epoch(500), peak_of_an_epoch(20_000)
    # All that grows is the shuffled order, 8 bytes a row; the dense matrix would take 1600 bytes a row.
    assert large < small + 8 * 20_000 + 10_000


def test_a_stream_that_changes_is_refused():
    class Shrinking:
        def __init__(self):
            self.reads = 0

        def __iter__(self):
            self.reads += 1
            return iter([torch.zeros(4)] * (3 if self.reads == 1 else 2))

    with pytest.raises(ValueError, match="gave 12 rows when first read and 8 in epoch 0"):
        fit(normal_model, normal_guide, BatchStream(Shrinking(), plate="rows"), steps=5)


def test_reading_a_shuffling_loader_leaves_the_seed_alone():
    before = torch.get_rng_state()
    BatchStream(DataLoader(TensorDataset(data()), batch_size=3, shuffle=True), plate="rows")
    assert torch.equal(before, torch.get_rng_state())


def test_a_fit_reaches_the_posterior_whatever_it_reads():
    x = data(200)
    mean = 200 * x.mean() / (200 + 1 / 100)
    sets = {
        "full": (x,),
        "numpy": (x.numpy(),),
        "batches": (Minibatches(x, batch_size=30, plate="rows"),),
        "stream": (BatchStream(DataLoader(x, batch_size=30, shuffle=True), plate="rows"),),
    }
    for name, args in sets.items():
        result = fit(normal_model, normal_guide, *args, steps=250, optimizer=functools.partial(adam, lr=0.05))
        assert abs(result.params["q_loc"] - mean) < 0.15, name
        assert result.rows == 200
