"""The cdf, its logarithm, its complement and its inverse, each computed from whichever tail is the small one."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_zilognormal.numerics.normal import (
    exp_or_inf,
    hazard,
    log_ndtr,
    logaddexp,
    ndtr,
    ndtri_exp,
    standardize,
    with_slopes,
)
from pyro_zilognormal.numerics.zero_part import ZeroPart


def cdf(value: Tensor, loc: Tensor, scale: Tensor, zero_part: ZeroPart) -> Tensor:
    """pi + (1 - pi) Phi(z), as 1 - (1 - pi) Phi(-z) in the right half, where the first loses its derivatives."""
    z = _standardize(value, loc, scale)
    left = zero_part.zero + zero_part.positive * ndtr(z)
    right = 1 - zero_part.positive * ndtr(-z)
    return _piecewise(value, torch.where(z < 0, left, right), zero=zero_part.zero, below=0, top=1)


def log_cdf(value: Tensor, loc: Tensor, scale: Tensor, zero_part: ZeroPart) -> Tensor:
    """log1p of minus the survival function where that is small, else log of the cdf, in log space far down."""
    z = _standardize(value, loc, scale)
    survival = zero_part.positive * ndtr(-z)
    upper = survival < 0.5
    phi = ndtr(z)
    plain = z > -4  # further down phi(z) / Phi(z) loses z^2 eps
    lower = torch.where(plain & ~upper, zero_part.zero + zero_part.positive * phi, 1).log()
    lowest = logaddexp(zero_part.log_zero, zero_part.log_positive + log_ndtr(z.clamp(max=0)))
    inside = torch.where(upper, torch.log1p(-torch.where(upper, survival, 0)), torch.where(plain, lower, lowest))
    return _piecewise(value, inside, zero=zero_part.log_zero, below=-math.inf, top=0)


def log_survival_function(value: Tensor, loc: Tensor, scale: Tensor, zero_part: ZeroPart) -> Tensor:
    """log P(X > x) = log(1 - pi) + log Phi(-z)."""
    inside = zero_part.log_positive + log_ndtr(-_standardize(value, loc, scale))
    return _piecewise(value, inside, zero=zero_part.log_positive, below=0, top=-math.inf)


def icdf(q: Tensor, loc: Tensor, scale: Tensor, zero_part: ZeroPart) -> Tensor:
    """0 for q <= pi, else exp(mu + scale Phi^-1((q - pi) / (1 - pi))), from the smaller of the two tails."""
    zero = zero_part.zero
    # q - pi; near 1 the digits are those of 1 - pi and 1 - q.
    below = torch.where(zero > 0.5, zero_part.positive - (1 - q), q - zero)
    positive = (q > zero) & (below > 0) & (q < 1)
    upper = 1 - q < below
    tail = torch.where(positive, torch.where(upper, 1 - q, below), 0.5)
    log_tail = tail.log() - torch.where(positive, zero_part.log_positive, 0)
    depth = ndtri_exp(log_tail)
    inside = _quantile(torch.where(positive, q, 0.5), loc, scale, zero_part, positive, depth, upper, tail)
    # At q = 1 the quantile is inf whatever the parameters, with an infinite slope: so is -log1p(-q).
    top = (q == 1) & (zero_part.positive > 0)
    edge = torch.where(top, -torch.log1p(-torch.where(top, q, 0)), 0)
    outside = ~((q >= 0) & (q <= 1))
    return torch.where(positive, inside, torch.where(outside, math.nan, edge))


def median(loc: Tensor, scale: Tensor, zero_part: ZeroPart) -> Tensor:
    """0 for pi >= 1/2, else exp(mu + scale z) with Phi(z) = (1 - pi / (1 - pi)) / 2, through erf^-1 or Phi^-1."""
    positive = zero_part.skew < 0
    odds = torch.where(positive, zero_part.odds, 0)
    small = odds < 0.5
    from_erfinv = -math.sqrt(2) * torch.erfinv(torch.where(small, odds, 0))
    complement = torch.where(positive & ~small, zero_part.one_minus_odds, 1)
    depth = torch.where(small, from_erfinv, ndtri_exp(torch.log(complement / 2)))
    tail = torch.where(positive, -zero_part.skew / 2, 0.5)
    q, upper = torch.full_like(tail, 0.5), torch.zeros_like(small)
    inside = _quantile(q, loc, scale, zero_part, positive, depth, upper, tail)
    return torch.where(positive, inside, 0)


def _quantile(
    q: Tensor,
    loc: Tensor,
    scale: Tensor,
    zero_part: ZeroPart,
    positive: Tensor,
    depth: Tensor,
    upper: Tensor,
    tail: Tensor,
) -> Tensor:
    """exp(loc + scale z) for z = -depth in the upper half, depth in the lower.

    Args:
        positive: where the quantile is; elsewhere the result does not matter.
        depth: Phi^-1(tail / (1 - pi)), at most 0.
        tail: 1 - q in the upper half, q - pi in the lower.
    """
    parameter, log_slope = zero_part.falling
    log_slope = torch.where(positive, log_slope, 0)
    z, mills = torch.where(upper, -depth, depth), 1 / hazard(depth)
    above = torch.where(upper, tail, 1 - q)
    return _quantile_at(q, loc, scale, parameter, z, mills, above, tail, log_slope)


def _slopes_of_quantile(q: Tensor, loc: Tensor, scale: Tensor, zero: Tensor, *saved: Tensor) -> Sequence[Tensor]:
    """dz/dq = mills / tail and dz/dparameter = -exp(log_slope) mills above / tail.

    The chain rule would multiply by one factor after the other, and overflow though their product does not. So z and
    what follows it have no slopes of their own here; second derivatives go through them.
    """
    z, mills, above, tail, log_slope, x = saved
    x = torch.where(x < math.inf, x, 0)  # as in exp_or_inf
    log_x = torch.where(x > 0, loc + scale * z, -math.inf)
    in_q = _product(x, log_x, scale, mills, tail)
    in_zero = -_product(x * log_slope.exp(), log_x + log_slope, scale, mills * above, tail)
    return in_q, x, x * z, in_zero, *[torch.zeros_like(x)] * 5


@with_slopes(_slopes_of_quantile)
def _quantile_at(q: Tensor, loc: Tensor, scale: Tensor, zero: Tensor, z: Tensor, *_: Tensor) -> Tensor:
    """exp(loc + scale z)."""
    return exp_or_inf(loc + scale * z)


def _product(x: Tensor, log_x: Tensor, a: Tensor, b: Tensor, divisor: Tensor) -> Tensor:
    """x a b / divisor; through logarithms where some of these are too large or small to multiply."""
    ratio = a * b / divisor
    fits = (log_x.abs() < 40) & (ratio > 1e-20) & (ratio < 1e20)
    log_a, log_b, log_divisor = (torch.where(fits, 1, factor).log() for factor in (a, b, divisor))
    log = torch.where(fits, 0, log_x) + log_a + log_b - log_divisor
    return torch.where(fits, torch.where(fits, x * ratio, 0), exp_or_inf(log))


def _inside(value: Tensor) -> Tensor:
    return (value > 0) & (value < math.inf)


def _standardize(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """z = (log x - mu) / scale, with x = 1 in the place of what is not a positive number."""
    return standardize(torch.where(_inside(value), value, 1).log(), loc, scale)


def _piecewise(value: Tensor, inside: Tensor, *, zero: Tensor, below: float, top: float) -> Tensor:
    """`inside` where 0 < x < inf, `zero` at 0, `below` under it, `top` at infinity, NaN at NaN."""
    outside = torch.where(value < 0, below, torch.where(value.isnan(), math.nan, top)).to(inside.dtype)
    return torch.where(_inside(value), inside, torch.where(value == 0, zero, outside))
