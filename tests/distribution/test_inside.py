"""Which values are in the support, told from their bits."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_zilognormal.numerics.extremes import all_inside, extremes, inside

GOOD = {"zero": [0.0], "some": [0.0, 3.0, 1.5], "the least": [5e-324, 1e-45, 1.0], "the greatest": [3.4e38]}
BAD = {
    "negative": [-1.0, 2.0],
    "infinite": [1.0, math.inf],
    "both": [-math.inf, math.inf],
    "missing": [math.nan, 1.0],
    "missing, with its sign set": [2.0, math.copysign(math.nan, -1.0)],
}
dtypes = pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])


@dtypes
@pytest.mark.parametrize("numbers", GOOD.values(), ids=GOOD)
def test_good(numbers: list[float], dtype: torch.dtype) -> None:
    value = torch.tensor(numbers, dtype=torch.float64).clamp(max=torch.finfo(dtype).max).to(dtype)
    assert all_inside(value)
    assert inside(value).all()
    assert extremes(value) == (value.min().item(), value.max().item())


@dtypes
@pytest.mark.parametrize("numbers", BAD.values(), ids=BAD)
def test_bad(numbers: list[float], dtype: torch.dtype) -> None:
    value = torch.tensor(numbers, dtype=dtype)
    assert not all_inside(value)
    assert not inside(value).all()


def test_a_negative_zero_is_in_the_support_but_not_for_sure() -> None:
    value = torch.tensor([-0.0, 1.0])
    assert inside(value).all()
    assert not all_inside(value)
