"""The fast log density and its derivatives against the plain formula and 60 digits."""

from __future__ import annotations

import math

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from pyro_zilognormal import ZeroInflatedLogNormal as Law
from pyro_zilognormal.density import choice as _density
from pyro_zilognormal.numerics.zero_part import Gate, LogitGate
from tests.distribution.density_cases import SHAPES, Shapes, arguments, assert_close, both, gates, shapes_of_all
from tests.exactness import TOLERANCE, examine
from tests.points import extreme_points, random_points

pytestmark = pytest.mark.usefixtures("used_for_few_entries_too")


@pytest.mark.usefixtures("block_size")
@shapes_of_all
@gates
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients(
    shapes: Shapes, kind: type[Gate], weighted: bool, dtype: torch.dtype, used: list[int]
) -> None:
    actual, expected = both(kind, arguments(shapes, kind, dtype), weighted)
    assert used
    assert_close(actual, expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert a.dtype == e.dtype


ODD = torch.tensor([0.0, -0.0, 5e-324, 1e-300, 1.0, 1e300, math.inf, -1.0, -math.inf, math.nan], dtype=torch.float64)


@pytest.mark.usefixtures("block_size")
@pytest.mark.parametrize("gate", [-math.inf, -800.0, 0.5, 800.0, math.inf])
@pytest.mark.parametrize("shape", [(40, 10), (10,)], ids=["full gate", "gate a column"])
def test_odd_values_and_gates(gate: float, shape: tuple[int, ...], used: list[int]) -> None:
    args = [ODD.expand(40, 10), torch.full((10,), 0.3).double(), torch.tensor(0.7).double()]
    actual, expected = both(LogitGate, [*args, torch.full(shape, gate).double()], True)
    assert used
    assert_close(actual, expected)
    odd = (ODD < 0) | ODD.isnan() | ODD.isinf()
    assert not actual[1][:, odd].any()
    assert not any(g.isnan().any() for g in actual[1:])


@pytest.mark.usefixtures("block_size")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("gate", ["logits", "logarithms"])
def test_against_60_digits(gate: str, dtype: torch.dtype, used: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast function itself, value and derivatives, on whole and partial blocks and both kinds of gate."""
    monkeypatch.setattr(_density, "MUCH", 8 if gate == "logits" else 0)
    for points in (random_points("log_prob", 150, dtype, seed=11), extreme_points("log_prob", dtype, 150, seed=12)):
        exam = examine("log_prob", points, dtype)
        assert exam.worst() <= TOLERANCE, exam.describe(TOLERANCE)
    assert used == 2 * [4 if gate == "logits" else 5]


def test_where_zeros_have_an_infinite_z_only_positive_values_feel_it() -> None:
    """(0 - mu) / scale overflows at the zeros, which it must not reach."""
    mu, scale, logits = (
        torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in ([1e300] * 2, [1e-300] * 2, [0.5] * 2)
    )
    result = Law(mu, scale, logits).log_prob(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert result[0] == Law(0.0, 1.0, logits[0]).log_prob(torch.tensor(0.0).double())
    assert result[1] == -math.inf
    for gradient in torch.autograd.grad(result[0], (mu, scale)):
        assert gradient[0] == 0


def test_few_entries_are_left_to_the_formula(used: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_density, "FEW", 1500)
    args = arguments(SHAPES["full"], LogitGate)
    assert_close([Law(*args[1:]).log_prob(args[0])[:49]], [Law(*(a[:49] for a in args[1:])).log_prob(args[0][:49])])
    assert used == [4]


def test_arguments_that_are_views(used: list[int]) -> None:
    for transform in (lambda a: a.t(), lambda a: a[::2, 1:], lambda a: a[:, :1].expand(a.shape)):
        args = [transform(a) for a in arguments(SHAPES["full"], LogitGate)]
        leaves = [a.detach().clone(memory_format=torch.preserve_format).requires_grad_() for a in args]
        total = Law(*leaves[1:]).log_prob(leaves[0])
        gradients = torch.autograd.grad(total, leaves, torch.ones(()).double().expand(total.shape))
        assert_close([total.detach(), *gradients], both(LogitGate, args, False)[1])
    assert used


@gates
@pytest.mark.parametrize("wanted", range(4))
def test_only_the_gradients_that_are_wanted(wanted: int, kind: type[Gate]) -> None:
    for shapes in (SHAPES["full"], SHAPES["per gene"]):
        args = arguments(shapes, kind)
        expected = both(kind, args, False)[1][1 + wanted]
        args[wanted].requires_grad_()
        total = _density.log_density(*args[:3], kind(args[3])).sum()
        assert_close(list(torch.autograd.grad(total, args[wanted])), [expected])


def test_few_tensors_are_as_large_as_the_data() -> None:
    """Forward and backward allocate the log density, a gradient for each argument, and less than one of these."""
    args = [a.requires_grad_() for a in arguments(Shapes(*[(2000, 1000)] * 4), LogitGate)]
    args[0].requires_grad_(False)
    bytes_of_one = args[0].numel() * args[0].element_size()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = Law(*args[1:], validate_args=True).log_prob(args[0])
        gradients = torch.autograd.grad(result, args[1:], torch.ones((), dtype=torch.float64).expand(result.shape))
    peak = level = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    assert len(gradients) == 3
    assert 4 * bytes_of_one <= peak < 5 * bytes_of_one
