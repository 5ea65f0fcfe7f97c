"""The simulator draws from the stated distribution, and returns the parameters it drew with."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyro_zilognormal.datasets import simulate_ziln

CASES = [
    {},
    {"zi_logits": -3.0},
    {"mu": 0.0, "scale": 1.0, "zi_logits": 0.0},
    {"mu": torch.tensor([-4.0, 0.0, 2.0, 9.0]), "scale": torch.tensor([0.1, 0.5, 1.0, 3.0]), "zi_logits": 2.0},
]
N = 20_000


def standard_errors(observed: Tensor, expected: Tensor, sd: Tensor, n: Tensor | int) -> float:
    return ((observed - expected).abs() / (sd / torch.as_tensor(n).double().sqrt())).max().item()


@pytest.mark.parametrize("given", CASES)
def test_moments_are_those_of_the_distribution(given: dict[str, Tensor | float]) -> None:
    data = simulate_ziln(N, 4, seed=3, dtype=torch.float64, **given)
    pi, positive = data.zi_logits.sigmoid(), data.values > 0
    assert standard_errors((~positive).double().mean(0), pi, (pi * (1 - pi)).sqrt(), N) < 4.5
    n = positive.sum(0)
    z = ((data.values.masked_fill(~positive, 1.0).log() - data.mu) / data.scale).masked_fill(~positive, 0.0)
    one = torch.ones(4, dtype=torch.float64)
    for power, expected, sd in [(1, 0.0, 1.0), (2, 1.0, 2**0.5), (3, 0.0, 15**0.5), (4, 3.0, 96**0.5)]:
        assert standard_errors((z**power).sum(0) / n, expected * one, sd * one, n) < 4.5


def test_zeros_and_noise_are_independent_between_cells_and_genes() -> None:
    data = simulate_ziln(N, 2, seed=4, mu=0.0, scale=1.0, zi_logits=0.0, dtype=torch.float64)
    zero = data.values.eq(0).double() - 0.5
    assert abs((zero[:, 0] * zero[:, 1]).mean().item()) < 4.5 * 0.25 / math.sqrt(N)
    assert abs((zero[1:] * zero[:-1]).mean().item()) < 4.5 * 0.25 / math.sqrt(2 * N)
    both = (data.values > 0).all(1)
    logs = data.values[both].log()
    assert abs((logs[:, 0] * logs[:, 1]).mean().item()) < 4.5 / math.sqrt(both.sum().item())


def test_drawn_parameters_follow_the_stated_distributions() -> None:
    data = simulate_ziln(1, N, seed=5, dtype=torch.float64)
    for drawn, mean, sd in [(data.mu, 1.5, 0.7), (data.scale.log(), math.log(0.6), 0.3), (data.zi_logits, 0.5, 2)]:
        assert drawn.shape == (1, N)
        assert abs(drawn.mean().item() - mean) < 4.5 * sd / math.sqrt(N)
        assert abs(drawn.std().item() - sd) < 4.5 * sd / math.sqrt(2 * N)


def test_same_seed_same_data_and_another_seed_other_data() -> None:
    first, again, other = (simulate_ziln(50, 6, seed=seed) for seed in (1, 1, 2))
    for name in ("values", "mu", "scale", "zi_logits"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


def test_noise_does_not_depend_on_which_parameters_are_given() -> None:
    drawn = simulate_ziln(50, 6, seed=1, dtype=torch.float64)
    given = simulate_ziln(50, 6, seed=1, mu=drawn.mu, scale=drawn.scale, dtype=torch.float64)
    assert torch.equal(drawn.values, given.values)
    assert torch.equal(drawn.zi_logits, given.zi_logits)


def test_groups_by_parameters_of_each_cell() -> None:
    group = torch.arange(N) % 2
    data = simulate_ziln(N, 1, seed=6, mu=torch.tensor([[0.0], [3.0]])[group], scale=0.5, zi_logits=-math.inf)
    assert data.mu.shape == (N, 1)
    difference = data.values[group == 1].log().mean() - data.values[group == 0].log().mean()
    assert abs(difference.item() - 3.0) < 4.5 * 0.5 * math.sqrt(4 / N)


@pytest.mark.parametrize(("zi_logits", "zeros"), [(-math.inf, 0), (math.inf, 500)])
def test_certain_zeros_and_no_zeros(zi_logits: float, zeros: int) -> None:
    assert simulate_ziln(100, 5, zi_logits=zi_logits).values.eq(0).sum() == zeros


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mu", [-1e4, 1e4])
def test_positive_draws_stay_positive_and_finite(dtype: torch.dtype, mu: float) -> None:
    data = simulate_ziln(20, 5, mu=mu, zi_logits=-math.inf, dtype=dtype)
    assert data.values.dtype == data.mu.dtype == data.scale.dtype == data.zi_logits.dtype == dtype
    edge = torch.finfo(dtype).tiny if mu < 0 else torch.finfo(dtype).max
    assert (data.values == edge).all()


def test_default_dtype_and_global_random_state_are_respected() -> None:
    before = torch.get_rng_state()
    assert simulate_ziln(3, 2).values.dtype == torch.get_default_dtype() == torch.float32
    assert torch.equal(before, torch.get_rng_state())
    torch.set_default_dtype(torch.float64)
    try:
        wide = simulate_ziln(3, 2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert wide.values.dtype == torch.float64
    assert torch.equal(wide.values.float(), simulate_ziln(3, 2).values)


def test_given_parameters_keep_no_graph() -> None:
    data = simulate_ziln(3, 2, mu=torch.zeros(2, requires_grad=True))
    assert not data.values.requires_grad
    assert not data.mu.requires_grad


BAD = [
    ({"mu": math.nan}, "parameter loc .* to satisfy the constraint"),
    ({"scale": torch.tensor([1.0, -1.0, 2.0])}, "parameter scale .* -1.0 at index"),
    ({"zi_logits": math.nan}, "parameter zi_logits"),
    ({"mu": torch.zeros(4)}, r"shapes do not broadcast: mu \(4,\)"),
    ({"zi_logits": torch.zeros(2, 5, 3)}, r"cannot expand batch_shape from \(2, 5, 3\) to \(5, 3\)"),
]


@pytest.mark.parametrize(("given", "message"), BAD)
def test_bad_input(given: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate_ziln(**{"n_cells": 5, "n_genes": 3, **given})
