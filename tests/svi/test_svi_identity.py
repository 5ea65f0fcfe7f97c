"""Item 4, identity: a checkpoint of other data, model or settings is refused with the difference named."""

import dataclasses
import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
from svi_cases import adam, auto, data, fit_with, normal_guide, normal_model

from pyro_zilognormal.svi import Checkpoint, CheckpointError, EarlyStopping, Minibatches, fit


def wider(x):
    loc = pyro.sample("loc", dist.StudentT(3.0, 0.0, 10.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def narrower(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


OTHERS = [
    ({"data": data(seed=1)}, r"data argument 0: tensor \(20,\) torch.float32 \w+ in the checkpoint, tensor"),
    ({"data": data(21)}, r"tensor \(21,\)"),
    ({"data": data().double()}, "torch.float64"),
    ({"data": Minibatches(data(), batch_size=3, plate="rows")}, "Minibatches of 20 rows in 7 batches .* now"),
    ({"model": wider}, r"model site 'loc': latent Normal\(.* in the checkpoint, latent StudentT"),
    ({"guide": auto()}, "parameter 'q_loc': .*Real.* in the checkpoint, absent now"),
    ({"model": narrower}, r"model site 'loc': .*scale=10\) .* in the checkpoint, .*scale=5\)"),
    ({"seed": 5}, "seed: 0 in the checkpoint, 5 now"),
    (
        {"optimizer": functools.partial(adam, lr=0.1)},
        "optimizer: .*'lr': 0.05.* in the checkpoint, .*'lr': 0.1",
    ),
    ({"optimizer": functools.partial(torch.optim.SGD, lr=0.05)}, "optimizer: Adam .* now"),
    ({"loss": pyro.infer.Trace_ELBO(num_particles=3)}, "loss: .*'num_particles': 1.*'num_particles': 3"),
    ({"more": [EarlyStopping()]}, "callback 0 with a state: absent in the checkpoint, EarlyStopping"),
]


@pytest.mark.parametrize(("change", "message"), OTHERS)
def test_a_checkpoint_of_another_fit_is_refused_with_the_difference(change, message, tmp_path):
    path = tmp_path / "a.ckpt"
    fit_with(path, {})
    with pytest.raises(CheckpointError, match=message):
        fit_with(path, change)
    assert fit_with(path, {}).steps == 4


def test_other_held_out_data_are_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    fit_with(path, {"more": [EarlyStopping(data(seed=3))]})
    with pytest.raises(CheckpointError, match=r"callback 0 with a state: EarlyStopping .*held_out"):
        fit_with(path, {"more": [EarlyStopping(data(seed=4))]})


@dataclasses.dataclass
class Study:
    rows: torch.Tensor
    label: str = "a"


class Plain:
    def __init__(self, rows):
        self.rows = rows
        self.me = self


def nested_model(x, more):
    normal_model(x)


def nested_guide(x, more):
    normal_guide(x)


NESTED = {
    "dict": lambda k: {"size": data(4, k)},
    "text in a dict": lambda k: {"name": str(k)},
    "key of a dict": lambda k: {k: 1},
    "tuple": lambda k: (1, data(4, k)),
    "list": lambda k: [[data(4, k).numpy()]],
    "set": lambda k: {1, k + 7},
    "dataclass": lambda k: Study(data(4, k)),
    "field of a dataclass": lambda k: Study(data(4), str(k)),
    "object": lambda k: Plain(data(4, k)),
    "sparse": lambda k: {"counts": scipy.sparse.csc_array(data(4, k).numpy()[:, None])},
    "sparse tensor": lambda k: (data(4, k).to_sparse(),),
    "table": lambda k: Table([k, 1.0]),
    "objects in an array": lambda k: {"who": np.array([k, "a"], dtype=object)},
}


class Table:
    """As a pandas object, an array only for who asks."""

    def __init__(self, content):
        self.__slots__ = ()
        self._hidden = content

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._hidden)


@pytest.mark.parametrize("make", NESTED.values(), ids=NESTED)
def test_data_inside_other_arguments_are_told_apart(make, tmp_path):
    def run(more, steps=3):
        fit(nested_model, nested_guide, data(), more, steps=steps, callbacks=[Checkpoint(tmp_path / "a.ckpt")])

    run(make(0))
    run(make(0), steps=4)
    with pytest.raises(CheckpointError, match=r"data argument 1: .* in the checkpoint, .* now"):
        run(make(1))


def closed(size, label="a"):
    table = {"size": size, "label": label}

    def model(x):
        normal_model(x + 0 * table["size"].sum())

    return model


def shifted(x, prior):
    normal_model(x + 0 * prior.sum())


class Holder(torch.nn.Module):
    """Data, a setting and a record that grows, as attributes."""

    def __init__(self, size, width=1.0):
        super().__init__()
        self.size, self.width, self.record = size, width, []
        self.inner = torch.nn.Dropout(width / 4)

    def forward(self, x):
        self.record.append(float(x.sum()))
        normal_model(x + 0 * self.size.sum())


class Bound:
    def __init__(self, size):
        self.size = size

    def model(self, x):
        normal_model(x + 0 * self.size.sum())


def wrapped(size):
    inner = closed(size)

    def model(x):
        inner(x)

    return model


HELD = {
    "closure": (closed, "model holds 'table'"),
    "closure of a closure": (wrapped, "model holds 'table'"),
    "partial": (lambda size: functools.partial(shifted, prior=size), "model holds 'argument prior'"),
    "module": (Holder, "model holds 'size'"),
    "setting of a module": (lambda size: Holder(data(), float(size[0])), "model holds 'width'"),
    "setting of a submodule": (lambda size: Holder(data(), 1.0 + (size is DATA[1])), r"model holds 'inner\.p'"),
    "object": (lambda size: Bound(size).model, "model holds 'size'"),
    "handler": (lambda size: pyro.poutine.scale(closed(size), 1.0), "model holds 'table'"),
}
DATA = (data(4, 0), data(4, 1))


@pytest.mark.parametrize(("make", "named"), HELD.values(), ids=HELD)
def test_data_that_the_model_holds_are_told_apart(make, named, tmp_path):
    def run(model, steps=3):
        fit(model, normal_guide, data(), steps=steps, callbacks=[Checkpoint(tmp_path / "a.ckpt")])

    run(make(DATA[0]))
    run(make(DATA[0]), steps=4)
    with pytest.raises(CheckpointError, match=f"{named}: .* in the checkpoint, .* now"):
        run(make(DATA[1]))


def test_a_global_that_the_model_names_is_told_apart(tmp_path, monkeypatch):
    def run(steps=3):
        fit(of_global, normal_guide, data(), steps=steps, callbacks=[Checkpoint(tmp_path / "a.ckpt")])

    run()
    run(4)
    monkeypatch.setitem(globals(), "OFFSET", OFFSET + 1)
    with pytest.raises(CheckpointError, match="model holds 'OFFSET'"):
        run()


OFFSET = data(4)


def of_global(x):
    normal_model(x + 0 * OFFSET.sum())
