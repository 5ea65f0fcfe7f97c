"""Bent white noise: sinh-arcsinh of a standard Normal (Jones and Pewsey 2009, "Sinh-arcsinh distributions")."""

import math

from torch import Tensor

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def bend(noise: Tensor, skewness: Tensor, log_tails: Tensor) -> Tensor:
    """Return sinh((arsinh(noise) + skewness) / tails): noise itself at skewness 0 and log tails 0."""
    return ((noise.asinh() + skewness) * (-log_tails).exp()).sinh()


def straighten(bent: Tensor, skewness: Tensor, log_tails: Tensor) -> Tensor:
    """Return the noise that was bent."""
    return (bent.asinh() * log_tails.exp() - skewness).sinh()


def bent_log_density(bent: Tensor, skewness: Tensor, log_tails: Tensor) -> Tensor:
    """Return the log density of bent noise."""
    noise = straighten(bent, skewness, log_tails)
    # d noise / d bent = tails cosh(angle) / sqrt(1 + bent^2), and cosh^2 = 1 + noise^2.
    slope = log_tails + (noise.square().log1p() - bent.square().log1p()) / 2
    return slope - noise.square() / 2 - _HALF_LOG_2PI
