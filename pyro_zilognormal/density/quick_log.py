"""The natural logarithm of ordinary float32 numbers, in operations that torch.compile makes a few instructions of.

The vectorised logarithm that it calls otherwise takes most of the time of the log density.
"""

import math

import torch
from torch import Tensor

# The polynomial P for which log(1 + f) = f - f^2/2 + f^3 P(f) has the least relative error, 0.1 units in the last
# place, for 1 + f between sqrt(1/2) and sqrt(2): by least squares, weights raised where the error is largest.
_P = (
    -0.07634498924016953,
    0.1276157796382904,
    -0.13160182535648346,
    0.14201757311820984,
    -0.16623356938362122,
    0.20001226663589478,
    -0.2500081956386566,
    0.3333333134651184,
)
_SQRT_HALF = 0x3F3504F3  # the bits of sqrt(1/2)
_EXPONENT = -(2**23)  # the bits above the fraction
_LOG_2 = 0.693359375  # with few bits, so that its products with exponents are exact
_LOG_2_REST = math.log(2) - _LOG_2


def quick_log(x: Tensor) -> Tensor:
    """log x, to 1.5 units in the last place; x is finite, positive and not subnormal. Of other dtypes, torch's own."""
    if x.dtype != torch.float32:
        return x.log()
    # x = 2^k (1 + f)
    bits = x.view(torch.int32)
    exponent = (bits - _SQRT_HALF) & _EXPONENT
    f = (bits - exponent).view(torch.float32) - 1
    k = exponent.to(torch.float32) * 2.0**-23
    square = f * f
    return (f + (square * f * _polynomial(f) + k * _LOG_2_REST - 0.5 * square)) + k * _LOG_2


def _polynomial(f: Tensor) -> Tensor:
    result = _P[0] * f + _P[1]
    for coefficient in _P[2:]:
        result = result * f + coefficient
    return result
