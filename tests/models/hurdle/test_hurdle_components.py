"""The priors of a gene's coefficients: scale mixtures against quadrature, and sites, blocks and hyperpriors by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from hurdle_cases import without_guide
from scipy import integrate, stats

from pyro_zilognormal.models import HurdlePriors
from pyro_zilognormal.models.hurdle.components import (
    EFFECT_SDS,
    Block,
    Component,
    GeneScaled,
    ScaleMixture,
    SparseEffects,
    ZeroIntercept,
    log_scale,
)

WEIGHTS, SDS = np.array([0.7, 0.1, 0.2]), np.array([0.05, 0.3, 1.5])
# Mean and precision of the likelihood of an element.
DATA = list(itertools.product([0.0, 0.03, -0.5, 2.0], [0.1, 3.0, 400.0]))
data = pytest.mark.parametrize(("mean", "precision"), DATA)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def mixture(weights=WEIGHTS, sds=SDS):
    return ScaleMixture(tensor(list(weights)).log(), tensor(list(sds)))


def under_widest(mean, precision):
    """Mean and precision of the posterior under the widest component alone."""
    total = precision + SDS[-1] ** -2
    return tensor(precision * mean / total), tensor(total)


def integral(of, mean, precision):
    """Over x, of a function times the likelihood, by Simpson's rule."""
    grid = np.linspace(-10, 10, 100001)
    return integrate.simpson(of(grid) * np.exp(-precision * (grid - mean) ** 2 / 2), x=grid)


def masses(mean, precision):
    return [w * integral(stats.norm(0, s).pdf, mean, precision) for w, s in zip(WEIGHTS, SDS, strict=True)]


@data
def test_the_posterior_is_that_of_quadrature(mean, precision):
    log_shares, means, precisions = mixture().posterior(*under_widest(mean, precision))
    mass = masses(mean, precision)
    np.testing.assert_allclose(log_shares.exp()[0], np.array(mass) / sum(mass), rtol=1e-8)
    for k, (weight, sd) in enumerate(zip(WEIGHTS, SDS, strict=True)):
        pdf = stats.norm(0, sd).pdf
        first = weight * integral(lambda x, pdf=pdf: x * pdf(x), mean, precision) / mass[k]
        second = weight * integral(lambda x, pdf=pdf, m=first: (x - m) ** 2 * pdf(x), mean, precision) / mass[k]
        assert means[0, k].item() == pytest.approx(first, abs=1e-9)
        assert precisions[0, k].item() == pytest.approx(1 / second, rel=1e-7)


@data
def test_evidence_is_against_the_widest_component(mean, precision):
    mass = masses(mean, precision)
    found = mixture().log_evidence(*under_widest(mean, precision)).item()
    assert found == pytest.approx(math.log(sum(mass) / (mass[-1] / WEIGHTS[-1])), abs=1e-9)


def test_a_power_of_the_likelihood_between_its_mode_and_0():
    """The narrowest component, at 0, loses so many times what a Normal likelihood falls to it; the widest nothing."""
    narrow, arguments = mixture(sds=[1e-6, 0.3, 1.5]), under_widest(0.5, 30.0)
    fall = float(arguments[0].square() * arguments[1]) / 2
    for power in (0.3, 1.0, 2.5):
        tempered = narrow.tempered(tensor(power))
        change = tempered.log_evidences(*arguments) - narrow.log_evidences(*arguments)
        assert change[0, 0].item() == pytest.approx((1 - power) * fall, rel=1e-6)
        assert change[0, 2].item() == 0
        for found, same in zip(tempered.posterior(*arguments)[1:], narrow.posterior(*arguments)[1:], strict=True):
            assert torch.equal(found, same)


def test_without_data_the_posterior_is_the_prior():
    mean, precision = under_widest(0.0, 0.0)
    # Nor is there information in a precision that rounding takes below the prior's.
    for least in (precision, precision * (1 - 1e-15)):
        log_shares, means, precisions = mixture().posterior(mean, least)
        torch.testing.assert_close(log_shares.exp()[0], tensor(*WEIGHTS))
        assert (means == 0).all()
        torch.testing.assert_close(precisions[0], tensor(*SDS**-2))
        torch.testing.assert_close(mixture().log_evidence(mean, least), tensor(0.0))


@pytest.mark.parametrize("mean", [0.0, 1e-6, 30.0])
@pytest.mark.parametrize("precision", [0.0, 1e-300, 1e15])
@pytest.mark.parametrize("logit", [-700.0, -12.0, 37.0])
def test_extremes_are_finite(mean, precision, logit):
    leaves = [tensor(v).requires_grad_() for v in (logit, mean, precision + 1.0)]
    weights = torch.stack([torch.zeros(1).double(), leaves[0]], -1).log_softmax(-1)
    sparse = ScaleMixture(weights, tensor([0.01, 1.0]))
    found = (*sparse.posterior(*leaves[1:]), sparse.log_evidence(*leaves[1:]))
    assert all(v.isfinite().all() for v in found)
    assert found[0].exp().sum().item() == pytest.approx(1)
    gradients = torch.autograd.grad(sum(v.sum() for v in found), leaves)
    assert all(g.isfinite().all() for g in gradients)


def test_columns_and_gradients():
    weights = tensor([0.5, 0.5], [0.2, 0.8]).log()
    both = ScaleMixture(weights, tensor([0.05, 1.0], [0.1, 2.0]))
    x = tensor(0.3, 0.4)
    parts = [both.column(k).distribution().log_prob(x[k : k + 1]) for k in range(both.width)]
    torch.testing.assert_close(torch.cat(parts), both.distribution().log_prob(x))

    def of(logits, mean, precision):
        sparse = ScaleMixture(logits.log_softmax(-1), both.sds)
        return *sparse.posterior(mean, precision), sparse.log_evidence(mean, precision)

    values = weights.clone(), tensor(0.2, -1.0), tensor(9.0, 300.0)
    assert torch.autograd.gradcheck(of, [v.requires_grad_() for v in values])


def normal_pair(width):
    return torch.zeros(width).double(), torch.ones(width).double()


def blocks():
    """A block of each kind of component, and values of what their priors are given."""
    parts = [
        GeneScaled("random", "random_log_sd", torch.tensor([0, 0, 1, 1, 1]), tensor(1.0, 1.0, 1.0, 1.0, 2.0)),
        Component("intercept", 1, {"mean": normal_pair(1), "log_sd": normal_pair(1)}),
        SparseEffects("effects", tensor([0.1, 1.0], [0.2, 2.0]), normal_pair(2)),
    ]
    values = {
        "random_log_sd": torch.linspace(-2, 1, 8).double().reshape(4, 2),
        "intercept_mean": tensor(0.7),
        "intercept_log_sd": tensor(-0.4),
        "effects_logits": tensor(-1.0, 0.5),
    }
    return Block(parts), values


def test_random_effects_have_the_sds_of_their_factor_and_gene():
    block, values = blocks()
    mean, precision = block[0].moments(values)
    sd = values["random_log_sd"].exp()
    assert (mean == 0).all()
    expected = torch.stack([sd[:, 0], sd[:, 0], sd[:, 1], sd[:, 1], sd[:, 1] / 2], 1)
    torch.testing.assert_close(precision.rsqrt(), expected)
    u = torch.linspace(-1, 1, 20).double().reshape(4, 5)
    torch.testing.assert_close(block[0].prior(values).log_prob(u), tensor(*stats.norm.logpdf(u, 0, expected).sum(1)))


def test_the_zero_part_follows_the_log_mean():
    """Its intercept is that of the line of its slope through (centre, mean); each gene has an sd of its own."""
    site = ZeroIntercept({"mean": normal_pair(1)}, tensor(2.0))
    values = {"zero_intercept_mean": tensor(0.3), "zero_slope": tensor(1.5), "zero_log_sd": tensor(-2.0, 0.5)[:, None]}
    mean, precision = site.moments(values)
    torch.testing.assert_close(mean, tensor(3.3, 3.3)[:, None])
    torch.testing.assert_close(precision.rsqrt(), values["zero_log_sd"].exp())
    assert set(site.hyperpriors()) == {"zero_intercept_mean"}


def test_sparse_effects_have_weights_for_each_column():
    block, values = blocks()
    weights = block.sparse.mixture(values).log_weights.exp()
    odds = values["effects_logits"].exp()
    torch.testing.assert_close(weights[:, 1] / weights[:, 0], odds)
    torch.testing.assert_close(weights.sum(1), tensor(1.0, 1.0))
    beta = tensor([0.3, -0.1])
    densities = torch.distributions.Normal(0.0, block.sparse.sds).log_prob(beta.mT).exp()
    torch.testing.assert_close(
        block.sparse.prior(values).log_prob(beta), (weights * densities).sum(1).log().sum()[None]
    )


def test_a_block_joins_its_components():
    block, values = blocks()
    assert block.width == 8
    assert block.slices == {"random": slice(0, 5), "intercept": slice(5, 6), "effects": slice(6, 8)}
    theta = torch.arange(32).double().reshape(4, 8)
    for name, part in block.split(theta).items():
        assert torch.equal(part, theta[:, block.slices[name]])
    mean, precision = block.moments(values)
    assert mean.shape == precision.shape == (4, 8)
    torch.testing.assert_close(mean[:, 5], tensor(0.7).expand(4))
    torch.testing.assert_close(precision[:, 5:], tensor(math.exp(0.8), 1.0, 0.25).expand(4, 3))
    assert set(block.hyperpriors()) == {"intercept_mean", "intercept_log_sd", "effects_logits"}
    assert Block(list(block)[:2]).sparse is Block([]).sparse is None


def test_hyperpriors_are_those_of_the_priors():
    priors = HurdlePriors(
        random_sd=(0.2, 0.7),
        zero_sd=(0.1, 0.6),
        zero_random_spread=(0.5, 0.1),
        log_sigma_mean=(-0.3, 0.9),
        log_sigma_effects_mean=(torch.tensor([0.1, 0.4]), 0.2),
        log_sigma_sd=(0.3, 1.0),
        log_sigma_effects_sd=(0.15, 0.6),
        zero_slope=(0.8, 0.4),
        effects_share=(torch.tensor([0.2, 0.4]), 1.2),
    )
    model, _ = without_guide(priors, effects=2, levels=(2, 3))
    found = {k: (m.tolist(), s.tolist()) for k, (m, s) in model.hierarchy.hyperpriors().items()}

    def same(name, means, sds):
        np.testing.assert_allclose(found[name], (means, sds))

    same("zero_log_sd_mean", [math.log(0.1)] * 2, [0.6] * 2)
    same("random_log_sd_mean", [math.log(0.2)] * 2, [0.7] * 2)
    same("zero_random_log_sd_log_sd", [math.log(0.5)] * 2, [0.1] * 2)
    same("log_sigma_mean", [-0.3, 0.1, 0.4], [0.9, 0.2, 0.2])
    same("log_sigma_log_sd", [math.log(0.3), math.log(0.15), math.log(0.15)], [1.0, 0.6, 0.6])
    same("zero_slope", [0.8], [0.4])
    sizes = len(EFFECT_SDS)
    logits = [math.log(odds / sizes) for odds in (0.2 / 0.8, 0.4 / 0.6)]
    same("effects_logits", np.repeat(logits, sizes), [1.2] * 2 * sizes)
    # At the median the share of affected genes is that of the prior.
    values = {"effects_logits": tensor(*found["effects_logits"][0])}
    weights = model.hierarchy.coefficients.sparse.mixture(values).log_weights.exp()
    torch.testing.assert_close(1 - weights[:, 0], tensor(0.2, 0.4))
    kinds = [name.split("_")[-1] for name in found]
    assert set(kinds) == {"mean", "sd", "logits", "slope"}


def test_the_scale_has_a_least_value():
    log_sigma = tensor(-800.0, -20.0, math.log(1e-3), -0.5, 3.0)
    expected = (log_sigma.exp().square() + 1e-6).sqrt().log()
    torch.testing.assert_close(log_scale(log_sigma), expected)
