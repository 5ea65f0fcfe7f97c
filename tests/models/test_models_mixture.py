"""A spike and a bent slab: the density integrates to 1, and draws follow it."""

import math

import pytest
import torch
from scipy import integrate

from pyro_zilognormal.models._bend import bend
from pyro_zilognormal.models._mixture import SpikeAndBentSlab
from pyro_zilognormal.models._spike import SpikeAndSlab

DRAWS = 40_000


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def mixture(share, mean, precision, skewness, log_tails):
    prior = SpikeAndSlab(tensor(math.log(share / (1 - share))), tensor(0.0), 0.1)
    return SpikeAndBentSlab.of(prior, tensor(mean), tensor(precision), tensor(skewness), tensor(log_tails))


LAWS = {
    "prior": (0.3, 0.0, 1.0, 0.0, 0.0),
    "both": (0.5, 0.25, 30.0, 0.0, 0.0),
    "skewed": (0.6, 0.3, 12.0, -0.8, 0.2),
    "heavy": (0.9, 1.0, 5.0, 0.3, -0.4),
    "spike": (1e-8, 0.1, 20.0, 0.5, 0.1),
}
laws = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)


def moment(law, of):
    """Expectation of a function under the density, by Simpson's rule."""
    grid = torch.linspace(-8, 8, 40001, dtype=torch.float64).sinh()
    weight = law.log_prob(grid.unsqueeze(-1)).squeeze(-1).exp() * (1 + grid.square()).sqrt()
    return integrate.simpson((weight * of(grid)).numpy(), dx=16 / 40000)


@laws
def test_the_density_integrates_to_1(law):
    assert moment(mixture(*law), torch.ones_like) == pytest.approx(1, abs=1e-9)


@laws
def test_unbent_the_density_is_the_posterior(law):
    share, mean, precision, *_ = law
    slab_law = mixture(share, mean, precision, 0.0, 0.0)
    weights, means, precisions = slab_law.log_shares[0], slab_law.means[0], slab_law.precisions[0]
    x = torch.linspace(-2, 3, 51, dtype=torch.float64)
    parts = [weights[k] + torch.distributions.Normal(means[k], precisions[k].rsqrt()).log_prob(x) for k in range(2)]
    torch.testing.assert_close(slab_law.log_prob(x[:, None])[:, 0], torch.logaddexp(*parts))


@laws
def test_draws_follow_the_density(law):
    chosen = mixture(*law)
    torch.manual_seed(3)
    many = SpikeAndBentSlab(*(v.expand(DRAWS, *v.shape) for v in vars(chosen).values()))
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
    many = SpikeAndBentSlab(*(v.expand(DRAWS, 1, 2) for v in (shares, means, tensor(1.0, 1.0))), zero, zero)
    share = float((many.rsample() > 25).double().mean())
    assert abs(share - 0.6) < 4 * math.sqrt(0.24 / DRAWS)


def test_draws_move_with_the_parameters():
    torch.manual_seed(5)
    means = tensor(0.0, 5.0)[None].requires_grad_()
    skewness = tensor(0.3).requires_grad_()
    law = SpikeAndBentSlab(tensor(0.0, 1.0).log()[None], means, tensor(1.0, 4.0)[None], skewness, tensor(0.0))
    (value,) = law.rsample()
    slopes = torch.autograd.grad(value, [means, skewness])
    assert slopes[0].tolist() == [[0.0, 1.0]]
    # x = mean + bend(noise) / sqrt(precision), whose slope in the skewness is sqrt(1 + bend^2) / sqrt(precision).
    bent = float(value.detach() - 5) * 2
    assert slopes[1].item() == pytest.approx(math.sqrt(1 + bent**2) / 2)
    assert bend(tensor(0.0), tensor(0.3), tensor(0.0)).item() == pytest.approx(math.sinh(0.3))
