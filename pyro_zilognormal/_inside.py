"""Which values are in the support, [0, inf); and the extremes of numbers that should be at least 0."""

import math

import torch
from torch import Tensor

INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def inside(value: Tensor) -> Tensor:
    """Where the value is."""
    return (value >= 0) & (value < math.inf)


def all_inside(value: Tensor) -> bool:
    """Whether all values are for sure; False at -0.0 too."""
    least, greatest = extremes(value)
    return least >= 0 and greatest < math.inf


def extremes(tensor: Tensor) -> tuple[float, float]:
    """The least and the greatest; what is below 0, or -0.0, may come as -inf or NaN, and a NaN makes one of them NaN.

    Numbers from 0 to infinity are in the order of their bits as integers; NaN is above them or negative, negative
    numbers are negative. torch finds the extremes of integers in half the time.
    """
    integer = INTEGERS.get(tensor.dtype)
    if integer is None:
        least, greatest = tensor.detach().aminmax()
        return least.item(), greatest.item()
    bits = torch.stack(tensor.detach().view(integer).aminmax())
    if bits[0] < 0:
        return -math.inf, math.nan
    return tuple(bits.view(tensor.dtype).tolist())
