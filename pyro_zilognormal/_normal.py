"""The standard normal cdf in both tails, to full relative accuracy."""

import math

import torch
from torch import Tensor

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def ndtr(z: Tensor) -> Tensor:
    """Phi(z). torch.special.ndtr rounds the left tail to 0 (z < -5.5 in float32); erfc does not."""
    return 0.5 * torch.special.erfc(-z * math.sqrt(0.5))


def log_ndtr(z: Tensor) -> Tensor:
    """log Phi(z). torch's own has NaN second derivatives for z > 38, where log1p takes over here."""
    left = torch.special.log_ndtr(z.clamp(max=0))
    right = torch.log1p(-ndtr(-z.clamp(min=0)))
    return torch.where(z < 0, left, right)
