"""A Normal spike and a sinh-arcsinh slab: the density integrates to 1, and draws follow it."""

import math

import pytest
import torch
from scipy import integrate

from pyro_zilognormal.models.hurdle.components import SpikeAndSlab
from pyro_zilognormal.models.hurdle.sinh_arcsinh import SpikeAndSlabPosterior, sinh_arcsinh

DRAWS = 40_000


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def mixture(share, mean, precision, skewness, log_tails):
    prior = SpikeAndSlab(tensor(math.log(share / (1 - share))), tensor(0.0), tensor(0.1))
    return SpikeAndSlabPosterior(*prior.posterior(tensor(mean), tensor(precision)), tensor(skewness), tensor(log_tails))


LAWS = {
    "prior": (0.3, 0.0, 1.0, 0.0, 0.0),
    "both": (0.5, 0.25, 30.0, 0.0, 0.0),
    "skewed": (0.6, 0.3, 12.0, -0.8, 0.2),
    "heavy": (0.9, 1.0, 5.0, 0.3, -0.4),
    "spike": (1e-8, 0.1, 20.0, 0.5, 0.1),
}
distributions = pytest.mark.parametrize("distribution", LAWS.values(), ids=LAWS)


def moment(distribution, of):
    """Expectation of a function under the density, by Simpson's rule."""
    grid = torch.linspace(-8, 8, 40001, dtype=torch.float64).sinh()
    weight = distribution.log_prob(grid.unsqueeze(-1)).squeeze(-1).exp() * (1 + grid.square()).sqrt()
    return integrate.simpson((weight * of(grid)).numpy(), dx=16 / 40000)


@distributions
def test_the_density_integrates_to_1(distribution):
    assert moment(mixture(*distribution), torch.ones_like) == pytest.approx(1, abs=1e-9)


@distributions
def test_untransformed_the_density_is_the_posterior(distribution):
    share, mean, precision, *_ = distribution
    found = mixture(share, mean, precision, 0.0, 0.0)
    weights, means, precisions = (
        found.log_shares[0],
        found.means[0],
        found.precisions[0],
    )
    x = torch.linspace(-2, 3, 51, dtype=torch.float64)
    parts = [weights[k] + torch.distributions.Normal(means[k], precisions[k].rsqrt()).log_prob(x) for k in range(2)]
    torch.testing.assert_close(found.log_prob(x[:, None])[:, 0], torch.logaddexp(*parts))


@distributions
def test_draws_follow_the_density(distribution):
    chosen = mixture(*distribution)
    torch.manual_seed(3)
    many = SpikeAndSlabPosterior(*(v.expand(DRAWS, *v.shape) for v in vars(chosen).values()))
    draws = many.rsample().squeeze(-1)
    for of in (torch.tanh, lambda x: x.tanh().square(), lambda x: (x.abs() < 0.15).double()):
        sample = of(draws)
        error = float(sample.std()) / math.sqrt(DRAWS)
        # The step of the indicator costs Simpson's rule a cell of the grid.
        assert abs(float(sample.mean()) - moment(chosen, of)) < 4.5 * error + 1e-3 * (of(tensor(0.0)) == 1)


def test_the_share_of_draws_from_the_slab():
    torch.manual_seed(4)
    shares, means = tensor(0.4, 0.6).log(), tensor(0.0, 50.0)
    zero = tensor(0.0)
    many = SpikeAndSlabPosterior(*(v.expand(DRAWS, 1, 2) for v in (shares, means, tensor(1.0, 1.0))), zero, zero)
    share = float((many.rsample() > 25).double().mean())
    assert abs(share - 0.6) < 4 * math.sqrt(0.24 / DRAWS)


def test_draws_move_with_the_parameters():
    torch.manual_seed(5)
    means = tensor(0.0, 5.0)[None].requires_grad_()
    skewness = tensor(0.3).requires_grad_()
    distribution = SpikeAndSlabPosterior(
        tensor(0.0, 1.0).log()[None], means, tensor(1.0, 4.0)[None], skewness, tensor(0.0)
    )
    (value,) = distribution.rsample()
    slopes = torch.autograd.grad(value, [means, skewness])
    assert slopes[0].tolist() == [[0.0, 1.0]]
    # x = mean + y / sqrt(precision), y the transformed noise, whose slope in the skewness is sqrt(1 + y^2).
    transformed = float(value.detach() - 5) * 2
    assert slopes[1].item() == pytest.approx(math.sqrt(1 + transformed**2) / 2)
    assert sinh_arcsinh(tensor(0.0), tensor(0.3), tensor(0.0)).item() == pytest.approx(math.sinh(0.3))
