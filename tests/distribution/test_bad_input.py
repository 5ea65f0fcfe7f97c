"""Every bad call ends in an error that names the argument, and none of them in a plausible number."""

import math

import pytest
import torch

from pyro_zilognormal import ZeroInflatedLogNormal
from tests.distribution.cases import BAD, Bad


def test_the_table_is_long_enough() -> None:
    assert len(BAD) >= 40
    assert len({bad.name for bad in BAD}) == len(BAD)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_bad_call(bad: Bad) -> None:
    with pytest.raises(bad.error, match=bad.words) as caught:
        bad.call()
    assert type(caught.value) is bad.error


@pytest.mark.parametrize(
    ("method", "value", "expected"),
    [
        ("log_prob", -1.0, -math.inf),
        ("log_prob", -1e-7, -math.inf),
        ("log_prob", math.inf, -math.inf),
        ("log_prob", -math.inf, -math.inf),
        ("log_prob", math.nan, math.nan),
        ("cdf", math.nan, math.nan),
        ("log_cdf", math.nan, math.nan),
        ("log_survival_function", math.nan, math.nan),
        ("icdf", -0.1, math.nan),
        ("icdf", 1.1, math.nan),
        ("icdf", math.nan, math.nan),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_without_validation_no_plausible_number(method: str, value: float, expected: float, dtype: torch.dtype) -> None:
    mu = torch.zeros(3, dtype=dtype, requires_grad=True)
    d = ZeroInflatedLogNormal(mu, 1.0, 0.0, validate_args=False)
    result = getattr(d, method)(torch.tensor(value, dtype=dtype))
    torch.testing.assert_close(result, torch.full((3,), expected, dtype=dtype), equal_nan=True)
    (gradient,) = torch.autograd.grad(result.sum(), mu)
    assert torch.equal(gradient, torch.zeros_like(mu))


def test_bad_parameters_without_validation_give_a_nan_log_prob() -> None:
    x = torch.tensor([0.5, 2.0])
    for bad in ({"mu": math.nan}, {"scale": -1.0}, {"scale": math.nan}, {"zi_logits": math.nan}):
        d = ZeroInflatedLogNormal(**{"mu": 0.0, "scale": 1.0, "zi_logits": 0.0, "validate_args": False, **bad})
        assert d.log_prob(x).isnan().all(), bad


def test_the_global_switch_is_followed() -> None:
    d = ZeroInflatedLogNormal(0.0, 1.0, 0.0)
    explicit = ZeroInflatedLogNormal(0.0, 1.0, 0.0, validate_args=True)
    negative = torch.tensor(-1.0)
    try:
        ZeroInflatedLogNormal.set_default_validate_args(False)
        assert d.log_prob(negative) == -math.inf
        assert d.expand((2,)).log_prob(negative).tolist() == [-math.inf] * 2
        assert ZeroInflatedLogNormal(0.0, -1.0, 0.0).scale == -1
        for checked in (explicit, explicit.expand((2,)), explicit.mask(torch.tensor(True))):
            with pytest.raises(ValueError, match="support"):
                checked.log_prob(negative)
    finally:
        ZeroInflatedLogNormal.set_default_validate_args(True)
    with pytest.raises(ValueError, match="support"):
        d.log_prob(negative)
