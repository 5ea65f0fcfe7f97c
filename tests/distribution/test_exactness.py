"""Every value and first derivative within 8 units of rounding of the truth, in float64 and float32."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from tests.exactness import (
    DIVERGENCES,
    METHODS_OF_X,
    QUANTITIES,
    TOLERANCE,
    TOLERANCE_NEARLY_EQUAL,
    Exam,
    compute,
    examine,
    with_gradients,
)
from tests.jets import mp
from tests.oracle import FORMULAS, evaluate
from tests.points import EXTREME, anywhere_points, extreme_points, nearly_equal_points, random_points, rounded

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
ALL = pytest.mark.parametrize("name", [*QUANTITIES, *DIVERGENCES])
OF_PARAMETERS = pytest.mark.parametrize("name", QUANTITIES)
OTHER_ZERO_PARTS = pytest.mark.parametrize("zero", ["zi_probs", "cloglog"])
N, N_SLOW = 150, 2500


def passes(exam: Exam, tolerance: float = TOLERANCE) -> None:
    """All numbers within tolerance; few points are left undecided at a jump."""
    assert exam.worst() <= tolerance, exam.describe(tolerance)
    assert exam.skipped <= 0.15 * len(exam.points), f"{exam.skipped} of {len(exam.points)} points skipped"


@DTYPES
@ALL
def test_random_points(name: str, dtype: torch.dtype) -> None:
    passes(examine(name, random_points(name, N, dtype, seed=1), dtype))


@DTYPES
@ALL
def test_extreme_points(name: str, dtype: torch.dtype) -> None:
    passes(examine(name, extreme_points(name, dtype, N, seed=2), dtype))


@DTYPES
@OF_PARAMETERS
@OTHER_ZERO_PARTS
def test_other_parameters_of_the_zero_part(name: str, zero: str, dtype: torch.dtype) -> None:
    passes(examine(name, random_points(name, N // 2, dtype, 3, zero), dtype, zero=zero))


@DTYPES
@pytest.mark.parametrize("zero", ["zi_logits", "zi_probs", "cloglog"])
def test_parameters_of_a_mean(zero: str, dtype: torch.dtype) -> None:
    passes(examine("loc_of_mean", random_points("loc_of_mean", N, dtype, 9, zero), dtype, zero=zero, logs=True))


@DTYPES
@pytest.mark.parametrize("name", ["loc_of_moments", "scale_of_moments"])
def test_parameters_of_moments(name: str, dtype: torch.dtype) -> None:
    passes(examine(name, random_points(name, N, dtype, 10, "zi_probs"), dtype, zero="zi_probs", logs=True))


@DTYPES
def test_below_a_limit(dtype: torch.dtype) -> None:
    points = random_points("log_prob_censored", N, dtype, 11)
    passes(examine("log_prob_censored", points[points[:, -1] > 0], dtype))


F32, F64 = torch.float32, torch.float64
# Points that the hunts found: a product or tail is ordinary, though one of its factors is not.
FOUND: list[tuple[str, str, torch.dtype, tuple[float, ...]]] = [
    ("kl", "zi_logits", F32, (-1.06266, 1.56248, 75.0499, -49.97304, 1.59419e-28, 1.13604e-05)),
    ("kl", "zi_logits", F64, (0.589622, 45.266294, 498.18222, -816.71013, 2.8837855e-217, -1.214153)),
    ("kl", "cloglog", F64, (-36.60129, 46.32101, -7.0242459, 413.79682, 9.814407e-153, -1.0020674)),
    ("mean", "cloglog", F32, (33.861286, 10.485716, 0.11221153)),
    ("variance", "cloglog", F32, (1.339272, 6.833064, -8.977184)),
    ("entropy", "cloglog", F32, (8.8022729e10, 0.03942828, -105.961372)),
    ("entropy", "cloglog", F64, (1.75693e100, 0.03942828, -847.69101)),
    ("perplexity", "cloglog", F64, (1.75693e100, 0.03942828, -847.69101)),
    ("icdf", "cloglog", F64, (16.48731458562294, 1.3022274108962866, -18.11844892282022, 0.9999999885570999)),
    ("icdf", "zi_logits", F64, (-2.649291101288273, 1.1284689374643253, 14.83415627641153, 0.999999722880617)),
    ("icdf", "zi_logits", F32, (-0.8513190150260925, 1.0475431680679321, 11.794581413269043, 0.9999945759773254)),
    # Powers that overflow or underflow on the way to an ordinary result.
    ("mode", "zi_logits", F32, (200.0, 1.0, -1000.0)),
    ("mode", "zi_logits", F32, (100.0, 1.0, 5.0)),
    ("icdf", "zi_logits", F32, (86.72, 8.477, -12.0, 0.5)),
    ("log_prob", "zi_logits", F32, (1.0, 1e-20, 0.3, 0.0)),
    ("log_cdf", "zi_logits", F32, (5.0, 0.5, -np.inf, 1e-38)),
    ("log_mean", "zi_logits", F32, (5.0, 1e30, np.inf)),
    ("kl", "zi_logits", F32, (0.0, 1.0, 0.2, 0.3, 1e-44, 1.0)),
    ("kl", "zi_logits", F32, (0.0, 1.0, 0.2, 0.3, 1.0, 3e38)),
]


@pytest.mark.parametrize(("name", "zero", "dtype", "point"), FOUND)
def test_points_that_hunts_found(name: str, zero: str, dtype: torch.dtype, point: tuple[float, ...]) -> None:
    passes(examine(name, rounded(np.array([point]), dtype), dtype, zero=zero, logs=True))


@DTYPES
def test_kl_of_nearly_equal_distributions(dtype: torch.dtype) -> None:
    exam = examine("kl", nearly_equal_points(2 * N, dtype, seed=4), dtype, TOLERANCE_NEARLY_EQUAL)
    passes(exam, TOLERANCE_NEARLY_EQUAL)


@pytest.mark.slow
@DTYPES
@ALL
def test_many_points(name: str, dtype: torch.dtype) -> None:
    passes(examine(name, random_points(name, N_SLOW, dtype, seed=5), dtype))
    passes(examine(name, extreme_points(name, dtype, None, seed=5), dtype))


@pytest.mark.slow
@DTYPES
@OF_PARAMETERS
@OTHER_ZERO_PARTS
def test_many_points_of_other_zero_parts(name: str, zero: str, dtype: torch.dtype) -> None:
    passes(examine(name, random_points(name, N_SLOW, dtype, 6, zero), dtype, zero=zero))


@pytest.mark.slow
@DTYPES
@ALL
@pytest.mark.parametrize(("zero", "n_exact"), [("zi_logits", 3000), ("zi_probs", 0), ("cloglog", 500)])
def test_anywhere_among_the_floats(name: str, zero: str, n_exact: int, dtype: torch.dtype) -> None:
    """The hunt, from the smallest denormal number to the largest: no NaN at 15,000 points, and n_exact are exact.

    Where zi_probs and scale^2 are both near the smallest number, terms of the stddev and of the divergence underflow.
    """
    points = anywhere_points(name, 15_000, dtype, 8, zero)
    actual = with_gradients(lambda a: compute(name, a, zero), points, dtype)
    bad = points[np.isnan(actual).any(-1)]
    assert not len(bad), f"NaN in {name} or its derivatives at {len(bad)} points, as {bad[:5].tolist()}"
    passes(examine(name, points[:n_exact], dtype, zero=zero, logs=True))


@pytest.mark.slow
@DTYPES
def test_kl_of_many_nearly_equal_distributions(dtype: torch.dtype) -> None:
    exam = examine("kl", nearly_equal_points(2 * N_SLOW, dtype, seed=7), dtype, TOLERANCE_NEARLY_EQUAL)
    passes(exam, TOLERANCE_NEARLY_EQUAL)


def _limit(name: str, args: tuple[float, ...]) -> list[float]:
    """The value and derivatives as zi_probs goes to its 0 or 1: infinite where they still grow 1e-20 away."""
    near, nearer = (evaluate(name, _off_edge(args, d), "zi_probs") for d in (20, 25))
    pairs = zip((near.value, *near.grad), (nearer.value, *nearer.grad), strict=True)
    return [float(b) if _settled(a, b) else float(mp.sign(b) * mp.inf) for a, b in pairs]


def _off_edge(args: tuple[float, ...], digits: int) -> tuple[Any, ...]:
    return (*args[:2], abs(args[2] - mp.mpf(10) ** -digits), *args[3:])


def _settled(a: Any, b: Any) -> bool:
    return bool(abs(b - a) <= 1e-12 * abs(a) or abs(b) < min(abs(a), 1e-6))


EDGE_ARGS = {"mu": 0.375, "scale": 0.75, "q": 0.625}


@DTYPES
@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize(("name", "x"), [(n, x) for n in QUANTITIES for x in (1.75, 0.0)[: 1 + (n in METHODS_OF_X)]])
def test_zi_probs_of_exactly_0_and_1(name: str, p: float, x: float, dtype: torch.dtype) -> None:
    """Finite values and derivatives are the limits; an infinite value is infinite; nothing is ever NaN."""
    args = tuple({**EDGE_ARGS, "zero": p, "x": x}[a] for a in FORMULAS[name][1])
    actual = with_gradients(lambda a: compute(name, a, zero="zi_probs"), np.array([args]), dtype)[0]
    limit = np.array(_limit(name, args))
    assert not np.isnan(actual).any(), f"{actual} at {args}, where the limit is {limit}"
    known = np.isfinite(limit) if np.isfinite(limit[0]) else np.arange(len(limit)) == 0
    np.testing.assert_allclose(actual[known], limit[known], rtol=60 * torch.finfo(dtype).eps, atol=1e-9)


def edge_points(name: str, zero: str, info: torch.finfo) -> list[tuple[float, ...]]:
    """Corners of the parameters and every zero part, times x or q at the ends of its range."""
    zeros = [*EXTREME["zero"], -1e4, 1e4] if zero != "zi_probs" else [0.0, info.tiny, 0.3, 1 - info.eps, 1.0]
    ends = {"x": [0.0, info.tiny * info.eps, info.tiny, 1.0, info.max], "q": [0.0, info.tiny, 0.5, 1.0]}
    axes = {"mu": [-50.0, 0.0, 50.0], "scale": [1e-3, 1.0, 20.0], "zero": zeros, **ends}
    return list(product(*(axes[a] for a in FORMULAS[name][1])))


@DTYPES
@OF_PARAMETERS
@pytest.mark.parametrize("zero", ["zi_logits", "zi_probs", "cloglog"])
def test_no_nan_at_the_edges_of_the_support(name: str, zero: str, dtype: torch.dtype) -> None:
    """x at 0 and the ends of the floats, q at 0 and 1, every zero part: no NaN in the value or any derivative."""
    points = np.array(edge_points(name, zero, torch.finfo(dtype)))
    actual = with_gradients(lambda a: compute(name, a, zero), points, dtype)
    bad = points[np.isnan(actual).any(-1)]
    assert not len(bad), f"NaN in {name} or its derivatives at {len(bad)} points, as {bad[:5].tolist()}"


FAR_END = {"cdf": 1.0, "log_cdf": 0.0, "log_survival_function": -np.inf, "log_prob": -np.inf}


@DTYPES
@pytest.mark.parametrize("name", FAR_END)
def test_far_end_of_the_support(name: str, dtype: torch.dtype) -> None:
    """At x = inf the cdf is 1, the density 0, and nothing is NaN."""
    points = np.array([[0.5, 2.0, g, np.inf] for g in (-np.inf, -3.0, 0.0, 50.0)])
    actual = with_gradients(lambda a: compute(name, a), points, dtype)
    assert (actual[:, 0] == FAR_END[name]).all()
    assert not np.isnan(actual).any()
