"""A hurdle model with a known share of zeros, for the tests of predictive checks and their figures."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from svi_cases import adam

from pyro_zilognormal.svi import Minibatches, fit, posterior_predictive

ROWS, COLUMNS = 300, 4


def hurdle_model(rows, zeros):
    """Zeros with a known probability, else log-normal with unknown location."""

    def model(x):
        loc = pyro.param("loc", torch.zeros(COLUMNS))
        with pyro.plate("rows", rows, subsample_size=len(x), dim=-2), pyro.plate("columns", COLUMNS, dim=-1):
            pyro.sample("x", Hurdle(loc, zeros), obs=x)

    return model


class Hurdle(dist.TorchDistribution):
    """0 with probability zeros, else log-normal(loc, 1)."""

    arg_constraints = {}  # noqa: RUF012 - as torch has it
    support = dist.constraints.nonnegative

    def __init__(self, loc, zeros, validate_args=None):
        self.loc, self.zeros = loc, zeros
        super().__init__(loc.shape, validate_args=validate_args)

    def expand(self, shape, _instance=None):
        return Hurdle(self.loc.expand(shape), self.zeros)

    def sample(self, shape=()):
        shape = self._extended_shape(shape)
        positive = torch.rand(shape) >= self.zeros
        return torch.where(positive, dist.LogNormal(self.loc, 1.0).expand(shape).sample(), torch.zeros(shape))

    def log_prob(self, x):
        positive = dist.LogNormal(self.loc, 1.0).log_prob(torch.where(x > 0, x, torch.ones_like(x)))
        return torch.where(x > 0, positive + np.log1p(-self.zeros), torch.full_like(x, np.log(self.zeros)))


def empty(x):
    pass


def hurdle_data():
    torch.manual_seed(0)
    return Hurdle(torch.zeros(ROWS, COLUMNS), 0.4).sample()


def check(x, zeros, **settings):
    source = Minibatches(x, batch_size=64, plate="rows")
    result = fit(hurdle_model(ROWS, zeros), empty, source, steps=100, optimizer=adam)
    return posterior_predictive(result, source, **settings)["x"]
