"""The standard normal cdf and quantile, with values and derivatives accurate in relative terms in both tails."""

import math

import torch
from torch import Tensor

from pyro_zilognormal.numerics.elementwise import Elementwise

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_SQRT_HALF = math.sqrt(0.5)


def ndtr(z: Tensor) -> Tensor:
    """Phi(z). torch.special.ndtr rounds the left tail to 0 (z < -5.5 in float32); erfc does not."""
    return 0.5 * torch.special.erfc(-z * _SQRT_HALF)


def log_ndtr(z: Tensor) -> Tensor:
    """log Phi(z)."""
    left = _LogNdtr.apply(z.clamp(max=0))
    right = torch.log1p(-ndtr(-z.clamp(min=0)))
    return torch.where(z < 0, left, right)


def ndtri_exp(log_p: Tensor) -> Tensor:
    """Phi^-1(p) for p <= 1/2, from log p: its slope there is moderate where dz/dp overflows."""
    return _NdtriExp.apply(log_p)


def hazard(z: Tensor) -> Tensor:
    """d log Phi(z) / dz = phi(z) / Phi(z), for z <= 0."""
    return math.sqrt(2 / math.pi) / torch.special.erfcx(-z * _SQRT_HALF)


class _LogNdtr(Elementwise):
    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.special.log_ndtr(z)

    @staticmethod
    def slope(z: Tensor, output: Tensor) -> Tensor:
        return hazard(z)


class _NdtriExp(Elementwise):
    @staticmethod
    def forward(log_p: Tensor) -> Tensor:
        return torch.special.ndtri(log_p.exp())

    @staticmethod
    def slope(log_p: Tensor, output: Tensor) -> Tensor:
        return 1 / hazard(output)
