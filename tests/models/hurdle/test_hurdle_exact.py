"""Where the exact posterior is Gaussian, or a mixture of two, the guide's positive part is that."""

import copy

import numpy as np
import pytest
import torch
from hurdle_cases import hurdle, latents, log_joint, offsets, table

from pyro_zilognormal.models import HurdlePriors
from pyro_zilognormal.models.hurdle.arrowhead import Arrowhead, DonorDesign
from pyro_zilognormal.models.hurdle.guide import NO_INFORMATION

KINDS = {
    "intercept": {"effects": 0},
    "effect": {},
    "effects": {"effects": 3},
    "continuous": {"effects": 2, "continuous": True, "reduce": False},
    "donors": {"donors": 4, "cells": 80},
    "one donor": {"donors": 1},
    "offset": {"offset": offsets()},
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def make_exact(guide, data, least=1e-11):
    """Let the learned site be the likelihood itself, where it starts with a little more than no information."""
    site = guide.positive
    count = data.as_groups().value[..., 1].mT * (-2 * guide.log_scale_start).exp()
    information = DonorDesign(data.design, data.donor, data.donors).information(count)
    unit = site.unit()
    before = unit @ Arrowhead(site.site_block.data, site.site_border.data, site.site_core.data)
    mean, precision = guide.blocks["positive"].moments(guide.hyper.split(guide.hyper.start))
    linear = before.times(before.transpose_times(site.centre)) - NO_INFORMATION * precision * mean.detach()
    factor = information.add_diagonal(torch.full_like(site.centre[0], least)).cholesky()
    for name, value in vars(unit.solve_factor(factor)).items():
        getattr(site, f"site_{name}").data = value
    site.centre = factor.transpose_solve(factor.solve(linear))
    return guide


def ridge(kind, guide, values):
    """Mean and covariance of each gene's coefficients (donors, intercept, effects), cell by cell in numpy."""
    cells = table(**{k: v for k, v in kind.items() if k not in ("offset", "reduce")})
    codes = np.eye(kind.get("donors", 0))[cells["donor"]] if kind.get("donors") else np.zeros((len(cells["x"]), 0))
    rows = np.concatenate([codes, cells["design"].numpy()], 1)
    offset = np.asarray(kind.get("offset", torch.zeros(len(rows))))
    mean, precision = (v.detach().numpy() for v in guide.blocks["positive"].moments(values))
    for gene, x in enumerate(cells["x"].numpy().T):
        some = x > 0
        weight = 1 / (np.exp(2 * values["log_sigma"][gene].item()) + 1e-6)
        total = weight * rows[some].T @ rows[some] + np.diag(precision)
        right = weight * rows[some].T @ (np.log(x[some]) - offset[some]) + precision * mean
        yield np.linalg.solve(total, right), np.linalg.inv(total)


def elsewhere(guide, data):
    """Hyperparameters and sigma far from the start: two posterior sds and more."""
    values = latents(guide, data)
    generator = torch.Generator().manual_seed(9)
    return {k: v + 0.7 * torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in values.items()}


@kinds
def test_given_sigma_it_is_the_ridge_posterior(kind):
    _, guide, data = hurdle(**kind)
    values = elsewhere(guide, data)
    q = make_exact(guide, data).distribution("positive", values).live
    found = q.factor.transpose_solve(q.white_mean), q.factor.inverse_diagonal()
    for gene, (mean, covariance) in enumerate(ridge(kind, guide, values)):
        np.testing.assert_allclose(found[0][gene].detach(), mean, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(found[1][gene].detach(), np.diag(covariance), rtol=1e-8)


@kinds
def test_it_starts_there(kind):
    """Before any step, but for a prior a ten-thousandth more precise."""
    _, guide, data = hurdle(**kind)
    values = {**latents(guide, data), "log_sigma": guide.log_scale_start}
    values |= guide.hyper.split(guide.hyper.start)
    q = guide.distribution("positive", values).live
    mean, variance = q.factor.transpose_solve(q.white_mean), q.factor.inverse_diagonal()
    for gene, (expected, covariance) in enumerate(ridge(kind, guide, values)):
        sd = np.sqrt(np.diag(covariance))
        assert (abs(mean[gene].detach().numpy() - expected) / sd < 1e-3).all()
        np.testing.assert_allclose(variance[gene].detach(), sd**2, rtol=2e-4)


def integrands(model, data, values, q, draws=6):
    """log p - log q of draws of the positive part."""
    torch.manual_seed(5)
    block = model.blocks["positive"]
    for _ in range(draws):
        theta = q.rsample()
        joint = log_joint(model, data, values | block.split(theta.detach()))
        yield (joint - q.log_prob(theta.detach()).sum()).item()


def spread(model, data, values, q):
    found = list(integrands(model, data, values, q))
    return np.ptp(found) / abs(np.mean(found))


@kinds
def test_the_integrand_of_the_elbo_is_constant(kind):
    model, guide, data = hurdle(**kind)
    values = elsewhere(guide, data)
    make_exact(guide, data)
    assert spread(model, data, values, guide.distribution("positive", values)) < 1e-9
    # Not so at another sigma: the check can fail.
    other = values | {"log_sigma": values["log_sigma"] + 0.1}
    assert spread(model, data, values, guide.distribution("positive", other)) > 1e-5


@pytest.mark.parametrize("kind", [{}, {"donors": 3}, {"offset": offsets()}], ids=["effect", "donors", "offset"])
def test_a_sparse_effect_has_its_exact_posterior(kind):
    own_design = torch.ones(60, 1)  # so that nothing is shared with the zero part
    priors = HurdlePriors(effects_share=(0.3, 1.0), spike_sd=0.05)
    model, guide, data = hurdle(**kind, zero_design=own_design, priors=priors)
    values = elsewhere(guide, data)
    make_exact(guide, data)
    slab, zero = (guide.distribution(name, values) for name in ("positive", "zero"))
    sparse = guide._positive_with_prior(slab, zero, values)
    assert spread(model, data, values, sparse) < 1e-9
    assert spread(model, data, values, slab) > 1e-5


@pytest.mark.parametrize("kind", [{}, {"donors": 3}], ids=["effect", "donors"])
def test_the_gradient_has_no_noise_there(kind):
    """Each draw's gradient is 0 by itself, which is why the score is left out."""
    model, guide, data = hurdle(**kind)
    values = elsewhere(guide, data)
    noise = [gradient(model, copy.deepcopy(guide), data, values)]
    noise.append(gradient(model, make_exact(guide, data), data, values))
    assert noise[1] < 1e-6 < 1e-4 < noise[0]


def gradient(model, guide, data, values):
    """The largest derivative of one draw's log p - log q by the parameters of the positive part."""
    q = guide.distribution("positive", values)
    torch.manual_seed(6)
    theta = q.rsample()
    joint = log_joint(model, data, values | model.blocks["positive"].split(theta))
    (joint - q.score_parts(theta).entropy_term.sum()).backward()
    return max(float(p.grad.abs().max()) for p in guide.positive.parameters() if p.numel())
