"""Draws: 0 where a uniform is at most pi, else exp(loc + scale eps)."""

import math

import torch
from torch import Tensor

from pyro_zilognormal.density.autograd import suits
from pyro_zilognormal.numerics.zero_part import ZeroPart


def draw(shape: torch.Size, loc: Tensor, scale: Tensor, zero_part: ZeroPart, dtype: torch.dtype) -> Tensor:
    """Draws, differentiable in loc and scale; the positive ones are normal, finite numbers of the dtype."""
    noise = torch.randn(shape, dtype=loc.dtype, device=loc.device)
    info = torch.finfo(dtype)
    lowest, highest = (math.log(bound) * (1 - 2 * info.eps) for bound in (info.tiny, info.max))
    positive = torch.addcmul(loc, scale, noise).clamp(lowest, highest).exp_()
    with torch.no_grad():
        # As accurate as a uniform, which logsigmoid, several times slower, would not improve.
        pi = zero_part.tensor.sigmoid() if zero_part.parameter == "zi_logits" else zero_part.zero
    # The uniform is in (0, 1], so that pi = 0 never gives a zero, and pi = 1 always does.
    above = torch.rand(shape, dtype=loc.dtype, device=loc.device).neg_().add_(1) - pi
    if suits(positive, above):  # the same as torch.where, which is slow on CPU
        return torch.ops.aten.threshold_backward(positive, above, 0)
    return torch.where(above > 0, positive, 0)
