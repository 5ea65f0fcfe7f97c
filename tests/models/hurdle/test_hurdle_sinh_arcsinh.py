"""The sinh-arcsinh transform of Normal noise and its triangular coupling: inverses, densities and Jacobians."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from pyro_zilognormal.models.hurdle.sinh_arcsinh import (
    couple,
    sinh_arcsinh,
    sinh_arcsinh_inverse,
    sinh_arcsinh_log_density,
    uncouple,
)

SHAPES = [(0.0, 0.0), (0.7, 0.0), (-1.5, 0.3), (0.2, -0.5), (0.0, 0.8)]
shapes = pytest.mark.parametrize(("skewness", "log_tails"), SHAPES, ids=str)


def tensors(*values):
    return [torch.as_tensor(v, dtype=torch.float64) for v in values]


@shapes
def test_the_inverse(skewness, log_tails):
    shape = tensors(skewness, log_tails)
    noise = torch.linspace(-6, 6, 121, dtype=torch.float64)
    torch.testing.assert_close(sinh_arcsinh_inverse(sinh_arcsinh(noise, *shape), *shape), noise, rtol=1e-10, atol=1e-12)
    assert (sinh_arcsinh(noise, *shape).diff() > 0).all()


@shapes
def test_the_density_integrates_to_1(skewness, log_tails):
    shape = tensors(skewness, log_tails)
    # On the scale of arsinh, where even heavy tails are short.
    grid = torch.linspace(-25, 25, 20001, dtype=torch.float64)
    density = sinh_arcsinh_log_density(grid.sinh(), *shape).exp() * grid.cosh()
    assert integrate.simpson(density.numpy(), x=grid.numpy()) == pytest.approx(1, abs=1e-10)


@shapes
def test_the_density_is_that_of_transformed_quantiles(skewness, log_tails):
    shape = tensors(skewness, log_tails)
    levels = np.linspace(0.001, 0.999, 41)
    noise = torch.tensor(stats.norm.ppf(levels), requires_grad=True)
    transformed = sinh_arcsinh(noise, *shape)
    (slope,) = torch.autograd.grad(transformed.sum(), noise)
    expected = torch.tensor(stats.norm.logpdf(noise.detach())) - slope.log()
    torch.testing.assert_close(sinh_arcsinh_log_density(transformed.detach(), *shape), expected, rtol=1e-10, atol=1e-10)


def test_untransformed_it_is_normal():
    x, zero = torch.linspace(-30, 30, 61, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(sinh_arcsinh_log_density(x, zero, zero), torch.tensor(stats.norm.logpdf(x)))
    torch.testing.assert_close(sinh_arcsinh(x, zero, zero), x)


def test_skewness_and_tails_have_the_direction_of_their_names():
    noise = torch.linspace(-3, 3, 601, dtype=torch.float64)
    half, zero = tensors(0.5, 0.0)
    right = sinh_arcsinh(noise, half, zero)
    assert right[-1] - right[300] > right[300] - right[0]
    assert sinh_arcsinh(noise, zero, -half)[-1] > 3 > sinh_arcsinh(noise, zero, half)[-1]


@shapes
def test_gradients(skewness, log_tails):
    inputs = [t.requires_grad_() for t in tensors([-3.0, -0.2, 0.0, 1.4], skewness, log_tails)]
    for of in (sinh_arcsinh, sinh_arcsinh_inverse, sinh_arcsinh_log_density):
        assert torch.autograd.gradcheck(of, inputs)


def noise_and_coupling(core, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = 2 * torch.randn(5, 3, core, dtype=torch.float64, generator=generator)
    return noise, torch.randn(3, core, core, dtype=torch.float64, generator=generator).triu(1)


cores = pytest.mark.parametrize("core", [0, 1, 2, 4])


@cores
def test_uncouple_inverts_couple(core):
    noise, coupling = noise_and_coupling(core)
    torch.testing.assert_close(uncouple(couple(noise, coupling), coupling), noise, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("core", [1, 2, 4])
def test_coupling_moves_all_but_the_last_element_and_keeps_volume(core):
    noise, coupling = noise_and_coupling(core)
    moved = couple(noise, coupling) != noise
    assert moved[..., :-1].all()
    assert not moved[..., -1:].any()
    jacobian = torch.autograd.functional.jacobian(lambda w: couple(w, coupling[0]), noise[0, 0])
    assert torch.linalg.det(jacobian).item() == pytest.approx(1, rel=1e-12)


def test_the_coupling_of_two_elements():
    noise, coupling = noise_and_coupling(2)
    expected = noise[..., 0] + coupling[:, 0, 1] * noise[..., 1].asinh() ** 2
    torch.testing.assert_close(couple(noise, coupling)[..., 0], expected)
