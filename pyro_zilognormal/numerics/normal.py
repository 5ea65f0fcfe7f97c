"""The standard normal cdf and quantile, exp and log-sum-exp, accurate in both tails and so in their derivatives."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Tensor])

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_SQRT_HALF = math.sqrt(0.5)


def with_slopes(slopes: Callable[..., Sequence[Tensor]]) -> Callable[[Function], Function]:
    """Give a function of tensors derivatives written by hand, where torch's own lose digits.

    They can be differentiated, in backward and in forward mode and under vmap. The inputs are broadcast to one shape. A
    gradient of 0 stays 0 where a slope overflows.

    Args:
        slopes: the derivative in each input, as a function of the inputs and the output.
    """

    def decorate(function: Function) -> Function:
        class WithSlopes(torch.autograd.Function):
            generate_vmap_rule = True
            forward = staticmethod(function)

            @staticmethod
            def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                ctx.save_for_backward(*inputs, output)
                ctx.save_for_forward(*inputs, output)

            @staticmethod
            def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
                return tuple(_times(grad, slope) for slope in slopes(*ctx.saved_tensors))

            @staticmethod
            def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
                pairs = zip(tangents, slopes(*ctx.saved_tensors), strict=True)
                first, *others = (_times(t, slope) for t, slope in pairs if t is not None)
                return sum(others, first)

        def apply(*inputs: Tensor) -> Any:
            return WithSlopes.apply(*torch.broadcast_tensors(*inputs))

        return cast(Function, functools.wraps(function)(apply))

    return decorate


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


@with_slopes(lambda log, factor, output: (output, log.exp()))
def exp_times(log: Tensor, factor: Tensor) -> Tensor:
    """exp(log) factor, which need not underflow where the exponential does."""
    half = (log / 2).exp()
    return half * (half * factor)


def ndtr(z: Tensor) -> Tensor:
    """Phi(z). torch.special.ndtr rounds the left tail to 0 (z < -5.5 in float32); erfc does not."""
    return 0.5 * torch.special.erfc(-z * _SQRT_HALF)


def hazard(z: Tensor) -> Tensor:
    """d log Phi(z) / dz = phi(z) / Phi(z), for z <= 0."""
    return math.sqrt(2 / math.pi) / torch.special.erfcx(-z * _SQRT_HALF)


def log_ndtr(z: Tensor) -> Tensor:
    """log Phi(z)."""
    return torch.where(z < 0, _log_ndtr_left(z.clamp(max=0)), torch.log1p(-ndtr(-z.clamp(min=0))))


@with_slopes(lambda z, output: (hazard(z),))
def _log_ndtr_left(z: Tensor) -> Tensor:
    return torch.special.log_ndtr(z)


@with_slopes(lambda log_p, z: (1 / hazard(z),))
def ndtri_exp(log_p: Tensor) -> Tensor:
    """Phi^-1(p) for p <= 1/2, as a function of log p: its derivative is moderate where dz/dp overflows."""
    z = torch.special.ndtri(log_p.exp())
    # Below the normal numbers p has lost digits; a step of Newton's method on log Phi brings them back.
    lost = log_p < math.log(torch.finfo(log_p.dtype).tiny)
    return torch.where(lost, z - (torch.special.log_ndtr(z) - log_p) / hazard(z), z)


def standardize(log_x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """z = (log x - loc) / scale."""
    return _ratio(log_x - loc, scale)


@with_slopes(lambda a, b, ratio: (1 / b, -ratio / b))
def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return a / b
