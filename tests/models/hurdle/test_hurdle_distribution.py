"""The guide's distribution of a gene: draws follow a density that integrates to 1, and is the posterior where known."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import MultivariateNormal, Normal

from pyro_zilognormal.models.hurdle.arrowhead import Arrowhead, Layout
from pyro_zilognormal.models.hurdle.components import ScaleMixture
from pyro_zilognormal.models.hurdle.sinh_arcsinh import (
    MixturePosterior,
    PathDerivative,
    SinhArcsinhNormal,
    angle,
    arsinh,
    couple,
    sinh_arcsinh_inverse,
    sinh_arcsinh_log_density,
    uncouple,
)

DRAWS = 20_000
PRECISION = [[3.0, 0.8], [0.8, 2.0]]
LINEAR = [1.0, -0.6]
WEIGHTS, SDS = [0.6, 0.1, 0.3], [[0.05, 0.3, 1.0], [0.05, 0.2, 1.2]]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def factor_of(precision):
    """The factor of dense matrices."""
    return Arrowhead.take(Layout(precision.shape[-1]), precision).factor()


def random_normal(width, core, batch=(), seed=0):
    """A distribution without transform, and the precision behind it."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*batch, *shape, dtype=torch.float64, generator=generator)

    square = normal(width, width)
    precision = square @ square.mT + torch.eye(width)
    zero = torch.zeros(*batch, core, dtype=torch.float64)
    factor = factor_of(precision)
    return SinhArcsinhNormal(factor, normal(width), zero, zero, torch.zeros(*batch, core, core).double()), precision


def plane_distribution(skewness=(0.0, 0.0), log_tails=(0.0, 0.0), sparse=0, curved=0.0, core=2):
    """A distribution of two elements, of which the last are the core, and of these the last are sparse."""
    coupling = torch.full((core, core), curved).double()
    prior = scale_mixture(tensor(WEIGHTS).log(), sparse) if sparse else None
    shapes = (tensor(v)[2 - core :] for v in (skewness, log_tails))
    factor = factor_of(tensor(PRECISION))
    return SinhArcsinhNormal(factor, factor.whiten(tensor(LINEAR)), *shapes, coupling, prior)


def scale_mixture(logits, width):
    """A prior of the same weights for each element."""
    sds = tensor(SDS)[:width]
    return ScaleMixture(logits.log_softmax(-1).expand(*logits.shape[:-2], *sds.shape), sds)


def plane(points=501, reach=5.0):
    """A grid of the plane, finer near 0, and the weight of each of its points."""
    line = torch.linspace(-reach, reach, points, dtype=torch.float64)
    x, weight = line.sinh() / 5, line.cosh() / 5 * (2 * reach / (points - 1))
    return torch.cartesian_prod(x, x), torch.outer(weight, weight).flatten()


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize(("width", "core"), [(1, 1), (3, 3), (4, 2), (3, 0)])
def test_untransformed_it_is_a_multivariate_normal(batch, width, core):
    distribution, precision = random_normal(width, core, batch=batch)
    mean = distribution.factor.colour(distribution.white_mean)
    same = MultivariateNormal(mean, precision_matrix=precision)
    torch.manual_seed(1)
    for sample_shape in [(), (5,), (2, 4)]:
        x = distribution.rsample(sample_shape)
        assert x.shape == (*sample_shape, *batch, width)
        torch.testing.assert_close(distribution.log_prob(x), same.log_prob(x))


TRANSFORMED = {"skewness": (0.5, -0.7), "log_tails": (0.1, -0.2)}
PLANES = {
    "plain": plane_distribution(),
    "transformed": plane_distribution(**TRANSFORMED),
    "one transformed": plane_distribution(**TRANSFORMED, core=1),
    "curved": plane_distribution(**TRANSFORMED, curved=0.6),
    "one sparse": plane_distribution(sparse=1),
    "one sparse, core of one": plane_distribution(**TRANSFORMED, sparse=1, core=1),
    "two sparse": plane_distribution(sparse=2),
    "two sparse, transformed": plane_distribution(**TRANSFORMED, sparse=2),
    "one sparse, curved": plane_distribution(**TRANSFORMED, sparse=1, curved=-0.4),
    "two sparse, curved": plane_distribution(**TRANSFORMED, sparse=2, curved=0.4),
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
    for of in (lambda t: t[:, 0].tanh(), lambda t: t[:, 1].tanh(), lambda t: t.tanh().prod(-1), near_0):
        sample, expected = of(draws), (mass * of(x)).sum()
        assert abs(float(sample.mean() - expected)) < 4.5 * float(sample.std()) / math.sqrt(DRAWS)


def near_0(x):
    """A smooth stand-in for: both elements are nearly 0."""
    return (-x.square().sum(-1) / (2 * 0.1**2)).exp()


def test_with_one_sparse_element_it_is_the_exact_posterior():
    """A Gaussian likelihood times the scale mixture, summed over its components by hand."""
    distribution = plane_distribution(sparse=1)
    sds, parts = SDS[0], []
    likelihood = tensor(PRECISION) - torch.diag(tensor([0.0, sds[-1] ** -2]))
    for weight, sd in zip(WEIGHTS, sds, strict=True):
        precision = likelihood + torch.diag(tensor([0.0, sd**-2]))
        mean = torch.linalg.solve(precision, tensor(LINEAR))
        mass = (mean @ tensor(LINEAR) - precision.logdet() - 2 * math.log(sd)) / 2 + math.log(weight)
        parts.append((mass, MultivariateNormal(mean, precision_matrix=precision)))
    x, _ = plane(41)
    total = torch.stack([mass for mass, _ in parts]).logsumexp(0)
    expected = torch.stack([mass + component.log_prob(x) for mass, component in parts]).logsumexp(0) - total
    torch.testing.assert_close(distribution.log_prob(x), expected, rtol=1e-9, atol=1e-9)


def test_each_gene_of_a_batch_is_as_on_its_own():
    """Also with priors of its own, as particles have, and with several draws of each."""
    parts = [plane_distribution(**TRANSFORMED, sparse=2, curved=c) for c in (0.4, -0.3)]
    logits = [tensor([w]).log() for w in (WEIGHTS, WEIGHTS[::-1])]
    for part, log_weights in zip(parts, logits, strict=True):
        part.sparse = scale_mixture(log_weights, 2)
    names = ("white_mean", "skewness", "log_tails", "coupling")
    joined = {n: torch.stack([getattr(p, n) for p in parts]) for n in names}
    both = SinhArcsinhNormal(factor_of(tensor([PRECISION] * 2)), **joined, sparse=scale_mixture(torch.stack(logits), 2))
    x, _ = plane(21)
    for k, part in enumerate(parts):
        torch.testing.assert_close(both.log_prob(x.unsqueeze(1))[:, k], part.log_prob(x))
    torch.manual_seed(5)
    draws = both.rsample((DRAWS,))
    assert draws.shape == (DRAWS, 2, 2)
    for k, part in enumerate(parts):
        alone = part.rsample((DRAWS,)).tanh()
        error = (2 * alone.var(0) / DRAWS).sqrt()
        assert ((draws[:, k].tanh().mean(0) - alone.mean(0)).abs() < 4.5 * error).all()


@planes
def test_gradients_of_the_density(distribution):
    x = tensor([[0.2, -0.4], [0.01, 0.03]]).requires_grad_()
    assert torch.autograd.gradcheck(distribution.log_prob, [x])


@pytest.mark.parametrize("sparse", [0, 1, 2])
def test_gradients_by_the_parameters(sparse):
    start = plane_distribution(**TRANSFORMED, sparse=sparse, curved=0.3)

    def density(precision, white_mean, skewness, log_tails, coupling, logits):
        prior = scale_mixture(logits, sparse) if sparse else None
        own = SinhArcsinhNormal(
            factor_of((precision + precision.mT) / 2), white_mean, skewness, log_tails, coupling, prior
        )
        return own.log_prob(tensor([[0.2, -0.4], [0.01, 0.03]]))

    names = ("white_mean", "skewness", "log_tails", "coupling")
    values = [getattr(start, n).detach().clone().requires_grad_() for n in names]
    values.insert(0, tensor(PRECISION).requires_grad_())
    assert torch.autograd.gradcheck(density, [*values, tensor(WEIGHTS).log().requires_grad_()])


def test_draws_of_a_mixture_move_with_its_parameters():
    """x = mean + y / root, of the component that was drawn; y is the transformed noise, whose slope in the skewness is
    sqrt(1 + y^2)."""
    leaves = [v.requires_grad_() for v in (tensor([5.0]), tensor([4.0]), tensor([0.3]))]
    prior = ScaleMixture(tensor([[1e-300, 1.0]]).log(), tensor([[0.1, 1.0]]))
    distribution = MixturePosterior(prior, *leaves, tensor([0.0]))
    torch.manual_seed(5)
    (value,) = distribution.rsample(())
    slopes = torch.autograd.grad(value, leaves)
    noise = float(value.detach() - 5) * 2
    assert slopes[0].item() == pytest.approx(1)
    assert slopes[1].item() == pytest.approx(-noise / 2 / 8)
    assert slopes[2].item() == pytest.approx(math.sqrt(1 + noise**2) / 2)


def test_the_score_of_own_parameters_is_left_out():
    scale, value = tensor([1.3]).requires_grad_(), tensor([0.4])
    path = PathDerivative(*(Normal(0.0, s) for s in (scale, scale.detach())))
    parts = path.score_parts(value)
    assert parts.score_function == 0
    torch.testing.assert_close(parts.log_prob, path.log_prob(value))
    torch.testing.assert_close(parts.entropy_term, parts.log_prob)
    assert path.log_prob(value).requires_grad
    assert not parts.entropy_term.requires_grad
    assert path.rsample((3,)).requires_grad


@pytest.mark.parametrize("shape", [(0.0, 0.0), (0.7, 0.0), (-1.5, 0.3), (0.2, -0.5), (0.0, 0.8)], ids=str)
def test_sinh_arcsinh_of_normal_noise(shape):
    """Its inverse, and its density by the slope of the transform."""
    shape = [tensor(v) for v in shape]
    noise = torch.tensor(stats.norm.ppf(np.linspace(1e-6, 1 - 1e-6, 81)), requires_grad=True)
    transformed = angle(noise, *shape).sinh()
    (slope,) = torch.autograd.grad(transformed.sum(), noise)
    assert (slope > 0).all()
    x = transformed.detach()
    torch.testing.assert_close(sinh_arcsinh_inverse(x, *shape), noise.detach(), rtol=1e-10, atol=1e-12)
    expected = torch.tensor(stats.norm.logpdf(noise.detach())) - slope.log()
    torch.testing.assert_close(sinh_arcsinh_log_density(x, *shape), expected, rtol=1e-10, atol=1e-10)


def test_arsinh_is_exact_with_its_derivatives():
    x = torch.logspace(-300, 150, 91, dtype=torch.float64)
    x = torch.cat([-x, tensor([0.0]), x]).requires_grad_()
    torch.testing.assert_close(arsinh(x), x.asinh(), rtol=1e-14, atol=1e-15)
    (slope,) = torch.autograd.grad(arsinh(x).sum(), x)
    torch.testing.assert_close(slope, (1 + x.square()).rsqrt().detach(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("core", [0, 1, 2, 4])
def test_coupling(core):
    """Its inverse, and a Jacobian of determinant 1; the last element stays, and the formula for two."""
    generator = torch.Generator().manual_seed(0)
    noise = 2 * torch.randn(5, 3, core, dtype=torch.float64, generator=generator)
    coupling = torch.randn(3, core, core, dtype=torch.float64, generator=generator).triu(1)
    coupled = couple(arsinh(noise), coupling)
    torch.testing.assert_close(uncouple(coupled, coupling), noise, rtol=1e-12, atol=1e-12)
    moved = ~coupled.isclose(noise, rtol=1e-14, atol=1e-14)
    assert moved[..., :-1].all()
    assert not moved[..., -1:].any()
    if core:
        jacobian = torch.autograd.functional.jacobian(lambda w: couple(arsinh(w), coupling[0]), noise[0, 0])
        assert torch.linalg.det(jacobian).item() == pytest.approx(1, rel=1e-12)
    if core == 2:
        torch.testing.assert_close(coupled[..., 0], noise[..., 0] + coupling[:, 0, 1] * noise[..., 1].asinh() ** 2)
