"""Guides with auxiliary and Delta sites, and observed sites that are vectors of statistics."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from svi_cases import adam, data

from pyro_zilognormal.svi import (
    DivergenceError,
    EarlyStopping,
    Minibatches,
    Schedule,
    fit,
    posterior_draws,
    posterior_predictive,
    posterior_summary,
)

ROWS = 12


def model(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    log_scale = pyro.sample("log_scale", dist.Normal(0.0, 1.0))
    pyro.deterministic("scale", log_scale.exp())
    with pyro.plate("rows", ROWS, subsample_size=len(x)):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, log_scale.exp()), obs=x)


def guide(x):
    """A full-rank law of both globals, and one of each row, through sites of its own."""
    mean = pyro.param("mean", torch.zeros(2))
    root = pyro.param("root", 0.3 * torch.eye(2), constraint=dist.constraints.lower_cholesky)
    both = pyro.sample("both", dist.MultivariateNormal(mean, scale_tril=root), infer={"is_auxiliary": True})
    pyro.sample("loc", dist.Delta(both[0]))
    pyro.sample("log_scale", dist.Delta(both[1]))
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("rows", ROWS, subsample_size=len(x)):
        base = pyro.sample("base", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(slope * x + both[0] + 0.1 * base, log_density=torch.tensor(-math.log(0.1))))


@pytest.fixture(scope="module")
def fitted():
    source = Minibatches(data(ROWS), batch_size=5, plate="rows")
    stop = EarlyStopping(data(5, 2), every=50)
    return fit(model, guide, source, steps=150, optimizer=adam, callbacks=[stop]), source


def test_the_elbo_has_the_density_of_the_auxiliary_site():
    # Without data, the guide's normal law meets the prior exactly: minus the ELBO goes to 0.
    def prior(x):
        pyro.sample("loc", dist.Normal(1.0, 2.0))

    def twin(x):
        m = pyro.param("m", torch.tensor(0.0))
        s = pyro.param("s", torch.tensor(1.0), constraint=dist.constraints.positive)
        base = pyro.sample("base", dist.Normal(m, s), infer={"is_auxiliary": True})
        pyro.sample("loc", dist.Delta(base))

    calm = Schedule(functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.98))
    loss = Trace_ELBO(num_particles=4)
    result = fit(prior, twin, data(), steps=300, optimizer=functools.partial(adam, lr=0.1), loss=loss, callbacks=[calm])
    assert result.params["m"] == pytest.approx(1.0, abs=0.1)
    assert result.params["s"] == pytest.approx(2.0, abs=0.1)
    assert abs(result.losses[-50:].mean()) < 0.02


def test_only_sites_of_the_model_are_drawn_and_summarised(fitted):
    result, source = fitted
    drawn = posterior_draws(result, source, draws=400)
    assert drawn.keys() == {"loc", "log_scale"}
    expected = result.params["root"] @ result.params["root"].T
    found = torch.cov(torch.stack([drawn["loc"], drawn["log_scale"]]))
    sd = expected.diagonal().sqrt()
    assert ((found - expected).abs() < 6 * (2 / 400) ** 0.5 * torch.outer(sd, sd)).all()
    joint = posterior_draws(result, source, draws=30, joint=True, sites=["loc", "z", "scale"])
    shift = joint["z"] - result.params["slope"] * data(ROWS) - joint["loc"][:, None]
    assert shift.std() == pytest.approx(0.1, rel=0.25)  # one global draw for all batches, and a base for each row
    summary = posterior_summary(result, source, draws=50)
    assert summary.keys() == {"loc", "log_scale", "z"}
    assert summary["z"].mean.shape == (ROWS,)
    assert posterior_predictive(result, source, draws=20).keys() == {"x"}


@pytest.mark.parametrize("call", [posterior_draws, posterior_summary])
@pytest.mark.parametrize("name", ["both", "base"])
def test_an_auxiliary_site_is_refused_by_its_name(call, name, fitted):
    result, source = fitted
    message = f"'{name}', an auxiliary site of the guide, .*'loc', 'log_scale', 'z', 'scale', 'x'"
    with pytest.raises(ValueError, match=message):
        call(result, source, draws=2, sites=[name])


def test_a_nan_in_an_auxiliary_site_is_named():
    def poison(run):
        with torch.no_grad():
            run.objective.trainable()["mean"].fill_(math.nan)

    with pyro.validation_enabled(False), pytest.raises(DivergenceError) as caught:
        fit(model, guide, data(ROWS), steps=3, callbacks=[poison])
    assert (caught.value.report.site, caught.value.report.part) == ("both", "guide")


class Statistics(dist.TorchDistribution):
    """A law of five numbers for each group and column, with or without draws."""

    arg_constraints = {}  # noqa: RUF012 - as torch has it
    support = dist.constraints.real_vector

    def __init__(self, loc, drawn, validate_args=None):
        self.loc, self.drawn = loc, drawn
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def expand(self, shape, _instance=None):
        return Statistics(self.loc.expand(*shape, self.loc.shape[-1]), self.drawn)

    def sample(self, shape=()):
        if not self.drawn:
            raise NotImplementedError
        return self.loc + torch.randn(self._extended_shape(shape))

    def log_prob(self, x):
        return dist.Normal(self.loc, 1.0).log_prob(x.nan_to_num()).sum(-1)


def of_groups(drawn, beside=False):
    def model(table):
        loc = pyro.param("loc", torch.zeros(5))
        with pyro.plate("groups", len(table), dim=-2), pyro.plate("columns", table.shape[1], dim=-1):
            pyro.sample("statistics", Statistics(loc.expand(*table.shape), drawn), obs=table)
            if beside:
                pyro.sample("size", dist.Normal(loc[0], 1.0), obs=table[..., 0])

    return model


def test_a_vector_of_statistics_is_checked_element_by_element():
    table = torch.randn(40, 3, 5, generator=torch.Generator().manual_seed(0)) + torch.arange(5.0)
    result = fit(of_groups(True), lambda x: None, table, steps=300, optimizer=adam)
    assert result.rows == 40
    check = posterior_predictive(result, table, draws=60)["statistics"]
    assert check.tail["mean"].shape == (15,)
    torch.testing.assert_close(check.observed["mean"].float(), table.mean(0).flatten())
    assert ((check.tail["mean"] > 0.001) & (check.tail["mean"] < 0.999)).all()


def test_a_statistic_that_is_not_a_number_has_no_tail_probability():
    table = torch.randn(40, 3, 5)
    table[2, 1, 4] = math.nan
    with pyro.validation_enabled(False):
        result = fit(of_groups(True), lambda x: None, table, steps=2)
        tail = posterior_predictive(result, table, draws=5)["statistics"].tail
    assert [i for i, t in enumerate(tail["mean"].tolist()) if math.isnan(t)] == [9]
    assert not tail["zero fraction"].isnan().any()


def test_a_law_without_draws_is_left_out_of_the_check_with_a_word():
    table = torch.randn(40, 3, 5)
    alone = fit(of_groups(False), lambda x: None, table, steps=2)
    message = "site 'statistics' cannot be drawn: its law, Statistics, has no sample"
    with pytest.raises(ValueError, match=message):
        posterior_predictive(alone, table, draws=2)
    beside = fit(of_groups(False, beside=True), lambda x: None, table, steps=2)
    with pytest.warns(UserWarning, match=f"left out of the check: {message}"):
        assert posterior_predictive(beside, table, draws=2).keys() == {"size"}
    assert posterior_predictive(beside, table, draws=2, sites=["size"]).keys() == {"size"}
    with pytest.raises(ValueError, match=message):
        posterior_predictive(beside, table, draws=2, sites=["size", "statistics"])
