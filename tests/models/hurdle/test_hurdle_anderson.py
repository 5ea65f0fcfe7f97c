"""Anderson acceleration finds fixed points in few steps, whatever the units."""

import torch

from pyro_zilognormal.models.hurdle.anderson import Anderson


def iterate(g, x, unit, steps):
    anderson = Anderson()
    for _ in range(steps):
        x = anderson.next(x, g(x), unit)
    return x


def test_a_linear_map_of_three_speeds_takes_few_steps():
    """As many points as it remembers span all residuals; the plain iteration is far off after as many."""
    speeds, fixed = torch.tensor([0.9, 0.5, 0.1]).double(), torch.tensor([3.0, -2.0, 100.0]).double()

    def g(x):
        return fixed + speeds * (x - fixed)

    start = torch.zeros(3).double()
    found = iterate(g, start, torch.tensor([1.0, 1.0, 50.0]).double(), 5)
    torch.testing.assert_close(found, fixed, rtol=1e-8, atol=0)
    plain = start
    for _ in range(5):
        plain = g(plain)
    assert (plain - fixed).abs().max() > 1


def test_elements_of_infinite_unit_follow_the_others():
    fixed = torch.tensor([1.0, 2.0]).double()

    def g(x):
        return fixed + 0.8 * (x[:1] - 1)

    found = iterate(g, torch.zeros(2).double(), torch.tensor([1.0, torch.inf]).double(), 3)
    torch.testing.assert_close(found, fixed, rtol=1e-8, atol=0)


def test_at_the_fixed_point_it_stays():
    x = torch.ones(2).double()
    assert torch.equal(iterate(lambda _: x, x, x, 4), x)
