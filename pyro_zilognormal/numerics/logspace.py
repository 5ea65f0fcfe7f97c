"""exp and log-sum-exp whose derivatives, first and second, stay numbers where torch's own are inf * 0."""

import math

import torch
from torch import Tensor


def log_max(dtype: torch.dtype) -> float:
    """The largest logarithm that exp does not overflow."""
    return math.log(torch.finfo(dtype).max)


def exp_or_inf(log: Tensor) -> Tensor:
    """exp(log), with derivative 0 where it overflows to inf."""
    fits = log < log_max(log.dtype)
    return torch.where(fits, torch.where(fits, log, 0).exp(), math.inf)


def logaddexp(a: Tensor, b: Tensor) -> Tensor:
    """log(exp(a) + exp(b)), of which one may be -inf."""
    high, low = torch.maximum(a, b), torch.minimum(a, b)
    return high + torch.log1p(torch.exp(low - high))
