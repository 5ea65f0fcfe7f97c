"""The guide's distribution of a gene: a Normal of arrowhead precision, transformed, and with sparse elements."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from pyro_zilognormal.models.hurdle.arrowhead import Arrowhead
from pyro_zilognormal.models.hurdle.components import SpikeAndSlab
from pyro_zilognormal.models.hurdle.sinh_arcsinh import PathDerivative, SinhArcsinhNormal

DRAWS = 20_000
PRECISION = [[3.0, 0.8], [0.8, 2.0]]
LINEAR = [1.0, -0.6]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def random_normal(donors, core, batch=(), seed=0):
    """A Normal, and the dense precision behind it."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*batch, *shape, dtype=torch.float64, generator=generator)

    block, border, square = 1 + normal(donors).abs(), normal(core, donors), normal(core, core)
    last = square @ square.mT + torch.eye(core) + border / block.unsqueeze(-2) @ border.mT
    zero = torch.zeros(donors + core, dtype=torch.float64)
    factor, coupling = Arrowhead(block, border, last).cholesky(), torch.zeros(core, core, dtype=torch.float64)
    distribution = SinhArcsinhNormal(factor, normal(donors + core), zero, zero, coupling)
    dense = torch.cat([torch.cat([torch.diag_embed(block), border.mT], -1), torch.cat([border, last], -1)], -2)
    return distribution, dense


def plane_distribution(donors, skewness=(0.0, 0.0), log_tails=(0.0, 0.0), sparse=0, curved=0.0):
    """A distribution of two elements."""
    p = tensor(PRECISION)
    arrow = Arrowhead(p[0, :1], p[1:, :1], p[1:, 1:]) if donors else Arrowhead(p[0, :0], p[:, :0], p)
    coupling = torch.full((2 - donors, 2 - donors), curved).double()
    distribution = SinhArcsinhNormal(arrow.cholesky(), tensor(LINEAR), tensor(skewness), tensor(log_tails), coupling)
    prior = SpikeAndSlab(
        torch.full((sparse,), 0.3).double(), tensor([-0.2, 0.1])[:sparse], tensor([0.05, 0.05])[:sparse]
    )
    return distribution.with_prior(prior) if sparse else distribution


def plane(points=801, reach=5.0):
    """A grid of the plane, finer near 0, and the weight of each of its points."""
    line = torch.linspace(-reach, reach, points, dtype=torch.float64)
    x, weight = line.sinh() / 5, line.cosh() / 5 * (2 * reach / (points - 1))
    return torch.cartesian_prod(x, x), torch.outer(weight, weight).flatten()


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize(("donors", "core"), [(0, 1), (0, 3), (1, 1), (4, 2)])
def test_untransformed_it_is_a_multivariate_normal(batch, donors, core):
    distribution, dense = random_normal(donors, core, batch=batch)
    mean = torch.linalg.solve(dense, distribution.factor.times(distribution.white_mean).unsqueeze(-1)).squeeze(-1)
    same = MultivariateNormal(mean, precision_matrix=dense)
    torch.manual_seed(1)
    x = distribution.rsample((5,))
    assert x.shape == (5, *batch, donors + core)
    torch.testing.assert_close(distribution.log_prob(x), same.log_prob(x))


def test_its_mean_and_precision():
    distribution, dense = random_normal(2, 2)
    linear = distribution.factor.times(distribution.white_mean)
    torch.manual_seed(2)
    x = distribution.rsample((DRAWS,))
    covariance = dense.inverse()
    error = (covariance.diagonal() / DRAWS).sqrt()
    assert ((x.mean(0) - covariance @ linear).abs() < 4 * error).all()
    variances = torch.outer(covariance.diagonal(), covariance.diagonal())
    assert ((x.T.cov() - covariance).abs() < 4 * ((variances + covariance.square()) / DRAWS).sqrt()).all()


PLANES = {
    "plain": plane_distribution(0),
    "donor": plane_distribution(1),
    "transformed": plane_distribution(0, (0.5, -0.7), (0.1, -0.2)),
    "donor, transformed": plane_distribution(1, (-0.5, 0.3), (-0.1, 0.2)),
    "curved": plane_distribution(0, (0.5, -0.7), (0.1, -0.2), curved=0.6),
    "one sparse": plane_distribution(0, sparse=1),
    "two sparse": plane_distribution(0, sparse=2),
    "donor, sparse": plane_distribution(1, sparse=1),
    "two sparse, transformed": plane_distribution(0, (0.5, -0.7), (0.1, -0.2), sparse=2),
    "one sparse, curved": plane_distribution(0, (0.5, -0.7), (0.1, -0.2), sparse=1, curved=-0.4),
    "two sparse, curved": plane_distribution(0, (0.5, -0.7), (0.1, -0.2), sparse=2, curved=0.4),
}
planes = pytest.mark.parametrize("distribution", PLANES.values(), ids=PLANES)


@planes
def test_the_density_integrates_to_1(distribution):
    x, weight = plane()
    assert (distribution.log_prob(x).exp() * weight).sum().item() == pytest.approx(1, abs=1e-6)


@planes
def test_draws_follow_the_density(distribution):
    x, weight = plane()
    mass = distribution.log_prob(x).exp() * weight
    torch.manual_seed(3)
    draws = distribution.rsample((DRAWS,))
    for of in (lambda t: t[:, 0].tanh(), lambda t: t[:, 1].tanh(), lambda t: t.tanh().prod(-1), spiked):
        sample, expected = of(draws), (mass * of(x)).sum()
        assert abs(float(sample.mean() - expected)) < 4.5 * float(sample.std()) / math.sqrt(DRAWS)


def spiked(x):
    """A smooth stand-in for: both elements are nearly 0."""
    return (-x.square().sum(-1) / (2 * 0.1**2)).exp()


@planes
def test_weights_of_another_law_average_to_1(distribution):
    """E_q[p / q] = 1 for a p inside q: draws and density belong together."""
    other = MultivariateNormal(tensor([0.1, -0.1]), 0.02 * torch.eye(2).double())
    torch.manual_seed(4)
    draws = distribution.rsample((DRAWS,))
    ratio = (other.log_prob(draws) - distribution.log_prob(draws)).exp()
    assert abs(float(ratio.mean()) - 1) < 4.5 * float(ratio.std()) / math.sqrt(DRAWS)
    assert float(ratio.std()) / math.sqrt(DRAWS) < 0.1


@pytest.mark.parametrize("donors", [0, 1])
def test_with_one_sparse_element_it_is_the_exact_posterior(donors):
    """A Gaussian likelihood times the prior of spike and slab, summed over both by hand."""
    distribution = plane_distribution(donors, sparse=1)
    sparse, slab = distribution.sparse, tensor([[0.0, 0.0], [0.0, math.exp(0.4)]])
    likelihood, parts = tensor(PRECISION) - slab, []
    for log_weight, sd in [
        (-float(sparse.logit_share), float(sparse.spike_sd)),
        (0.0, float(sparse.log_slab_sd.exp())),
    ]:
        precision = likelihood + torch.diag(tensor([0.0, sd**-2]))
        mean = torch.linalg.solve(precision, tensor(LINEAR))
        mass = (mean @ tensor(LINEAR) - precision.logdet() - 2 * math.log(sd)) / 2 + log_weight
        parts.append((mass, MultivariateNormal(mean, precision_matrix=precision)))
    x, _ = plane(41)
    total = torch.stack([mass for mass, _ in parts]).logsumexp(0)
    expected = torch.stack([mass + component.log_prob(x) for mass, component in parts]).logsumexp(0) - total
    torch.testing.assert_close(distribution.log_prob(x), expected, rtol=1e-9, atol=1e-9)


def test_evidence_is_that_of_the_marginal():
    distribution = plane_distribution(0)
    prior = plane_distribution(0, sparse=1).sparse
    covariance = tensor(PRECISION).inverse()
    mean = covariance @ tensor(LINEAR)
    expected = prior.log_bayes_factor(mean[1:], 1 / covariance[1:, 1])
    torch.testing.assert_close(distribution.log_bayes_factor(prior), expected)


@planes
def test_gradients_of_the_density(distribution):
    x = tensor([[0.2, -0.4], [0.01, 0.03]]).requires_grad_()
    assert torch.autograd.gradcheck(distribution.log_prob, [x])


def test_the_score_of_its_own_parameters_is_left_out():
    scale, value = tensor([1.3]).requires_grad_(), tensor([0.4])
    distributions = [torch.distributions.Normal(0.0, s) for s in (scale, scale.detach())]
    path = PathDerivative(*distributions)
    parts = path.score_parts(value)
    assert parts.score_function == 0
    torch.testing.assert_close(parts.log_prob, path.log_prob(value))
    torch.testing.assert_close(parts.entropy_term, parts.log_prob)
    assert path.log_prob(value).requires_grad
    assert not parts.entropy_term.requires_grad
