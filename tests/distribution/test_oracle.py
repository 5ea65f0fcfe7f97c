"""The oracle checked against numerical differentiation, quadrature and published constants."""

from __future__ import annotations

import pytest

from tests.jets import mp, value
from tests.oracle import FORMULAS, call, evaluate

ARGS = {
    "mu": 1.25,
    "scale": 0.7,
    "zero": -0.3,
    "x": 0.8,
    "q": 0.75,
    "mean": 0.8,
    "stddev": 2.5,
    "mu_p": 1.25,
    "scale_p": 0.7,
    "zero_p": -0.3,
    "mu_q": 0.5,
    "scale_q": 0.6,
    "zero_q": 1.1,
}
SMOOTH = [n for n in FORMULAS if n != "kl_to_lognormal"]


@pytest.mark.parametrize("zero", ["zi_logits", "zi_probs", "cloglog"])
@pytest.mark.parametrize("name", SMOOTH)
def test_jets_agree_with_numerical_differentiation(name: str, zero: str) -> None:
    """Two ways to every first and second derivative, to 40 digits."""
    names = FORMULAS[name][1]
    args = tuple(abs(ARGS[a]) / 2 if zero == "zi_probs" and a.startswith("zero") else ARGS[a] for a in names)
    exact, n = evaluate(name, args, zero), len(args)

    def plain(*point: object) -> object:
        return mp.mpf(value(call(name, point, zero)))

    for i in range(n):
        order = tuple(int(k == i) for k in range(n))
        assert mp.almosteq(mp.diff(plain, exact.args, order), exact.grad[i], 1e-40, 1e-40)
        second = tuple(2 * k for k in order)
        assert mp.almosteq(mp.diff(plain, exact.args, second), exact.hess[i][i], 1e-40, 1e-40)
        j = (i + 1) % n
        mixed = tuple(int(k == i) + int(k == j) for k in range(n))
        assert mp.almosteq(mp.diff(plain, exact.args, mixed), exact.hess[i][j], 1e-40, 1e-40)


FAR = {
    "log_prob": [(50.0, 1e-3, 200.0, 1e300), (-50.0, 20.0, -200.0, 1e-300)],
    "cdf": [(2.0, 20.0, 40.0, 1e300), (-50.0, 20.0, -200.0, 1e-300)],
    "log_cdf": [(50.0, 1e-3, 2.0, 60.0), (-50.0, 20.0, -200.0, 1e-300), (3.0, 0.1, 200.0, 1e-30)],
    "log_survival_function": [(-50.0, 0.01, 200.0, 1e300), (50.0, 20.0, -200.0, 1e-300)],
    "icdf": [
        (50.0, 20.0, -37.0, 1 - 1e-15),
        (-50.0, 1e-3, -200.0, 1e-15),
        (1.0, 2.0, 3.0, 0.9525741268224334),
    ],
    "median": [(50.0, 20.0, -200.0), (2.0, 1.0, -1e-9)],
    "variance": [(50.0, 1e-3, -200.0), (-50.0, 20.0, 200.0)],
    "entropy": [(50.0, 1e-3, 200.0), (-50.0, 20.0, -200.0)],
    "kl": [
        (50.0, 1e-3, 200.0, 50.0, 1e-3, 200.0 * (1 + 1e-12)),
        (3.0, 1.0, -90.0, 3.0 + 1e-11, 1.0 + 1e-12, -90.0),
    ],
}


@pytest.mark.parametrize(("name", "args"), [(n, a) for n, points in FAR.items() for a in points], ids=str)
def test_jets_agree_with_numerical_differentiation_far_out(name: str, args: tuple[float, ...]) -> None:
    """The relative derivatives a_i df/da_i at extreme points, to 20 digits."""
    exact = evaluate(name, args)
    for i, (a, slope) in enumerate(zip(exact.args, exact.grad, strict=True)):

        def moved(t: object, i: int = i) -> object:
            return mp.mpf(value(call(name, tuple(a + a * t * (k == i) for k, a in enumerate(exact.args)))))

        assert mp.almosteq(mp.diff(moved, 0), a * slope, 1e-20, 1e-20 * abs(exact.value)), i


def _expectation(f: object, log_x: bool = False) -> object:
    """E f(X) by quadrature over the atom and the positive part."""
    mu, s = mp.mpf(ARGS["mu"]), mp.mpf(ARGS["scale"])
    pi = 1 / (1 + mp.exp(-mp.mpf(ARGS["zero"])))
    body = mp.quad(lambda z: f(mp.exp(mu + s * z)) * mp.npdf(z), [-25, -5, 0, 5, 25])  # type: ignore[operator]
    return pi * f(mp.mpf(0)) + (1 - pi) * body  # type: ignore[operator]


def test_moments_and_entropy_agree_with_quadrature() -> None:
    parameters = tuple(ARGS[a] for a in ("mu", "scale", "zero"))
    mean = evaluate("mean", parameters).value
    assert mp.almosteq(_expectation(lambda x: x), mean, 1e-30)
    assert mp.almosteq(_expectation(lambda x: (x - mean) ** 2), evaluate("variance", parameters).value, 1e-30)
    surprise = _expectation(lambda x: -call("log_prob", (*map(mp.mpf, parameters), x)))
    assert mp.almosteq(surprise, evaluate("entropy", parameters).value, 1e-30)


def test_divergence_agrees_with_quadrature() -> None:
    p = tuple(mp.mpf(ARGS[a]) for a in ("mu_p", "scale_p", "zero_p"))
    q = tuple(mp.mpf(ARGS[a]) for a in ("mu_q", "scale_q", "zero_q"))
    ratio = _expectation(lambda x: call("log_prob", (*p, x)) - call("log_prob", (*q, x)))
    assert mp.almosteq(ratio, evaluate("kl", (*p, *q)).value, 1e-30)


def test_known_constants() -> None:
    """Phi(1.96), the 97.5 % normal quantile and the entropy of the standard normal, from tables."""
    none = float("-inf")
    assert mp.almosteq(evaluate("cdf", (0.0, 1.0, none, mp.exp("1.96"))).value, "0.975002104851780", 1e-14)
    assert mp.almosteq(mp.log(evaluate("icdf", (0.0, 1.0, none, 0.975)).value), "1.959963984540054", 1e-14)
    assert mp.almosteq(evaluate("entropy", (0.0, 1.0, none)).value, "1.418938533204673", 1e-14)
    assert evaluate("cdf", (0.0, 1.0, 0.0, 1.0)).value == mp.mpf("0.75")
