"""Every quantity of the zero-inflated log-normal with its derivatives, to 60 digits, apart from the package.

Each formula is a plain function of (mu, scale, zero) and perhaps x or q. It takes mpmath numbers or Jets;
`evaluate` feeds it the exact binary values of floats and returns the value and its first and second
derivatives. The zero comes from logits (which may be infinite) or from a probability strictly inside (0, 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from tests.jets import (
    Jet,
    Number,
    exp,
    expm1,
    log,
    log1p,
    log_ndtr,
    log_sigmoid,
    mp,
    ndtr,
    ndtri,
    sigmoid,
    sqrt,
    value,
)

mpf = mp.mpf
HALF_LOG_2PI = mp.log(2 * mp.pi) / 2


@dataclass(frozen=True)
class ZeroPart:
    """P(X = 0) and its complement, each with its logarithm, and the entropy of the coin."""

    pi: Number
    pos: Number
    log_pi: Number
    log_pos: Number
    entropy: Number


def zero_from_logits(logit: Number) -> ZeroPart:
    v = value(logit)
    if mp.isinf(v):  # the limits: all derivatives vanish but those of the logarithm that diverges linearly
        pi, zero = mpf(int(v > 0)), mpf(0)
        slope = {k: -mp.sign(v) * c for k, c in logit.g.items()} if isinstance(logit, Jet) else {}
        diverging = Jet(-mp.inf, slope) if isinstance(logit, Jet) else -mp.inf
        return ZeroPart(pi, 1 - pi, *((zero, diverging) if v > 0 else (diverging, zero)), zero)
    log_pi, log_pos = log_sigmoid(logit), log_sigmoid(-logit)
    pi, pos = sigmoid(logit), sigmoid(-logit)
    return ZeroPart(pi, pos, log_pi, log_pos, -(pi * log_pi + pos * log_pos))


def zero_from_probs(p: Number) -> ZeroPart:
    log_pi, log_pos = log(p), log1p(-p)
    return ZeroPart(p, 1 - p, log_pi, log_pos, -(p * log_pi + (1 - p) * log_pos))


def _z(mu: Number, s: Number, x: Number) -> Number:
    return (log(x) - mu) / s


def zi_probs(mu: Number, s: Number, zero: ZeroPart) -> Number:
    return zero.pi


def prob_positive(mu: Number, s: Number, zero: ZeroPart) -> Number:
    return zero.pos


def log_prob(mu: Number, s: Number, zero: ZeroPart, x: Number) -> Number:
    if value(x) == 0:
        return zero.log_pi
    z = _z(mu, s, x)
    return zero.log_pos - (log(x) + log(s) + HALF_LOG_2PI + z * z / 2)


def _exceed(mu: Number, s: Number, zero: ZeroPart, x: Number) -> Number:
    """P(X > x), with full relative accuracy."""
    return zero.pos * ndtr(-_z(mu, s, x))


def cdf(mu: Number, s: Number, zero: ZeroPart, x: Number) -> Number:
    if value(x) == 0:
        return zero.pi
    exceed = _exceed(mu, s, zero, x)
    return 1 - exceed if value(exceed) < 0.5 else zero.pi + zero.pos * ndtr(_z(mu, s, x))


def log_cdf(mu: Number, s: Number, zero: ZeroPart, x: Number) -> Number:
    if value(x) == 0:
        return zero.log_pi
    exceed = _exceed(mu, s, zero, x)
    return log1p(-exceed) if value(exceed) < 0.5 else log(zero.pi + zero.pos * ndtr(_z(mu, s, x)))


def log_survival_function(mu: Number, s: Number, zero: ZeroPart, x: Number) -> Number:
    return zero.log_pos if value(x) == 0 else zero.log_pos + log_ndtr(-_z(mu, s, x))


def icdf_margin(mu: Number, s: Number, zero: ZeroPart, q: Number) -> Number:
    """q - pi, from the end of (0, 1) that is nearer: positive where icdf is."""
    return q - zero.pi if value(q) < 0.5 else zero.pos - (1 - q)


def icdf(mu: Number, s: Number, zero: ZeroPart, q: Number) -> Number:
    margin = icdf_margin(mu, s, zero, q)
    if value(margin) <= 0:
        return mpf(0)
    if value(q) == 1:
        return mpf("inf")
    return exp(mu + s * ndtri(margin / zero.pos, (1 - q) / zero.pos))


def median_margin(mu: Number, s: Number, zero: ZeroPart) -> Number:
    return mpf("0.5") - zero.pi


def median(mu: Number, s: Number, zero: ZeroPart) -> Number:
    return icdf(mu, s, zero, mpf("0.5"))


def log_mean(mu: Number, s: Number, zero: ZeroPart) -> Number:
    return zero.log_pos + mu + s * s / 2


def mean(mu: Number, s: Number, zero: ZeroPart) -> Number:
    return exp(mu + s * s / 2) * zero.pos


def variance(mu: Number, s: Number, zero: ZeroPart) -> Number:
    return exp(2 * mu + s * s) * zero.pos * (expm1(s * s) + zero.pi)


def stddev(mu: Number, s: Number, zero: ZeroPart) -> Number:
    return exp(mu + s * s / 2) * exp(zero.log_pos / 2) * sqrt(expm1(s * s) + zero.pi)


def mode_margin(mu: Number, s: Number, zero: ZeroPart) -> Number:
    """log_prob at the log-normal mode less log_prob at 0: positive where the mode is."""
    peak = -(mu + log(s) + HALF_LOG_2PI) + s * s / 2
    return peak + zero.log_pos - zero.log_pi


def mode(mu: Number, s: Number, zero: ZeroPart) -> Number:
    return exp(mu - s * s) if value(mode_margin(mu, s, zero)) > 0 else mpf(0)


def entropy(mu: Number, s: Number, zero: ZeroPart) -> Number:
    return zero.entropy + zero.pos * (mu + mpf("0.5") + log(s) + HALF_LOG_2PI)


def perplexity(mu: Number, s: Number, zero: ZeroPart) -> Number:
    return exp(entropy(mu, s, zero))


def _kl_normal(mu_p: Number, s_p: Number, mu_q: Number, s_q: Number) -> Number:
    excess, shift = (s_p - s_q) / s_q, (mu_p - mu_q) / s_q  # exactly 0 where the two agree
    return (excess * excess + shift * shift) / 2 + excess - log1p(excess)


def _kl_term(weight: Number, log_p: Number, log_q: Number) -> Number:
    """w (log p - log q), which is 0 where w is, whatever the logarithms are."""
    return weight * (log_p - log_q) if value(weight) else mpf(0)


def kl(mu_p: Number, s_p: Number, p: ZeroPart, mu_q: Number, s_q: Number, q: ZeroPart) -> Number:
    zeros = _kl_term(p.pi, p.log_pi, q.log_pi) + _kl_term(p.pos, p.log_pos, q.log_pos)
    return zeros + p.pos * _kl_normal(mu_p, s_p, mu_q, s_q)


def kl_from_lognormal(mu_p: Number, s_p: Number, mu_q: Number, s_q: Number, q: ZeroPart) -> Number:
    return _kl_normal(mu_p, s_p, mu_q, s_q) - q.log_pos


def kl_to_lognormal(mu_p: Number, s_p: Number, p: ZeroPart, mu_q: Number, s_q: Number) -> Number:
    return mpf("inf") if value(p.pi) else _kl_normal(mu_p, s_p, mu_q, s_q)


PARAMETERS = ("mu", "scale", "zero")
PAIR = ("mu_p", "scale_p", "zero_p", "mu_q", "scale_q", "zero_q")
FORMULAS: dict[str, tuple[Callable[..., Number], tuple[str, ...]]] = {
    **{f.__name__: (f, PARAMETERS) for f in (zi_probs, prob_positive, mean, log_mean, variance, stddev, median, mode)},
    **{f.__name__: (f, PARAMETERS) for f in (entropy, perplexity, median_margin, mode_margin)},
    **{f.__name__: (f, (*PARAMETERS, "x")) for f in (log_prob, cdf, log_cdf, log_survival_function)},
    **{f.__name__: (f, (*PARAMETERS, "q")) for f in (icdf, icdf_margin)},
    "kl": (kl, PAIR),
    "kl_from_lognormal": (kl_from_lognormal, tuple(a for a in PAIR if a != "zero_p")),
    "kl_to_lognormal": (kl_to_lognormal, tuple(a for a in PAIR if a != "zero_q")),
}


@dataclass(frozen=True)
class Exact:
    """A value, its gradient and its Hessian in its arguments, which are kept alongside."""

    args: tuple[Any, ...]
    value: Any
    grad: tuple[Any, ...]
    hess: tuple[tuple[Any, ...], ...]

    def conditioning(self) -> Any:
        """|f| + sum_i |a_i df/da_i|: what a relative error of 1 in every argument does, and in the result."""
        return abs(self.value) + _weighted(self.args, self.grad)

    def grad_conditioning(self, j: int) -> Any:
        """The same for the derivative in argument j."""
        return abs(self.grad[j]) + _weighted(self.args, self.hess[j])


def _weighted(args: tuple[Any, ...], slopes: tuple[Any, ...]) -> Any:
    return mp.fsum(abs(a * d) for a, d in zip(args, slopes, strict=True) if d != 0)  # 0 wins over an infinite logit


def call(name: str, args: tuple[Number, ...], probs: bool = False) -> Number:
    """The formula `name` at plain numbers or Jets; with `probs` the zeros are probabilities, not logits."""
    formula, names = FORMULAS[name]
    zero = zero_from_probs if probs else zero_from_logits
    return formula(*(zero(a) if n.startswith("zero") else a for n, a in zip(names, args, strict=True)))


@cache
def evaluate(name: str, args: tuple[float, ...], probs: bool = False) -> Exact:
    """Value, gradient and Hessian of the formula `name` at the exact values of floats (or mpmath numbers)."""
    points = tuple(mpf(a) for a in args)
    # At zi_logits = -200 the median's z is exp(-200) / 2 away from 0, which takes 87 digits more.
    with mp.workdps(mp.dps + (90 if name == "median" else 0)):
        out = call(name, tuple(Jet(a, {i: mpf(1)}) for i, a in enumerate(points)), probs)
    out = out if isinstance(out, Jet) else Jet(out)
    n, zero = range(len(points)), mpf(0)
    hess = tuple(tuple(out.h.get((min(i, j), max(i, j)), zero) for j in n) for i in n)
    return Exact(points, out.v, tuple(out.g.get(i, zero) for i in n), hess)
