"""The model under every engine of Pyro: prior draws, autoguides, NUTS, vectorised particles."""

import pyro
import pytest
import torch
from hurdle_cases import KINDS, hurdle, latents, log_joint, sites, without_guide
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoLaplaceApproximation, AutoNormal
from pyro.optim import Adam

kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@kinds
def test_model_and_guide_have_the_same_sites(kind):
    model, guide, data = hurdle(**kind)
    traces = [poutine.trace(f).get_trace(*data.arguments) for f in (model, guide)]
    found, same = ({k: v.shape for k, v in sites(t).items()} for t in traces)
    assert found == same
    levels, factors = sum(data.levels), len(data.levels)
    widths = {
        "intercept": 1,
        "zero_intercept": 1,
        "effects": data.design.shape[1] - 1,
        "zero_effects": data.zero_design.shape[1] - 1,
        "log_sigma": data.scale_design.shape[1],
        "random": levels,
        "zero_random": levels,
        "zero_log_sd": min(data.zero_design.shape[1], 2),
        "random_log_sd": factors,
        "zero_random_log_sd": factors,
    }
    hyper = {k: (len(mean),) for k, (mean, _) in model.hierarchy.hyperpriors().items()}
    assert found == {k: (5, n) for k, n in widths.items() if n} | hyper
    assert hyper["zero_slope"] == (1,)
    assert all(trace.log_prob_sum().isfinite() for trace in traces)


@kinds
def test_data_drawn_from_the_prior(kind):
    model, data = without_guide(**kind)
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
    assert joint.nodes["x"]["fn"].batch_shape == (3, *data.value.shape[:2])
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


@pytest.mark.parametrize("kind", ["effects", "donors", "two factors"])
@pytest.mark.parametrize("automatic", [AutoNormal, AutoLaplaceApproximation])
def test_autoguides(automatic, kind):
    model, data = without_guide(**KINDS[kind])
    auto = automatic(model)
    svi = SVI(model, auto, Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(*data.arguments) for _ in range(8)]
    assert all(torch.tensor(losses).isfinite())
    assert min(losses[-3:]) < losses[0]
    draw = auto(*data.arguments)
    assert draw["effects"].shape == (5, data.design.shape[1] - 1)
    assert all(v.isfinite().all() for v in draw.values())


@pytest.mark.parametrize("kind", ["effects", "donors"])
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
