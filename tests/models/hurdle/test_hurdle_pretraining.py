"""The pretrained zero part against quadrature, for genes without a positive value in a condition, or with few."""

import copy

import pytest
import torch
from torch.nn.functional import logsigmoid

from pyro_zilognormal.models import HurdleData, HurdleGuide, HurdleModel, HurdlePriors
from pyro_zilognormal.models.hurdle.arrowhead import DonorDesign
from pyro_zilognormal.models.hurdle.guide import pretrain_zero

# Zeros and positives in each of two conditions, gene by gene.
ZEROS = torch.tensor([[149.0, 127], [126, 128], [144, 8], [130, 100], [60, 0], [149, 129]]).double()
POSITIVES = torch.tensor([[0.0, 2], [23, 1], [5, 121], [19, 29], [89, 129], [0, 0]]).double()
DRAWS = 40_000


def grouped():
    value = torch.zeros(2, 6, 5, dtype=torch.float64)
    value[..., 0], value[..., 1], value[..., 2], value[..., 3] = ZEROS.T, POSITIVES.T, 1.0, POSITIVES.T
    design = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).double()
    nothing = torch.zeros(2, dtype=torch.float64)
    return HurdleData(value, design, design, nothing.long(), nothing)


def moments_by_quadrature(mean, precision, rows):
    """Means and sds of intercept and effect, from a grid that holds nearly all of every gene's mass."""
    line = torch.linspace(-16, 16, 641, dtype=torch.float64)
    theta = torch.cartesian_prod(line, line)
    eta = rows.predict(theta).unsqueeze(1)
    log_mass = (ZEROS * logsigmoid(eta) + POSITIVES * logsigmoid(-eta)).sum(-1)
    log_mass = log_mass - ((theta - mean).square() * precision).sum(-1, keepdim=True) / 2
    weight = log_mass.softmax(0).unsqueeze(-1)
    centre = (weight * theta.unsqueeze(1)).sum(0)
    return centre, (weight * (theta.unsqueeze(1) - centre).square()).sum(0).sqrt()


@pytest.fixture(scope="module")
def fitted():
    data = grouped()
    model, guide = pair(data)
    return guide, data, model.blocks["zero"].moments(guide.hyper.split(guide.hyper.start))


def pair(data):
    model = HurdleModel(data, HurdlePriors.for_data(data, effects_share=None))
    return model, HurdleGuide(model, data)


def test_means_and_sds_are_those_of_quadrature(fitted):
    guide, data, (mean, precision) = fitted
    exact_mean, exact_sd = moments_by_quadrature(mean, precision, DonorDesign(data.design, data.donor, 0))
    torch.manual_seed(0)
    draws = guide.zero.distribution(mean, precision, mean.new_ones(1)).rsample((DRAWS,)).detach()
    noise = 3 / DRAWS**0.5
    assert ((draws.mean(0) - exact_mean).abs() / exact_sd < 0.03 + noise).all()
    assert ((draws.std(0) / exact_sd).log().abs() < 0.05 + noise).all()


def test_a_guide_is_the_same_where_gradients_are_off(fitted):
    with torch.no_grad():
        _, again = pair(grouped())
    for name, value in fitted[0].state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)


def test_it_touches_no_global_generator_and_leaves_no_gradient(fitted):
    guide, data, prior = fitted
    site = copy.deepcopy(guide.zero)
    state = torch.get_rng_state()
    pretrain_zero(site, data, *prior, steps=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in site.parameters())
    assert not torch.equal(site.shift, guide.zero.shift)
