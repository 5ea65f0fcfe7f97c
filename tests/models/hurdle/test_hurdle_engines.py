"""The model under every engine of Pyro: prior draws, autoguides, NUTS, vectorised particles."""

import pyro
import pytest
import torch
from hurdle_cases import hurdle, latents, log_joint, offsets
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoLaplaceApproximation, AutoNormal, init_to_value
from pyro.optim import Adam

from pyro_zilognormal.models import HurdlePriors

SPARSE = HurdlePriors()
KINDS = {
    "intercept": {"effects": 0},
    "effect": {},
    "effects": {"effects": 3},
    "continuous": {"continuous": True},
    "one donor": {"donors": 1},
    "donors": {"donors": 4},
    "offset, cells": {"offset": offsets(), "reduce": False},
    "zero design": {"zero_design": torch.ones(60, 1)},
    "zero effects alone": {
        "effects": 0,
        "zero_design": torch.stack([torch.ones(60), torch.arange(60) % 2], 1),
    },
    "sparse": {"priors": SPARSE},
    "sparse effects, donors": {"priors": SPARSE, "effects": 2, "donors": 3},
    "sparse zero part": {"priors": SPARSE, "zero_design": torch.stack([torch.ones(60), torch.arange(60) % 2], 1)},
    "sparse, zero part without effects": {"priors": SPARSE, "zero_design": torch.ones(60, 1)},
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def latent_sites(trace):
    """Shapes of what is drawn, without plates and what only the guide has."""
    return {
        k: v["value"].shape
        for k, v in trace.nodes.items()
        if v["type"] == "sample"
        and not v["is_observed"]
        and not v["infer"].get("is_auxiliary")
        and k not in ("genes", "rows")
    }


@kinds
def test_model_and_guide_have_the_same_sites(kind):
    model, guide, data = hurdle(**kind)
    traces = [poutine.trace(f).get_trace(*data.arguments) for f in (model, guide)]
    sites = latent_sites(traces[0])
    assert sites == latent_sites(traces[1])
    assert sites["log_sigma"] == sites["intercept"] == (5, 1)
    for part, design in (("", data.design), ("zero_", data.zero_design)):
        assert sites.get(f"{part}effects", (5, 0)) == (5, design.shape[1] - 1)
        assert sites.get(f"{part}donors", (5, 0)) == (5, data.donors)
    assert all(trace.log_prob_sum().isfinite() for trace in traces)


@kinds
def test_data_drawn_from_the_prior(kind):
    model, _, data = hurdle(**kind)
    drawn = poutine.trace(model).get_trace(*data.arguments[:-1]).nodes["x"]
    assert drawn["value"].shape == data.value.shape
    assert drawn["fn"].log_prob(drawn["value"]).shape == data.value.shape[:2]
    if data.reduced:
        torch.testing.assert_close(drawn["value"][..., :2].sum(-1), data.value[..., :2].sum(-1))


@kinds
def test_particles_are_separate_draws(kind):
    """Vectorised, model and guide have the densities of each particle on its own."""
    model, guide, data = hurdle(**kind)

    def particles(fn):
        def run(*args):
            with pyro.plate("particles", 3, dim=-3):
                return fn(*args)

        return run

    guided = poutine.trace(particles(guide)).get_trace(*data.arguments)
    joint = poutine.trace(poutine.replay(particles(model), trace=guided)).get_trace(*data.arguments)
    sampled = {k: v for k, v in guided.nodes.items() if v["type"] == "sample" and k not in ("particles", "genes")}
    total = [torch.zeros(()).double(), torch.zeros(()).double()]
    for p in range(3):
        values = {k: one(v, p) for k, v in sampled.items()}
        alone = poutine.trace(poutine.condition(guide, values)).get_trace(*data.arguments)
        total[0] = total[0] + alone.log_prob_sum()
        total[1] = total[1] + log_joint(model, data, {k: v for k, v in values.items() if k in joint.nodes})
    torch.testing.assert_close(guided.log_prob_sum(), total[0])
    torch.testing.assert_close(joint.log_prob_sum(), total[1])


def one(site, particle):
    """The value of one particle, without the dims of plates that the site is not in."""
    value = site["value"][particle]
    names = [frame.name for frame in site["cond_indep_stack"]]
    return value.squeeze(0) if "genes" in names else value.reshape(value.shape[-1:])


@pytest.mark.parametrize("reduce", [True, False])
def test_vectorised_particles_have_the_same_loss(reduce):
    model, guide, data = hurdle(donors=2, reduce=reduce)
    losses = []
    for vectorised in (True, False):
        elbo = Trace_ELBO(num_particles=4, vectorize_particles=vectorised, max_plate_nesting=2)
        found = [elbo.loss(model, guide, *data.arguments) for _ in range(8)]
        losses.append(torch.tensor(found, dtype=torch.float64))
    error = ((losses[0].var() + losses[1].var()) / 8).sqrt()
    assert (losses[0].mean() - losses[1].mean()).abs() < 4.5 * error
    assert error < 0.01 * losses[0].mean().abs()


@pytest.mark.parametrize("kind", ["effect", "donors", "offset, cells", "sparse effects, donors"])
@pytest.mark.parametrize("automatic", [AutoNormal, AutoLaplaceApproximation])
def test_autoguides(automatic, kind):
    model, _, data = hurdle(**KINDS[kind])
    auto = automatic(model)
    svi = SVI(model, auto, Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(*data.arguments) for _ in range(8)]
    assert all(torch.tensor(losses).isfinite())
    assert min(losses[-3:]) < losses[0]
    draw = auto(*data.arguments)
    assert draw["effects"].shape == (5, data.design.shape[1] - 1)
    assert all(v.isfinite().all() for v in draw.values())


@pytest.mark.parametrize("kind", ["effect", "donors"])
def test_laplace_is_exact_given_sigma(kind):
    """Given sigma and the hyperparameters the positive part is Gaussian, so that Laplace has its covariance."""
    model, guide, data = hurdle(**KINDS[kind])
    values = latents(guide, data)
    given = {k: v for k, v in values.items() if k == "log_sigma" or k.endswith(("_mean", "_sd"))}
    given_sigma = poutine.condition(model, given)
    auto = AutoLaplaceApproximation(given_sigma, init_loc_fn=init_to_value(values=values))
    auto(*data.arguments)
    approximation = auto.laplace_approximation(*data.arguments)
    covariance = approximation.get_posterior(*data.arguments).covariance_matrix.detach()
    at, wanted = 0, {}
    for name, site in approximation.prototype_trace.iter_stochastic_nodes():
        size = site["value"].numel()
        wanted[name], at = covariance.diagonal()[at : at + size].reshape(site["value"].shape), at + size
    with torch.no_grad():
        positive = guide.distribution("positive", values).live
    expected = model.blocks["positive"].split(positive.factor.inverse_diagonal())
    for name, variance in expected.items():
        torch.testing.assert_close(wanted[name], variance, rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["effect", "sparse effects, donors"])
def test_nuts(kind):
    model, guide, data = hurdle(**KINDS[kind], genes=2)
    start = latents(guide, data)
    kernel = NUTS(model, max_tree_depth=3)
    chain = MCMC(kernel, num_samples=4, warmup_steps=8, initial_params=start, disable_progbar=True)
    chain.run(*data.arguments)
    samples = chain.get_samples()
    assert samples.keys() == start.keys()
    assert all(v.isfinite().all() for v in samples.values())
    assert samples["log_sigma"].unique().numel() > 2  # it moved
