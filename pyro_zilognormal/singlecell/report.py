"""The report of a run: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from pyro_zilognormal.singlecell.contrasts import CellCondition, Contrast
from pyro_zilognormal.singlecell.errors import require
from pyro_zilognormal.singlecell.findings import Finding, findings
from pyro_zilognormal.singlecell.glossary import GLOSSARY
from pyro_zilognormal.singlecell.job import Answer

# Genes shown, and named in a sentence.
_TOP, _NAMED = 12, 5
_STATUS = {
    "all_zero": "never seen in these cells, so nothing is known of them",
    "all_positive": "seen in each of these cells",
    "too_few_positive": "seen in fewer than three of these cells, so that little can be said",
}


@dataclass(frozen=True)
class Shown:
    """What the report shows of a contrast.

    Attributes:
        test: the condition above, in a word.
        reference: the condition below.
        up: the surest called genes that are higher in the test condition, as rows of the table.
        down: those that are lower.
        status: what kinds of genes say little: how many, and in words what they are.
    """

    test: str
    reference: str
    up: list[dict[str, Any]]
    down: list[dict[str, Any]]
    status: list[tuple[int, str]]


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
    found = findings(answer, numbers)
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        job=answer.job,
        settings=answer.de.settings,
        numbers=numbers,
        findings=found,
        verdict=verdict(found, numbers["convergence"]),
        shown={c.name: shown(answer, c) for c in answer.contrasts},
        named=_NAMED,
        pictures={name: _inline(png) for name, png in pictures.items()},
        genes={name: _inline(png) for name, png in genes.items()},
        glossary=GLOSSARY,
    )


def shown(answer: Answer, contrast: Contrast) -> Shown:
    """Return what the report shows of a contrast."""
    table = answer.of(contrast.name)
    called = table[table["is_de"]]
    up, down = (called[sign * called["log_fc"] > 0].head(_TOP).to_dict("records") for sign in (1, -1))
    counts = {str(status): int(number) for status, number in table["status"].value_counts().items()}
    status = [(counts[name], said) for name, said in _STATUS.items() if name in counts]
    return Shown(_word(contrast, contrast.test), _word(contrast, contrast.reference), up, down, status)


def _word(contrast: Contrast, condition: CellCondition) -> str:
    """Return the level alone, where the two conditions differ in one variable."""
    only = len(condition.levels) == 1 and contrast.column in condition.levels
    return str(condition.levels[contrast.column]) if only and contrast.column is not None else condition.name


def verdict(found: Sequence[Finding], fit: Mapping[str, Any]) -> str:
    """Return in a sentence whether the fit can be trusted."""
    if not fit["converged"]:
        return "No: the fit did not converge. Run it again with more --steps before anything is made of it."
    cares = sum(not finding.good for finding in found)
    if not cares:
        return "Yes: all that was looked at is as it should be."
    points = "one point below, marked ⚠, limits" if cares == 1 else f"{cares} points below, marked ⚠, limit"
    return f"Yes, with care: {points} what can be said."


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
