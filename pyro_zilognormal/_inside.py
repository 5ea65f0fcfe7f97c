"""Which values are in the support, [0, inf)."""

import math

import torch
from torch import Tensor

INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
INFINITY = {dtype: torch.tensor(math.inf, dtype=dtype).view(bits).item() for dtype, bits in INTEGERS.items()}


def inside(value: Tensor) -> Tensor:
    """Where the value is."""
    return (value >= 0) & (value < math.inf)


def all_inside(value: Tensor) -> bool:
    """Whether all float32 or float64 values are for sure; False at -0.0 too.

    Numbers from 0 to infinity are in the order of their bits as integers; NaN is above them, negative numbers are
    negative. torch finds the extremes of integers in half the time.
    """
    lowest, highest = torch.aminmax(value.detach().view(INTEGERS[value.dtype]))
    return bool(lowest >= 0) and bool(highest < INFINITY[value.dtype])
