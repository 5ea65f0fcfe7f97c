"""Every quantity of the zero-inflated log-normal with its derivatives, to 60 digits, apart from the package.

Each formula is a plain function of (mu, scale, zero) and perhaps x or q. It takes mpmath numbers or Jets;
`evaluate` feeds it the exact binary values of floats and returns the value and its first and second
derivatives. The zero comes from logits or cloglog (which may be infinite) or from a probability strictly inside (0, 1).
"""

from __future__ import annotations

import math
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


def zero_from_cloglog(eta: Number) -> ZeroPart:
    """P(X = 0) = exp(-rate), P(X > 0) = -expm1(-rate), with rate = exp(eta)."""
    v = value(eta)
    if mp.isinf(v):
        return zero_from_logits(-eta)
    rate = exp(eta)
    pi, pos = exp(-rate), -expm1(-rate)
    # log of P(X > 0) through whichever of the two is small, so that neither loses its digits.
    log_pos = log1p(-pi) if value(rate) > 1 else log(pos)
    return ZeroPart(pi, pos, -rate, log_pos, pi * rate - pos * log_pos)


ZEROS = {"zi_logits": zero_from_logits, "zi_probs": zero_from_probs, "cloglog": zero_from_cloglog}


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
    log_ratio = log1p(excess) if abs(value(excess)) < 0.5 else log(s_p) - log(s_q)
    return (excess * excess + shift * shift) / 2 + excess - log_ratio


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


def loc_of_mean(mean: Number, s: Number, zero: ZeroPart) -> Number:
    return log(mean) - zero.log_pos - s * s / 2


def scale_of_moments(mean: Number, sd: Number, zero: ZeroPart) -> Number:
    cv = sd / mean
    return sqrt(log1p(cv * cv * zero.pos - zero.pi))


def loc_of_moments(mean: Number, sd: Number, zero: ZeroPart) -> Number:
    return loc_of_mean(mean, scale_of_moments(mean, sd, zero), zero)


def log_prob_censored(mu: Number, s: Number, zero: ZeroPart, x: Number) -> Number:
    """log P(0 < X <= x)."""
    return zero.log_pos + log_ndtr(_z(mu, s, x))


PARAMETERS = ("mu", "scale", "zero")
PAIR = ("mu_p", "scale_p", "zero_p", "mu_q", "scale_q", "zero_q")
FORMULAS: dict[str, tuple[Callable[..., Number], tuple[str, ...]]] = {
    **{f.__name__: (f, PARAMETERS) for f in (zi_probs, prob_positive, mean, log_mean, variance, stddev, median, mode)},
    **{f.__name__: (f, PARAMETERS) for f in (entropy, perplexity, median_margin, mode_margin)},
    **{f.__name__: (f, (*PARAMETERS, "x")) for f in (log_prob, cdf, log_cdf, log_survival_function)},
    **{f.__name__: (f, (*PARAMETERS, "q")) for f in (icdf, icdf_margin)},
    "loc_of_mean": (loc_of_mean, ("mean", "scale", "zero")),
    "scale_of_moments": (scale_of_moments, ("mean", "stddev", "zero")),
    "loc_of_moments": (loc_of_moments, ("mean", "stddev", "zero")),
    "log_prob_censored": (log_prob_censored, (*PARAMETERS, "x")),
    "kl": (kl, PAIR),
    "kl_from_lognormal": (kl_from_lognormal, tuple(a for a in PAIR if a != "zero_p")),
    "kl_to_lognormal": (kl_to_lognormal, tuple(a for a in PAIR if a != "zero_q")),
}


@dataclass(frozen=True)
class Exact:
    """A value, its gradient and its Hessian in its arguments, which are kept alongside."""

    names: tuple[str, ...]
    args: tuple[Any, ...]
    value: Any
    grad: tuple[Any, ...]
    hess: tuple[tuple[Any, ...], ...]

    def conditioning(self, logs: bool = False) -> Any:
        """|f| + sum_i |a_i df/da_i|: what a relative error of 1 in every argument does, and in the result.

        With `logs` the logarithms of scale, x and q are rounded too, and the rate exp(cloglog).
        """
        return abs(self.value) + self._weighted(self.grad, logs)

    def grad_conditioning(self, j: int, logs: bool = False) -> Any:
        """The same for the derivative in argument j."""
        return abs(self.grad[j]) * self._logarithm(j, logs) + self._weighted(self.hess[j], logs)

    def _weighted(self, slopes: tuple[Any, ...], logs: bool) -> Any:
        terms = ((self._error(i, logs), slope) for i, slope in enumerate(slopes))
        return mp.fsum(error * abs(slope) for error, slope in terms if slope != 0)  # 0 wins over inf

    def _error(self, i: int, logs: bool) -> Any:
        a = abs(self.args[i])
        return max(1, a) if logs and self.names[i].startswith("cloglog") else a * self._logarithm(i, logs)

    def _logarithm(self, i: int, logs: bool) -> Any:
        through_logarithm = logs and self.names[i].split("_")[0] in ("scale", "x", "q", "mean", "stddev")
        return max(1, abs(mp.log(self.args[i]))) if through_logarithm and self.args[i] > 0 else 1


def call(name: str, args: tuple[Number, ...], zero: str = "zi_logits") -> Number:
    """The formula `name` at plain numbers or Jets, with the zeros as logits, probabilities or cloglogs."""
    formula, names = FORMULAS[name]
    return formula(*(ZEROS[zero](a) if n.startswith("zero") else a for n, a in zip(names, args, strict=True)))


def _more_digits(name: str, args: tuple[float, ...]) -> int:
    """Of numbers near 0 that are added to numbers near 1: a small scale or zero part, and pi in the median's z."""
    named = [(n.split("_")[0], min(abs(float(a)), 1500.0)) for n, a in zip(FORMULAS[name][1], args, strict=True)]
    small = [-math.log10(a) for n, a in named if n in ("scale", "zero", "q") and a > 0]
    of_pi = [a for n, a in named if n == "zero" and name == "median"]
    return int(2 * max([0.0, *small]) + max([0.0, *of_pi]))


@cache
def evaluate(name: str, args: tuple[float, ...], zero: str = "zi_logits") -> Exact:
    """Value, gradient and Hessian of the formula `name` at the exact values of floats (or mpmath numbers)."""
    points = tuple(mpf(a) for a in args)
    with mp.workdps(mp.dps + _more_digits(name, args)):
        out = call(name, tuple(Jet(a, {i: mpf(1)}) for i, a in enumerate(points)), zero)
    out = out if isinstance(out, Jet) else Jet(out)
    n, none = range(len(points)), mpf(0)
    hess = tuple(tuple(out.h.get((min(i, j), max(i, j)), none) for j in n) for i in n)
    names = tuple(n.replace("zero", zero) for n in FORMULAS[name][1])
    return Exact(names, points, out.v, tuple(out.g.get(i, none) for i in n), hess)
