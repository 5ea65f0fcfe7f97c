"""Where the likelihood is Gaussian the guide is the posterior; elsewhere it is near. Its draws are as its density."""

import copy
import functools
import math

import numpy as np
import pyro
import pytest
import torch
from hurdle_cases import KINDS, hurdle, latents, offsets, sites, table, trace_model
from pyro import poutine
from torch.distributions import MultivariateNormal

from pyro_zilognormal.models import HurdleData, HurdleGuide, HurdleModel, HurdlePriors, fit_hurdle

SIGMA = 0.5
# Values that are never zero, of a known sigma.
GAUSSIAN = HurdlePriors(
    log_sigma_mean=(math.log(SIGMA), 1e-5),
    log_sigma_sd=(1e-5, 1e-3),
    log_sigma_effects_mean=(0.0, 1e-5),
    log_sigma_effects_sd=(1e-5, 1e-3),
    zero_intercept_mean=(-40.0, 1e-2),
    zero_slope=(1e-6, 1e-6),
    zero_sd=(1e-2, 1e-2),
    zero_spread=(1e-2, 1e-2),
)
EXACT = {
    "intercept": {"effects": 0},
    "effect": {},
    "effects, all of the widest component": {"effects": 3},
    "donors": {"levels": (4,)},
    "two factors, offset": {"levels": (3, 2), "offset": offsets()},
    "kept as cells": {"reduce": False, "levels": (2,), "offset": offsets(), "continuous": True},
    "zero design of its own": {"zero_design": torch.ones(60, 1)},
}


@functools.cache
def never_zero(name):
    """A model, its guide and data, and values of hyperparameters and log sds far from the start."""
    kind = dict(EXACT[name])
    own = {k: kind.pop(k, None) for k in ("zero_design", "offset", "reduce")}
    data = HurdleData.from_cells(**positive(**kind), **own)
    model = HurdleModel(data, GAUSSIAN)
    guide = HurdleGuide(model, data)
    return model, guide, data, elsewhere(guide, data)


def positive(**kind):
    cells = table(**kind)
    return cells | {"x": torch.where(cells["x"] > 0, cells["x"], 1.3)}


def elsewhere(guide, data):
    generator = torch.Generator().manual_seed(9)

    def move(v, unit):
        return v + 0.7 * unit * torch.randn(v.shape, generator=generator, dtype=v.dtype)

    values = guide.hyper.split(move(guide.hyper.start, guide.hyper.unit))
    effects = data.design.shape[1] - 1
    if effects > 1:  # the guide is exact for one scale mixture
        values["effects_logits"] = torch.tensor([0.0, 0, 0, 0, 0, 50]).repeat(effects).double()
    return values | {
        k: move(v, 1.0) for k, v in latents(guide, data).items() if k.endswith("random_log_sd") or k == "zero_log_sd"
    }


names = pytest.mark.parametrize("name", EXACT)


def integrands(model, guide, data, values, draws=5):
    """log p(x, theta) - log q(theta) given all else, of draws of the coefficients."""
    torch.manual_seed(5)
    with torch.no_grad():
        q = guide.distribution("coefficients", values)
        return [float(log_joint_of(model, data, values, t) - q.log_prob(t).sum()) for t in q.rsample((draws,))]


def log_joint_of(model, data, values, theta):
    """Log density of coefficients and data given all else."""
    trace = trace_model(model, data, values | model.hierarchy.coefficients.split(theta))
    parts = {"x"} | {c.name for c in model.hierarchy.coefficients}
    trace.compute_log_prob(lambda name, _: name in parts)
    return sum(trace.nodes[name]["log_prob_sum"] for name in parts)


@names
def test_the_integrand_of_the_elbo_is_the_evidence(name):
    model, guide, data, values = never_zero(name)
    found = integrands(model, guide, data, values)
    assert ((guide.coefficients.power - 1).abs() < 1e-3).all()
    # As far as sigma is known.
    assert np.ptp(found) < 2e-3
    assert found[0] == pytest.approx(evidence(name, data, model, values), abs=2e-3)


@pytest.mark.parametrize("name", ["effect", "donors"])
def test_where_some_values_are_zero_it_is_not(name):
    """So the checks of integrand and gradient can fail."""
    model, guide, data = hurdle(**EXACT[name])
    values = elsewhere(guide, data)
    assert np.ptp(integrands(model, guide, data, values)) > 0.1
    assert gradient(model, guide, data, values) > 0.1


def evidence(name, data, model, values):
    """Log density of all cells: log x is a mixture of multivariate Normals, one for each component of the effect."""
    cells = positive(**{k: v for k, v in EXACT[name].items() if k not in ("zero_design", "offset", "reduce")})
    factors = cells["factors"].mT if data.levels else []
    codes = [torch.nn.functional.one_hot(f, n).double() for f, n in zip(factors, data.levels, strict=True)]
    centred = cells["design"].double()
    centred[:, 1:] -= centred.unique(dim=0).mean(0)[1:]
    rows = torch.cat([*codes, centred], 1)
    owner = [f for f, n in enumerate(data.levels) for _ in range(n)]
    sigma = (centred @ values["log_sigma_mean"]).exp()
    mean = EXACT[name].get("offset", 0.0) + values["intercept_mean"] - sigma.square() / 2
    sparse = model.hierarchy.coefficients.sparse
    none = torch.zeros(1, 0).double()
    mixture = [(0.0, none[0])]
    if sparse:
        weights = sparse.mixture(values).log_weights
        used = range(7) if sparse.width == 1 else [6]
        mixture = [(weights[:, k].sum(), sparse.sds[:, k].square()) for k in used]
    random = (2 * values["random_log_sd"]).exp()[:, owner] if data.levels else none.expand(5, 0)
    total = 0.0
    for gene, y in enumerate(cells["x"].log().mT):
        parts = []
        for log_weight, wide in mixture:
            variance = torch.cat([random[gene], (2 * values["intercept_log_sd"]).exp(), wide])
            covariance = rows * variance @ rows.mT + torch.diag(sigma.square())
            parts.append(log_weight + MultivariateNormal(mean, covariance).log_prob(y) - y.sum())
        total += float(torch.stack(parts).logsumexp(0))
    return total


@names
def test_the_gradient_has_no_noise_there(name):
    """Each draw's gradient is 0 by itself, which is why the score of own parameters is left out."""
    assert gradient(*never_zero(name)) < 2e-3


def gradient(model, guide, data, values):
    """The largest derivative of one draw's log p - log q by the parameters of the coefficients."""
    guide = copy.deepcopy(guide)
    q = guide.distribution("coefficients", values)
    torch.manual_seed(6)
    theta = q.rsample()
    (log_joint_of(model, data, values, theta) - q.score_parts(theta).entropy_term.sum()).backward()
    return max(float(p.grad.abs().max()) for p in guide.coefficients.parameters())


def moved(**kind):
    """A guide whose parameters are all away from the start."""
    _, guide, data = hurdle(**kind)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in guide.parameters():
            p += 0.2 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return guide, data


@pytest.mark.parametrize("kind", [{"effects": 2}, {"levels": (2, 3)}], ids=["effects", "factors"])
def test_draws_of_coefficients_are_those_of_the_trace(kind):
    guide, data = moved(**kind)
    draws = 4000
    pyro.set_rng_seed(0)
    with torch.no_grad(), pyro.plate("draws", draws, dim=-3):
        traced = sites(poutine.trace(guide).get_trace(*data.arguments))
    with torch.no_grad():
        found = guide.sample_coefficients(guide.sample_hyperparameters(draws), 1, 1)
    assert found.keys() == traced.keys()
    for name, value in traced.items():
        value = value.reshape(found[name].shape)
        centre, unit = value.median(0).values, value.std(0) + 1e-9
        for of in (torch.tanh, lambda v: v.tanh().square()):
            first, second = (of((v - centre) / unit) for v in (value, found[name]))
            error = ((first.var(0) + second.var(0)) / draws).sqrt()
            assert ((first.mean(0) - second.mean(0)).abs() < 5 * error + 1e-12).all(), name
    # Effects are larger where their sds are.
    for part in ("", "zero_") if data.levels else ():
        log_sd, size = (found[f"{part}{k}"][..., 0].flatten() for k in ("random_log_sd", "random"))
        assert torch.stack([log_sd, size.abs().log()]).corrcoef()[0, 1] > 0.2


def test_draws_that_share_their_sds():
    guide, data = moved(levels=(2, 3))
    with torch.no_grad():
        found = guide.sample_coefficients(guide.sample_hyperparameters(6), 5, 5)
    for name, value in found.items():
        assert len(value) == 30
        distinct = [len(value[:, 0, k].unique()) for k in range(value.shape[-1])]
        shared = name.endswith(("_sd", "_mean", "_logits", "slope"))
        assert set(distinct) == {6 if shared else 30}, name
    assert found["random"].shape == (30, data.genes, 5)
    assert found["zero_slope"].shape == (30, 1, 1)


def importance(model, guide, data, values, draws):
    """Draws of the coefficients given all else, (draws, 1, genes, width), and their weights, (draws, genes)."""
    block = model.hierarchy.coefficients
    torch.manual_seed(2)
    q = guide.distribution("coefficients", values)
    theta = q.rsample((draws, 1)).detach()
    with torch.no_grad(), pyro.plate("draws", draws, dim=-3):
        given = values | block.split(theta)
        trace = trace_model(model, data, {k: v if v.dim() > 1 else v.expand(draws, 1, 1, -1) for k, v in given.items()})
        trace.compute_log_prob()
        joint = sum(trace.nodes[name]["log_prob"].sum(1) for name in ["x", *block.slices])
        return theta, (joint - q.log_prob(theta).squeeze(1)).softmax(0)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_importance_weights_are_even(kind):
    """Near to the posterior, a draw given hyperparameters and sds has nearly the weight of any other."""
    model, guide, data = hurdle(**kind)
    values = guide.hyper.split(guide.hyper.start)
    values |= {c.name: values[f"{c.name}_mean"].expand(5, -1) for c in model.hierarchy.log_sds}
    _, weights = importance(model, guide, data, values, 300)
    share = 1 / weights.square().sum(0) / len(weights)
    assert share.min() > 0.15
    assert share.median() > 0.5


def test_the_probability_of_no_effect_where_values_are_few():
    """Its log odds are those of weighted draws, also where the likelihood of the effect is not Normal."""
    zeros = torch.tensor([[149.0, 127], [130, 100], [95, 80], [18, 25], [20, 12], [40, 25]]).double()
    positives = torch.tensor([[1.0, 2], [19, 29], [5, 20], [2, 15], [0, 8], [1, 9]]).double()
    mean = torch.tensor([[1.0, 1.2], [2.0, 2.1], [1.0, 1.2], [1.0, 1.0], [0.0, 1.0], [0.5, 1.0]]).double()
    value = torch.stack([zeros, positives, mean, 0.25 * (positives - 1).clamp(min=0), 0 * mean], -1)
    design = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).double()
    data = HurdleData(value.transpose(0, 1), *[design] * 3, torch.zeros(2, 0).long(), torch.zeros(2).double())
    model = HurdleModel(data)
    guide = HurdleGuide(model, data)
    values = guide.hyper.split(guide.hyper.start)
    values |= {"effects_logits": torch.full((6,), -4.0).double(), "zero_log_sd": torch.full((6, 2), -1.5).double()}
    mixture = model.hierarchy.coefficients.sparse.mixture(values)

    wide = copy.deepcopy(guide)
    wide.coefficients.log_tails = torch.full_like(guide.coefficients.log_tails, -0.15)  # for even weights

    def log_odds(guide):
        theta, weights = importance(model, guide, data, values, 10_000)
        each = mixture.log_weights + torch.distributions.Normal(0.0, mixture.sds).log_prob(theta[:, 0, :, -1:])
        none = each.softmax(-1)[..., 0]
        return none.mean(0).logit(), (weights * none).sum(0).logit()

    exact = log_odds(wide)[1]
    assert (log_odds(guide)[0] - exact).abs().max() < 0.2
    guide.coefficients.power[:] = 1.0
    assert (log_odds(guide)[0] - exact).abs().max() > 0.3


def test_a_guide_starts_the_same_whatever_the_global_state():
    model, guide, data = hurdle(levels=(2,))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    with torch.no_grad():
        again = HurdleGuide(model, data)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in guide.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert all(p.requires_grad and p.grad is None for p in again.parameters())
    assert len({p.untyped_storage().data_ptr() for p in guide.parameters()}) == len(list(guide.parameters()))
    shapes = {k: tuple(v.shape) for k, v in guide.named_parameters()}
    width = model.hierarchy.coefficients.width
    assert shapes["coefficients.shift_unconstrained"] == (5, width)
    assert shapes["coefficients.coupling_unconstrained"] == (5, width - 4, width - 4)
    assert shapes["log_sds.coupling_unconstrained"] == (5, 4, 4)


def test_the_start_is_near_the_end():
    """Training gains less than half a nat a gene."""
    model, guide, data = hurdle(levels=(3,), genes=20, cells=200)
    losses = fit_hurdle(model, guide, data, steps=80).losses
    assert np.mean(losses[:5]) - np.mean(losses[-20:]) < 0.5 * data.genes
