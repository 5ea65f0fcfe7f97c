"""Data of a fit: all at once, minibatches of anything, and streams, with the right scale and in bounded memory."""

import functools
import tracemalloc

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoDelta, AutoHierarchicalNormalMessenger, AutoNormal
from svi_cases import adam, data, delta_guide, local_model, normal_guide, normal_model, sized_model
from torch.utils.data import DataLoader

from pyro_zilognormal.svi import BatchStream, EarlyStopping, Minibatches, Schedule, SVIModule, fit
from pyro_zilognormal.svi.data import as_source, digest

ROWS = 10


def table(kind, batch_size):
    x = data(ROWS).double()
    arrays = {"tensor": x, "numpy": x.numpy(), "csr": scipy.sparse.csr_array(x.numpy()[:, None])}
    if kind in arrays:
        return Minibatches(arrays[kind], batch_size=batch_size, plate="rows")
    loader = DataLoader(x, batch_size=batch_size, shuffle=True) if kind == "loader" else list(x.split(batch_size))
    return BatchStream(loader, plate="rows")


def flat(fn):
    return lambda x: fn(x.flatten())


def mean_gradients(source, model, loss, epochs):
    """The mean of each epoch's gradients as fit takes them, without moving."""
    found, still = [], functools.partial(torch.optim.SGD, lr=0.0)
    note = [lambda run: found.append(run.module.trainable()["q_loc"].grad.clone())]
    steps = epochs * getattr(source, "batches", 1)
    fit(flat(model), flat(delta_guide), source, steps=steps, optimizer=still, loss=loss, callbacks=note)
    return torch.stack(found).reshape(epochs, -1).mean(1)


def gradient(module, batches):
    """The sum of an epoch's gradients, each weighted by its share of the rows."""
    total = {}
    for batch in batches:
        for parameter in module.trainable().values():
            parameter.grad = None
        module.loss_and_grads(batch)
        for name, parameter in module.trainable().items():
            total[name] = total.get(name, 0.0) + batch.rows / module.rows * parameter.grad
    return total


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


PLATES = {"len(x)": normal_model, "N": sized_model(ROWS)}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("loss", [Trace_ELBO(), TraceGraph_ELBO(), RenyiELBO(alpha=0.5, num_particles=2)])
@pytest.mark.parametrize("model", PLATES.values(), ids=PLATES)
@pytest.mark.parametrize("batch_size", [1, 4, 5, 10, 64])
@pytest.mark.parametrize("kind", ["tensor", "numpy", "csr", "loader", "list"])
def test_mean_gradient_of_an_epoch_is_the_full_gradient(kind, batch_size, model, loss):
    # The gradient by hand: d/dm of m^2 / 200 + sum (x - m)^2 / 2 at m = 0.3, which delta_guide has in double precision.
    x = data(ROWS).double()
    by_hand = 0.3 / 100 - (x - 0.3).sum()
    for source, epochs in ((x, 1), (table(kind, batch_size), 2)):
        found = mean_gradients(source, model, loss, epochs)
        torch.testing.assert_close(found, by_hand.expand(epochs), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("double")
def test_gradients_of_row_parameters_do_not_depend_on_the_batches():
    x, model = data(ROWS).double(), local_model(ROWS)
    found = []
    for size in (ROWS, 4):
        module = SVIModule(model, AutoDelta(model), None, "rows", ROWS)
        pyro.set_rng_seed(0)
        module.setup(Minibatches(x, batch_size=ROWS, plate="rows").batch(torch.arange(ROWS)))
        found.append(gradient(module, Minibatches(x, batch_size=size, plate="rows").epoch(0, 0)))
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("guide", [AutoDelta, AutoNormal, AutoHierarchicalNormalMessenger])
def test_parameters_of_rows_meet_their_own_rows(guide):
    torch.manual_seed(0)
    x, model = data(ROWS), local_model(ROWS)
    source = Minibatches(x, batch_size=3, plate="rows")
    calm = Schedule(functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.99))
    fast = functools.partial(torch.optim.Adam, lr=0.2)
    result = fit(model, guide(model), source, steps=500, optimizer=fast, callbacks=[calm])
    with result.scope(), torch.no_grad():
        draws = [result.module.guide(x) for _ in range(60)]
    loc, z = (torch.stack([d[k] for d in draws]).mean(0) for k in ("loc", "z"))
    assert torch.allclose(z, (loc + 4 * x) / 5, atol=0.3)  # the posterior mean of z given loc, by conjugacy


@pytest.mark.parametrize("batch_size", [1, 3, 4, 9])
def test_every_row_comes_once_an_epoch_in_an_order_of_the_seed(batch_size):
    source = Minibatches(torch.arange(ROWS), batch_size=np.int64(batch_size), plate="rows")

    def order(epoch, seed):
        batches = list(source.epoch(epoch, seed))
        assert all(torch.equal(b.args[0], b.indices) for b in batches)
        assert sum(b.rows for b in batches) == ROWS
        return torch.cat([b.args[0] for b in batches]).tolist()

    assert sorted(order(0, 0)) == list(range(ROWS))
    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(e, s)) for e in range(3) for s in range(3)}) == 9


@pytest.mark.parametrize("generator", [None, torch.Generator()])
def test_a_loader_shuffles_by_the_seed_of_the_fit(generator):
    stream = BatchStream(DataLoader(torch.arange(9), batch_size=4, shuffle=True, generator=generator), plate=None)

    def order(epoch, seed):
        return torch.cat([b.args[0] for b in stream.epoch(epoch, seed)]).tolist()

    first = order(0, 0)
    torch.rand(3)
    assert order(0, 0) == first
    assert len({tuple(order(e, s)) for e in range(2) for s in range(2)}) == 4


def test_several_arrays_and_none_are_passed_in_order():
    x, y = np.arange(6.0).reshape(3, 2), scipy.sparse.csr_matrix(np.eye(3, dtype=np.int64))
    batch = Minibatches(x, None, y, batch_size=2, plate="rows", shuffle=False).batch(torch.tensor([2, 0]))
    assert batch.args[0].tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert batch.args[1] is None
    assert batch.args[2].tolist() == [[0, 0, 1], [1, 0, 0]]
    assert (batch.args[0].dtype, batch.args[2].dtype) == (torch.float64, torch.int64)


FINE = np.array([[1.0 + 2.0**-40], [2.0], [0.0]])  # 1 + 2**-40 is 1 in single precision

KINDS = {
    "numpy": lambda x: x,
    "csr matrix": scipy.sparse.csr_matrix,
    "csr array": scipy.sparse.csr_array,
    "tensor": torch.from_numpy,
}

SOURCES = {
    "all at once": lambda x: as_source((x,), {}),
    "minibatches": lambda x, **settings: Minibatches(x, batch_size=2, plate="rows", shuffle=False, **settings),
    "stream": lambda x: BatchStream([x[:2], x[2:]], plate="rows"),
}


def read(source):
    return torch.cat([batch.args[0] for batch in source.epoch(0, 0)])


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_batches_keep_dtype_and_every_digit_unless_asked(kind, source):
    for dtype in (np.float64, np.float32, np.int64, np.int32, np.uint8, np.bool_):
        found = read(SOURCES[source](kind(FINE.astype(dtype))))
        assert found.dtype == torch.from_numpy(FINE.astype(dtype)).dtype
        assert np.array_equal(found.numpy(), FINE.astype(dtype))
    if source == "minibatches":
        assert torch.equal(read(SOURCES[source](kind(FINE), dtype=torch.float32)), torch.tensor([[1.0], [2.0], [0.0]]))
        assert read(SOURCES[source](kind(FINE.astype(np.int64)), dtype=torch.float32)).dtype == torch.int64


@pytest.mark.parametrize(
    "array",
    [
        np.arange(4.0)[::-1],
        np.array([True, False]),
        np.arange(4.0).astype(np.float16),
    ],
)
def test_odd_numpy_arrays_are_read(array):
    array.setflags(write=False)
    assert as_source((array,), {}).args[0].tolist() == [pytest.approx(v) for v in array.tolist()]


X = data(6)
DISTINCT = [X, X.double(), X.reshape(2, 3), X.bfloat16(), X.numpy(), X[:5], X[:0], X[0], [X], {"x": X}, "x", 1, None]
DISTINCT += [scipy.sparse.csr_array(X.numpy()[None]), X.flip(0), (X, X), -X]


def test_a_digest_tells_values_dtypes_and_shapes_apart_but_not_layouts_in_memory():
    assert len({digest(value) for value in DISTINCT}) == len(DISTINCT)
    assert digest(X) == digest(X.clone()) == digest(X.repeat_interleave(2)[::2]) == digest(torch.stack([X, X], 1)[:, 0])
    assert digest(X.numpy()) == digest(np.repeat(X.numpy(), 2)[::2])


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
    small, large = peak_of_an_epoch(500), peak_of_an_epoch(10_000)
    # All that grows is the shuffled order, 8 bytes a row; the dense matrix would take 1600 bytes a row.
    assert large < small + 8 * 10_000 + 10_000


def scaled_model(x, scale=1.0, *, shift):
    normal_model((x - shift) / scale)


def test_keyword_arguments_reach_model_and_guide_whole():
    def guide(x, scale=1.0, *, shift):
        normal_guide(x)

    def run(*args):
        return fit(
            scaled_model, guide, *args, steps=400, optimizer=adam, shift=np.float64(5.0), scale=torch.tensor(2.0)
        )

    for source in (data(60, loc=7.0), Minibatches(data(60, loc=7.0), batch_size=25, plate="rows")):
        assert run(source).params["q_loc"] == pytest.approx(1.0, abs=0.4)


def test_keyword_arguments_reach_held_out_evaluations():
    def guide(x, *, shift=0.0):
        delta_guide(x)

    def run(held_out, *args, **kwargs):
        stop = EarlyStopping(held_out, every=2)
        return fit(scaled_model, guide, *args, steps=2, callbacks=[stop], **{"shift": 5.0, **kwargs}).held_out[0][1]

    x, held_out = data(), data(9, loc=7.0)
    expected = run(held_out - 5.0, x - 5.0, shift=0.0)
    assert run(held_out, x) == pytest.approx(expected, rel=1e-6)


BAD = {
    "no rows": (lambda: Minibatches(data(0), batch_size=2, plate=None), ValueError, r"numbers of rows: \{0: 0\}"),
    "other rows": (lambda: Minibatches(data(3), data(4), batch_size=2, plate=None), ValueError, r"\{0: 3, 1: 4\}"),
    "nothing": (lambda: Minibatches(None, batch_size=2, plate=None), ValueError, "numbers of rows"),
    "batch size": (
        lambda: Minibatches(data(), batch_size=0, plate=None),
        ValueError,
        "batch_size is 0; needed",
    ),
    "part of a row": (lambda: Minibatches(data(), batch_size=2.5, plate=None), ValueError, "batch_size is 2.5"),
    "an iterator": (lambda: BatchStream(iter([data()]), plate=None), TypeError, "can be read only once"),
    "no batch": (lambda: BatchStream([], plate=None), ValueError, "iterable holds no rows"),
    "bare loader": (lambda: as_source((DataLoader(data()),), {}), TypeError, r"wrap it as BatchStream\(loader, plate"),
    "two": (lambda: as_source((data(), BatchStream([data()], None)), {}), TypeError, "came with other data"),
}


@pytest.mark.parametrize(("make", "error", "message"), BAD.values(), ids=BAD)
def test_bad_data_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def in_plate(name, size):
    def model(x):
        with pyro.plate(name, size(x)):
            pyro.sample("x", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0), obs=x)

    return model


def local_batch(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(loc, 1.0)), 0.5), obs=x)


def nothing(x):
    pass


LOCAL = local_model(ROWS)

WRONG = {
    "another plate": (in_plate("cells", len), nothing, r"plate is 'rows'; the model's are \['cells'\]"),
    "another size": (in_plate("rows", lambda x: 7), nothing, r"has size 7; needed 10, the .* or 4, that of this batch"),
    "rows in a batch's plate": (
        local_batch,
        AutoNormal(local_batch),
        "holds a value for every row",
    ),
}


@pytest.mark.parametrize(("model", "guide", "message"), WRONG.values(), ids=WRONG)
def test_models_that_minibatches_would_make_silently_wrong_are_refused(model, guide, message):
    with pytest.raises(ValueError, match=message):
        fit(model, guide, Minibatches(data(ROWS), batch_size=4, plate="rows"), steps=3)


@pytest.mark.parametrize("batch_size", [5, ROWS])
def test_a_stream_has_no_parameters_of_rows(batch_size):
    stream = BatchStream(DataLoader(data(ROWS), batch_size=batch_size, shuffle=True), plate="rows")
    with pytest.raises(ValueError, match="for every row"):
        fit(LOCAL, AutoNormal(LOCAL), stream, steps=3)
    assert fit(LOCAL, AutoNormal(LOCAL), Minibatches(data(ROWS), batch_size=ROWS, plate="rows"), steps=3).steps == 3


class ReadOnce:
    """Batches that are gone after so many readings, though no iterator says so."""

    def __init__(self, readings):
        self.left = readings

    def __iter__(self):
        self.left -= 1
        return iter([data(4), data(2)] if self.left >= 0 else [])


@pytest.mark.parametrize("readings", [1, 2, 3])
def test_a_stream_that_runs_dry_is_an_error(readings):
    stream = BatchStream(ReadOnce(readings), plate="rows")
    with pytest.raises(ValueError, match="iterable gave 0 batches"):
        fit(normal_model, normal_guide, stream, steps=20, optimizer=adam)
