"""The log density in plain tensor operations: the reference for all that is faster."""

import math

import torch
from torch import Tensor

from pyro_zilognormal._normal import HALF_LOG_2PI


def log_density(value: Tensor, loc: Tensor, scale: Tensor, log_zero: Tensor, log_positive: Tensor) -> Tensor:
    """log P(X = 0) at 0, the log density above, -inf at negative and infinite values, NaN at NaN.

    Zeros (and whatever else is not a positive number) are replaced *before* the logarithm: otherwise their gradients
    are 0 * inf = NaN, and torch.log on a tensor that holds zeros takes a slow path on CPU.
    """
    inside = (value > 0) & (value < math.inf)
    log_value = torch.where(inside, value, 1).log()
    # Standardise before squaring: scale**2 underflows long before scale does.
    z = (log_value - loc) / scale
    positive = (log_positive - scale.log() - HALF_LOG_2PI) - log_value - z * z / 2
    return torch.where(inside, positive, torch.where(value == 0, log_zero, outside(value)))


def outside(value: Tensor) -> Tensor:
    """-inf, or NaN where the value is NaN; a constant, so that a masked NaN has a zero gradient."""
    return torch.where(value.isnan(), math.nan, -math.inf).to(value.dtype)
