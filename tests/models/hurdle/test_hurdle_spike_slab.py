"""Spike and slab: its distribution against scipy, its posterior against quadrature, and both at their extremes."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from scipy.special import logit

from pyro_zilognormal.models.hurdle.components import SpikeAndSlab

SHARE, SPIKE, SLAB = 0.2, 0.05, 0.7
# Mean and precision of the likelihood of an element.
DATA = list(itertools.product([0.0, 0.03, -0.5, 2.0], [0.1, 3.0, 400.0]))


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def prior(share=SHARE, slab=SLAB, spike=SPIKE):
    return SpikeAndSlab(tensor(logit(share)), tensor(math.log(slab)), tensor(spike))


def all_slab(mean, precision, slab=SLAB):
    """Mean and precision of the posterior under a prior that is all slab."""
    total = precision + slab**-2
    return tensor(precision * mean / total), tensor(total)


def normal(x, sd):
    return stats.norm.pdf(x, 0, sd)


def integral(of, mean, precision):
    """Over x, of what is narrow at 0 and around mean, by Simpson's rule."""
    grid = np.linspace(-10, 10, 100001)
    return integrate.simpson(of(grid) * np.exp(-precision * (grid - mean) ** 2 / 2), x=grid)


def test_the_law_is_the_mixture():
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)[:, None]
    parts = [np.log(1 - SHARE) + stats.norm.logpdf(x, 0, SPIKE), np.log(SHARE) + stats.norm.logpdf(x, 0, SLAB)]
    torch.testing.assert_close(
        prior().distribution().log_prob(x), torch.tensor(np.logaddexp(*parts)), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(("mean", "precision"), DATA)
def test_the_posterior_is_that_of_quadrature(mean, precision):
    shares, means, precisions = prior().posterior(*all_slab(mean, precision))
    parts = [(1 - SHARE, SPIKE), (SHARE, SLAB)]
    mass = [w * integral(lambda x, s=sd: normal(x, s), mean, precision) for w, sd in parts]
    np.testing.assert_allclose(shares.exp()[0], np.array(mass) / sum(mass), rtol=1e-8)
    for k, (weight, sd) in enumerate(parts):
        first = weight * integral(lambda x, s=sd: x * normal(x, s), mean, precision) / mass[k]
        second = weight * integral(lambda x, s=sd, m=first: (x - m) ** 2 * normal(x, s), mean, precision) / mass[k]
        assert means[0, k].item() == pytest.approx(first, abs=1e-9)
        assert precisions[0, k].item() == pytest.approx(1 / second, rel=1e-7)


@pytest.mark.parametrize(("mean", "precision"), DATA)
def test_evidence_is_the_bayes_factor(mean, precision):
    spike, slab = (integral(lambda x, s=sd: normal(x, s), mean, precision) for sd in (SPIKE, SLAB))
    found = prior().log_bayes_factor(*all_slab(mean, precision)).item()
    assert found == pytest.approx(math.log(slab / spike), abs=1e-9)
    # The share has no part in it.
    assert found == prior(share=0.9).log_bayes_factor(*all_slab(mean, precision)).item()


@pytest.mark.parametrize("x", [0.0, 0.01, -0.2, 3.0])
def test_log_density_ratio(x):
    expected = stats.norm.logpdf(x, 0, SLAB) - stats.norm.logpdf(x, 0, SPIKE)
    assert prior().log_density_ratio(tensor(x)).item() == pytest.approx(expected, rel=1e-12)


def test_evidence_shifts_the_log_odds():
    data = all_slab(0.4, 10.0)
    evidence = tensor(1.7)
    shifted = prior().updated(evidence).posterior(*data)[0]
    odds = prior().posterior(*data)[0].diff() + evidence
    torch.testing.assert_close(shifted.diff(), odds)


def test_two_elements_that_share_their_odds():
    """The prior of one, updated by the other, makes their joint density the mixture of products."""
    first, second = tensor(0.04), tensor(0.6)
    joint = prior().distribution().log_prob(first) + prior().updated(
        prior().log_density_ratio(first)
    ).distribution().log_prob(second)
    parts = [np.log(w) + stats.norm.logpdf([0.04, 0.6], 0, s).sum() for w, s in [(1 - SHARE, SPIKE), (SHARE, SLAB)]]
    assert joint.item() == pytest.approx(np.logaddexp(*parts), rel=1e-12)


def test_without_data_the_posterior_is_the_prior():
    shares, means, precisions = prior().posterior(*all_slab(0.0, 0.0))
    torch.testing.assert_close(shares.exp()[0], tensor(1 - SHARE, SHARE))
    assert (means == 0).all()
    torch.testing.assert_close(precisions[0], tensor(SPIKE**-2, SLAB**-2))
    # Nor is there information in a precision that rounding takes below the slab's.
    _, precision = all_slab(0.0, 0.0)
    less = prior().posterior(tensor(0.0), precision * (1 - 1e-15))
    torch.testing.assert_close(less[0], shares)
    torch.testing.assert_close(less[2], precisions)


@pytest.mark.parametrize("mean", [0.0, 1e-6, 1.0, 30.0])
@pytest.mark.parametrize("precision", [0.0, 1e-300, 1e8, 1e15])
@pytest.mark.parametrize("share", [1e-300, 1e-6, 1 - 1e-16])
def test_extremes_are_finite(mean, precision, share):
    leaves = [tensor(v).requires_grad_() for v in (logit(share), 0.0, mean, precision + 1.0)]
    sparse = SpikeAndSlab(leaves[0], leaves[1], tensor(0.01))
    shares, means, precisions = sparse.posterior(leaves[2], leaves[3])
    assert all(v.isfinite().all() for v in (shares, means, precisions))
    assert shares.exp().sum().item() == pytest.approx(1)
    gradients = torch.autograd.grad(shares.sum() + means.sum() + precisions.log().sum(), leaves)
    assert all(g.isfinite().all() for g in gradients)


def test_a_precise_effect_is_spike_or_slab_beyond_doubt():
    large = prior().posterior(*all_slab(1.0, 1e8))[0].exp()[0]
    none = prior().posterior(*all_slab(0.0, 1e8))[0].exp()[0]
    assert large[1] == 1
    # At 0 itself only the densities tell.
    assert none[1].item() == pytest.approx(SHARE / SLAB / (SHARE / SLAB + (1 - SHARE) / SPIKE), rel=1e-5)


def test_columns():
    both = SpikeAndSlab(tensor(-1.0, 2.0), tensor(0.1, -0.3), tensor(SPIKE, 0.2))
    x = tensor(0.3, 0.4)
    parts = [both.column(k).distribution().log_prob(x[k : k + 1]) for k in range(both.width)]
    torch.testing.assert_close(torch.cat(parts), both.distribution().log_prob(x))


def test_gradients():
    def of(logit_share, log_slab, mean, precision):
        return SpikeAndSlab(logit_share, log_slab, tensor(SPIKE)).posterior(mean, precision)

    values = [(-1.0, 0.5), (-0.4, 0.2), (0.2, -1.0), (9.0, 300.0)]
    assert torch.autograd.gradcheck(of, [tensor(*v).requires_grad_() for v in values])
