"""What is read from a fit: held-out losses, draws and quantiles, with loaders and generators left as they were."""

import functools
import math
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.utils.data import DataLoader

from pyro_zilognormal.svi import (
    BatchStream,
    EarlyStopping,
    Minibatches,
    fit,
    plot_loss,
    posterior_draws,
    posterior_predictive,
    posterior_summary,
)
from pyro_zilognormal.svi.quantiles import quantiles_of

X = torch.linspace(-1.0, 2.0, 30)


def model(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


@pytest.mark.parametrize("batched", [False, True])
def test_held_out_losses_are_drawn_per_observation(batched):
    torch.manual_seed(0)
    x = torch.randn(400)
    data = Minibatches(x[:300], batch_size=100, plate="rows") if batched else x[:300]
    result = fit(model, AutoNormal(model), data, steps=200, callbacks=[EarlyStopping(x[300:], every=50)])
    training, held_out = (line.get_ydata()[-1] for line in plot_loss(result).get_lines()[:3:2])
    assert abs(float(training) - float(held_out)) < 0.3
    assert result.held_out_rows == 100


def test_a_date_serves_as_seed_of_posterior_draws():
    result = fit(model, AutoNormal(model), X, steps=3)
    assert posterior_draws(result, X, draws=2, seed=20261122)["loc"].shape == (2,)


def subsampling(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x), subsample_size=7) as rows:
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])


def test_rows_drawn_at_random_are_not_mixed_in_a_summary():
    result = fit(subsampling, AutoNormal(subsampling), X, steps=3)
    for call in (posterior_draws, posterior_summary):
        with pytest.raises(ValueError, match="site 'z' is inside plate 'rows', which draws its rows at random"):
            call(result, X, draws=2)
        assert call(result, X, draws=2, sites=["loc"]).keys() == {"loc"}
    with pytest.raises(ValueError, match="site 'x' is inside plate 'rows', which draws its rows at random"):
        posterior_predictive(result, X, draws=2)


def test_held_out_looks_at_a_loader_with_a_generator_of_its_own_are_the_same():
    generator = torch.Generator().manual_seed(2)
    held_out = BatchStream(DataLoader(X[:11], batch_size=4, shuffle=True, generator=generator), plate="rows")
    before = generator.get_state()
    still = functools.partial(torch.optim.SGD, lr=0.0)
    stop = EarlyStopping(held_out, every=2, patience=99)
    source = Minibatches(X, batch_size=10, plate="rows")
    result = fit(model, AutoNormal(model), source, steps=6, optimizer=still, callbacks=[stop])
    assert len({loss for _, loss in result.held_out}) == 1
    assert torch.equal(generator.get_state(), before)


def test_draws_of_a_model_that_draws_from_numpy_and_python_are_repeatable():
    def guide(x):
        shift = np.random.rand() + random.random()  # noqa: NPY002 - the global generator is what is meant
        pyro.sample("loc", dist.Delta(pyro.param("m", torch.tensor(0.0)) + shift))

    result = fit(model, guide, X, steps=2)
    first = posterior_draws(result, X, draws=3)["loc"]
    assert len(set(first.tolist())) == 3
    assert torch.equal(first, posterior_draws(result, X, draws=3)["loc"])


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([1.0, 2.0, math.inf], [1.0, 1.5, 2.0, math.inf, math.inf]),
        ([math.inf] * 3, [math.inf] * 5),
        ([-math.inf, -math.inf, 5.0], [-math.inf, -math.inf, -math.inf, -math.inf, 5.0]),
        ([1.0, math.nan, 2.0], [math.nan] * 5),
    ],
)
def test_quantiles_of_infinite_values_are_numbers_and_of_nan_none(column, expected):
    found = quantiles_of(torch.tensor(column), [0.0, 0.25, 0.5, 0.75, 1.0])
    assert found.tolist() == pytest.approx(expected, nan_ok=True)


def test_reading_a_shuffling_loader_leaves_the_generators_alone():
    generator = torch.Generator().manual_seed(2)
    loaders = [DataLoader(X, batch_size=7, shuffle=True, generator=g) for g in (None, generator)]
    plain = fit(model, AutoNormal(model), X, steps=5)
    for stream in (BatchStream(loader, plate="rows") for loader in loaders):
        before, own = torch.get_rng_state(), generator.get_state()
        watched = fit(model, AutoNormal(model), X, steps=5, callbacks=[EarlyStopping(stream, every=2)])
        assert watched.losses.tolist() == plain.losses.tolist()
        for call in (posterior_draws, posterior_summary, posterior_predictive):
            call(plain, stream, draws=2)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(generator.get_state(), own)
