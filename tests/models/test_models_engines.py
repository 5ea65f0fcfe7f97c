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
from pyro_zilognormal.models._sigma import log_scale

SPARSE = HurdlePriors(effects_share=(0.2, 1.0))
KINDS = {
    "intercept": {"effects": 0},
    "effect": {},
    "effects": {"effects": 3},
    "continuous": {"continuous": True},
    "one donor": {"donors": 1},
    "donors": {"donors": 4},
    "offset, cells": {"offset": offsets(), "reduce": False},
    "gate": {"gate_design": torch.ones(60, 1)},
    "gate only": {"effects": 0, "gate_design": torch.stack([torch.ones(60), torch.arange(60) % 2], 1)},
    "sparse": {"priors": SPARSE},
    "sparse effects, donors": {"priors": SPARSE, "effects": 2, "donors": 3},
    "sparse gate": {"priors": SPARSE, "gate_design": torch.stack([torch.ones(60), torch.arange(60) % 2], 1)},
    "sparse, plain gate": {"priors": SPARSE, "gate_design": torch.ones(60, 1)},
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@pytest.fixture(autouse=True)
def clean_pyro():
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


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
    regression, data = hurdle(**kind)
    model, guide = (poutine.trace(f).get_trace(*data.arguments) for f in (regression.model, regression.guide))
    sites = latent_sites(model)
    assert sites == latent_sites(guide)
    assert sites["log_sigma"] == sites["intercept"] == (5, 1)
    for part, design in (("", data.design), ("gate_", data.gate_design)):
        assert sites.get(f"{part}effects", (5, 0)) == (5, design.shape[1] - 1)
        assert sites.get(f"{part}donors", (5, 0)) == (5, data.donors)
    assert model.log_prob_sum().isfinite()
    assert guide.log_prob_sum().isfinite()


@kinds
def test_data_drawn_from_the_prior(kind):
    regression, data = hurdle(**kind)
    drawn = poutine.trace(poutine.uncondition(regression.model)).get_trace(*data.arguments).nodes["x"]
    assert drawn["value"].shape == data.value.shape
    assert drawn["fn"].log_prob(drawn["value"]).shape == data.value.shape[:2]
    if data.reduced:
        torch.testing.assert_close(drawn["value"][..., :2].sum(-1), data.value[..., :2].sum(-1))


@kinds
def test_particles_are_separate_draws(kind):
    """Vectorised, model and guide have the densities of each particle on its own."""
    regression, data = hurdle(**kind)

    def particles(fn):
        def run(*args):
            with pyro.plate("particles", 3, dim=-3):
                return fn(*args)

        return run

    guide = poutine.trace(particles(regression.guide)).get_trace(*data.arguments)
    model = poutine.trace(poutine.replay(particles(regression.model), trace=guide)).get_trace(*data.arguments)
    sampled = {k: v for k, v in guide.nodes.items() if v["type"] == "sample" and k not in ("particles", "genes")}
    total = [torch.zeros(()).double(), torch.zeros(()).double()]
    for p in range(3):
        values = {k: one(v, p) for k, v in sampled.items()}
        total[0] = (
            total[0]
            + poutine.trace(poutine.condition(regression.guide, values)).get_trace(*data.arguments).log_prob_sum()
        )
        total[1] = total[1] + log_joint(regression, data, {k: v for k, v in values.items() if k in model.nodes})
    torch.testing.assert_close(guide.log_prob_sum(), total[0])
    torch.testing.assert_close(model.log_prob_sum(), total[1])


def one(site, particle):
    """The value of one particle, without the dims of plates that the site is not in."""
    value = site["value"][particle]
    names = [frame.name for frame in site["cond_indep_stack"]]
    return value.squeeze(0) if "genes" in names else value.reshape(value.shape[-1:])


@pytest.mark.parametrize("reduce", [True, False])
def test_vectorised_particles_have_the_same_loss(reduce):
    regression, data = hurdle(donors=2, reduce=reduce)
    losses = []
    for vectorised in (True, False):
        elbo = Trace_ELBO(num_particles=4, vectorize_particles=vectorised, max_plate_nesting=2)
        found = [elbo.loss(regression.model, regression.guide, *data.arguments) for _ in range(8)]
        losses.append(torch.tensor(found, dtype=torch.float64))
    error = ((losses[0].var() + losses[1].var()) / 8).sqrt()
    assert (losses[0].mean() - losses[1].mean()).abs() < 4.5 * error
    assert error < 0.01 * losses[0].mean().abs()


@pytest.mark.parametrize("kind", ["effect", "donors", "offset, cells", "sparse effects, donors"])
@pytest.mark.parametrize("guide", [AutoNormal, AutoLaplaceApproximation])
def test_autoguides(guide, kind):
    regression, data = hurdle(**KINDS[kind])
    auto = guide(regression.model)
    svi = SVI(regression.model, auto, Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(*data.arguments) for _ in range(8)]
    assert all(torch.tensor(losses).isfinite())
    assert min(losses[-3:]) < losses[0]
    draw = auto(*data.arguments)
    assert draw["effects"].shape == (5, data.design.shape[1] - 1)
    assert all(v.isfinite().all() for v in draw.values())


@pytest.mark.parametrize("kind", ["effect", "donors"])
def test_laplace_is_exact_given_sigma(kind):
    """Given sigma and the hyperparameters the positive part is Gaussian, so that Laplace has its covariance."""
    regression, data = hurdle(**KINDS[kind])
    values = latents(regression, data)
    given = {k: v for k, v in values.items() if k == "log_sigma" or k.endswith(("_mean", "_sd"))}
    model = poutine.condition(regression.model, given)
    auto = AutoLaplaceApproximation(model, init_loc_fn=init_to_value(values=values))
    auto(*data.arguments)
    approximation = auto.laplace_approximation(*data.arguments)
    covariance = approximation.get_posterior(*data.arguments).covariance_matrix.detach()
    at, wanted = 0, {}
    for name, site in approximation.prototype_trace.iter_stochastic_nodes():
        size = site["value"].numel()
        wanted[name], at = covariance.diagonal()[at : at + size].reshape(site["value"].shape), at + size
    scale = (2 * (regression.log_scale_start - log_scale(values["log_sigma"]))).exp()
    with torch.no_grad():
        law = regression._law("positive", values, scale).law
    expected = regression.blocks["positive"].split(law.factor.inverse_diagonal())
    for name, variance in expected.items():
        torch.testing.assert_close(wanted[name], variance, rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["effect", "donors", "sparse effects, donors"])
def test_nuts(kind):
    regression, data = hurdle(**KINDS[kind], genes=2)
    start = latents(regression, data)
    kernel = NUTS(regression.model, max_tree_depth=3)
    chain = MCMC(kernel, num_samples=4, warmup_steps=8, initial_params=start, disable_progbar=True)
    chain.run(*data.arguments)
    samples = chain.get_samples()
    assert samples.keys() == start.keys()
    assert all(v.isfinite().all() for v in samples.values())
    assert samples["log_sigma"].unique().numel() > 2  # it moved
