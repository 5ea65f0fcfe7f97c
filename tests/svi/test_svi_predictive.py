"""Item 6: predictive checks that see what is wrong."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from svi_cases import data
from svi_hurdle import COLUMNS, ROWS, check, empty, hurdle_data

from pyro_zilognormal.svi import (
    Minibatches,
    fit,
    posterior_predictive,
)


@pytest.fixture(scope="module")
def x():
    return hurdle_data()


def test_a_right_model_passes_and_a_wrong_gate_is_seen(x):
    right, wrong = check(x, 0.4, draws=60), check(x, 0.2, draws=20)
    for statistic, tail in right.tail.items():
        assert ((tail > 0.005) & (tail < 0.995)).all(), statistic
    assert (wrong.tail["zero fraction"] == 0.0).all()
    assert (wrong.tail["mean"] > 0.95).all()


def test_statistics_of_the_data_are_those_of_numpy(x):
    found = check(x, 0.4, draws=2, quantiles=[0.5, 0.9]).observed
    assert list(found) == ["zero fraction", "mean", "quantile 0.5", "quantile 0.9"]
    table = x.double().numpy()
    np.testing.assert_allclose(found["zero fraction"], (table == 0).mean(0))
    np.testing.assert_allclose(found["mean"], table.mean(0))
    np.testing.assert_allclose(found["quantile 0.9"], np.quantile(table, 0.9, axis=0), rtol=1e-6)


def test_drawn_data_have_the_moments_of_the_law(x):
    found = check(x, 0.4, draws=200)
    zeros = found.replicated["zero fraction"]
    assert zeros.shape == (200, COLUMNS)
    error = (0.4 * 0.6 / ROWS / 200) ** 0.5
    assert ((zeros.mean(0) - 0.4).abs() < 5 * error).all()
    assert zeros.std() == pytest.approx((0.4 * 0.6 / ROWS) ** 0.5, rel=0.15)


@pytest.mark.parametrize("max_bytes", [1, 8 * ROWS * 2])
def test_columns_at_a_time_give_the_same(x, max_bytes):
    whole, parts = check(x, 0.4, draws=5), check(x, 0.4, draws=5, max_bytes=max_bytes)
    for name in whole.replicated:
        assert torch.equal(whole.replicated[name], parts.replicated[name])


def test_tail_is_the_share_of_larger_draws_with_half_of_ties(x):
    found = check(x, 0.4, draws=50)
    for name, drawn in found.replicated.items():
        seen = found.observed[name]
        expected = ((drawn > seen).double() + 0.5 * (drawn == seen).double()).mean(0)
        torch.testing.assert_close(found.tail[name], expected, rtol=0, atol=1e-12)


def test_one_global_draw_serves_all_batches():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 100.0))
        with pyro.plate("rows", 20, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(loc, 0.001), obs=x)

    def guide(x):
        pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor(0.0)), 100.0))

    source = Minibatches(data(), batch_size=7, plate="rows")
    found = posterior_predictive(fit(model, guide, source, steps=1), source, draws=10, quantiles=[0.0, 1.0])["x"]
    spread = found.replicated["quantile 1"] - found.replicated["quantile 0"]
    assert (spread < 0.02).all()
    assert found.replicated["mean"].std() > 10


@pytest.mark.parametrize("layout", ["vector", "rows last", "event"])
def test_rows_are_found_in_any_layout(layout):
    x = data(30).reshape(10, 3)

    def model(x):
        m = pyro.param("m", torch.zeros(3))
        if layout == "rows last":
            with pyro.plate("columns", 3, dim=-2), pyro.plate("rows", 10, dim=-1):
                pyro.sample("x", dist.Normal(m[:, None], 1.0), obs=x.t())
        elif layout == "event":
            with pyro.plate("rows", 10):
                pyro.sample("x", dist.Normal(m, 1.0).to_event(1), obs=x)
        else:
            with pyro.plate("rows", 10):
                pyro.sample("x", dist.Normal(m.sum(), 1.0), obs=x[:, 0])

    result = fit(model, empty, x, steps=1)
    mean = posterior_predictive(result, x, draws=2)["x"].observed["mean"]
    expected = x.mean(0)[:1] if layout == "vector" else x.mean(0)
    torch.testing.assert_close(mean.float(), expected)


def test_masked_sites_are_refused():
    def model(x):
        with pyro.plate("rows", len(x)), pyro.poutine.mask(mask=x > 0):
            pyro.sample("x", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0), obs=x)

    with pytest.raises(ValueError, match="site 'x' is masked"):
        posterior_predictive(fit(model, empty, data(), steps=1), data())


def test_a_model_without_data_is_refused():
    def model():
        pyro.sample("loc", dist.Normal(0.0, 1.0))

    def guide():
        pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))

    with pytest.raises(ValueError, match="observes no site"):
        posterior_predictive(fit(model, guide, steps=1))
