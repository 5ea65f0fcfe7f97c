"""Which values are in the support, [0, inf); and the extremes of numbers that should be at least 0."""

import math

import torch
from torch import Tensor

INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
INFINITE = {torch.float32: 0x7F800000, torch.float64: 0x7FF0000000000000}  # the bits


def inside(value: Tensor) -> Tensor:
    """Where the value is."""
    return (value >= 0) & (value < math.inf)


def all_inside(value: Tensor) -> bool:
    """Whether all values are for sure; False at -0.0, too, in single and double precision."""
    if value.dtype not in INTEGERS:
        return bool(inside(value).all())
    least, greatest = _extremes_of_bits(value)
    return least >= 0 and greatest < INFINITE[value.dtype]


def extremes(tensor: Tensor) -> tuple[float, float]:
    """The least and the greatest.

    What is below 0, or -0.0, may come as -inf or NaN, and a NaN makes one of them NaN.
    """
    if tensor.dtype not in INTEGERS:
        least, greatest = tensor.detach().aminmax()
        return least.item(), greatest.item()
    bits = _extremes_of_bits(tensor)
    if bits[0] < 0:
        return -math.inf, math.nan
    return tuple(torch.tensor(bits, dtype=INTEGERS[tensor.dtype]).view(tensor.dtype).tolist())


def _extremes_of_bits(tensor: Tensor) -> tuple[int, int]:
    """As integers.

    Numbers from 0 to infinity are in the order of their bits as integers; NaN is above them or negative, negative
    numbers are negative. torch finds the extremes of integers in half the time.
    """
    least, greatest = tensor.detach().view(INTEGERS[tensor.dtype]).aminmax()
    return int(least.item()), int(greatest.item())
