"""Draws: 0 where a uniform is at most pi, else exp(loc + scale eps)."""

import math

import torch
from torch import Tensor

from pyro_zilognormal.numerics.zero_part import ZeroPart


def draw(shape: torch.Size, loc: Tensor, scale: Tensor, zero_part: ZeroPart, dtype: torch.dtype) -> Tensor:
    """Draws, differentiable in loc and scale; the positive ones are normal, finite numbers of the dtype."""
    noise = torch.randn(shape, dtype=loc.dtype, device=loc.device)
    # In (0, 1], so that pi = 0 never gives a zero, and pi = 1 always does.
    uniform = 1 - torch.rand(shape, dtype=loc.dtype, device=loc.device)
    info = torch.finfo(dtype)
    lowest, highest = (math.log(bound) * (1 - 2 * info.eps) for bound in (info.tiny, info.max))
    positive = (loc + scale * noise).clamp(lowest, highest).exp()
    return torch.where(uniform <= zero_part.zero.detach(), 0, positive)
