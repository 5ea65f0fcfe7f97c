"""The floor of sigma: the likelihood of equal values grows without end as sigma falls, and has no posterior."""

import math

import torch
from torch import Tensor

# Positive values that differ by a thousandth are the same.
LEAST_SIGMA = 1e-3


def log_scale(log_sigma: Tensor) -> Tensor:
    """Return log sqrt(exp(log_sigma)^2 + floor^2), which is log_sigma but for sigmas of no size."""
    return torch.logaddexp(2 * log_sigma, log_sigma.new_tensor(2 * math.log(LEAST_SIGMA))) / 2
