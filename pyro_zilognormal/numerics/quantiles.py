"""The cdf, its logarithm, its complement and its inverse, each computed from whichever tail is the small one."""

import math

import torch
from torch import Tensor

from pyro_zilognormal.numerics.normal import exp_or_inf, log_ndtr, logaddexp, ndtr, ndtri_exp
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
    positive = (q > zero_part.zero) & (q < 1)
    upper = 1 - q < q - zero_part.zero
    tail = torch.where(upper, 1 - q, q - zero_part.zero)
    log_tail = torch.where(positive, tail, 0.5).log() - torch.where(positive, zero_part.log_positive, 0)
    z = ndtri_exp(log_tail)
    inside = exp_or_inf(loc + scale * torch.where(upper, -z, z))
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
    z = torch.where(small, from_erfinv, ndtri_exp(torch.log(complement / 2)))
    return torch.where(positive, exp_or_inf(loc + scale * z), 0)


def _inside(value: Tensor) -> Tensor:
    return (value > 0) & (value < math.inf)


def _standardize(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """z = (log x - mu) / scale, with x = 1 in the place of what is not a positive number."""
    return (torch.where(_inside(value), value, 1).log() - loc) / scale


def _piecewise(value: Tensor, inside: Tensor, *, zero: Tensor, below: float, top: float) -> Tensor:
    """`inside` where 0 < x < inf, `zero` at 0, `below` under it, `top` at infinity, NaN at NaN."""
    outside = torch.where(value < 0, below, torch.where(value.isnan(), math.nan, top)).to(inside.dtype)
    return torch.where(_inside(value), inside, torch.where(value == 0, zero, outside))
