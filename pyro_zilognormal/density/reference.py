"""The log density in plain tensor operations: the reference for the kernel, and the form that compilers fuse."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_zilognormal.numerics.normal import HALF_LOG_2PI


def log_density(value: Tensor, loc: Tensor, scale: Tensor, *zero: Tensor) -> Tensor:
    """log P(X = 0) at 0, the log density above, -inf at negative and infinite values, NaN at NaN.

    Whatever is not a positive number is replaced *before* the logarithm: otherwise its gradient is 0 * inf = NaN, and
    torch.log on a tensor that holds zeros takes a slow path on CPU.

    Args:
        value: of any shape that broadcasts with the others.
        loc: mean of the logarithm.
        scale: its standard deviation.
        zero: the logits of P(X = 0), best if they are as large as the result; or log P(X = 0) and log P(X > 0).
    """
    inside = (value > 0) & (value < math.inf)
    log_value = torch.where(inside, value, 1).log()
    # Standardise before squaring: scale**2 underflows long before scale does.
    # At a zero z must be finite, or its gradient is 0 * inf = NaN.
    z = torch.where(inside, log_value - loc, 0) / scale
    # The slope of log(scale) is left out where it overflows: that of z^2 / 2 does too, and inf - inf is NaN.
    log_scale = torch.where(scale < torch.finfo(scale.dtype).tiny, scale.detach(), scale).log()
    loss = log_value + z * (z / 2) + (log_scale + HALF_LOG_2PI)
    if len(zero) == 1:
        result = logsigmoid(torch.where(inside, -zero[0], zero[0])) - torch.where(inside, loss, 0)
    else:
        result = torch.where(inside, zero[1] - loss, zero[0])
    return torch.where(inside | (value == 0), result, outside(value))


def outside(value: Tensor) -> Tensor:
    """-inf, or NaN where the value is NaN; a constant, so that a masked NaN has a zero gradient."""
    return value.detach().abs() * -math.inf
