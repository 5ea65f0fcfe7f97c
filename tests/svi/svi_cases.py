"""Models, guides and data that the tests of svi share."""

import functools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch.distributions import constraints

from pyro_zilognormal.svi import Checkpoint, fit

adam = functools.partial(torch.optim.Adam, lr=0.05)


def normal_model(x):
    """Unknown mean, known scale; the plate has the size of what comes."""
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def normal_guide(x):
    """Its guide, written with pyro.param."""
    loc = pyro.param("q_loc", torch.tensor(0.0))
    scale = pyro.param("q_scale", torch.tensor(1.0), constraint=constraints.positive)
    pyro.sample("loc", dist.Normal(loc, scale))


def delta_guide(x):
    """A guide without noise, so that gradients can be compared exactly."""
    loc = pyro.param("q_loc", torch.tensor(0.3))
    pyro.sample("loc", dist.Delta(loc))


def sized_model(rows):
    """The same model with Pyro's own way to subsample: the plate says how many rows there are."""

    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", rows, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    return model


def local_model(rows):
    """A latent value for every row."""

    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", rows, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    return model


class Amortised(PyroModule):
    """Model and guide as methods of one module, with local values computed from the data."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows
        self.net = torch.nn.Linear(1, 2)
        self.shift = PyroParam(torch.tensor(0.0))
        self.noise = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def model(self, x):
        with pyro.plate("rows", self.rows, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + self.shift, self.noise), obs=x)

    def guide(self, x):
        loc, scale = self.net(x[:, None]).unbind(-1)
        with pyro.plate("rows", self.rows, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(loc, scale.exp()))


def data(rows=20, seed=0, loc=2.0):
    return loc + torch.randn(rows, generator=torch.Generator().manual_seed(seed))


def plain(*callbacks, steps=20, x=None, guide=normal_guide, **settings):
    """Fit the normal model."""
    x = data() if x is None else x
    return fit(normal_model, guide, x, steps=steps, **{"optimizer": adam, **settings}, callbacks=callbacks)


def with_nan(rows, at):
    x = data(rows)
    x[at] = math.nan
    return x


def auto(model=normal_model):
    return AutoNormal(model)


class Killed(Exception):
    """Stands for the end of the process."""


def killer(step):
    def kill(run):
        if run.step == step:
            raise Killed

    return kill


def same(a, b):
    """Whether two results are of the same fit, bit for bit."""
    assert np.array_equal(a.losses, b.losses, equal_nan=True)
    assert a.held_out == b.held_out
    assert a.params.keys() == b.params.keys()
    for name in a.params:
        assert torch.equal(a.params[name], b.params[name]), name
    for name in a.values:
        assert torch.equal(a.values[name], b.values[name]), name
    assert (a.stop_reason, a.converged, a.best_step) == (b.stop_reason, b.converged, b.best_step)


def check_resume(path, run, kills, every=3):
    """Compare an uninterrupted run with one that is killed at each of ``kills`` and started again."""
    whole = run([])
    for kill in sorted(kills):
        with pytest.raises(Killed):
            run([killer(kill), Checkpoint(path, steps=every)])
    resumed = run([Checkpoint(path, steps=every)])
    same(whole, resumed)
