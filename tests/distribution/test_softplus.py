"""log(1 + exp(t)) in steps, against mpmath."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch

from pyro_zilognormal.numerics.softplus import LINEAR, LINEAR_IN_OTHERS, exp_, softplus_of_exp_

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
GOOD = {
    "small": [-3.0, -0.5, 0.0, 1e-3, 2.0],
    "far below": [-60.0, -12.0, -80.0],
    "around the limits": [9.0, 9.9, 10.0, 10.1, 11.0, 39.0, 40.0, 41.0],
    "large": [-1.0, 88.0, 710.0, 6e4],
}
ODD = {math.inf: math.inf, -math.inf: 0.0}


def softplus(numbers: list[float], dtype: torch.dtype) -> torch.Tensor:
    t = torch.tensor(numbers, dtype=dtype)
    excess = exp_(t)
    return softplus_of_exp_(t, excess)


def exact(number: float) -> float:
    with mpmath.workdps(60):
        return float(mpmath.log1p(mpmath.exp(number)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numbers", GOOD.values(), ids=GOOD)
def test_good(numbers: list[float], dtype: torch.dtype) -> None:
    """Within a few units in the last place, and of what the dtype resolves at all."""
    info = torch.finfo(dtype)
    given = torch.tensor(numbers, dtype=dtype).tolist()
    expected = torch.tensor([exact(number) for number in given], dtype=torch.float64)
    torch.testing.assert_close(softplus(given, dtype).double(), expected, rtol=3 * info.eps, atol=info.smallest_normal)


@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_numbers_spoil_no_others(dtype: torch.dtype) -> None:
    for odd, expected in ODD.items():
        assert softplus([odd, -1.0, 0.5], dtype).tolist() == [expected, *softplus([-1.0, 0.5], dtype).tolist()]
    found = softplus([math.nan, 0.0], dtype)
    assert found[0].isnan()
    assert found[1] == softplus([0.0], dtype)[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_stays_finite_where_nothing_is_cut(dtype: torch.dtype) -> None:
    limit = LINEAR.get(dtype, LINEAR_IN_OTHERS)
    t = torch.tensor([limit], dtype=dtype)
    assert exp_(t) is None
    assert t.isfinite()
    beyond = torch.tensor([2 * limit, 0.0], dtype=dtype)
    excess = exp_(beyond)
    assert excess is not None
    assert excess.tolist() == [limit, 0.0]
    assert beyond.tolist() == [t.item(), 1.0]
