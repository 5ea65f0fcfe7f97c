"""The exam: the class at many points against the oracle, in units of eps times conditioning.

An error of 1 unit is eps (|f| + sum_i |a_i df/da_i|): what rounding the arguments and the result does. The
same holds for each first derivative. Up to one smallest normal number is forgiven as underflow. Where the
value is rightly infinite its derivatives must only not be NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_zilognormal import LeftCensoredZeroInflatedLogNormal, ZeroInflatedLogNormal
from tests.jets import mp
from tests.oracle import Exact, evaluate

TOLERANCE = 8.0
TOLERANCE_NEARLY_EQUAL = 300.0
MARGINS = {"icdf": "icdf_margin", "median": "median_margin", "mode": "mode_margin"}
ZILN = ZeroInflatedLogNormal

PROPERTIES = ("zi_probs", "prob_positive", "mean", "log_mean", "variance", "stddev", "median", "mode")
METHODS_OF_NOTHING = ("entropy", "perplexity")
OF_MOMENTS = ("loc_of_mean", "loc_of_moments", "scale_of_moments")
METHODS_OF_X = ("log_prob", "cdf", "log_cdf", "log_survival_function")
QUANTITIES = (*PROPERTIES, *METHODS_OF_NOTHING, *METHODS_OF_X, "icdf")
DIVERGENCES = ("kl", "kl_from_lognormal", "kl_to_lognormal")


def compute(name: str, args: Sequence[Tensor], zero: str = "zi_logits") -> Tensor:
    """The quantity `name` by the package; its zero part is the argument called `zero`."""
    if name in DIVERGENCES:
        return _divergence(name, args, zero)
    if name in OF_MOMENTS:
        return _of_moments(name, args, zero)
    if name == "log_prob_censored":
        return LeftCensoredZeroInflatedLogNormal(*args, zeros_known=True).log_prob_censored
    d = ZILN(args[0], args[1], **{zero: args[2]})
    if name in PROPERTIES:
        return getattr(d, name)
    return getattr(d, name)(*args[3:])


def _of_moments(name: str, args: Sequence[Tensor], zero: str) -> Tensor:
    if name == "loc_of_mean":
        return ZILN.from_mean(args[0], args[1], **{zero: args[2]}).loc
    d = ZILN.from_moments(*args)
    return d.loc if name == "loc_of_moments" else d.scale


def _divergence(name: str, args: Sequence[Tensor], zero: str) -> Tensor:
    def ziln(loc: Tensor, scale: Tensor, zero_part: Tensor) -> ZeroInflatedLogNormal:
        return ZILN(loc, scale, **{zero: zero_part})

    if name == "kl":
        return kl_divergence(ziln(*args[:3]), ziln(*args[3:]))
    if name == "kl_from_lognormal":
        return kl_divergence(dist.LogNormal(*args[:2]), ziln(*args[2:]))
    return kl_divergence(ziln(*args[:3]), dist.LogNormal(*args[3:]))


def with_gradients(f: Callable[..., Tensor], points: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Rows (value, every first derivative) of f at the rows of points, as doubles."""
    args = [torch.tensor(c, dtype=dtype, requires_grad=True) for c in points.T]
    out = f(args).expand(len(points))
    grads: Sequence[Tensor | None] = [None] * len(args)
    if out.requires_grad:
        grads = torch.autograd.grad(out.sum(), args, allow_unused=True)
    columns = [out, *(torch.zeros_like(a) if g is None else g for a, g in zip(args, grads, strict=True))]
    return torch.stack(columns, -1).detach().double().numpy()


def units(
    actual: float, exact: Any, conditioning: Any, dtype: torch.dtype, tolerance: float, floor: float = 1.0
) -> float:
    """The error of `actual` in units of eps times conditioning; infinite where no rounding explains it.

    Below `floor` smallest normal numbers an error is underflow.
    """
    info = torch.finfo(dtype)
    if np.isnan(actual):
        return np.inf
    if mp.isinf(exact):
        return 0.0 if actual == exact else np.inf
    if np.isinf(actual):
        overflows = abs(exact) + tolerance * info.eps * conditioning >= info.max
        return 0.0 if overflows and (actual > 0) == (exact > 0) else np.inf
    excess = abs(mp.mpf(actual) - exact) - floor * info.tiny
    if excess <= 0 or mp.isinf(conditioning):
        return 0.0
    return float(excess / (info.eps * conditioning)) if conditioning else np.inf


def undecided(name: str, args: tuple[float, ...], dtype: torch.dtype, zero: str = "zi_logits") -> bool:
    """Whether rounding the arguments decides on which side of a jump the point lies."""
    if name not in MARGINS:
        return False
    margin = evaluate(MARGINS[name], args, zero)
    rounding = margin.conditioning() + (0.5 if name == "median" else 0)  # the median is icdf at an exact 1/2
    near = abs(margin.value) <= TOLERANCE * torch.finfo(dtype).eps * rounding
    return bool(near and mp.isfinite(margin.value))


def steep(name: str, args: tuple[float, ...], dtype: torch.dtype) -> bool:
    """Whether rounding log x and mu moves z so far that a derivative does not tell what that does to a tail."""
    if name not in (*METHODS_OF_X, "log_prob_censored") or name == "log_prob" or not 0 < args[-1] < np.inf:
        return False
    mu, scale, log_x = mp.mpf(args[0]), mp.mpf(args[1]), mp.log(args[-1])
    z, rounding = abs(log_x - mu) / scale, torch.finfo(dtype).eps * (abs(log_x) + abs(mu)) / scale
    return bool(rounding > z / 64 or (z < 40 and rounding * (1 + z) > 1 / 64))


@dataclass
class Exam:
    """The errors of one quantity: a row a point, a column the value and each derivative."""

    name: str
    points: np.ndarray
    actual: np.ndarray
    errors: np.ndarray
    exact: list[Exact | None]

    @property
    def skipped(self) -> int:
        return sum(e is None for e in self.exact)

    def worst(self, column: int | None = None) -> float:
        errors = self.errors if column is None else self.errors[:, column]
        return float(errors.max(initial=0.0))

    def describe(self, tolerance: float, limit: int = 5) -> str:
        """The worst failures, each with the arguments that reproduce it."""
        rows, columns = np.nonzero(self.errors > tolerance)
        order = np.argsort(-self.errors[rows, columns], kind="stable")[:limit]
        lines = [f"{self.name}: {len(rows)} of {self.errors.size} numbers are off by more than {tolerance} units"]
        return "\n".join(lines + [self._line(int(rows[k]), int(columns[k])) for k in order])

    def _line(self, row: int, column: int) -> str:
        exact = self.exact[row]
        assert exact is not None
        truth = exact.value if column == 0 else exact.grad[column - 1]
        what = "value" if column == 0 else f"derivative {column - 1}"
        args = ", ".join(repr(float(a)) for a in self.points[row])
        return f"  {what} at ({args}): {float(self.actual[row, column])!r}, exactly {mp.nstr(truth, 17)}, " + (
            f"{self.errors[row, column]:.3g} units"
        )


def examine(
    name: str,
    points: np.ndarray,
    dtype: torch.dtype,
    tolerance: float = TOLERANCE,
    zero: str = "zi_logits",
    *,
    logs: bool = False,
) -> Exam:
    """The package against the oracle at the rows of points, value and every first derivative."""
    actual = with_gradients(lambda args: compute(name, args, zero), points, dtype)
    errors, exacts = np.zeros_like(actual), []
    for i, row in enumerate(points.tolist()):
        args = tuple(row)
        exact = None if undecided(name, args, dtype, zero) or steep(name, args, dtype) else evaluate(name, args, zero)
        exacts.append(exact)
        if exact is not None:
            errors[i] = _row_errors(name, actual[i], args, exact, dtype, tolerance, logs)
    return Exam(name, points, actual, errors, exacts)


def _never_positive(name: str, args: tuple[float, ...], dtype: torch.dtype) -> bool:
    """Whether 1 - pi_p, with which KL weighs the positive parts, is 0 in this dtype though it is not."""
    logit = args[2]
    return name == "kl" and np.isfinite(logit) and np.exp(-max(logit, -700.0)) < torch.finfo(dtype).tiny


def _row_errors(
    name: str,
    actual: np.ndarray,
    args: tuple[float, ...],
    exact: Exact,
    dtype: torch.dtype,
    tolerance: float,
    logs: bool,
) -> list[float]:
    first = units(actual[0], exact.value, exact.conditioning(logs), dtype, tolerance)
    if np.isinf(actual[0]):
        return [first, *(np.inf if np.isnan(a) else 0.0 for a in actual[1:])]
    # What underflows in a_j df/da_j, relative to f, is lost: a factor pi = exp(-100) is 0 in float32.
    scale = max(1.0, abs(float(exact.value))) if mp.isfinite(exact.value) else 1.0
    floors = [scale / min(1.0, abs(a)) if a else scale for a in args]
    lost = _never_positive(name, args, dtype)
    truths = [(g, mp.inf if lost else exact.grad_conditioning(j, logs), floors[j]) for j, g in enumerate(exact.grad)]
    pairs = zip(actual[1:], truths, strict=True)
    return [first, *(units(a, g, c, dtype, tolerance, floor) for a, (g, c, floor) in pairs)]
