"""The log density with its derivatives as one expression, which torch.compile makes one loop over the data.

Written for few logarithms, exponentials and divisions, which are most of the time that such a loop takes; and for
ordinary arguments, since to provide for the others takes time too. The same loop finds whether all are ordinary.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_zilognormal.density.quick_log import quick_log
from pyro_zilognormal.numerics.normal import HALF_LOG_2PI
from pyro_zilognormal.numerics.shapes import broadcast

ROWS = 16  # summed together at first: column after column of all rows would not stay in the cache


class Found(NamedTuple):
    """What holds if the arguments are `ordinary`."""

    result: Tensor
    slopes: list[Tensor | None]
    ordinary: Tensor


class FoundSlopes(NamedTuple):
    """The same without a result."""

    slopes: list[Tensor | None]
    ordinary: Tensor


def evaluate(arguments: Sequence[Tensor], wanted: Sequence[bool]) -> Found:
    """As `_kernel.evaluate`: what is as large as the data in one loop, then sums in another."""
    shape = broadcast(*(a.shape for a in arguments))
    result, slopes = _law(arguments)
    found = _whole(slopes, arguments, wanted, shape)
    # Otherwise the compiler keeps logarithms for the sums, which takes longer than to begin with the derivative
    # in loc, which is kept for the caller.
    _add_sums(found, arguments, wanted, shape, found[1])
    return Found(result, found, _ordinary(arguments))


def differentiate(
    arguments: Sequence[Tensor], wanted: Sequence[bool], weight: Tensor, by_loc: Tensor | None
) -> FoundSlopes:
    """As `_kernel.differentiate`, in the same two loops."""
    _, slopes = _law(arguments, by_loc)
    found = _whole([s * weight for s in slopes], arguments, wanted, weight.shape)
    _add_sums(found, arguments, wanted, weight.shape, by_loc, weight)
    return FoundSlopes(found, _ordinary(arguments))


def _whole(
    slopes: Sequence[Tensor], arguments: Sequence[Tensor], wanted: Sequence[bool], shape: torch.Size
) -> list[Tensor | None]:
    """The derivatives that are wanted and as large as the data."""
    return [
        s.expand(shape).contiguous() if w and a.shape == shape else None
        for s, a, w in zip(slopes, arguments, wanted, strict=True)
    ]


def _add_sums(
    found: list[Tensor | None],
    arguments: Sequence[Tensor],
    wanted: Sequence[bool],
    shape: torch.Size,
    by_loc: Tensor | None,
    weight: Tensor | None = None,
) -> None:
    """To what was found, the other derivatives that are wanted, summed to the shapes of their arguments."""
    _, slopes = _law(arguments, None if by_loc is None else _once(by_loc))
    weight = None if weight is None else _once(weight)
    for i, argument in enumerate(arguments):
        if wanted[i] and found[i] is None:
            slope = slopes[i] if weight is None else slopes[i] * weight
            found[i] = _sum_to(slope.expand(shape), argument.shape)


def _once(tensor: Tensor) -> Tensor:
    """The tensor, which the compiler is to keep: it computes anew, wherever it is used, what is not read by strides."""
    return tensor.as_strided(tensor.shape, tensor.stride())


def _ordinary(arguments: Sequence[Tensor]) -> Tensor:
    return _usual_values(arguments[0]).all() & _usual_scales(arguments[2]).all()


def _usual_values(value: Tensor) -> Tensor:
    """Where the value is in the support and not subnormal."""
    info = torch.finfo(value.dtype)
    return (value <= info.max) & ((value >= info.tiny) | (value == 0))


def _usual_scales(scale: Tensor) -> Tensor:
    """Where neither scale nor 1 / scale nor 2 scale is subnormal or infinite."""
    least = torch.finfo(scale.dtype).tiny
    return (scale >= least) & (scale <= 1 / least)


def _law(arguments: Sequence[Tensor], by_loc: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The log density and all its derivatives; if that in loc is given, the others are made from it."""
    value, loc, scale, *gate = arguments
    inside = value > 0
    positive = torch.where(inside, value, 1)
    log_value = quick_log(positive)
    inverse = _of_scale(torch.reciprocal, scale, value)
    z = torch.where(inside, log_value - loc, 0) * inverse if by_loc is None else by_loc * scale
    by_loc = z * inverse if by_loc is None else by_loc
    one = torch.where(inside, value.new_ones(()), 0)
    rest, *by_gate = (_of_logits if len(gate) == 1 else _of_logs)(inside, scale, *gate)
    slopes = (-(by_loc + one) / positive, by_loc, (z * z - one) * inverse, *by_gate)
    return rest - (log_value + 0.5 * (z * z)), slopes


def _of_scale(function: Callable[[Tensor], Tensor], scale: Tensor, like: Tensor) -> Tensor:
    """A function of the scale, computed once for all entries that share one."""
    found = function(scale)
    return _once(found) if scale.numel() < like.numel() else found


def _of_logs(inside: Tensor, scale: Tensor, log_zero: Tensor, log_positive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What does not depend on a positive value, and the derivatives in both logarithms."""
    one = log_zero.new_ones(())
    log_scale = _of_scale(quick_log, scale, inside)
    rest = torch.where(inside, log_positive - (log_scale + HALF_LOG_2PI), log_zero)
    return rest, torch.where(inside, 0, one), torch.where(inside, one, 0)


def _of_logits(inside: Tensor, scale: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The same in logits, with t = logits for positive values, else -logits, so that log P is log sigmoid(-t).

    log sigmoid(-t) - log(scale) = min(-t, 0) - log(scale (1 + exp(-abs(t)))) takes one logarithm. Where there is no
    scale, log(1 + e) has to be right for small e too: it is log(u) + (e - (u - 1)) / u, with u = 1 + e as rounded.
    """
    one = logits.new_ones(())
    t = torch.where(inside, logits, -logits)
    e = (-t.abs()).exp()
    u = 1 + e
    inverse = 1 / u
    log = quick_log(torch.where(inside, scale, 1) * u)
    constant = torch.where(inside, HALF_LOG_2PI * one, 0)
    rest = -(t.clamp(min=0) + log + (e - (u - 1)) * inverse + constant)
    slope = torch.where(t > 0, 1, e) * inverse
    return rest, torch.where(inside, -slope, slope)


def _sum_to(slope: Tensor, shape: torch.Size) -> Tensor:
    if slope.dim() > 1 and (len(shape) < slope.dim() or shape[0] < slope.shape[0]):
        whole = slope.shape[0] // ROWS * ROWS
        parts = slope[:whole].unflatten(0, (-1, ROWS)).sum(1)
        slope = parts.sum(0, keepdim=True) + slope[whole:].sum(0, keepdim=True)
    return slope.sum_to_size(shape)
