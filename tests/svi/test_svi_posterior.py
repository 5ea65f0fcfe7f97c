"""Draws from a fit and their summaries: against closed forms, and over minibatches."""

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import (
    AutoNormal,
    AutoNormalMessenger,
)
from svi_cases import adam, data, local_model, normal_model
from torch.distributions import constraints

from pyro_zilognormal.svi import (
    BatchStream,
    Minibatches,
    fit,
    posterior_draws,
    posterior_predictive,
    posterior_summary,
)

ROWS = 12
LEVELS = torch.tensor([0.05, 0.5, 0.95])
still = functools.partial(torch.optim.SGD, lr=0.0)  # leaves the guide at the closed-form posterior


def count_model(x):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Poisson(rate), obs=x)


def exact_fit(kind):
    """A guide that is the posterior of conjugate data, its name and its distribution."""
    if kind == "normal":
        x, model = data(), normal_model
        precision = len(x) + 0.01
        parameters = {"loc": x.sum() / precision, "scale": torch.tensor(precision**-0.5)}
        name, family = "loc", dist.Normal
    else:
        x, model = torch.tensor([0.0, 3.0, 1.0, 2.0, 2.0]), count_model
        parameters = {"concentration": 2.0 + x.sum(), "rate": torch.tensor(1.0 + len(x))}
        name, family = "rate", dist.Gamma

    def guide(x):
        values = {k: pyro.param(f"q_{k}", v, constraint=family.arg_constraints[k]) for k, v in parameters.items()}
        pyro.sample(name, family(**values))

    return fit(model, guide, x, steps=1, optimizer=still), x, name, family(**parameters)


def mixed_model(x):
    """Sites of several kinds of constraint, deterministic ones, and an observed one."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    part = pyro.sample("part", dist.Beta(2.0, 2.0).expand([2]).to_event(1))
    pyro.deterministic("double", 2 * scale)
    with pyro.plate("rows", len(x)):
        mean = pyro.deterministic("mean", x + share[0] + part[0])
        pyro.sample("x", dist.Normal(mean, scale), obs=x)


@pytest.fixture(scope="module")
def mixed():
    return fit(mixed_model, AutoNormal(mixed_model), data(ROWS, loc=0.0), steps=30, optimizer=adam)


@pytest.fixture(scope="module")
def local():
    source = Minibatches(data(ROWS), batch_size=5, plate="rows")
    return fit(local_model(ROWS), AutoNormal(local_model(ROWS)), source, steps=100, optimizer=adam), source


def within(found, expected, error, k=5.0):
    assert ((found - expected).abs() < k * error).all(), (found, expected)


# Against closed forms


@pytest.mark.parametrize("kind", ["normal", "gamma"])
def test_draws_and_summary_are_of_the_posterior(kind):
    result, x, name, posterior = exact_fit(kind)
    n, mean, sd = 2000, posterior.mean, posterior.stddev
    drawn, summary = posterior_draws(result, x, draws=n)[name], posterior_summary(result, x, draws=n)[name]
    within(torch.stack([drawn.mean(), summary.mean]), mean, sd / n**0.5)
    within(torch.stack([drawn.std(), summary.sd]), sd, sd / n**0.5)
    # P(draw < quantile) is the level, with standard error sqrt(level (1 - level) / n).
    levels = dist.torch.Gamma(posterior.concentration, posterior.rate).cdf if kind == "gamma" else posterior.cdf
    within(levels(summary.quantiles), LEVELS, (LEVELS * (1 - LEVELS) / n).sqrt())


# Summaries are those of the held draws


def test_the_summary_is_that_of_the_held_draws(mixed):
    x = data(ROWS, loc=0.0)
    names = ["share", "double", "mean", "x"]
    held = posterior_draws(mixed, x, draws=64, sites=names)
    found = posterior_summary(mixed, x, draws=64, sites=names)
    assert held["mean"].shape == held["x"].shape == (64, ROWS)
    assert (held["x"] == x).all()
    for name, values in held.items():
        torch.testing.assert_close(found[name].mean, values.mean(0))
        torch.testing.assert_close(found[name].sd, values.std(0))
        torch.testing.assert_close(found[name].quantiles, values.quantile(LEVELS, 0))


def test_draws_are_repeatable_and_change_nothing_else():
    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = torch.nn.Parameter(torch.tensor(1.0))
            self.noise = torch.nn.Dropout(0.5)

        def forward(self, x):
            pyro.sample("loc", dist.Normal(self.noise(self.loc), 1e-6))

    guide = Noisy()
    result = fit(normal_model, guide, data(), steps=1, optimizer=still)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (posterior_draws(result, data(), draws=5, seed=seed)["loc"] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    within(first, 1.0, 1e-5)  # in eval mode, no dropout
    assert guide.noise.training
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert not len(pyro.get_param_store())


# Sites with a value for every row


def test_local_sites_are_summarised_row_by_row(local):
    result, source = local
    found = posterior_summary(result, source, draws=200)["z"]
    loc, scale = result.params["AutoNormal.locs.z"], result.params["AutoNormal.scales.z"]
    within((found.mean - loc) / scale, 0.0, 200**-0.5)
    within(found.sd / scale, 1.0, 400**-0.5)
    within((found.quantiles[1] - loc) / scale, 0.0, (torch.pi / 400) ** 0.5)
    joint = posterior_draws(result, source, draws=200, sites=["z"])["z"]
    within((joint.mean(0) - loc) / scale, 0.0, 200**-0.5)


def test_global_draws_alone_by_default_and_local_ones_on_request(local):
    result, source = local
    shapes = {k: tuple(v.shape) for k, v in posterior_draws(result, source, draws=7).items()}
    joint = {k: tuple(v.shape) for k, v in posterior_draws(result, source, draws=7, sites=["loc", "z"]).items()}
    assert (shapes, joint) == ({"loc": (7,)}, {"loc": (7,), "z": (7, ROWS)})


def test_batches_are_read_once_for_all_draws(local):
    class Counted(Minibatches):
        def batch(self, indices):
            read.append(len(indices))
            return super().batch(indices)

    read, source = [], Counted(data(ROWS), batch_size=5, plate="rows")
    posterior_draws(local[0], source, draws=7, sites=["z"])
    assert read == [5, 5, 2]


def auxiliary_model(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    log_scale = pyro.sample("log_scale", dist.Normal(0.0, 1.0))
    pyro.deterministic("scale", log_scale.exp())
    with pyro.plate("rows", ROWS, subsample_size=len(x)):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.deterministic("twice", 2 * z)
        pyro.sample("x", dist.Normal(z, log_scale.exp()), obs=x)


def auxiliary_guide(x):
    """Draws both globals from one normal distribution of its own, and a standard normal for each row."""
    root = pyro.param("root", torch.tensor([[2.0, 0.0], [0.3, 0.1]]), constraint=constraints.lower_cholesky)
    both = pyro.sample("both", dist.MultivariateNormal(torch.zeros(2), scale_tril=root), infer={"is_auxiliary": True})
    pyro.sample("loc", dist.Delta(both[0]))
    pyro.sample("log_scale", dist.Delta(both[1]))
    with pyro.plate("rows", ROWS, subsample_size=len(x)):
        base = pyro.sample("base", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(x + both[0] + 0.1 * base))


def test_the_batches_of_a_joint_draw_share_global_and_auxiliary_values():
    source = Minibatches(data(ROWS), batch_size=5, plate="rows")
    result = fit(auxiliary_model, auxiliary_guide, source, steps=1, optimizer=still)
    assert posterior_draws(result, source, draws=2).keys() == {"loc", "log_scale"}
    names = ["loc", "log_scale", "z", "scale", "twice"]
    drawn = posterior_draws(result, source, draws=400, sites=names)
    base = (drawn["z"] - data(ROWS) - drawn["loc"][:, None]) / 0.1
    within(base.mean(0), 0.0, 400**-0.5)
    within(base.std(0), 1.0, 800**-0.5)
    torch.testing.assert_close(drawn["twice"], 2 * drawn["z"])
    torch.testing.assert_close(drawn["scale"], drawn["log_scale"].exp())
    covariance = result.params["root"] @ result.params["root"].T
    sd = covariance.diagonal().sqrt()
    found = torch.cov(torch.stack([drawn["loc"], drawn["log_scale"]]))
    within(found, covariance, (2 / 400) ** 0.5 * torch.outer(sd, sd))
    summary = posterior_summary(result, source, draws=20, sites=["twice", "scale"])
    assert (summary["twice"].mean.shape, summary["scale"].mean.shape) == ((ROWS,), ())
    assert posterior_predictive(result, source, draws=2).keys() == {"x"}


@pytest.mark.parametrize("vector", [False, True])
def test_deterministic_sites_inside_the_plate_have_rows(vector):
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.deterministic("d", torch.stack([x, x + loc], -1) if vector else x, event_dim=1 if vector else None)
            pyro.deterministic("free", torch.stack([x, x + loc], -1))
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    source = Minibatches(data(ROWS), batch_size=5, plate="rows")
    result = fit(model, AutoNormal(model), source, steps=1)
    drawn = posterior_draws(result, source, draws=2, sites=["d", "free"])
    first = drawn["d"][0, :, 0] if vector else drawn["d"][0]
    assert torch.equal(first, data(ROWS))
    assert torch.equal(drawn["free"][1, :, 0], data(ROWS))


def test_a_guide_that_computes_local_values_serves_other_rows():
    result = fit(auxiliary_model, auxiliary_guide, data(ROWS), steps=1)
    other = data(7, seed=5)
    joint = posterior_draws(result, other, draws=3)
    within(joint["z"] - joint["loc"][:, None], other, 0.1, 6.0)
    assert posterior_predictive(result, Minibatches(other, batch_size=7, plate="rows"), draws=2)["x"].tail[
        "mean"
    ].shape == (1,)


def test_a_guide_without_latent_sites_has_no_draws():
    def model(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)

    result = fit(model, lambda x: None, data(), steps=1)
    assert posterior_draws(result, data()) == posterior_summary(result, data()) == {}


def test_guides_that_run_the_model_and_keyword_arguments_are_served():
    def model(x, *, scale):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.factor("nothing", torch.zeros(()))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, scale), obs=x)

    guide = AutoNormalMessenger(model)
    result = fit(model, guide, data(), scale=2.0, steps=2)
    assert posterior_draws(result, data(), draws=np.int64(3)).keys() == {"loc"}
    assert (posterior_predictive(result, data(), draws=3)["x"].replicated["sd"] > 1.0).all()
    check = posterior_predictive(result, data(), scale=1e-6, draws=3)
    assert (check["x"].replicated["sd"] < 1e-5).all()
    assert result.module.kwargs == {"scale": 2.0}
    source = Minibatches(data(), batch_size=7, plate="rows")
    result = fit(model, AutoNormalMessenger(model), source, scale=1e-6, steps=1)
    assert (posterior_predictive(result, source, draws=3)["x"].replicated["sd"] < 1e-5).all()  # one loc for all batches


# What is refused


BAD = [
    ({"draws": 0}, ValueError, "draws is 0; needed a whole number of at least [12]"),
    ({"draws": 2.5}, ValueError, "draws is 2.5"),
    ({"seed": -1}, ValueError, "seed is -1"),
    ({"sites": ["y"]}, ValueError, r"sites holds 'y'; the (sites with draws.*|model's observed sites) are \[.*'x'\]"),
    ({"quantiles": [0.5, 1.5]}, ValueError, r"Quantiles must be in the range \[0, 1\]"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_arguments_are_refused(arguments, error, message, mixed):
    for call in (posterior_draws, posterior_summary, posterior_predictive):
        if call is not posterior_draws or "quantiles" not in arguments:  # those would go to the model
            with pytest.raises(error, match=message):
                call(mixed, data(ROWS), **arguments)


@config_enumerate
def mixture(x):
    weight = pyro.sample("weight", dist.Beta(1.0, 1.0))
    with pyro.plate("rows", len(x)):
        kind = pyro.sample("kind", dist.Bernoulli(weight))
        pyro.deterministic("shift", 3 * kind)
        pyro.sample("x", dist.Normal(3 * kind, 1.0), obs=x)


def batches(rows=ROWS, plate="rows"):
    return Minibatches(data(rows), batch_size=5, plate=plate)


def shuffled():
    loader = torch.utils.data.DataLoader(data(ROWS), batch_size=5, shuffle=True)
    return BatchStream(loader, plate="rows")


auto = AutoNormal
KNOWN = "the sites with draws, in the guide or observed, are"
BAD_SITES = {
    "enumerated": (mixture, None, data, data, ["kind"], f"'kind'; {KNOWN}"),
    "from an enumerated one": (mixture, None, data, data, ["shift"], f"'shift'; {KNOWN}"),
    "auxiliary": (auxiliary_model, auxiliary_guide, batches, batches, ["both"], f"'both'; {KNOWN}"),
    "plate not of the fit": (normal_model, auto, data, batches, None, "data have plate 'rows'; needed that of the fit"),
    "other rows": (local_model(ROWS), auto, batches, lambda: batches(30), ["z"], "none held out"),
}


@pytest.mark.parametrize("kind", BAD_SITES)
def test_sites_without_draws_are_refused(kind):
    model, guide, fitted, read, sites, message = BAD_SITES[kind]
    if model is mixture:
        guide, loss = (
            AutoNormal(pyro.poutine.block(mixture, hide=["kind", "shift"])),
            TraceEnum_ELBO(max_plate_nesting=1),
        )
    else:
        guide, loss = (guide if guide is auxiliary_guide else guide(model)), None
    result = fit(model, guide, fitted(), steps=2, loss=loss)
    with pytest.raises(ValueError, match=message):
        posterior_draws(result, read(), draws=2, sites=sites)


def test_local_sites_of_a_stream_that_shuffles_are_refused():
    result = fit(auxiliary_model, auxiliary_guide, shuffled(), steps=1)
    for call in (functools.partial(posterior_draws, sites=["z"]), posterior_summary):
        with pytest.raises(ValueError, match=r"\['z'\] have a value for every row, and a stream does not number"):
            call(result, shuffled(), draws=2)
    assert posterior_draws(result, shuffled(), draws=2).keys() == {"loc", "log_scale"}
    assert posterior_predictive(result, shuffled(), draws=2).keys() == {"x"}  # whose columns have no order


def test_enumerated_sites_are_left_out():
    guide = AutoNormal(pyro.poutine.block(mixture, hide=["kind", "shift"]))
    result = fit(mixture, guide, data(), steps=2, loss=TraceEnum_ELBO(max_plate_nesting=1))
    assert posterior_draws(result, data(), draws=2).keys() == {"weight"}
    assert posterior_predictive(result, data(), draws=2).keys() == {"x"}
