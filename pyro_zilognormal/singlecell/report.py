"""The report of a run: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from pyro_zilognormal.singlecell.errors import require
from pyro_zilognormal.singlecell.glossary import GLOSSARY
from pyro_zilognormal.singlecell.job import Answer

_TOP = 20
# Of genes; a hundredth is expected to lie outside of 99 % intervals by chance.
_MOST_OUTSIDE = 0.05


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at to see whether the fit can be trusted.

    Attributes:
        good: whether all is well.
        what: in words.
    """

    good: bool
    what: str


def report(
    answer: Answer, numbers: Mapping[str, Any], pictures: Mapping[str, bytes], genes: Mapping[str, bytes]
) -> str:
    """Return the report as HTML.

    Args:
        answer: what was found.
        numbers: from :func:`metrics`.
        pictures: "loss", "volcano" and "predictive", as PNG.
        genes: pictures of single genes by name.
    """
    template = resources.files("pyro_zilognormal.singlecell") / "report.html.jinja"
    environment = require("jinja2").Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        answer=answer,
        job=answer.job,
        settings=answer.de.settings,
        numbers=numbers,
        findings=findings(answer, numbers),
        tables={c.name: answer.of(c.name).head(_TOP).to_dict("records") for c in answer.contrasts},
        pictures={name: _inline(png) for name, png in pictures.items()},
        genes={name: _inline(png) for name, png in genes.items()},
        glossary=GLOSSARY,
    )


def findings(answer: Answer, numbers: Mapping[str, Any]) -> list[Finding]:
    """Return what was looked at to see whether the fit can be trusted."""
    return [
        _convergence(numbers["convergence"]),
        _check(numbers["predictive_check"], "zero_fraction", "share of zeros"),
        _check(numbers["predictive_check"], "mean", "mean"),
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


def _check(check: Mapping[str, Any], quantity: str, what: str) -> Finding:
    share, outside = check[f"{quantity}_inside"], check[f"{quantity}_outside"]
    good = 1 - share <= _MOST_OUTSIDE
    said = f"The {what} observed lies inside the {check['credible']:.0%} interval of cells drawn anew from the fit for "
    said += f"{share:.1%} of the {check['genes']} genes"
    if not outside:
        return Finding(good, f"{said}.")
    some = ", ".join(outside[:12]) + (f" and {len(outside) - 12} more" if len(outside) > 12 else "")
    return Finding(good, f"{said}; not for {some}" + (": read these with care." if good else ": the law fits badly."))


def _donors(answer: Answer) -> Finding:
    donors = answer.de.cells.donors
    if donors is None:
        return Finding(
            False,
            "Cells were taken as independent. The intervals hold for these cells, not for other donors: where cells "
            "come from several, name their column with --donor.",
        )
    few = len(donors.names) < 6
    said = f"Differences between the {len(donors.names)} donors ({donors.name}) are part of the model"
    return Finding(not few, f"{said}; so few say little about other donors." if few else f"{said}.")


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
