"""Where the exact posterior is Gaussian, or a mixture of two, the guide's law of the positive part is that."""

import copy

import numpy as np
import pytest
import torch
from hurdle_cases import hurdle, latents, log_joint, offsets, table

from pyro_zilognormal.models import HurdlePriors
from pyro_zilognormal.models._arrow import Arrow
from pyro_zilognormal.models._conditional import _NOTHING
from pyro_zilognormal.models._rows import Rows
from pyro_zilognormal.models._sigma import log_scale

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


def law_of(regression, values, part="positive"):
    """The guide's law given hyperparameters and log sigma."""
    return regression._law(part, values, (2 * (regression.log_scale_start - log_scale(values["log_sigma"]))).exp())


def make_exact(regression, data, nothing=1e-11):
    """Let the learned site be the likelihood itself, where it starts with a little more than nothing."""
    law = regression.laws["positive"]
    count = data.statistics()[..., 1].mT * (-2 * regression.log_scale_start).exp()
    information = Rows(data.design, data.donor, data.donors).information(count)
    unit = Arrow(law.unit_tips, law.unit_border, law.unit_core)
    before = unit @ Arrow(law.site_tips.data, law.site_border.data, law.site_core.data)
    mean, precision = regression.blocks["positive"].moments(regression.hyper.split(regression.hyper.start))
    linear = before.times(before.transpose_times(law.centre)) - _NOTHING * precision * mean.detach()
    factor = information.add_diagonal(torch.full_like(law.centre[0], nothing)).cholesky()
    for name, value in vars(unit.divide(factor)).items():
        getattr(law, f"site_{name}").data = value
    law.centre = factor.transpose_solve(factor.solve(linear))
    return regression


def ridge(kind, regression, values):
    """Mean and covariance of each gene's coefficients (donors, intercept, effects), cell by cell in numpy."""
    cells = table(**{k: v for k, v in kind.items() if k not in ("offset", "reduce")})
    codes = np.eye(kind.get("donors", 0))[cells["donor"]] if kind.get("donors") else np.zeros((len(cells["x"]), 0))
    rows = np.concatenate([codes, cells["design"].numpy()], 1)
    offset = np.asarray(kind.get("offset", torch.zeros(len(rows))))
    mean, precision = (v.detach().numpy() for v in regression.blocks["positive"].moments(values))
    for gene, x in enumerate(cells["x"].numpy().T):
        some = x > 0
        weight = 1 / (np.exp(2 * values["log_sigma"][gene].item()) + 1e-6)
        total = weight * rows[some].T @ rows[some] + np.diag(precision)
        right = weight * rows[some].T @ (np.log(x[some]) - offset[some]) + precision * mean
        yield np.linalg.solve(total, right), np.linalg.inv(total)


def elsewhere(regression, data):
    """Hyperparameters and sigma far from the start: two posterior sds and more."""
    values = latents(regression, data)
    generator = torch.Generator().manual_seed(9)
    return {k: v + 0.7 * torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in values.items()}


@kinds
def test_given_sigma_it_is_the_ridge_posterior(kind):
    regression, data = hurdle(**kind)
    values = elsewhere(regression, data)
    law = law_of(make_exact(regression, data), values).law
    found = law.factor.transpose_solve(law.white_mean), law.factor.inverse_diagonal()
    for gene, (mean, covariance) in enumerate(ridge(kind, regression, values)):
        np.testing.assert_allclose(found[0][gene].detach(), mean, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(found[1][gene].detach(), np.diag(covariance), rtol=1e-8)


@kinds
def test_it_starts_there(kind):
    """Before any step, but for a prior a ten-thousandth more precise."""
    regression, data = hurdle(**kind)
    values = {**latents(regression, data), "log_sigma": regression.log_scale_start}
    values |= regression.hyper.split(regression.hyper.start)
    law = law_of(regression, values).law
    mean, variance = law.factor.transpose_solve(law.white_mean), law.factor.inverse_diagonal()
    for gene, (expected, covariance) in enumerate(ridge(kind, regression, values)):
        sd = np.sqrt(np.diag(covariance))
        assert (abs(mean[gene].detach().numpy() - expected) / sd < 1e-3).all()
        np.testing.assert_allclose(variance[gene].detach(), sd**2, rtol=2e-4)


def integrands(regression, data, values, law, draws=6):
    """log p - log q of draws of the positive part."""
    torch.manual_seed(5)
    block = regression.blocks["positive"]
    for _ in range(draws):
        theta = law.rsample()
        joint = log_joint(regression, data, values | block.split(theta.detach()))
        yield (joint - law.log_prob(theta.detach()).sum()).item()


def spread(regression, data, values, law):
    found = list(integrands(regression, data, values, law))
    return np.ptp(found) / abs(np.mean(found))


@kinds
def test_the_integrand_of_the_elbo_is_constant(kind):
    regression, data = hurdle(**kind)
    values = elsewhere(regression, data)
    make_exact(regression, data)
    assert spread(regression, data, values, law_of(regression, values)) < 1e-9
    # Not so at another sigma: the check can fail.
    assert (
        spread(regression, data, values, law_of(regression, values | {"log_sigma": values["log_sigma"] + 0.1})) > 1e-5
    )


@pytest.mark.parametrize("kind", [{}, {"donors": 3}, {"offset": offsets()}], ids=["effect", "donors", "offset"])
def test_a_sparse_effect_has_its_exact_posterior(kind):
    own_gate = torch.ones(60, 1)  # a design of its own, so that nothing is shared with the gate
    priors = HurdlePriors(effects_share=(0.3, 1.0), spike_sd=0.05)
    regression, data = hurdle(**kind, gate_design=own_gate, priors=priors)
    values = elsewhere(regression, data)
    make_exact(regression, data)
    slab = law_of(regression, values)
    sparse = regression._sparse_positive(slab, law_of(regression, values, "gate"), values)
    assert spread(regression, data, values, sparse) < 1e-9
    assert spread(regression, data, values, slab) > 1e-5


@pytest.mark.parametrize("kind", [{}, {"donors": 3}], ids=["effect", "donors"])
def test_the_gradient_has_no_noise_there(kind):
    """Each draw's gradient is 0 by itself, which is why the score is left out."""
    regression, data = hurdle(**kind)
    values = elsewhere(regression, data)
    noise = [gradient(copy.deepcopy(regression), data, values)]
    noise.append(gradient(make_exact(regression, data), data, values))
    assert noise[1] < 1e-6 < 1e-4 < noise[0]


def gradient(regression, data, values):
    """The largest derivative of one draw's log p - log q by the parameters of the positive part."""
    law = law_of(regression, values)
    torch.manual_seed(6)
    theta = law.rsample()
    joint = log_joint(regression, data, values | regression.blocks["positive"].split(theta))
    (joint - law.score_parts(theta).entropy_term.sum()).backward()
    return max(float(p.grad.abs().max()) for p in regression.laws["positive"].parameters() if p.numel())
