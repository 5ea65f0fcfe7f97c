"""Posterior predictive checks: against closed forms and numpy and in any layout of rows."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from svi_cases import data
from test_svi_posterior import exact_fit, still, within

from pyro_zilognormal import ZeroInflatedLogNormal
from pyro_zilognormal.svi import BatchStream, Minibatches, fit, posterior_predictive

ROWS = 300
STATISTICS = ["zero fraction", "mean", "sd", "quantile 0.5", "quantile 0.9"]


def empty(*args):
    pass


def hurdle_data(columns=4):
    torch.manual_seed(0)
    return ZeroInflatedLogNormal(torch.zeros(ROWS, columns), 1.0, zi_probs=torch.tensor(0.4)).sample()


def check(x, zeros, batch_size=64, **settings):
    """Check a model of the data that is right where the share of zeros is 0.4."""

    def model(x):
        loc = pyro.param("loc", torch.zeros(x.shape[1]))
        with pyro.plate("rows", ROWS, subsample_size=len(x), dim=-2), pyro.plate("columns", x.shape[1], dim=-1):
            pyro.sample("x", ZeroInflatedLogNormal(loc, 1.0, zi_probs=torch.tensor(zeros)), obs=x)

    source = Minibatches(x, batch_size=batch_size, plate="rows")
    return posterior_predictive(fit(model, empty, source, steps=1, optimizer=still), source, **settings)["x"]


def test_statistics_of_the_data_are_those_of_numpy():
    x = hurdle_data()
    found = check(x, 0.4, draws=2, quantiles=[0.5, 0.9]).observed
    assert list(found) == STATISTICS
    table = x.double().numpy()
    expected = [(table == 0).mean(0), table.mean(0), table.std(0), *np.quantile(table, [0.5, 0.9], axis=0)]
    for name, values in zip(STATISTICS, expected, strict=True):
        np.testing.assert_allclose(found[name], values, rtol=1e-9)


def test_tail_probabilities_of_a_right_model_are_uniform_and_a_wrong_share_of_zeros_is_seen():
    columns, draws = 200, 60
    x = hurdle_data(columns)
    right, wrong = check(x, 0.4, 300, draws=draws), check(x, 0.2, 300, draws=5)
    for name, drawn in right.replicated.items():
        assert drawn.shape == (draws, columns)
        above, equal = drawn > right.observed[name], drawn == right.observed[name]
        torch.testing.assert_close(right.tail[name], above.double().mean(0) + equal.double().mean(0) / 2)
        within(right.tail[name].mean(), 0.5, 12**-0.5 / columns**0.5)
        within(right.tail[name].std(), 12**-0.5, 0.2 / columns**0.5 + 0.5 / draws)
    assert (wrong.tail["zero fraction"] == 0.0).all()
    # The replicated zero fractions are binomial shares.
    zeros, sd = right.replicated["zero fraction"], (0.4 * 0.6 / ROWS) ** 0.5
    within(zeros.mean(), 0.4, sd / zeros.numel() ** 0.5)
    within(zeros.std(), sd, sd / (2 * zeros.numel()) ** 0.5)


@pytest.mark.parametrize("kind", ["normal", "gamma"])
def test_replicated_data_are_of_the_posterior_predictive(kind):
    result, x, _, posterior = exact_fit(kind)
    found = posterior_predictive(result, x, draws=500)["x"].replicated
    # The mean of a replicated data set has the variance of the posterior mean and that of the mean of n rows.
    noise = 1.0 if kind == "normal" else posterior.mean
    sd = (posterior.variance + noise / len(x)).sqrt()
    within(found["mean"].mean(), posterior.mean, sd / 500**0.5)
    within(found["mean"].std(), sd, sd / 500**0.5)
    if kind == "gamma":  # P(0) of the negative binomial
        zero = (posterior.rate / (posterior.rate + 1)) ** posterior.concentration
        within(found["zero fraction"].mean(), zero, (zero / 500) ** 0.5)


def test_one_global_draw_serves_all_batches():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 100.0))
        with pyro.plate("rows", 20, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(loc, 0.001), obs=x)

    def guide(x):
        pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor(0.0)), 100.0))

    for source in (Minibatches(data(), batch_size=7, plate="rows"), BatchStream(list(data().split(7)), plate="rows")):
        found = posterior_predictive(fit(model, guide, source, steps=1), source, draws=10)["x"].replicated
        assert (found["sd"] < 0.002).all()
        assert found["mean"].std() > 10


LAYOUTS = [(layout, batched) for layout in ("vector", "rows last", "event") for batched in (False, True)]


@pytest.mark.parametrize(("layout", "batched"), [*LAYOUTS, ("no plate", False)])
def test_columns_are_told_from_rows(layout, batched):
    x = data(30).reshape(10, 3)

    def model(x):
        m, rows = pyro.param("m", torch.zeros(3)), len(x)
        if layout == "rows last":
            with pyro.plate("columns", 3, dim=-2), pyro.plate("rows", rows, dim=-1):
                pyro.sample("x", dist.Normal(m[:, None], 1.0), obs=x.t())
        elif layout == "no plate":
            pyro.sample("x", dist.Normal(m, 1.0).expand([rows, 3]).to_event(2), obs=x)
        else:
            with pyro.plate("rows", rows):
                event = layout == "event"
                pyro.sample("x", dist.Normal(m if event else m.sum(), 1.0).to_event(event), obs=x if event else x[:, 0])

    source = Minibatches(x, batch_size=4, plate="rows") if batched else x
    mean = posterior_predictive(fit(model, empty, source, steps=1), source, draws=2)["x"].observed["mean"]
    torch.testing.assert_close(mean.float(), x.mean(0)[:1] if layout == "vector" else x.mean(0))


def test_a_statistic_that_is_not_a_number_has_no_tail_probability():
    x = torch.randn(40, 3)
    x[2, 1] = math.nan

    def model(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("m", torch.zeros(3)), 1.0).to_event(1), obs=x)

    result = fit(model, empty, x.nan_to_num(), steps=1)
    with pyro.validation_enabled(False):
        tail = posterior_predictive(result, x, draws=5)["x"].tail
    assert tail["mean"].isnan().tolist() == [False, True, False]
    assert not tail["zero fraction"].isnan().any()


@pytest.mark.parametrize("kind", ["handler", "distribution"])
def test_masked_sites_are_refused(kind):
    def model(x):
        loc, keep = pyro.param("loc", torch.tensor(0.0)), x > 0
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=x)
            with pyro.poutine.mask(mask=keep if kind == "handler" else True):
                fn = dist.Normal(loc, 1.0)
                pyro.sample("x", fn.mask(keep) if kind == "distribution" else fn, obs=x)

    result = fit(model, empty, data(), steps=1)
    for sites in (None, ["x", "y"]):
        with pytest.raises(ValueError, match="site 'x' is masked"):
            posterior_predictive(result, data(), draws=2, sites=sites)
    assert posterior_predictive(result, data(), draws=2, sites=["y"]).keys() == {"y"}


def test_a_model_without_data_is_refused():
    def model():
        pyro.sample("loc", dist.Normal(0.0, 1.0))

    def guide():
        pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))

    with pytest.raises(ValueError, match="the model observes no site"):
        posterior_predictive(fit(model, guide, steps=1))
