"""Goodness of fit of the draws, and the half-precision dtypes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_zilognormal import ZeroInflatedLogNormal
from tests.exactness import QUANTITIES, TOLERANCE, compute, undecided, with_gradients
from tests.oracle import FORMULAS, evaluate
from tests.points import rounded

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
N = 40_000
MAX_SIGMA = 4.0
PARAMETERS = [(0.0, 1.0, 0.0), (-3.0, 0.2, 2.0), (5.0, 2.0, -4.0), (1.0, 0.5, -math.inf)]


def draw(parameters: tuple[float, float, float], dtype: torch.dtype, method: str = "sample") -> np.ndarray:
    torch.manual_seed(20)
    d = ZeroInflatedLogNormal(*(torch.tensor(a, dtype=dtype) for a in parameters))
    x = getattr(d, method)((N,))
    assert x.dtype == dtype
    assert torch.isfinite(x).all()
    return x.double().numpy()


def assert_share_of_zeros(x: np.ndarray, logit: float) -> None:
    pi = 1 / (1 + math.exp(-logit))
    assert abs((x == 0).mean() - pi) <= MAX_SIGMA * math.sqrt(pi * (1 - pi) / len(x))


@DTYPES
@pytest.mark.parametrize("method", ["sample", "rsample"])
@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
def test_draws_follow_the_distribution(parameters: tuple[float, float, float], method: str, dtype: torch.dtype) -> None:
    mu, scale, logit = parameters
    x = draw(parameters, dtype, method)
    assert_share_of_zeros(x, logit)
    z = (np.log(x[x > 0]) - mu) / scale
    assert abs(z.mean()) <= MAX_SIGMA / math.sqrt(len(z))
    assert abs(z.var() - 1) <= MAX_SIGMA * math.sqrt(2 / len(z))
    assert stats.kstest(z, "norm").pvalue > 1e-4


@DTYPES
@pytest.mark.parametrize("mu", [-2000.0, 2000.0])
def test_positive_draws_neither_underflow_nor_overflow(mu: float, dtype: torch.dtype) -> None:
    """A positive draw beyond the dtype's range stays positive and finite: P(X = 0) is not touched."""
    assert_share_of_zeros(draw((mu, 5.0, 0.5), dtype), 0.5)


def half_points(name: str, dtype: torch.dtype) -> np.ndarray:
    rng = np.random.default_rng(5)
    mu, scale, logit = rng.uniform(-2, 2, 60), rng.uniform(0.3, 1.2, 60), rng.uniform(-5, 5, 60)
    pi = 1 / (1 + np.exp(-logit))
    x = np.where(rng.random(60) < 0.2, 0, np.exp(mu + scale * rng.normal(0, 1, 60)))
    columns = {
        "mu": mu,
        "scale": scale,
        "zero": logit,
        "x": x,
        "q": pi + (1 - pi) * rng.uniform(0.2, 0.9, 60),
    }
    return rounded(np.stack([columns[a] for a in FORMULAS[name][1]], -1), dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", QUANTITIES)
def test_half_precision_is_usable(name: str, dtype: torch.dtype) -> None:
    """Finite, in its own dtype, and as close to float32's answer as the dtype allows."""
    points = half_points(name, dtype)
    args = [torch.tensor(c, dtype=dtype) for c in points.T]
    assert compute(name, args).dtype == dtype
    half = with_gradients(lambda a: compute(name, a), points, dtype)
    single = with_gradients(lambda a: compute(name, a), points, torch.float32)
    assert np.isfinite(half).all()
    assert sum(_off(name, tuple(p), a, b, dtype) for p, a, b in zip(points.tolist(), half, single, strict=True)) == 0


def _off(name: str, point: tuple[float, ...], half: np.ndarray, single: np.ndarray, dtype: torch.dtype) -> bool:
    """Whether the values differ by more than 8 units of the half type, away from jumps."""
    if undecided(name, point, dtype):
        return False
    info, exact = torch.finfo(dtype), evaluate(name, point)
    return bool(abs(half[0] - single[0]) > TOLERANCE * info.eps * float(exact.conditioning()) + info.tiny)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_draws(dtype: torch.dtype) -> None:
    assert_share_of_zeros(draw((0.5, 1.0, 0.25), dtype), 0.25)
