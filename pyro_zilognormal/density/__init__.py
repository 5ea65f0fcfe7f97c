"""The log density, with respect to a point mass at 0 plus Lebesgue measure above.

Two paths compute it. The plain formula (`reference`) serves few entries, compilers and tracers, torch.func, forward
mode, second derivatives and accelerators. On CPU the blockwise kernel (`blockwise`) finds the log density together with
its derivatives in one pass over the data, and `autograd` hands them to backward passes.
"""

import math

import torch
from torch import Tensor

from pyro_zilognormal.density import autograd, reference
from pyro_zilognormal.numerics.shapes import broadcast, jit_tracing, tracing
from pyro_zilognormal.numerics.zero_part import ZeroPart

FEW = 2**14  # entries: below, the many short calls of the blocks cost more than they save
MUCH = 8  # logarithms of the zero part are computed once if its parameter is at least 8 times smaller than the result


def log_density(value: Tensor, loc: Tensor, scale: Tensor, zero_part: ZeroPart) -> Tensor:
    """log P(X = 0) at 0, the log density above, -inf at negative and infinite values, NaN at NaN."""
    shape = broadcast(value.shape, loc.shape, scale.shape, zero_part.tensor.shape)
    arguments = (loc, scale, *_parameters(zero_part, shape))
    if not autograd.suits(value, *arguments) or math.prod(shape) < FEW:
        return reference.log_density(value, *arguments)
    if _all_inside(value):
        return autograd.log_density(value, *arguments)
    inside = (value >= 0) & (value < math.inf)
    result = autograd.log_density(torch.where(inside, value, 1), *arguments)
    return torch.where(inside, result, reference.outside(value))


def _all_inside(value: Tensor) -> bool:
    least, greatest = value.detach().aminmax()  # both NaN if any value is
    return least.item() >= 0 and greatest.item() < math.inf


def _parameters(zero_part: ZeroPart, shape: torch.Size) -> tuple[Tensor, ...]:
    """The logits, where each is used about once; else log P(X = 0) and log P(X > 0)."""
    if zero_part.parameter == "zi_logits" and _used_once(zero_part.tensor, shape):
        return (zero_part.tensor,)
    return zero_part.log_zero, zero_part.log_positive


def _used_once(parameter: Tensor, shape: torch.Size) -> bool:
    if tracing():  # the graph must serve other sizes too
        return not jit_tracing() and parameter.dim() == len(shape) and parameter.shape == shape
    return MUCH * parameter.numel() > math.prod(shape)
