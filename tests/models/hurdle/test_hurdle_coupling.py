"""Coupled noise: the inverse, a Jacobian of determinant 1, and what the last element is left as."""

import pytest
import torch

from pyro_zilognormal.models.hurdle.sinh_arcsinh import couple, uncouple


def noise_and_coupling(others, core, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = 2 * torch.randn(5, 3, others + core, dtype=torch.float64, generator=generator)
    return noise, torch.randn(3, core, core, dtype=torch.float64, generator=generator).triu(1)


shapes = pytest.mark.parametrize(("others", "core"), [(0, 1), (0, 2), (3, 2), (1, 4)])


@shapes
def test_uncouple_inverts_couple(others, core):
    noise, coupling = noise_and_coupling(others, core)
    torch.testing.assert_close(uncouple(couple(noise, coupling), coupling), noise, rtol=1e-12, atol=1e-12)


@shapes
def test_only_earlier_elements_of_the_core_move(others, core):
    noise, coupling = noise_and_coupling(others, core)
    moved = (couple(noise, coupling) != noise).flatten(0, 1)
    assert not moved[:, :others].any()
    assert not moved[:, -1].any()
    assert moved[:, others:-1].all()


@shapes
def test_volume_is_kept(others, core):
    noise, coupling = noise_and_coupling(others, core)
    jacobian = torch.autograd.functional.jacobian(lambda w: couple(w, coupling[0]), noise[0, 0])
    assert torch.linalg.det(jacobian).item() == pytest.approx(1, rel=1e-12)


def test_the_formula_for_two_elements():
    noise, coupling = noise_and_coupling(0, 2)
    expected = noise[..., 0] + coupling[:, 0, 1] * noise[..., 1].asinh() ** 2
    torch.testing.assert_close(couple(noise, coupling)[..., 0], expected)
