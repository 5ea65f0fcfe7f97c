"""What each system can do, found by asking it and comparing with the exact distribution."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from peer_exact import Exact

EXAMPLE, OTHER = Exact(0.5, 0.8, -0.3), Exact(0.7, 1.1, 0.4)
SMALL = Exact(-36.0, 2.0, -0.3)  # values near the machine epsilon
NEVER_ZERO, ALWAYS_ZERO = Exact(0.5, 0.8, -math.inf), Exact(0.5, 0.8, math.inf)
N = 20_000


class System(Protocol):
    """What the probes need to know of a system."""

    name: str
    version: str
    gate_is: str

    def number(self, exact: Exact, member: str, *arguments: float, validate: bool = False) -> float: ...
    def kl(self, p: Exact, q: Exact) -> float: ...
    def value_and_slopes(self, exact: Exact, x: float) -> list[float]: ...
    def draws(self, exact: Exact, member: str, n: int) -> np.ndarray: ...
    def expanded_shape(self, exact: Exact) -> tuple[int, ...]: ...
    def in_pyro(self, exact: Exact, observed: float | None) -> float: ...


Probe = Callable[[System], str]


def asked(question: Callable[[], Any]) -> Any:
    """The answer, or the name of the error that came instead: "absent" where the feature does not exist."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scvi-tools and NumPyro warn where others raise
        try:
            return question()
        except (NotImplementedError, AttributeError):
            return "absent"
        except Exception as error:  # whatever a peer raises is its answer
            return f"raises {type(error).__name__}"


def same(observed: float, true: float) -> bool:
    if math.isnan(true) or math.isinf(true):
        return observed == true or (math.isnan(observed) and math.isnan(true))
    return abs(observed - true) <= 1e-8 * max(1.0, abs(true))


def verdict(observed: Any, *true: float) -> str:
    """`right`, or what came instead of the truth; an error or "absent" passes through."""
    if isinstance(observed, str):
        return observed
    pairs = list(zip(observed, true, strict=True))
    if all(same(o, t) for o, t in pairs):
        return "right"
    return "**wrong**: " + ", ".join(differing(o, t) for o, t in pairs if not same(o, t))


def differing(observed: float, true: float) -> str:
    """Both numbers, with as many digits as it takes to distinguish them."""
    short, long = (f"{observed:{digits}} for {true:{digits}}" for digits in (".4g", ".9g"))
    return long if f"{observed:.4g}" == f"{true:.4g}" else short


def numbers(member: str, *points: float, exact: Exact = EXAMPLE) -> Probe:
    """Ask for a member at points, or for its one value."""
    grid: list[tuple[float, ...]] = [(x,) for x in points] or [()]
    true = [getattr(exact, member)(*x) for x in grid]
    return lambda system: verdict(asked(lambda: [system.number(exact, member, *x) for x in grid]), *true)


def moments(system: System) -> str:
    observed = asked(lambda: [system.number(EXAMPLE, m) for m in ("mean", "variance")])
    return verdict(observed, EXAMPLE.mean(), EXAMPLE.variance())


def out_of_support(x: float) -> Probe:
    """What comes without validation and with it; a finite number, which would pass unnoticed, in bold."""

    def probe(system: System) -> str:
        off = asked(lambda: system.number(EXAMPLE, "log_prob", x))
        on = asked(lambda: system.number(EXAMPLE, "log_prob", x, validate=True))
        return f"{shown(off)}; validated: {shown(on)}"

    return probe


def shown(answer: float | str) -> str:
    if isinstance(answer, str):
        return answer
    return f"**{answer:.4g}**" if math.isfinite(answer) else f"{answer}"


def zero_in_support(system: System) -> str:
    return verdict(asked(lambda: [system.number(EXAMPLE, "log_prob", 0.0, validate=True)]), EXAMPLE.log_prob(0.0))


def divergence(system: System) -> str:
    return verdict(asked(lambda: [system.kl(EXAMPLE, OTHER)]), EXAMPLE.kl(OTHER))


def zeros_drawn(member: str) -> Probe:
    """The share of zeros among the draws, within 5 standard errors."""

    def probe(system: System) -> str:
        drawn = asked(lambda: system.draws(EXAMPLE, member, N))
        if isinstance(drawn, str):
            return drawn
        share, error = float((drawn == 0).mean()), math.sqrt(EXAMPLE.gate * (1 - EXAMPLE.gate) / N)
        return (
            "right" if abs(share - EXAMPLE.gate) < 5 * error else f"**wrong**: {share:.3f} zeros for {EXAMPLE.gate:.3f}"
        )

    return probe


def expand(system: System) -> str:
    shape = asked(lambda: system.expanded_shape(EXAMPLE))
    return "right" if shape == (3,) else str(shape)


def in_pyro(observed: float | None) -> Probe:
    """A Pyro model of cells in a plate: drawn, its log density must be finite; observed, exact."""

    def probe(system: System) -> str:
        density = asked(lambda: system.in_pyro(EXAMPLE, observed))
        if observed is not None or isinstance(density, str):
            return verdict(density if isinstance(density, str) else [density], EXAMPLE.log_prob(0.0))
        return "right" if math.isfinite(density) else f"**wrong**: {density}"

    return probe


def value_and_slopes(exact: Exact, x: float) -> Probe:
    """log_prob and its gradient in mu, scale and the zero part's own parameter, derived by hand."""
    z = (math.log(x) - exact.mu) / exact.scale if x > 0 else 0.0
    positive = [z / exact.scale, (z * z - 1) / exact.scale] if x > 0 else [0.0, 0.0]

    def probe(system: System) -> str:
        if system.gate_is == "gate":
            gate = 1 / exact.gate if x == 0 else -1 / (1 - exact.gate)
        else:
            gate = 1 - exact.gate if x == 0 else -exact.gate
        observed = asked(lambda: system.value_and_slopes(exact, x))
        return verdict(observed, exact.log_prob(x), *positive, gate)

    return probe


CAPABILITIES: dict[str, Probe] = {
    "`log_prob` at 0": numbers("log_prob", 0.0),
    "`log_prob` at 0 with mu = -36, scale = 2": numbers("log_prob", 0.0, exact=SMALL),
    "`log_prob` at 1e-30, 1e-9, 1e-8: positive numbers": numbers("log_prob", 1e-30, 1e-9, 1e-8),
    "`log_prob` at 0.2, 1.7, 30": numbers("log_prob", 0.2, 1.7, 30.0),
    "`log_prob` at -1": out_of_support(-1.0),
    "`log_prob` at NaN": out_of_support(math.nan),
    "0 is in the support when validated": zero_in_support,
    "mean, variance": moments,
    "`cdf` at 0, 2": numbers("cdf", 0.0, 2.0),
    "`icdf` at 0.1, 0.9": numbers("icdf", 0.1, 0.9),
    "mode": numbers("mode"),
    "entropy": numbers("entropy"),
    "KL": divergence,
    "`sample`: share of zeros": zeros_drawn("sample"),
    "`rsample`: share of zeros": zeros_drawn("rsample"),
    "`expand`": expand,
    "`pyro.sample`, drawn in a plate": in_pyro(None),
    "`pyro.sample`, observed at 0": in_pyro(0.0),
    "`log_prob`, gradients at x = 0": value_and_slopes(EXAMPLE, 0.0),
    "`log_prob`, gradients at x = 1.7": value_and_slopes(EXAMPLE, 1.7),
    "`log_prob`, gradients at x = 1 where P(X = 0) = 0": value_and_slopes(NEVER_ZERO, 1.0),
    "`log_prob`, gradients at x = 0 where P(X = 0) = 1": value_and_slopes(ALWAYS_ZERO, 0.0),
}
