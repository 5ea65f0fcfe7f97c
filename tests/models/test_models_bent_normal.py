"""The guide's law of a gene: a Normal of arrowhead precision, bent, and with sparse elements."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from pyro_zilognormal.models._arrow import Arrow
from pyro_zilognormal.models._conditional import BentNormal, PathOnly
from pyro_zilognormal.models._spike import SpikeAndSlab

DRAWS = 20_000
PRECISION = [[3.0, 0.8], [0.8, 2.0]]
LINEAR = [1.0, -0.6]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def random_law(donors, core, bent=0.0, batch=(), seed=0):
    """A law, and the dense precision behind it."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*batch, *shape, dtype=torch.float64, generator=generator)

    tips, border, square = 1 + normal(donors).abs(), normal(core, donors), normal(core, core)
    last = square @ square.mT + torch.eye(core) + border / tips.unsqueeze(-2) @ border.mT
    shape = [bent * normal(donors + core) for _ in range(2)]
    law = BentNormal(Arrow(tips, border, last).cholesky(), normal(donors + core), *shape, bent * normal(core, core))
    dense = torch.cat([torch.cat([torch.diag_embed(tips), border.mT], -1), torch.cat([border, last], -1)], -2)
    return law, dense


def plane_law(donors, skewness=(0.0, 0.0), log_tails=(0.0, 0.0), sparse=0, curved=0.0):
    """A law of two elements."""
    p = tensor(PRECISION)
    arrow = Arrow(p[0, :1], p[1:, :1], p[1:, 1:]) if donors else Arrow(p[0, :0], p[:, :0], p)
    coupling = torch.full((2 - donors, 2 - donors), curved).double()
    law = BentNormal(arrow.cholesky(), tensor(LINEAR), tensor(skewness), tensor(log_tails), coupling)
    prior = SpikeAndSlab(torch.full((sparse,), 0.3).double(), tensor([-0.2, 0.1])[:sparse], 0.05)
    return law.given(prior) if sparse else law


def plane(points=801, reach=5.0):
    """A grid of the plane, finer near 0, and the weight of each of its points."""
    line = torch.linspace(-reach, reach, points, dtype=torch.float64)
    x, weight = line.sinh() / 5, line.cosh() / 5 * (2 * reach / (points - 1))
    return torch.cartesian_prod(x, x), torch.outer(weight, weight).flatten()


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize(("donors", "core"), [(0, 1), (0, 3), (1, 1), (4, 2)])
def test_unbent_it_is_a_multivariate_normal(batch, donors, core):
    law, dense = random_law(donors, core, batch=batch)
    mean = torch.linalg.solve(dense, law.factor.times(law.white_mean).unsqueeze(-1)).squeeze(-1)
    same = MultivariateNormal(mean, precision_matrix=dense)
    torch.manual_seed(1)
    x = law.rsample((5,))
    assert x.shape == (5, *batch, donors + core)
    torch.testing.assert_close(law.log_prob(x), same.log_prob(x))


def test_its_mean_and_precision():
    law, dense = random_law(2, 2)
    linear = law.factor.times(law.white_mean)
    torch.manual_seed(2)
    x = law.rsample((DRAWS,))
    covariance = dense.inverse()
    error = (covariance.diagonal() / DRAWS).sqrt()
    assert ((x.mean(0) - covariance @ linear).abs() < 4 * error).all()
    variances = torch.outer(covariance.diagonal(), covariance.diagonal())
    assert ((x.T.cov() - covariance).abs() < 4 * ((variances + covariance.square()) / DRAWS).sqrt()).all()


PLANES = {
    "plain": plane_law(0),
    "donor": plane_law(1),
    "bent": plane_law(0, (0.5, -0.7), (0.1, -0.2)),
    "donor, bent": plane_law(1, (-0.5, 0.3), (-0.1, 0.2)),
    "curved": plane_law(0, (0.5, -0.7), (0.1, -0.2), curved=0.6),
    "one sparse": plane_law(0, sparse=1),
    "two sparse": plane_law(0, sparse=2),
    "donor, sparse": plane_law(1, sparse=1),
    "two sparse, bent": plane_law(0, (0.5, -0.7), (0.1, -0.2), sparse=2),
    "one sparse, curved": plane_law(0, (0.5, -0.7), (0.1, -0.2), sparse=1, curved=-0.4),
    "two sparse, curved": plane_law(0, (0.5, -0.7), (0.1, -0.2), sparse=2, curved=0.4),
}
planes = pytest.mark.parametrize("law", PLANES.values(), ids=PLANES)


@planes
def test_the_density_integrates_to_1(law):
    x, weight = plane()
    assert (law.log_prob(x).exp() * weight).sum().item() == pytest.approx(1, abs=1e-6)


@planes
def test_draws_follow_the_density(law):
    x, weight = plane()
    mass = law.log_prob(x).exp() * weight
    torch.manual_seed(3)
    draws = law.rsample((DRAWS,))
    for of in (lambda t: t[:, 0].tanh(), lambda t: t[:, 1].tanh(), lambda t: t.tanh().prod(-1), spiked):
        sample, expected = of(draws), (mass * of(x)).sum()
        assert abs(float(sample.mean() - expected)) < 4.5 * float(sample.std()) / math.sqrt(DRAWS)


def spiked(x):
    """A smooth stand-in for: both elements are nearly 0."""
    return (-x.square().sum(-1) / (2 * 0.1**2)).exp()


@planes
def test_weights_of_another_law_average_to_1(law):
    """E_q[p / q] = 1 for a p inside q: draws and density belong together."""
    other = MultivariateNormal(tensor([0.1, -0.1]), 0.02 * torch.eye(2).double())
    torch.manual_seed(4)
    draws = law.rsample((DRAWS,))
    ratio = (other.log_prob(draws) - law.log_prob(draws)).exp()
    assert abs(float(ratio.mean()) - 1) < 4.5 * float(ratio.std()) / math.sqrt(DRAWS)
    assert float(ratio.std()) / math.sqrt(DRAWS) < 0.1


@pytest.mark.parametrize("donors", [0, 1])
def test_with_one_sparse_element_it_is_the_exact_posterior(donors):
    """A Gaussian likelihood times the prior of spike and slab, summed over both by hand."""
    law = plane_law(donors, sparse=1)
    sparse, slab = law.sparse, tensor([[0.0, 0.0], [0.0, math.exp(0.4)]])
    likelihood, parts = tensor(PRECISION) - slab, []
    for log_weight, sd in [(-float(sparse.logit_share), sparse.spike_sd), (0.0, float(sparse.log_slab_sd.exp()))]:
        precision = likelihood + torch.diag(tensor([0.0, sd**-2]))
        mean = torch.linalg.solve(precision, tensor(LINEAR))
        mass = (mean @ tensor(LINEAR) - precision.logdet() - 2 * math.log(sd)) / 2 + log_weight
        parts.append((mass, MultivariateNormal(mean, precision_matrix=precision)))
    x, _ = plane(41)
    total = torch.stack([mass for mass, _ in parts]).logsumexp(0)
    expected = torch.stack([mass + component.log_prob(x) for mass, component in parts]).logsumexp(0) - total
    torch.testing.assert_close(law.log_prob(x), expected, rtol=1e-9, atol=1e-9)


def test_evidence_is_that_of_the_marginal():
    law = plane_law(0)
    prior = plane_law(0, sparse=1).sparse
    covariance = tensor(PRECISION).inverse()
    mean = covariance @ tensor(LINEAR)
    expected = prior.evidence(mean[1:], 1 / covariance[1:, 1])
    torch.testing.assert_close(law.evidence(prior), expected)


@planes
def test_gradients_of_the_density(law):
    x = tensor([[0.2, -0.4], [0.01, 0.03]]).requires_grad_()
    assert torch.autograd.gradcheck(law.log_prob, [x])


def test_the_score_of_its_own_parameters_is_left_out():
    scale, value = tensor([1.3]).requires_grad_(), tensor([0.4])
    laws = [torch.distributions.Normal(0.0, s) for s in (scale, scale.detach())]
    path = PathOnly(*laws)
    parts = path.score_parts(value)
    assert parts.score_function == 0
    torch.testing.assert_close(parts.log_prob, path.log_prob(value))
    torch.testing.assert_close(parts.entropy_term, parts.log_prob)
    assert path.log_prob(value).requires_grad
    assert not parts.entropy_term.requires_grad
