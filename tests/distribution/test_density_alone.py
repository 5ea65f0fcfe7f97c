"""The log density where no derivative is wanted, and where many rows share a law."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_zilognormal import ZeroInflatedLogNormal as Law
from pyro_zilognormal.density import blockwise as _kernel
from pyro_zilognormal.density import choice as _density
from pyro_zilognormal.numerics.zero_part import Gate, LogitGate
from tests.distribution.density_cases import SHAPES, Shapes, arguments, assert_close, formula, gates, shapes_of_all
from tests.exactness import TOLERANCE, compute, units
from tests.oracle import evaluate
from tests.points import extreme_points, random_points

pytestmark = pytest.mark.usefixtures("used_for_few_entries_too")


def assert_exact(found: Tensor, points: NDArray[np.float64]) -> None:
    """To 60 digits, within what rounding of the arguments does."""
    for actual, point in zip(found.tolist(), points.tolist(), strict=True):
        exact = evaluate("log_prob", tuple(point))
        assert units(actual, exact.value, exact.conditioning(), found.dtype, TOLERANCE) <= TOLERANCE, point


@pytest.mark.usefixtures("block_size")
@shapes_of_all
@gates
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_alone(shapes: Shapes, kind: type[Gate], dtype: torch.dtype, used: list[int]) -> None:
    args = arguments(shapes, kind, dtype)
    actual, expected = _density.log_density(*args[:3], kind(args[3])), formula(kind, *args)
    assert used
    assert_close([actual], [expected])
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype


@pytest.mark.usefixtures("block_size")
@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, -1.0, 1e300, 0.0, -0.0, 1e-300])
@pytest.mark.parametrize("which", [0, 1, 2, 3], ids=["value", "mu", "scale", "gate"])
@gates
def test_one_odd_number_among_values_alone(which: int, number: float, kind: type[Gate], used: list[int]) -> None:
    args = arguments(SHAPES["full"], kind)
    for at in ((args[0] > 0).nonzero()[0], (args[0] == 0).nonzero()[0]):
        args[which][tuple(at)] = number
    assert_close([_density.log_density(*args[:3], kind(args[3]))], [formula(kind, *args)])
    assert used


@pytest.mark.usefixtures("block_size")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("gate", ["logits", "logarithms"])
def test_values_alone_against_60_digits(
    gate: str, dtype: torch.dtype, used: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_density, "MUCH", 8 if gate == "logits" else 0)
    for points in (random_points("log_prob", 150, dtype, seed=11), extreme_points("log_prob", dtype, 150, seed=12)):
        found = compute("log_prob", [torch.tensor(c, dtype=dtype) for c in points.T])
        assert_exact(found, points)
    assert used == 2 * [4 if gate == "logits" else 5]


@pytest.mark.usefixtures("block_size")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("differentiated", [False, True])
def test_what_many_rows_share_against_60_digits(differentiated: bool, dtype: torch.dtype, used: list[int]) -> None:
    """Scale and gate of a column serve for many rows, so that their part is computed once."""
    for points in (random_points("log_prob", 150, dtype, seed=11), extreme_points("log_prob", dtype, 150, seed=12)):
        *law, value = (torch.tensor(c, dtype=dtype) for c in points.T)
        found = Law(*(p.requires_grad_(differentiated) for p in law)).log_prob(value.expand(20, -1))
        assert torch.equal(found, found[:1].expand(20, -1))
        assert_exact(found[0], points)
    assert used == [5, 5]


@pytest.mark.usefixtures("block_size")
@pytest.mark.parametrize("differentiated", [False, True])
def test_infinite_squares_and_gates_that_many_rows_share(differentiated: bool, used: list[int]) -> None:
    value = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(20)[:, None].expand(40, 3)
    mu = torch.full((3,), 1e300, dtype=torch.float64, requires_grad=differentiated)
    for gate in (0.5, -math.inf, math.inf):
        logits = torch.tensor([0.5, gate, -2.0], dtype=torch.float64)
        found = Law(mu, torch.tensor(1e-300, dtype=torch.float64), logits, validate_args=False).log_prob(value)
        assert torch.equal(found[::2], torch.nn.functional.logsigmoid(logits).expand(20, 3))
        assert (found[1::2] == -math.inf).all()
    assert used == [5, 5, 5]


def test_rows_are_counted_for_the_gradient_of_a_gate_that_they_share() -> None:
    value = torch.cat([torch.zeros(300, 4), torch.ones(500, 4)]).double()
    log_zero, log_positive = (torch.full((4,), math.log(0.5)).double().requires_grad_() for _ in range(2))
    law = [torch.zeros(4).double(), torch.ones(4).double()]
    for wanted in ([log_zero, log_positive], [log_zero], [log_positive]):
        needed = [any(a is w for w in wanted) for a in (log_zero, log_positive)]
        with torch.no_grad():
            _, slopes = _kernel.evaluate([value, *law, log_zero, log_positive], [False, False, False, *needed])
        counts = [None if s is None else s.tolist() for s in slopes[3:]]
        assert counts == [4 * [n] if need else None for n, need in zip((300.0, 500.0), needed, strict=True)]


def test_without_gradients(used: list[int]) -> None:
    args = arguments(SHAPES["full"], LogitGate)
    expected = Law(*args[1:]).log_prob(args[0])
    args[1].requires_grad_()
    with torch.no_grad():
        assert torch.equal(Law(*args[1:]).log_prob(args[0]), expected)
    with torch.inference_mode():
        inside = Law(*(a.clone() for a in args[1:])).log_prob(args[0])
    assert torch.equal(inside, expected)
    assert len(used) == 3
    mixed = Law(torch.zeros(3), 1.0, 0.0).log_prob(torch.ones(3, dtype=torch.float64))
    assert mixed.dtype == torch.float64
    assert len(used) == 3
