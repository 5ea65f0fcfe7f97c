"""Mean, variance, mode and entropy, which overflow only if the true value does, and parameters of given moments."""

import math

import torch
from torch import Tensor

from pyro_zilognormal.numerics.normal import HALF_LOG_2PI, exp_or_inf
from pyro_zilognormal.numerics.zero_part import ZeroPart


def log_mean(loc: Tensor, scale: Tensor, zero_part: ZeroPart) -> Tensor:
    """log E[X] = log(1 - pi) + mu + scale^2 / 2."""
    return zero_part.log_weigh(_log_mean(loc, scale))


def mean(loc: Tensor, scale: Tensor, zero_part: ZeroPart) -> Tensor:
    """E[X] = (1 - pi) exp(mu + scale^2 / 2)."""
    return zero_part.weigh(_log_mean(loc, scale))


def variance(loc: Tensor, scale: Tensor, zero_part: ZeroPart) -> Tensor:
    """Var[X] = (1 - pi) (Var[LN] + pi E[LN]^2)."""
    return zero_part.weigh(*_log_variances(loc, scale))


def stddev(loc: Tensor, scale: Tensor, zero_part: ZeroPart) -> Tensor:
    """sqrt(Var[X]); in log space where the variance leaves the range of the dtype."""
    square = variance(loc, scale, zero_part)
    fits = (square > torch.finfo(square.dtype).tiny) & (square < math.inf)
    log_square = zero_part.log_weigh(*_log_variances(loc, scale))
    outside = exp_or_inf(torch.where(fits, 0, log_square / 2))
    return torch.where(fits, torch.where(fits, square, 1).sqrt(), outside)


def mode(loc: Tensor, scale: Tensor, zero_part: ZeroPart) -> Tensor:
    """0 if log P(X = 0) is at least the log density at its peak, exp(mu - scale^2), else that peak."""
    log_positive = zero_part.log_positive
    log_density = log_positive - loc + scale * (scale / 2) - scale.log() - HALF_LOG_2PI
    at_zero = (zero_part.log_zero >= log_density) | (log_positive == -math.inf)
    x = exp_or_inf(torch.where(at_zero, 0, loc - scale * scale))
    lack = (torch.finfo(x.dtype).tiny - x.detach()).clamp(min=0)  # a peak that underflows is still no zero
    return torch.where(at_zero, 0, x + lack)


def entropy(loc: Tensor, scale: Tensor, zero_part: ZeroPart) -> Tensor:
    """H(Bernoulli(pi)) + (1 - pi) (mu + 1/2 + log(scale sqrt(2 pi)))."""
    return zero_part.entropy(loc + scale.log() + (0.5 + HALF_LOG_2PI))


def loc_of_mean(mean: Tensor, scale: Tensor, zero_part: ZeroPart) -> Tensor:
    """log E[X] - log(1 - pi) - scale^2 / 2."""
    return mean.log() - zero_part.log_positive - scale.square() / 2


def loc_and_scale(mean: Tensor, stddev: Tensor, zero_part: ZeroPart) -> tuple[Tensor, Tensor]:
    """scale^2 = log((1 - pi) (1 + cv^2)) with cv = stddev / mean, and the loc that goes with it.

    The scale is NaN where no distribution has such moments.
    """
    log_cv = stddev.log() - mean.log()
    large = log_cv > 7  # where the square of cv, and cv itself, may overflow
    cv = torch.where(large, 1, stddev) / torch.where(large, 1, mean)
    log_cv = torch.where(large, log_cv, 7)
    square = zero_part.log_positive + 2 * log_cv + torch.log1p(torch.exp(-2 * log_cv))
    scale = torch.where(large, torch.where(large, square, 1).sqrt(), _scale_of_variation(cv, zero_part))
    return loc_of_mean(mean, scale, zero_part), scale


def _scale_of_variation(cv: Tensor, zero_part: ZeroPart) -> Tensor:
    """sqrt(log1p(u)) of u = cv^2 (1 - pi) - pi, which may underflow though its root does not."""
    share = cv * zero_part.positive - zero_part.zero / cv  # u / cv
    u = cv * share
    curved = u > torch.finfo(u.dtype).eps
    straight = torch.where(curved, 1, cv).sqrt() * torch.where(curved, 1, share).sqrt()
    return torch.where(curved, torch.log1p(torch.where(curved, u, 1)).sqrt(), straight)


def _log_mean(loc: Tensor, scale: Tensor) -> Tensor:
    """log E[LN]. The slope of scale^2 would overflow before its half does."""
    return loc + scale * (scale / 2)


def _log_variances(loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """log E[LN]^2, and log expm1(scale^2), of which Var[LN] is the product."""
    return 2 * loc + scale * scale, _log_expm1_square(scale)


def _log_expm1_square(scale: Tensor) -> Tensor:
    """log expm1(scale^2), which does not overflow, and whose slope 2 / scale does not either."""
    small = scale < 0.3
    half = torch.where(small, scale, 0).square() / 2
    # expm1(2h) = 2h exp(h) sinh(h) / h, and log(sinh(h) / h) by its series: h < 0.045.
    series = half + half.square() * (1 / 6 - half.square() * (1 / 180 - half.square() / 2835))
    large = torch.where(small, 1, scale)
    square = large * large
    return torch.where(small, 2 * scale.log() + series, square + torch.log(-torch.expm1(-square)))
