"""Where the exam is held: random and extreme arguments, rounded to the dtype for both sides alike."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import torch

from tests.oracle import FORMULAS

EXTREME = {
    "mu": (-50.0, -1.0, 0.0, 1e-3, 50.0),
    "scale": (1e-3, 0.3, 1.0, 20.0),
    "zero": (-np.inf, -200.0, -37.0, -1.0, -1e-3, 0.0, 0.5, 17.0, 40.0, 200.0, np.inf),
    "x": (0.0, 1e-300, 1e-30, 0.5, 1.0, 3.0, 1e30, 1e300),
    "q": (0.0, 1e-15, 1e-3, 0.5, 0.75, 1 - 1e-6, 1 - 1e-15, 1.0),
}
Random = np.random.Generator


def rounded(points: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The nearest numbers of the dtype, as doubles; positive x stays positive, finite and normal."""
    return torch.tensor(points).to(dtype).double().numpy()


def _mix(rng: Random, *choices: np.ndarray) -> np.ndarray:
    return np.choose(rng.integers(len(choices), size=choices[0].shape), choices)


def random_mu(rng: Random, n: int) -> np.ndarray:
    return _mix(rng, rng.uniform(-50, 50, n), rng.normal(0, 2, n))


def random_scale(rng: Random, n: int) -> np.ndarray:
    return _mix(rng, np.exp(rng.uniform(np.log(1e-3), np.log(20), n)), rng.uniform(0.3, 3, n))


def random_mean(rng: Random, n: int) -> np.ndarray:
    return np.exp(_mix(rng, rng.uniform(-50, 50, n), rng.normal(0, 2, n)))


def random_logits(rng: Random, n: int) -> np.ndarray:
    small = rng.choice([-1, 1], n) * 10 ** rng.uniform(-9, 0, n)
    return _mix(rng, rng.uniform(-200, 200, n), rng.normal(0, 3, n), rng.normal(0, 20, n), small)


def random_probs(rng: Random, n: int, dtype: torch.dtype) -> np.ndarray:
    edge = 10 ** rng.uniform(np.log10(4 * torch.finfo(dtype).eps), -1, n)
    return _mix(rng, rng.uniform(0.01, 0.99, n), edge, 1 - edge)


def random_zero(rng: Random, n: int, dtype: torch.dtype, kind: str) -> np.ndarray:
    if kind == "cloglog":
        return _mix(rng, rng.uniform(-20, 3, n), rng.normal(0, 1, n), rng.normal(-0.3665, 1e-3, n))
    return random_probs(rng, n, dtype) if kind == "zi_probs" else random_logits(rng, n)


def random_x(rng: Random, mu: np.ndarray, scale: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    n, info = len(mu), torch.finfo(dtype)
    low, high = np.log(max(info.tiny, 1e-300)), np.log(min(info.max, 1e300))
    with np.errstate(over="ignore"):
        near, far = (mu + scale * rng.normal(0, width, n) for width in (1, 8))
    log_x = _mix(rng, rng.uniform(low, high, n), near, far)
    x = np.exp(np.clip(log_x, low + 1e-3, high - 1e-3))
    return np.where(rng.random(n) < 0.05, 0.0, x)


def random_q(rng: Random, zero: np.ndarray, kind: str, dtype: torch.dtype) -> np.ndarray:
    """Uniform, at both ends, above pi by a uniform share of what is left, and close above pi."""
    n, digits = len(zero), 15 if dtype == torch.float64 else 6
    with np.errstate(over="ignore"):
        pi = {
            "zi_logits": lambda: 1 / (1 + np.exp(-zero)),
            "zi_probs": lambda: zero,
            "cloglog": lambda: np.exp(-np.exp(zero)),
        }[kind]()
    edge, share = 10 ** rng.uniform(-digits, -0.3, n), rng.uniform(0, 1, n)
    near = pi + (1 - pi) * 10 ** rng.uniform(-digits / 2, -1, n)
    q = _mix(rng, rng.uniform(0, 1, n), edge, 1 - edge, pi + (1 - pi) * share, near)
    return np.clip(q, 0, 1)


def random_points(name: str, n: int, dtype: torch.dtype, seed: int, zero: str = "zi_logits") -> np.ndarray:
    """n random rows of arguments for the quantity `name`."""
    return _rows(_random_column, name, n, dtype, seed, zero)


def _rows(column: Callable[..., np.ndarray], name: str, n: int, dtype: torch.dtype, seed: int, zero: str) -> np.ndarray:
    rng = np.random.default_rng(seed)
    columns: dict[str, np.ndarray] = {}
    for arg in FORMULAS[name][1]:
        columns[arg] = rounded(column(rng, arg, columns, n, dtype, zero), dtype)
    return np.stack(list(columns.values()), -1)


def _random_column(
    rng: Random, arg: str, before: dict[str, np.ndarray], n: int, dtype: torch.dtype, zero: str
) -> np.ndarray:
    kind = arg.split("_")[0]
    if "stddev" in before:  # the zeros alone give a stddev of mean sqrt(pi / (1 - pi))
        square = (before["stddev"] / before["mean"]) ** 2
        return square / (1 + square) * _mix(rng, rng.uniform(0, 0.99, n), 10 ** rng.uniform(-9, 0, n))
    if kind == "zero":
        return random_zero(rng, n, dtype, zero)
    if kind == "x":
        return random_x(rng, before["mu"], before["scale"], dtype)
    if kind == "q":
        return random_q(rng, before["zero"], zero, dtype)
    if kind == "stddev":
        return before["mean"] * 10 ** rng.uniform(-3, 3, n)
    return {"mu": random_mu, "scale": random_scale, "mean": random_mean}[kind](rng, n)


def extreme_points(name: str, dtype: torch.dtype, n: int | None, seed: int) -> np.ndarray:
    """The grid of extremes, or n rows of it; in float32 x and q are drawn in to its range."""
    axes = [EXTREME[a.split("_")[0]] for a in FORMULAS[name][1]]
    grid = np.array(list(product(*axes)) if len(axes) <= 4 else _some(axes, n or 4000, seed))
    if n is not None and n < len(grid):
        grid = grid[np.random.default_rng(seed).choice(len(grid), n, replace=False)]
    return rounded(_into_range(grid, name, dtype), dtype)


def _some(axes: list[tuple[float, ...]], n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.choice(a, n) for a in axes], -1)


def _into_range(grid: np.ndarray, name: str, dtype: torch.dtype) -> np.ndarray:
    last, column = FORMULAS[name][1][-1], grid[:, -1]
    if last == "x" and dtype == torch.float32:
        grid[:, -1] = np.where(column > 0, np.clip(column, 2e-38, 3e38), 0.0)
    if last == "q" and dtype == torch.float32:
        grid[:, -1] = np.where((column > 0) & (column < 1), np.clip(column, 1e-6, 1 - 1e-6), column)
    return grid


def nearly_equal_points(n: int, dtype: torch.dtype, seed: int) -> np.ndarray:
    """Pairs of distributions whose arguments differ, each by its own relative 0 or 1e-3 to 1e-12 (float32: 1e-6)."""
    rng = np.random.default_rng(seed)
    d = np.stack([random_mu(rng, n), random_scale(rng, n), random_logits(rng, n)], -1)
    digits = rng.uniform(3, 12 if dtype == torch.float64 else 6, (n, 3))
    shift = rng.choice([-1, 0, 1], (n, 3), p=[0.4, 0.2, 0.4]) * 10**-digits
    return rounded(np.concatenate([d, d * (1 + shift)], -1), dtype)


def _log_uniform(rng: Random, n: int, dtype: torch.dtype) -> np.ndarray:
    """Positive numbers of all sizes that the dtype has, denormal ones among them."""
    info = torch.finfo(dtype)
    return np.exp(rng.uniform(np.log(info.tiny) - 20 * np.log(2), np.log(info.max) - 1e-3, n))


def _signed(rng: Random, x: np.ndarray) -> np.ndarray:
    return rng.choice([-1, 1], len(x)) * x


def _anywhere_column(
    rng: Random, arg: str, before: dict[str, np.ndarray], n: int, dtype: torch.dtype, zero: str
) -> np.ndarray:
    """Half ordinary arguments and half from the whole range of the dtype, some of them where a member overflows."""
    kind = arg.split("_")[0]
    usual, far = _random_column(rng, arg, before, n, dtype, zero), _log_uniform(rng, n, dtype)
    edge = np.log(torch.finfo(dtype).max)
    if kind == "mu":
        far = _mix(rng, _signed(rng, far), rng.uniform(-2 * edge, 2 * edge, n))
    elif kind == "scale":
        far = _mix(rng, far, rng.uniform(0, 2 * edge**0.5, n))
    elif kind == "zero" and zero != "zi_probs":
        far = _mix(rng, _signed(rng, far), rng.uniform(-2 * edge, 2 * edge, n), rng.choice([-np.inf, np.inf], n))
        far = np.minimum(far, 0.99 * edge) if zero == "cloglog" else far  # log pi = -exp(cloglog) must be a number
    elif kind in ("zero", "q"):
        far = np.exp(rng.uniform(np.log(torch.finfo(dtype).tiny), 0, n))
    return np.where(rng.random(n) < 0.5, usual, far)


def anywhere_points(name: str, n: int, dtype: torch.dtype, seed: int, zero: str = "zi_logits") -> np.ndarray:
    """n random rows of arguments for the quantity `name`, over the whole range of the dtype."""
    return _rows(_anywhere_column, name, n, dtype, seed, zero)
