"""loc and scale from the moments of X, zeros included."""

import torch
from torch import Tensor

from pyro_zilognormal.numerics.zero_part import ZeroPart


def loc_of_mean(mean: Tensor, scale: Tensor, zero_part: ZeroPart) -> Tensor:
    """log E[X] - log(1 - pi) - scale^2 / 2."""
    return mean.log() - zero_part.log_positive - scale.square() / 2


def loc_and_scale_of_moments(mean: Tensor, stddev: Tensor, zero_part: ZeroPart) -> tuple[Tensor, Tensor]:
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
