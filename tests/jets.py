"""Second-order forward differentiation over mpmath numbers, for the oracle.

A `Jet` carries a value, its gradient and its Hessian in named arguments, sparsely. The functions below take a
Jet or a plain mpmath number, so that one formula serves both and `mp.diff` can check the Jet.
"""

from __future__ import annotations

from typing import Any

from mpmath import MPContext
from scipy.special import ndtri_exp

mp = MPContext()  # our own context: the precision of anybody else's mpmath stays what it was
mp.dps = 60
Number = Any  # mpmath.mpf or Jet: mpmath has no types


class Jet:
    """A value with sparse first and second derivatives; a missing entry is an exact zero."""

    __slots__ = ("g", "h", "v")

    def __init__(self, v: Any, g: dict | None = None, h: dict | None = None) -> None:
        self.v, self.g, self.h = v, g or {}, h or {}

    def compose(self, f0: Any, f1: Any, f2: Any) -> Jet:
        """f(self), from f and its first two derivatives at the value."""
        h = {k: f1 * c for k, c in self.h.items()}
        _add_outer(h, self.g, self.g, f2)
        return Jet(f0, {k: f1 * c for k, c in self.g.items()}, h)

    def __add__(self, other: Number) -> Jet:
        if not isinstance(other, Jet):
            return Jet(self.v + other, self.g, self.h)
        return Jet(self.v + other.v, _sum(self.g, other.g), _sum(self.h, other.h))

    def __mul__(self, other: Number) -> Jet:
        if not isinstance(other, Jet):
            return Jet(self.v * other, _times(self.g, other), _times(self.h, other))
        h = _sum(_times(self.h, other.v), _times(other.h, self.v))
        _add_outer(h, self.g, other.g, 1)
        _add_outer(h, other.g, self.g, 1)
        return Jet(self.v * other.v, _sum(_times(self.g, other.v), _times(other.g, self.v)), h)

    def __neg__(self) -> Jet:
        return self * -1

    def __sub__(self, other: Number) -> Jet:
        return self + (-other)

    def __rsub__(self, other: Number) -> Jet:
        return -self + other

    def __truediv__(self, other: Number) -> Jet:
        return self * (reciprocal(other) if isinstance(other, Jet) else 1 / other)

    def __rtruediv__(self, other: Number) -> Jet:
        return reciprocal(self) * other

    __radd__ = __add__
    __rmul__ = __mul__


def _sum(a: dict, b: dict) -> dict:
    out = dict(a)
    for k, c in b.items():
        out[k] = out[k] + c if k in out else c
    return out


def _times(a: dict, c: Any) -> dict:
    return {k: c * x for k, x in a.items()}


def _add_outer(h: dict, a: dict, b: dict, c: Any) -> None:
    """Add the upper triangle of c times the outer product of a and b."""
    for i, x in a.items():
        for j, y in b.items():
            if i <= j:
                h[i, j] = h.get((i, j), 0) + c * x * y


def value(u: Number) -> Any:
    """The plain number in a Jet."""
    return u.v if isinstance(u, Jet) else u


def _lift(u: Number, f0: Any, f1: Any, f2: Any) -> Number:
    return u.compose(f0, f1, f2) if isinstance(u, Jet) else f0


def reciprocal(u: Number) -> Number:
    r = 1 / value(u)
    return _lift(u, r, -r * r, 2 * r**3)


def exp(u: Number) -> Number:
    e = mp.exp(value(u))
    return _lift(u, e, e, e)


def expm1(u: Number) -> Number:
    e = mp.exp(value(u))
    return _lift(u, mp.expm1(value(u)), e, e)


def log(u: Number) -> Number:
    r = 1 / value(u)
    return _lift(u, mp.log(value(u)), r, -r * r)


def log1p(u: Number) -> Number:
    r = 1 / (1 + value(u))
    return _lift(u, mp.log1p(value(u)), r, -r * r)


def sqrt(u: Number) -> Number:
    s = mp.sqrt(value(u))
    return _lift(u, s, 1 / (2 * s), -1 / (4 * s**3))


def sigmoid(u: Number) -> Number:
    """1 / (1 + exp(-u)), with the relative accuracy of exp in its left tail."""
    v = value(u)
    p, q = 1 / (1 + mp.exp(-v)), 1 / (1 + mp.exp(v))
    return _lift(u, p, p * q, p * q * (q - p))


def log_sigmoid(u: Number) -> Number:
    v = value(u)
    p, q = 1 / (1 + mp.exp(-v)), 1 / (1 + mp.exp(v))
    return _lift(u, -mp.log1p(mp.exp(-v)), q, -p * q)


def _phi(z: Any) -> Any:
    return mp.exp(-z * z / 2) / mp.sqrt(2 * mp.pi)


def _ndtr(z: Any) -> Any:
    if abs(z) < 1e9:
        return mp.erfc(-z / mp.sqrt(2)) / 2
    tail = _phi(z) / abs(z) * (1 - z**-2 + 3 * z**-4 - 15 * z**-6)  # mpmath's erfc overflows far out
    return tail if z < 0 else 1 - tail


def ndtr(u: Number) -> Number:
    """The standard normal cdf."""
    z = value(u)
    return _lift(u, _ndtr(z), _phi(z), -z * _phi(z))


def log_ndtr(u: Number) -> Number:
    z = value(u)
    p = _ndtr(z)
    hazard = _phi(z) / p
    log_p = mp.log(p) if z < 0 else mp.log1p(-_ndtr(-z))
    return _lift(u, log_p, hazard, -hazard * (z + hazard))


def _ndtri(p: Any) -> Any:
    """Phi^-1 on (0, 1/2] by Newton's method on log Phi, from scipy's double."""
    target = mp.log(p)
    z = mp.mpf(float(ndtri_exp(float(target))))
    for _ in range(20):
        step = (mp.log(_ndtr(z)) - target) * _ndtr(z) / _phi(z)
        z -= step
        if abs(step) < mp.mpf(10) ** (8 - mp.dps):
            return z
    raise ArithmeticError(f"the inverse normal cdf did not converge at {p}")


def ndtri(p: Number, upper: Number) -> Number:
    """Phi^-1(p), given p and upper = 1 - p, each accurate in its own tail."""
    if value(upper) < value(p):
        return -ndtri(upper, p)
    z = _ndtri(value(p))
    slope = 1 / _phi(z)
    return _lift(p, z, slope, z * slope * slope)
