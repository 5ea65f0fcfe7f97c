"""What must hold between the members of the distribution: inverses, derivatives, integrals, limits."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_zilognormal import ZeroInflatedLogNormal
from tests.points import random_logits, random_probs

EPS = torch.finfo(torch.float64).eps
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
PARAMETERS = [(0.0, 1.0, 0.0), (1.5, 0.3, -2.0), (-3.0, 2.5, 1.0), (4.0, 0.05, -30.0), (0.3, 1.2, 5.0)]
ALL = pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
Parameters = tuple[float, float, float]


def tensors(parameters: Parameters, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.tensor(a, dtype=dtype) for a in parameters]


def distribution(parameters: Parameters, dtype: torch.dtype = torch.float64) -> ZeroInflatedLogNormal:
    return ZeroInflatedLogNormal(*tensors(parameters, dtype))


def quantile_grid(parameters: Parameters) -> Tensor:
    """x from 6 standard deviations below the positive part's median to 3 above it."""
    mu, scale, _ = parameters
    return torch.exp(mu + scale * torch.linspace(-6, 3, 37, dtype=torch.float64))


@ALL
def test_the_density_is_the_derivative_of_the_cdf(parameters: Parameters) -> None:
    d, x = distribution(parameters), quantile_grid(parameters).requires_grad_()
    (slope,) = torch.autograd.grad(d.cdf(x).sum(), x)
    torch.testing.assert_close(slope, d.log_prob(x).exp(), rtol=1e-13, atol=0)


@ALL
def test_icdf_undoes_cdf(parameters: Parameters) -> None:
    """icdf(cdf(x)) = x, up to what one rounding of cdf does to x."""
    d, x = distribution(parameters), quantile_grid(parameters)
    q = d.cdf(x)
    allowed = 16 * EPS * (x * (1 + x.log().abs()) + q / d.log_prob(x).exp())
    error = (d.icdf(q) - x).abs()
    told_apart = q > d.cdf(torch.zeros(())) * (1 + 4 * EPS)
    assert told_apart.sum() > 18
    assert (error <= allowed)[told_apart].all(), (error / allowed).max()


@ALL
def test_cdf_undoes_icdf_above_pi(parameters: Parameters) -> None:
    d = distribution(parameters)
    share = torch.tensor([1e-9, 1e-4, 0.1, 0.5, 0.9, 1 - 1e-4, 1 - 1e-9], dtype=torch.float64)
    q = d.zi_probs + d.prob_positive * share
    x = d.icdf(q)
    allowed = 16 * EPS * (q + x * d.log_prob(x).exp() * (1 + x.log().abs()))
    assert (x > 0).all()
    assert ((d.cdf(x) - q).abs() <= allowed).all()


@DTYPES
@pytest.mark.parametrize("parameter", ["zi_logits", "zi_probs"])
def test_the_cdf_at_0_is_pi_to_the_bit(parameter: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    zeros = random_logits(rng, 2000) if parameter == "zi_logits" else random_probs(rng, 2000, dtype)
    edges = [-math.inf, math.inf] if parameter == "zi_logits" else [0.0, 1.0]
    zero = torch.tensor([*zeros, *edges]).to(dtype)
    d = ZeroInflatedLogNormal(torch.ones((), dtype=dtype), torch.ones((), dtype=dtype), **{parameter: zero})
    at_zero = d.cdf(torch.zeros((), dtype=dtype))
    assert torch.equal(at_zero, d.zi_probs)
    # Where a pi below 1 rounds to 1, icdf(1) = inf is right too.
    told_apart = (at_zero < 1) | (d.prob_positive == 0)
    assert told_apart.double().mean() > 0.6
    assert not d.icdf(at_zero)[told_apart].any()


@DTYPES
def test_quantiles_around_pi(dtype: torch.dtype) -> None:
    """At q = pi and one step either side: 0 up to pi, small above it, and no derivative is NaN."""
    logit = torch.linspace(-30, 10, 81, dtype=dtype).requires_grad_()
    mu, scale = (torch.tensor(a, dtype=dtype, requires_grad=True) for a in (0.3, 0.9))
    d = ZeroInflatedLogNormal(mu, scale, logit)
    pi = d.zi_probs.detach()
    for end in (0.0, None, 1.0):
        q = (pi if end is None else torch.nextafter(pi, torch.tensor(end, dtype=dtype))).requires_grad_()
        x = d.icdf(q)
        slopes = torch.autograd.grad(x.sum(), [mu, scale, logit, q], allow_unused=True)
        assert not any(g.isnan().any() for g in slopes if g is not None)
        assert ((x >= 0) & (x < 0.5)).all() if end == 1.0 else not x.any()


@DTYPES
def test_half_of_zeros_makes_the_median_0(dtype: torch.dtype) -> None:
    mu, scale = torch.tensor(3.0, dtype=dtype), torch.tensor(0.5, dtype=dtype)
    for d in (ZeroInflatedLogNormal(mu, scale, 0.0), ZeroInflatedLogNormal(mu, scale, zi_probs=0.5)):
        assert d.median == 0
        assert d.icdf(torch.tensor(0.5, dtype=dtype)) == 0
    assert ZeroInflatedLogNormal(mu, scale, -0.01).median > 0


@ALL
def test_both_tails_add_up(parameters: Parameters) -> None:
    d, x = distribution(parameters), torch.cat([torch.zeros(1, dtype=torch.float64), quantile_grid(parameters)])
    total = d.log_cdf(x).exp() + d.log_survival_function(x).exp()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=8 * EPS, atol=0)
    torch.testing.assert_close(d.log_cdf(x).exp(), d.cdf(x), rtol=64 * EPS, atol=0)


@ALL
@pytest.mark.parametrize("x", [-1e-300, -1.0, -math.inf])
@pytest.mark.parametrize("validate_args", [False, True])
def test_below_the_support(parameters: Parameters, x: float, validate_args: bool) -> None:
    """The cdf is defined on the whole line; the density below 0 is refused, or 0 without validation."""
    d = ZeroInflatedLogNormal(*tensors(parameters), validate_args=validate_args)
    value = torch.tensor(x, dtype=torch.float64)
    assert d.cdf(value) == 0
    assert d.log_cdf(value) == -math.inf
    assert d.log_survival_function(value) == 0
    if validate_args:
        with pytest.raises(ValueError, match="support"):
            d.log_prob(value)
    else:
        assert d.log_prob(value) == -math.inf


def expectation(parameters: Parameters, f: Callable[[Tensor], Tensor]) -> float:
    """E f(X) by quadrature over the atom and the positive part."""
    mu, scale, logit = parameters
    pi = 1 / (1 + math.exp(-logit))

    def integrand(z: float) -> float:
        x = torch.tensor(math.exp(mu + scale * z), dtype=torch.float64)
        return float(f(x)) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    body = sum(quad(integrand, a, b, epsabs=0, epsrel=1e-12)[0] for a, b in [(-12, 0), (0, 4), (4, 16)])
    return pi * float(f(torch.zeros((), dtype=torch.float64))) + (1 - pi) * body


@ALL
def test_moments_are_integrals(parameters: Parameters) -> None:
    d = distribution(parameters)
    mean = float(d.mean)
    assert expectation(parameters, lambda x: x) == pytest.approx(mean, rel=1e-10)
    variance = expectation(parameters, lambda x: (x - mean) ** 2)
    assert variance == pytest.approx(float(d.variance), rel=1e-9)
    assert float(d.stddev) == pytest.approx(math.sqrt(variance), rel=1e-9)
    assert float(d.log_mean) == pytest.approx(math.log(mean), rel=1e-12, abs=1e-12)


@ALL
def test_entropy_is_the_expected_surprise(parameters: Parameters) -> None:
    d = distribution(parameters)
    surprise = expectation(parameters, lambda x: -d.log_prob(x))
    assert float(d.entropy()) == pytest.approx(surprise, rel=1e-10)
    assert float(d.perplexity()) == pytest.approx(math.exp(surprise), rel=1e-9)


@ALL
@pytest.mark.parametrize("other", PARAMETERS, ids=str)
def test_divergence_is_the_expected_log_ratio(parameters: Parameters, other: Parameters) -> None:
    p, q = distribution(parameters), distribution(other)
    ratio = expectation(parameters, lambda x: p.log_prob(x) - q.log_prob(x))
    assert float(kl_divergence(p, q)) == pytest.approx(ratio, rel=1e-9, abs=1e-12)


@ALL
def test_divergence_between_the_zero_inflated_and_a_lognormal(parameters: Parameters) -> None:
    mu, scale, _ = tensors(parameters)
    lognormal, none = dist.LogNormal(mu, scale), ZeroInflatedLogNormal(mu, scale, -math.inf)
    q = distribution(parameters)
    torch.testing.assert_close(kl_divergence(lognormal, q), -q.prob_positive.log())
    torch.testing.assert_close(kl_divergence(lognormal, q), kl_divergence(none, q))
    assert kl_divergence(q, lognormal) == math.inf
    assert kl_divergence(none, lognormal) == 0


@DTYPES
def test_no_zeros_is_the_lognormal(dtype: torch.dtype) -> None:
    mu, scale = (torch.tensor(a, dtype=dtype)[:, None] for a in ([-2.0, 0.0, 3.0], [0.2, 1.0, 2.0]))
    d, plain = ZeroInflatedLogNormal(mu, scale, -math.inf), torch.distributions.LogNormal(mu, scale)
    z = torch.linspace(-3, 4, 29, dtype=dtype)
    x, q = torch.exp(mu + scale * z), torch.linspace(0.01, 0.99, 29, dtype=dtype)
    tight = {"rtol": 100 * torch.finfo(dtype).eps, "atol": 100 * torch.finfo(dtype).eps}
    torch.testing.assert_close(d.log_prob(x), plain.log_prob(x), **tight)
    torch.testing.assert_close(d.cdf(x), plain.cdf(x), **tight)
    torch.testing.assert_close(d.icdf(q), plain.icdf(q), **tight)
    torch.testing.assert_close(d.entropy(), plain.entropy(), **tight)
    for name in ("mean", "variance", "stddev", "mode"):
        torch.testing.assert_close(getattr(d, name), getattr(plain, name), **tight)
    assert (d.sample((1000,)) > 0).all()


@DTYPES
def test_all_zeros_is_the_point_mass(dtype: torch.dtype) -> None:
    mu, scale = torch.tensor(0.7, dtype=dtype), torch.tensor(1.3, dtype=dtype)
    d = ZeroInflatedLogNormal(mu, scale, math.inf)
    x = torch.tensor([0.0, 1e-30, 1.0, 1e30], dtype=dtype)
    none = torch.tensor([0.0, -math.inf, -math.inf, -math.inf], dtype=dtype)
    assert torch.equal(d.log_prob(x), none)
    assert torch.equal(d.cdf(x), torch.ones_like(x))
    assert torch.equal(d.log_cdf(x), torch.zeros_like(x))
    assert torch.equal(d.log_survival_function(x), torch.full_like(x, -math.inf))
    assert torch.equal(d.icdf(torch.tensor([0.0, 0.5, 1.0], dtype=dtype)), torch.zeros(3, dtype=dtype))
    for zero in (d.mean, d.variance, d.stddev, d.median, d.mode, d.entropy()):
        assert zero == 0
    assert d.perplexity() == 1
    assert d.log_mean == -math.inf
    assert not d.sample((1000,)).any()


@ALL
@pytest.mark.parametrize("factor", [1e-3, 7.0])
def test_a_change_of_unit_shifts_mu(parameters: Parameters, factor: float) -> None:
    """c X has location mu + log c and the same scale and zero part."""
    mu, scale, logit = parameters
    d, scaled = distribution(parameters), distribution((mu + math.log(factor), scale, logit))
    x = quantile_grid(parameters)
    torch.testing.assert_close(scaled.log_prob(factor * x), d.log_prob(x) - math.log(factor), rtol=1e-11, atol=0)
    torch.testing.assert_close(scaled.cdf(factor * x), d.cdf(x), rtol=1e-11, atol=0)
    torch.testing.assert_close(scaled.mean, factor * d.mean, rtol=1e-11, atol=0)
    torch.testing.assert_close(scaled.variance, factor**2 * d.variance, rtol=1e-11, atol=0)
    assert torch.equal(scaled.log_prob(torch.zeros(())), d.log_prob(torch.zeros(())))


@DTYPES
def test_the_mode_has_the_largest_log_prob(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(3)
    mu, scale, logit = (
        torch.tensor(a).to(dtype) for a in (rng.normal(0, 2, 200), rng.uniform(0.1, 3, 200), rng.normal(0, 3, 200))
    )
    d = ZeroInflatedLogNormal(mu, scale, logit)
    best = d.log_prob(d.mode)
    candidates = torch.cat([torch.zeros(1), torch.logspace(-9, 6, 400)]).to(dtype)[:, None]
    assert (d.log_prob(candidates) <= best + 1e-5).all()
    assert 20 < (d.mode == 0).sum() < 180
