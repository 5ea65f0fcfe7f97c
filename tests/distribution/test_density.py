"""The blockwise log density and its derivatives against the plain formula and 60 digits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from pyro_zilognormal import ZeroInflatedLogNormal as ZILN
from pyro_zilognormal import density
from pyro_zilognormal.density import blockwise
from pyro_zilognormal.numerics.zero_part import ZeroPart
from tests.distribution.density_cases import (
    SHAPES,
    Shapes,
    all_shapes,
    arguments,
    assert_close,
    both,
    exact_sums,
    formula,
    log_density,
    zero_parts,
)
from tests.exactness import TOLERANCE, examine, units
from tests.oracle import evaluate
from tests.points import extreme_points, random_points

pytestmark = pytest.mark.usefixtures("kernel_for_few_entries_too")
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


@pytest.mark.usefixtures("block_size")
@all_shapes
@zero_parts
@pytest.mark.parametrize("weighted", [False, True])
@DTYPES
def test_values_and_gradients(
    shapes: Shapes, kind: type[ZeroPart], weighted: bool, dtype: torch.dtype, kernel_calls: list[int]
) -> None:
    args = arguments(shapes, kind, dtype)
    actual, expected = both(kind, args, weighted)
    alone = log_density(kind, *args)
    assert len(kernel_calls) == 2
    assert torch.equal(alone, actual[0])
    eps = torch.finfo(dtype).eps
    for a, e, (exact, magnitude) in zip(actual, expected, exact_sums(shapes, kind, dtype, weighted), strict=True):
        assert a.shape == e.shape
        assert a.dtype == e.dtype
        assert ((a - e).abs() <= 8 * eps * (1 + magnitude)).all()
        assert ((a - exact).abs() <= 200 * eps * (1 + exact.abs())).all()


ODD = torch.tensor([0.0, -0.0, 5e-324, 1e-300, 1.0, 1e300, math.inf, -1.0, -math.inf, math.nan], dtype=torch.float64)


@pytest.mark.usefixtures("block_size")
@pytest.mark.parametrize("logits", [-math.inf, -800.0, 0.5, 800.0, math.inf])
@pytest.mark.parametrize("shape", [(40, 10), (10,)], ids=["full zero part", "zero part per gene"])
def test_odd_values_and_logits(logits: float, shape: tuple[int, ...], kernel_calls: list[int]) -> None:
    args = [ODD.expand(40, 10), torch.full((10,), 0.3).double(), torch.tensor(0.7).double()]
    actual, expected = both(ZeroPart, [*args, torch.full(shape, logits).double()], True)
    assert kernel_calls
    assert_close(actual, expected)
    odd = (ODD < 0) | ODD.isnan() | ODD.isinf()
    assert not actual[1][:, odd].any()
    assert not any(g.isnan().any() for g in actual[1:])


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, -1.0, 1e300, 0.0, -0.0, 1e-300])
@pytest.mark.parametrize("which", [0, 1, 2, 3], ids=["value", "mu", "scale", "zero part"])
@zero_parts
def test_one_odd_number(which: int, number: float, kind: type[ZeroPart], kernel_calls: list[int]) -> None:
    args = arguments(SHAPES["full"], kind)
    for at in ((args[0] > 0).nonzero()[0], (args[0] == 0).nonzero()[0]):
        args[which][tuple(at)] = number
    assert_close([log_density(kind, *args)], [formula(kind, *args)])
    assert kernel_calls


@pytest.mark.usefixtures("block_size")
@DTYPES
@pytest.mark.parametrize("zero", ["logits", "logarithms"])
def test_against_60_digits(
    zero: str, dtype: torch.dtype, kernel_calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and derivatives, on whole and partial blocks and both kinds of zero part."""
    monkeypatch.setattr(density, "MUCH", 8 if zero == "logits" else 0)
    for points in (random_points("log_prob", 150, dtype, seed=11), extreme_points("log_prob", dtype, 150, seed=12)):
        exam = examine("log_prob", points, dtype)
        assert exam.worst() <= TOLERANCE, exam.describe(TOLERANCE)
    assert kernel_calls == 2 * [4 if zero == "logits" else 5]


@pytest.mark.usefixtures("block_size")
@DTYPES
def test_parameters_that_many_rows_share_against_60_digits(dtype: torch.dtype, kernel_calls: list[int]) -> None:
    for points in (random_points("log_prob", 150, dtype, seed=11), extreme_points("log_prob", dtype, 150, seed=12)):
        *parameters, value = (torch.tensor(c, dtype=dtype) for c in points.T)
        found = ZILN(*parameters).log_prob(value.expand(20, -1))
        assert torch.equal(found, found[:1].expand(20, -1))
        assert_exact(found[0], points)
    assert kernel_calls == [5, 5]


def assert_exact(found: Tensor, points: NDArray[np.float64]) -> None:
    """Agreement with 60 digits, within what rounding of the arguments allows."""
    for actual, point in zip(found.tolist(), points.tolist(), strict=True):
        exact = evaluate("log_prob", tuple(point))
        assert units(actual, exact.value, exact.conditioning(), found.dtype, TOLERANCE) <= TOLERANCE, point


@pytest.mark.parametrize("few", [0, 100], ids=["kernel", "formula"])
def test_an_infinite_z_at_zeros_is_ignored(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """(0 - mu) / scale overflows at the zeros, which it must not reach."""
    monkeypatch.setattr(density, "FEW", few)
    mu, scale, logits = (
        torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in ([1e300] * 2, [1e-300] * 2, [0.5] * 2)
    )
    result = ZILN(mu, scale, logits).log_prob(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert result[0] == ZILN(0.0, 1.0, logits[0]).log_prob(torch.tensor(0.0).double())
    assert result[1] == -math.inf
    for gradient in torch.autograd.grad(result[0], (mu, scale)):
        assert gradient[0] == 0


@pytest.mark.usefixtures("block_size")
@pytest.mark.parametrize("logit", [0.5, -math.inf, math.inf])
def test_infinite_squares_and_logits_that_many_rows_share(logit: float) -> None:
    value = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(20)[:, None].expand(40, 3)
    logits = torch.tensor([0.5, logit, -2.0], dtype=torch.float64)
    mu, scale = torch.full((3,), 1e300, dtype=torch.float64), torch.tensor(1e-300, dtype=torch.float64)
    found = ZILN(mu, scale, logits, validate_args=False).log_prob(value)
    assert torch.equal(found[::2], torch.nn.functional.logsigmoid(logits).expand(20, 3))
    assert (found[1::2] == -math.inf).all()


def test_the_gradient_of_a_shared_zero_part_counts_rows() -> None:
    value = torch.cat([torch.zeros(300, 4), torch.ones(500, 4)]).double()
    log_zero, log_positive = (torch.full((4,), math.log(0.5)).double() for _ in range(2))
    args = [value, torch.zeros(4).double(), torch.ones(4).double(), log_zero, log_positive]
    for wanted in ([True, True], [True, False], [False, True]):
        _, slopes = blockwise.evaluate(args, [False, False, False, *wanted])
        counts = [None if s is None else s.tolist() for s in slopes[3:]]
        assert counts == [4 * [n] if w else None for n, w in zip((300.0, 500.0), wanted, strict=True)]


def test_few_entries_are_left_to_the_formula(kernel_calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(density, "FEW", 1500)
    args = arguments(SHAPES["full"])
    assert_close([ZILN(*args[1:]).log_prob(args[0])[:49]], [ZILN(*(a[:49] for a in args[1:])).log_prob(args[0][:49])])
    assert kernel_calls == [4]


def test_arguments_that_are_views(kernel_calls: list[int]) -> None:
    for transform in (lambda a: a.t(), lambda a: a[::2, 1:], lambda a: a[:, :1].expand(a.shape)):
        args = [transform(a) for a in arguments(SHAPES["full"])]
        leaves = [a.detach().clone(memory_format=torch.preserve_format).requires_grad_() for a in args]
        total = ZILN(*leaves[1:]).log_prob(leaves[0])
        gradients = torch.autograd.grad(total, leaves, torch.ones(()).double().expand(total.shape))
        assert_close([total.detach(), *gradients], both(ZeroPart, args, False)[1])
    assert kernel_calls


@zero_parts
@pytest.mark.parametrize("wanted", range(4))
def test_one_gradient_at_a_time(wanted: int, kind: type[ZeroPart]) -> None:
    for shapes in (SHAPES["full"], SHAPES["per gene"]):
        args = arguments(shapes, kind)
        expected = both(kind, args, False)[1][1 + wanted]
        args[wanted].requires_grad_()
        assert_close(list(torch.autograd.grad(log_density(kind, *args).sum(), args[wanted])), [expected])


def test_without_gradients(kernel_calls: list[int]) -> None:
    args = arguments(SHAPES["full"])
    expected = ZILN(*args[1:]).log_prob(args[0])
    args[1].requires_grad_()
    with torch.no_grad():
        assert torch.equal(ZILN(*args[1:]).log_prob(args[0]), expected)
    with torch.inference_mode():
        inside = ZILN(*(a.clone() for a in args[1:])).log_prob(args[0])
    assert torch.equal(inside, expected)
    assert len(kernel_calls) == 3
    with torch.inference_mode():
        value = args[0].clone()
    ZILN(*args[1:]).log_prob(value).sum().backward()  # the kernel cannot save such a value, the formula need not
    assert args[1].grad is not None
    assert len(kernel_calls) == 3
    mixed = ZILN(torch.zeros(3), 1.0, 0.0).log_prob(torch.ones(3, dtype=torch.float64))
    assert mixed.dtype == torch.float64
    assert len(kernel_calls) == 3


def test_few_tensors_are_as_large_as_the_data() -> None:
    """Forward and backward allocate the log density, a gradient for each argument, and less than one of these."""
    args = [a.requires_grad_() for a in arguments(Shapes(*[(2000, 1000)] * 4))]
    args[0].requires_grad_(False)
    bytes_of_one = args[0].numel() * args[0].element_size()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = ZILN(*args[1:], validate_args=True).log_prob(args[0])
        gradients = torch.autograd.grad(result, args[1:], torch.ones((), dtype=torch.float64).expand(result.shape))
    peak = level = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    assert len(gradients) == 3
    assert 4 * bytes_of_one <= peak < 5 * bytes_of_one
