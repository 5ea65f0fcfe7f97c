"""The mean and skewness that third derivatives give, against quadrature of the posterior of one group of cells."""

import numpy as np
import pytest
import torch

from pyro_zilognormal.models import HurdleData
from pyro_zilognormal.models.hurdle import third_order
from pyro_zilognormal.models.hurdle.arrowhead import Arrowhead, Layout
from pyro_zilognormal.models.hurdle.predictors import GroupLikelihood, Quadratic
from pyro_zilognormal.models.hurdle.sinh_arcsinh import SinhArcsinhNormal

# Numbers of zeros and positive values, and the sum of squared deviations of log x, whose mean is 1.
GROUPS = [(20, 30, 30.0), (60, 12, 2.0), (3, 40, 60.0)]
DRAWS = 200_000


def likelihood_of(zeros, positives, squares):
    value = torch.tensor([zeros, positives, 1.0, squares, 0.0]).double().reshape(1, 1, 5)
    one = torch.ones(1, 1).double()
    return GroupLikelihood(HurdleData(value, one, one, one, torch.zeros(1, 0).long(), torch.zeros(1).double()))


def log_posterior(likelihood, theta):
    """Of (log mean, log odds of a zero, log sigma) of many genes, each with a standard Normal prior about 0."""
    return likelihood.log_density(*theta.unsqueeze(-1).unbind(-2)) - theta.square().sum(-1) / 2


def find_mode(likelihood):
    theta = torch.zeros(1, 3).double()
    for _ in range(50):
        (gradient,) = torch.autograd.grad(log_posterior(likelihood, theta.requires_grad_()).sum(), theta)
        hessian = torch.autograd.functional.hessian(lambda t: log_posterior(likelihood, t).sum(), theta.detach())[
            0, :, 0
        ]
        theta = (theta - torch.linalg.solve(hessian, gradient.mT).mT).detach()
    return theta, Arrowhead.take(Layout(3), -hessian[None]).factor()


def integrate(likelihood, theta, factor):
    """Mean, sd and standardised third cumulant of the white noise of each element, by a grid of 81^3 points."""
    axis = torch.linspace(-7, 7, 81).double()
    white = torch.cartesian_prod(axis, axis, axis)
    at = theta + factor.colour(white.unsqueeze(1)).squeeze(1)
    weight = log_posterior(likelihood, at).softmax(0)
    return moments(white, weight)


def moments(white, weight):
    mean = weight @ white
    sd = (weight @ (white - mean).square()).sqrt()
    return mean, sd, weight @ ((white - mean) / sd) ** 3


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_the_corrected_normal_has_the_mean_and_skewness_of_the_posterior(group):
    likelihood = likelihood_of(*group)
    theta, factor = find_mode(likelihood)
    quadratic = Quadratic(torch.eye(3).double().unsqueeze(1), Layout(3))
    found = third_order.find_correction(likelihood, quadratic, theta, factor, core=3)
    torch.manual_seed(0)
    corrected = SinhArcsinhNormal(factor, found.shift, found.skewness, 0 * found.skewness, found.coupling)
    white = factor.uncolour(corrected.rsample((DRAWS,)))[:, 0]
    exact = integrate(likelihood, theta, factor)
    drawn = moments(white, torch.full((DRAWS,), 1 / DRAWS).double())
    assert exact[0].abs().max() > 0.1  # the mode is not the mean
    assert (drawn[0] - exact[0]).abs().max() < 0.05
    # That of the log mean is of the next order.
    assert (drawn[2] - exact[2])[1:].abs().max() < 0.05


def test_its_constants_are_those_of_quadrature():
    e, weight = np.polynomial.hermite_e.hermegauss(300)
    weight /= weight.sum()
    root, square = np.sqrt(1 + e**2), np.arcsinh(e) ** 2
    found = third_order._MEAN_BY_SKEWNESS, third_order._CUMULANT_BY_SKEWNESS
    np.testing.assert_allclose(found, (weight @ root, 3 * (weight @ (e**2 * root) - weight @ root)), rtol=1e-6)
    found = third_order._MEAN_BY_COUPLING, third_order._CUMULANT_BY_COUPLING
    np.testing.assert_allclose(found, (weight @ square, weight @ (e**2 * square) - weight @ square), rtol=1e-6)


def test_a_normal_likelihood_needs_none():
    """With many values the log mean of what is never zero, at a known sigma, is Normal."""
    likelihood = likelihood_of(0, 1e8, 1e8)
    theta, factor = find_mode(likelihood)
    quadratic = Quadratic(torch.eye(3).double().unsqueeze(1), Layout(3))
    found = third_order.find_correction(likelihood, quadratic, theta, factor, core=3)
    assert found.shift[0, [0, 2]].abs().max() < 1e-3


def test_blocks_of_genes_are_as_all(monkeypatch):
    value = torch.tensor([[20.0, 30.0, 1.0, 30.0, 0.0], [60.0, 12.0, 0.5, 2.0, 0.0], [3.0, 40.0, 2.0, 60.0, 0.0]])
    one = torch.ones(1, 1).double()
    data = HurdleData(value.double()[None], one, one, one, torch.zeros(1, 0).long(), torch.zeros(1).double())
    likelihood, quadratic = GroupLikelihood(data), Quadratic(torch.eye(3).double().unsqueeze(1), Layout(3))
    theta, factor = torch.rand(3, 3).double(), Arrowhead.take(Layout(3), torch.eye(3).double().expand(3, 3, 3)).factor()

    def found():
        correction = third_order.find_correction(likelihood, quadratic, theta, factor, core=2)
        information = third_order.observed_information(likelihood, quadratic.predict(theta))
        return correction.shift, correction.skewness, correction.coupling, information

    whole = found()
    monkeypatch.setattr(third_order, "_NUMBERS_A_BLOCK", 3)
    for blocks, expected in zip(found(), whole, strict=True):
        torch.testing.assert_close(blocks, expected, rtol=1e-12, atol=1e-12)
