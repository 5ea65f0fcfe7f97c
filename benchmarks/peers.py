"""Check, by running the released packages, what our README says of them, and print it as markdown.

    pip install -c constraints.txt -e .
    pip install numpyro tensorflow-probability tf-keras "scvi-tools>=1.4.3"  # which needs Python 3.12
    pip install xgboost scikit-base && pip install --no-deps xgboostlss      # whose pins exclude torch 2.10
    python benchmarks/peers.py > benchmarks/PEERS.md

Exit code 1 if a claim no longer holds, or could not be checked because a package is missing, which is named.
"""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from peer_capabilities import CAPABILITIES, EXAMPLE, NEVER_ZERO, OTHER, System, asked, same, verdict
from peer_exact import Exact
from peer_systems import (
    NumPyroSystem,
    TFPProbsSystem,
    TFPSystem,
    our_system,
    pyro_system,
    scvi_system,
    xgboostlss_system,
)

LOG_GATE = math.log(EXAMPLE.gate)


class Claim(NamedTuple):
    """One thing said of a system, what it did, and whether that is what was said."""

    text: str
    observed: str
    holds: bool


def gives(text: str, observed: Any, expected: Any) -> Claim:
    """The claim that a call gives this number, or fails in this way."""
    if isinstance(observed, str) or isinstance(expected, str):
        return Claim(text, str(observed), observed == expected)
    return Claim(text, f"{observed:.9g}", same(observed, expected))


def accepted(text: str, question: Callable[[], Any]) -> Claim:
    """The claim that a call raises nothing."""
    answer = asked(question)
    return Claim(text, answer, False) if isinstance(answer, str) else Claim(text, "accepted", True)


def lacks(system: System, *members: str) -> list[Claim]:
    """The claims that a system has no such member, no reparameterized draw and no KL."""
    arguments = {"cdf": (2.0,), "icdf": (0.9,)}
    answers = {m: asked(partial(system.number, EXAMPLE, m, *arguments.get(m, ()))) for m in members}
    answers["rsample"] = asked(lambda: system.draws(EXAMPLE, "rsample", 1))
    answers["KL"] = asked(lambda: system.kl(EXAMPLE, OTHER))
    return [gives(f"has no {name}", answer, "absent") for name, answer in answers.items()]


def our_claims() -> list[Claim]:
    """Every capability must be right; at -1 and NaN, refused when validated."""
    refused = "validated: raises ValueError"
    expected = ("right", f"-inf; {refused}", f"nan; {refused}")
    answers = {name: probe(our_system()) for name, probe in CAPABILITIES.items()}
    return [Claim(name, answer, answer in expected) for name, answer in answers.items()]


def scvi_inherited(member: str, *arguments: float) -> Claim:
    """The claim that a member is torch's LogNormal's own, and wrong."""
    from scvi.distributions import ZeroInflatedLogNormal

    inherited = getattr(ZeroInflatedLogNormal, member) is getattr(torch.distributions.LogNormal, member)
    answer = verdict([scvi_system().number(EXAMPLE, member, *arguments)], getattr(EXAMPLE, member)(*arguments))
    return Claim(f"{member} is the log-normal's, wrong here", answer, inherited and answer != "right")


def scvi_claims() -> list[Claim]:
    system = scvi_system()
    drawn = system.make(EXAMPLE)[0].sample((3,))
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    never, nan = asked(lambda: system.number(NEVER_ZERO, "log_prob", 1.7)), Exact(0.5, 0.8, math.nan)
    log_prob = {x: asked(partial(system.number, EXAMPLE, "log_prob", x)) for x in (1e-9, 1e-8, -1.0, math.nan)}
    validated = asked(lambda: system.number(EXAMPLE, "log_prob", -1.0, validate=True))
    mixed = float(system.make(EXAMPLE)[0].log_prob(torch.zeros(3, dtype=torch.float64))[0])
    rounded = float(torch.tensor(LOG_GATE, dtype=torch.float32))
    zeros = int((system.draws(EXAMPLE, "rsample", 20_000) == 0).sum())
    return [
        gives("rsample draws no zeros: of 20,000", zeros, 0),
        scvi_inherited("cdf", 2.0),
        scvi_inherited("icdf", 0.9),
        *(scvi_inherited(member) for member in ("entropy", "mode", "perplexity")),
        gives("KL is that of the log-normals", system.kl(EXAMPLE, OTHER), EXAMPLE.log_normal_kl(OTHER)),
        gives("log_prob(1e-9) is log pi", log_prob[1e-9], LOG_GATE),
        gives("log_prob(1e-8) is 0", log_prob[1e-8], 0.0),
        gives("log_prob(nan) is 0", log_prob[math.nan], 0.0),
        gives("log_prob(-1) is log pi", log_prob[-1.0], LOG_GATE),
        gives("log_prob(-1) is log pi also under validate_args=True", validated, LOG_GATE),
        gives("zi_logits = -inf gives NaN at x = 1.7", never, math.nan),
        gives("expand is not implemented", asked(lambda: system.expanded_shape(EXAMPLE)), "absent"),
        Claim("samples are inference tensors", str(drawn.is_inference()), drawn.is_inference()),
        gives("they break autograd", asked(lambda: (weight * drawn).sum()), "raises RuntimeError"),
        accepted("zi_logits = nan passes validation", lambda: system.make(nan, validate=True)),
        gives("pyro.sample cannot draw from it", asked(lambda: system.in_pyro(EXAMPLE, None)), "raises TypeError"),
        accepted("pyro.sample can observe it", lambda: system.in_pyro(EXAMPLE, 0.0)),
        gives("float64 parameters that are scalars lose digits at x = [0., 0., 0.]", mixed, rounded),
    ]


def pyro_claims() -> list[Claim]:
    system = pyro_system()
    validated = asked(lambda: system.number(EXAMPLE, "log_prob", 0.0, validate=True))
    slopes = system.value_and_slopes(EXAMPLE, 0.0)[1:]
    return [
        gives("refuses 0 under validation", validated, "raises ValueError"),
        gives("without it log_prob(0) is NaN", system.number(EXAMPLE, "log_prob", 0.0), math.nan),
        Claim("and so are its gradients", str(slopes), all(math.isnan(slope) for slope in slopes)),
        *lacks(system, "cdf", "icdf", "entropy", "mode"),
    ]


def numpyro_claims() -> list[Claim]:
    from numpyro.distributions import HurdleLogits, HurdleLogNormal, LogNormal

    system, points = NumPyroSystem(), (0.0, 1e-30, 1e-9, 0.2, 1.7, 30.0)
    density = verdict([system.number(EXAMPLE, "log_prob", x) for x in points], *map(EXAMPLE.log_prob, points))
    no_logits = asked(lambda: HurdleLogNormal(gate_logits=EXAMPLE.zi_logits))
    generic = HurdleLogits(LogNormal(EXAMPLE.mu, EXAMPLE.scale), EXAMPLE.zi_logits, validate_args=True)
    at_zero = asked(lambda: float(generic.log_prob(0.0)))
    return [
        Claim("the density is right", density, density == "right"),
        gives("the class takes no logits", no_logits, "raises TypeError"),
        gives("HurdleLogits(LogNormal) takes them, but validated gives -inf at 0", at_zero, -math.inf),
        gives("the gate's gradient is NaN at gate 0", system.value_and_slopes(NEVER_ZERO, 1.0)[3], math.nan),
        *lacks(system, "cdf", "icdf", "entropy", "mode"),
    ]


def xgboostlss_claims() -> list[Claim]:
    from xgboostlss.distributions.zero_inflated import ZeroAdjustedLogNormal

    parameters = (torch.tensor(value, dtype=torch.float32) for value in (-10.0, 2.0, 0.3))
    single = ZeroAdjustedLogNormal(*parameters, validate_args=False).log_prob(torch.zeros(())).item()
    tiny = verdict([xgboostlss_system().number(EXAMPLE, "log_prob", 1e-30)], EXAMPLE.log_prob(1e-30))
    at_zero = "in float32 log_prob(0) is 9.56 at gate 0.3, loc -10, scale 2 (true: -1.204)"
    return [
        Claim(at_zero, f"{single:.4f}", abs(single - 9.56) < 0.005),
        Claim("lifts x to eps, so log_prob(1e-30) is wrong in float64 too", tiny, tiny != "right"),
        gives("making a ZALN() leaves torch's validation", validation_after_zaln(), "off"),
        *lacks(xgboostlss_system(), "cdf", "icdf", "entropy", "mode"),
    ]


def validation_after_zaln() -> str:
    """Whether torch validates by default once the class that XGBoostLSS trains with has been made."""
    from xgboostlss.distributions.ZALN import ZALN

    torch.distributions.Distribution.set_default_validate_args(True)
    ZALN()
    left_on = torch.distributions.Normal(0.0, 1.0)._validate_args
    torch.distributions.Distribution.set_default_validate_args(True)
    return "on" if left_on else "off"


def tfp_claims() -> list[Claim]:
    doubled = Exact(EXAMPLE.mu, EXAMPLE.scale, 2 * EXAMPLE.zi_logits)
    by_logits, by_probs = TFPSystem(), TFPProbsSystem()
    return [
        gives("logits l give log pi of 2 l", by_logits.number(EXAMPLE, "log_prob", 0.0), doubled.log_prob(0.0)),
        gives("probabilities are taken as they are", by_probs.number(EXAMPLE, "log_prob", 0.0), LOG_GATE),
        *lacks(by_probs, "icdf", "entropy", "mode"),
    ]


PEERS: dict[str, tuple[Callable[[], System], Callable[[], list[Claim]]]] = {
    "pyro_zilognormal ZeroInflatedLogNormal": (our_system, our_claims),
    "scvi-tools ZeroInflatedLogNormal": (scvi_system, scvi_claims),
    "Pyro ZeroInflatedDistribution(LogNormal)": (pyro_system, pyro_claims),
    "NumPyro HurdleLogNormal": (NumPyroSystem, numpyro_claims),
    "XGBoostLSS ZeroAdjustedLogNormal": (xgboostlss_system, xgboostlss_claims),
    "TFP Inflated(LogNormal)": (TFPProbsSystem, tfp_claims),
}


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def capability_table(systems: list[System]) -> str:
    lines = [row("what was asked", *(s.name for s in systems)), row(*["---"] * (1 + len(systems)))]
    lines += [row(name, *(probe(s) for s in systems)) for name, probe in CAPABILITIES.items()]
    return "\n".join(lines)


def claim_table(title: str, claims: list[Claim]) -> str:
    lines = [f"### {title}", "", row("claim", "observed", "as claimed"), row("---", "---", "---")]
    return "\n".join([*lines, *(row(c.text, c.observed, "yes" if c.holds else "**NO**") for c in claims)])


def main() -> int:
    """Print the tables; 1 if a claim fails or a package is missing."""
    systems: list[System] = []
    tables, failed = [], False
    for title, (load, claims) in PEERS.items():
        try:
            systems.append(load())
        except ImportError as error:
            print(f"missing: {title}: {error}", file=sys.stderr)
            tables.append(f"### {title}\n\n**NOT CHECKED**: {error}.")
            failed = True
            continue
        found = claims()
        tables.append(claim_table(title, found))
        failed |= not all(claim.holds for claim in found)
    versions = ", ".join(f"{system.name} {system.version}" for system in systems)
    print(HEAD.format(versions=versions, torch=torch.__version__, python=platform.python_version(), exact=EXAMPLE))
    print(capability_table(systems), "", "## Claims", "", "\n\n".join(tables), sep="\n")
    return int(failed)


HEAD = """# Peers, as measured

Printed by `python benchmarks/peers.py`, which runs each package and fails if a claim no longer holds. MAST is
an R package and is not run; XGBoostLSS runs on a newer torch than its pins allow.

Versions: {versions}; torch {torch}, Python {python}.

## Capabilities

In float64, with mu = {exact.mu}, scale = {exact.scale}, zi_logits = {exact.zi_logits} if not said otherwise.
`right` is within 1e-8 of the exact value; `absent` means that the call does not exist or says that it is not
implemented. At -1 and NaN the cell says what came; a finite number there is in bold. NumPyro, XGBoostLSS and
TFP are given P(X = 0) as a probability, and differentiated in it; the others take logits.
"""

if __name__ == "__main__":
    sys.exit(main())
