"""The standard normal cdf and quantile, exp and log-sum-exp, accurate in both tails and so in their derivatives."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_SQRT_HALF = math.sqrt(0.5)


class WithSlopes(torch.autograd.Function):
    """A function with derivatives written by hand, themselves differentiable, where torch's own lose digits.

    It works in backward and in forward mode and under vmap. The inputs have one shape. A gradient of 0 stays 0 where
    a slope overflows.
    """

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def slopes(*inputs_and_output: Tensor) -> Sequence[Tensor]:
        """The derivative in each input."""
        raise NotImplementedError

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(_times(grad, slope) for slope in cls.slopes(*ctx.saved_tensors))

    @classmethod
    def jvp(cls, ctx: Any, *tangents: Tensor | None) -> Tensor:
        slopes = cls.slopes(*ctx.saved_tensors)
        first, *others = (_times(t, slope) for t, slope in zip(tangents, slopes, strict=True) if t is not None)
        return sum(others, first)


def _times(grad: Tensor, slope: Tensor) -> Tensor:
    return torch.where((grad == 0) & slope.isinf(), 0, grad * slope)


def log_max(dtype: torch.dtype) -> float:
    """The largest logarithm whose exp does not overflow."""
    return math.log(torch.finfo(dtype).max)


def exp_or_inf(log: Tensor) -> Tensor:
    """exp(log), with derivative 0 where it overflows to inf: torch's own is inf * 0 = NaN once multiplied by 0."""
    overflows = log >= log_max(log.dtype)
    return torch.where(overflows, math.inf, torch.where(overflows, 0, log).exp())


def logaddexp(a: Tensor, b: Tensor) -> Tensor:
    """log(exp(a) + exp(b)), where both may be -inf."""
    high, low = torch.maximum(a, b), torch.minimum(a, b)
    possible = high > -math.inf
    high, low = torch.where(possible, high, 0), torch.where(possible, low, 0)
    return torch.where(possible, high + torch.log1p(torch.exp(low - high)), -math.inf)


def exp_times(log: Tensor, factor: Tensor) -> Tensor:
    """exp(log) factor, which need not underflow where the exponential does."""
    return _ExpTimes.apply(*torch.broadcast_tensors(log, factor))


def ndtr(z: Tensor) -> Tensor:
    """Phi(z). torch.special.ndtr rounds the left tail to 0 (z < -5.5 in float32); erfc does not."""
    return 0.5 * torch.special.erfc(-z * _SQRT_HALF)


def log_ndtr(z: Tensor) -> Tensor:
    """log Phi(z)."""
    left = _LogNdtr.apply(z.clamp(max=0))
    right = torch.log1p(-ndtr(-z.clamp(min=0)))
    return torch.where(z < 0, left, right)


def ndtri_exp(log_p: Tensor) -> Tensor:
    """Phi^-1(p) for p <= 1/2, as a function of log p: its derivative is moderate where dz/dp overflows."""
    return _NdtriExp.apply(log_p)


def hazard(z: Tensor) -> Tensor:
    """d log Phi(z) / dz = phi(z) / Phi(z), for z <= 0."""
    return math.sqrt(2 / math.pi) / torch.special.erfcx(-z * _SQRT_HALF)


def standardize(log_x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """z = (log x - loc) / scale."""
    return _Ratio.apply(*torch.broadcast_tensors(log_x - loc, scale))


class _Ratio(WithSlopes):
    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return a / b

    @staticmethod
    def slopes(a: Tensor, b: Tensor, output: Tensor) -> Sequence[Tensor]:  # type: ignore[override]
        return 1 / b, -output / b


class _ExpTimes(WithSlopes):
    @staticmethod
    def forward(log: Tensor, factor: Tensor) -> Tensor:
        half = (log / 2).exp()
        return half * (half * factor)

    @staticmethod
    def slopes(log: Tensor, factor: Tensor, output: Tensor) -> Sequence[Tensor]:  # type: ignore[override]
        return output, log.exp()


class _LogNdtr(WithSlopes):
    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.special.log_ndtr(z)

    @staticmethod
    def slopes(z: Tensor, output: Tensor) -> Sequence[Tensor]:  # type: ignore[override]
        return (hazard(z),)


class _NdtriExp(WithSlopes):
    @staticmethod
    def forward(log_p: Tensor) -> Tensor:
        z = torch.special.ndtri(log_p.exp())
        # Below the normal numbers p has lost digits; a step of Newton's method on log Phi brings them back.
        lost = log_p < math.log(torch.finfo(log_p.dtype).tiny)
        return torch.where(lost, z - (torch.special.log_ndtr(z) - log_p) / hazard(z), z)

    @staticmethod
    def slopes(log_p: Tensor, output: Tensor) -> Sequence[Tensor]:  # type: ignore[override]
        return (1 / hazard(output),)
