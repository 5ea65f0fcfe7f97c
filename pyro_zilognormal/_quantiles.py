"""The cdf, its logarithm, its complement and its inverse, each computed from whichever tail is the small one."""

import math

import torch
from torch import Tensor

from pyro_zilognormal._gate import Gate
from pyro_zilognormal._normal import log_ndtr, ndtr


def cdf(value: Tensor, loc: Tensor, scale: Tensor, gate: Gate) -> Tensor:
    """pi + (1 - pi) Phi(z), as 1 - (1 - pi) Phi(-z) in the right half, where the first loses its derivatives."""
    z = _standardize(value, loc, scale)
    left = gate.zero + gate.positive * ndtr(z)
    right = 1 - gate.positive * ndtr(-z)
    return _piecewise(value, torch.where(z < 0, left, right), zero=gate.zero, below=0, top=1)


def log_cdf(value: Tensor, loc: Tensor, scale: Tensor, gate: Gate) -> Tensor:
    """log cdf: a log sum in the left half, log1p of minus the upper tail in the right half."""
    z = _standardize(value, loc, scale)
    left = torch.logaddexp(gate.log_zero, gate.log_positive + log_ndtr(z.clamp(max=0)))
    right = torch.log1p(-gate.positive * ndtr(-z.clamp(min=0)))
    return _piecewise(value, torch.where(z < 0, left, right), zero=gate.log_zero, below=-math.inf, top=0)


def log_survival_function(value: Tensor, loc: Tensor, scale: Tensor, gate: Gate) -> Tensor:
    """log P(X > x) = log(1 - pi) + log Phi(-z)."""
    inside = gate.log_positive + log_ndtr(-_standardize(value, loc, scale))
    return _piecewise(value, inside, zero=gate.log_positive, below=0, top=-math.inf)


def icdf(q: Tensor, loc: Tensor, scale: Tensor, gate: Gate) -> Tensor:
    """0 for q <= pi, else exp(mu + scale Phi^-1((q - pi) / (1 - pi)))."""
    positive = (q > gate.zero) & (q < 1)
    mass = torch.where(positive, gate.positive, 1)
    upper_tail = (1 - q) / mass
    upper = upper_tail < 0.5
    # ndtri of a safe 1/2 where a branch is not taken: at 0 and 1 its derivative is infinite.
    from_above = -torch.special.ndtri(torch.where(positive & upper, upper_tail, 0.5))
    from_below = torch.special.ndtri(torch.where(positive & ~upper, (q - gate.zero) / mass, 0.5))
    inside = torch.exp(loc + scale * torch.where(upper, from_above, from_below))
    # At q = 1 the quantile is inf whatever the parameters, with an infinite slope: so is -log1p(-q).
    top = (q == 1) & (gate.positive > 0)
    edge = torch.where(top, -torch.log1p(-torch.where(top, q, 0)), 0)
    outside = ~((q >= 0) & (q <= 1))
    return torch.where(positive, inside, torch.where(outside, math.nan, edge))


def _inside(value: Tensor) -> Tensor:
    return (value > 0) & (value < math.inf)


def _standardize(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """z = (log x - mu) / scale, with x = 1 in the place of what is not a positive number."""
    return (torch.where(_inside(value), value, 1).log() - loc) / scale


def _piecewise(value: Tensor, inside: Tensor, *, zero: Tensor, below: float, top: float) -> Tensor:
    """`inside` where 0 < x < inf, `zero` at 0, `below` under it, `top` at infinity, NaN at NaN."""
    outside = torch.where(value < 0, below, torch.where(value.isnan(), math.nan, top)).to(inside.dtype)
    return torch.where(_inside(value), inside, torch.where(value == 0, zero, outside))
