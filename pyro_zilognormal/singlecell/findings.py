"""What was looked at to see whether a fit can be trusted, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyro_zilognormal.singlecell.job import Answer
from pyro_zilognormal.singlecell.misfit import off

# Of genes; a hundredth is expected to lie outside of 99 % intervals by chance.
_MOST_OUTSIDE = 0.05
_MOST_LISTED = 6
# Fewer donors than this say little of others.
_FEW_DONORS = 6


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        good: whether all is well.
        what: in words.
    """

    good: bool
    what: str


def findings(answer: Answer, numbers: Mapping[str, Any]) -> list[Finding]:
    """Return what was looked at, and whether all is well.

    Args:
        answer: what was found.
        numbers: from :func:`metrics`.
    """
    check = numbers["predictive_check"]
    return [
        _convergence(numbers["convergence"]),
        _check(check, "zero_fraction", "share of zeros", "the model has them seen too often or too rarely"),
        _check(check, "mean", "mean", "their positive values are not log-normal, so that log_fc may be off"),
        _check(check, "sd_log", "spread of the logarithm of positive values", "it differs from condition to condition"),
        *(_off(answer.of(contrast.name), answer.job.delta, contrast.name) for contrast in answer.contrasts),
        _donors(answer),
        *(Finding(False, f"Warning: {said}") for said in answer.warnings),
    ]


def _convergence(fit: Mapping[str, Any]) -> Finding:
    if fit["converged"]:
        return Finding(True, f"The fit converged: its loss no longer fell in the last fifth of {fit['steps']} steps.")
    return Finding(
        False,
        f"The fit did not converge in {fit['steps']} steps ({fit['stop_reason']}): do not rely on these numbers; run "
        "it again with more --steps.",
    )


def _check(check: Mapping[str, Any], quantity: str, what: str, meaning: str) -> Finding:
    share, outside = check[f"{quantity}_inside"], check[f"{quantity}_outside"]
    said = f"The {what} observed in each condition lies inside the {check['credible']:.0%} interval of cells drawn "
    said += f"anew from the fit for {share:.1%} of the {check['genes']} genes"
    if not outside:
        return Finding(True, f"{said}.")
    return Finding(1 - share <= _MOST_OUTSIDE, f"{said}; not for {_listed(outside)}: {meaning}.")


def _off(table: Any, delta: float, contrast: str) -> Finding:
    """Say which fold changes are off by more than their intervals tell."""
    wrong = table[off(table, delta)]
    if wrong.empty:
        return Finding(True, f"{contrast}: no log_fc is off for the model having one spread a gene in both conditions.")
    worst = wrong.loc[wrong["log_fc_bias"].abs().sort_values(ascending=False).index]
    mended = worst["log_fc"] - worst["log_fc_bias"]
    values = zip(worst["variable"], worst["log_fc"], mended, strict=True)
    genes = [f"{gene} ({was:+.2f}, mended {now:+.2f})" for gene, was, now in values]
    said = f"{contrast}: the values of {len(wrong)} of {len(table)} genes spread so much more in one condition than in "
    said += f"the other that log_fc is off by more than its interval: {_listed(genes)}. "
    return Finding(False, said + "Mended is log_fc less log_fc_bias.")


def _donors(answer: Answer) -> Finding:
    donors = answer.de.cells.donors
    if donors is None:
        return Finding(
            False,
            "Cells were taken as independent. The intervals hold for these cells, not for other donors: where cells "
            "come from several, name their column with --donor.",
        )
    few = len(donors.names) < _FEW_DONORS
    said = f"Differences between the {len(donors.names)} donors ({donors.name}) are part of the model"
    return Finding(not few, f"{said}; so few say little about other donors." if few else f"{said}.")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more
