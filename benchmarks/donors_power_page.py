"""The page of how much power there is: the ladder, the intervals, and what interferon's bars can show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from results import table

PAGE = Path(__file__).parent / "POWER.md"
DESIGNS = ("nested", "paired", "unequal", "depth")
PSEUDOBULK = ("pydeseq2", "moderated t")
BOUND = "known distributions"
# What each row of the ladder is called on the page.
LADDER = {
    "true donor sds": "each gene's donor sd known",
    BOUND: "**the bound**: distributions known",
    "learned distributions": "distributions learned",
    "sums of samples": "the same, from sums of samples",
    "zeros and log-normals": "the same, from zeros and log-normals",
    "ours": "ours",
    "pydeseq2": "pydeseq2",
    "moderated t": "moderated t",
}
Record = dict[str, dict[str, Any]]


def page(record: Record) -> str:
    """Return the page of a record of results by design, seed and rung."""
    seeds = sorted({int(key.split("/")[1]) for key in record if key.endswith(f"/{BOUND}")})
    power = power_table(record, seeds)
    gain, error = over_pseudobulk(record, seeds, BOUND)
    own, own_error = over_pseudobulk(record, seeds, "ours")
    said = {"sets": len(seeds), "gain": gain, "error": error, "own": own, "own_error": own_error}
    return TEXT.format(power=power, **said, coverage=coverage_table(record, seeds), interferon=interferon(record))


def values(record: Record, design: str, seeds: list[int], rung: str, measure: str) -> np.ndarray:
    """Return a measure of each set; NaN where it is missing."""
    found = (record.get(f"{design}/{seed}/{rung}", {}).get(measure) for seed in seeds)
    return np.array([np.nan if value is None else value for value in found], dtype=float)


def over_pseudobulk(record: Record, seeds: list[int], rung: str) -> tuple[float, float]:
    """Return the mean over designs of a rung's power above the better pseudobulk of each, with its standard error."""
    means, variances = [], []
    for design in DESIGNS:
        own, *others = (values(record, design, seeds, r, "power") for r in (rung, *PSEUDOBULK))
        rest = own - max(others, key=np.mean)
        means.append(rest.mean())
        variances.append(rest.var(ddof=1) / len(rest))
    return 100 * float(np.mean(means)), 100 * float(np.sqrt(np.sum(variances))) / len(DESIGNS)


def power_table(record: Record, seeds: list[int]) -> str:
    """Return the ladder of some sets."""
    rows = []
    for rung, title in LADDER.items():
        means = [values(record, design, seeds, rung, "power").mean() for design in DESIGNS]
        gain, error = over_pseudobulk(record, seeds, rung)
        rows.append([title, *(f"{100 * m:.1f}" for m in (*means, np.mean(means))), f"{gain:+.1f} ± {error:.1f}"])
    return table(["genes ordered by", *DESIGNS, "mean", "above the best pseudobulk"], rows)


def coverage_table(record: Record, seeds: list[int]) -> str:
    """Return how many truths 95 % intervals hold, of all, unchanged, changed and called genes."""
    measures = ("coverage", "coverage_unchanged", "coverage_changed", "coverage_called")
    rows = []
    for rung in (BOUND, "learned distributions", "ours"):
        found = [[np.nanmean(values(record, d, seeds, rung, m)) for d in DESIGNS] for m in measures]
        rows.append([LADDER[rung], *(f"{100 * np.mean(each):.1f}" for each in found)])
    return table(["posterior or method", "all genes", "unchanged", "changed", "called"], rows)


def interferon(record: Record) -> str:
    """Return what can be seen in cells stimulated with interferon."""
    columns = {
        "genes": "genes",
        "called": "called by ours",
        "beyond_4": "of these beyond 4-fold in both donors",
        "beyond_8": "beyond 8-fold",
        "rarest": "rarest of the seven",
        "rarest_cells": "cells with it",
        "cells": "of cells",
        "error": "median standard error of the observed log2 ratio of called",
        "close": "share of ours within 0.3 of it",
        "within": "the same if log_fc were the truth",
    }
    rows = []
    for cell_type in (key.split("/")[1] for key in record if key.startswith("response/")):
        found = record[f"response/{cell_type}"] | record[f"interferon/{cell_type}/0/ours"]
        rows.append([cell_type, *(_shown(found[column]) for column in columns)])
    return table(["cell type", *columns.values()], rows)


def _shown(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


TEXT = """# How much power there is

Printed by `python benchmarks/donors_power.py FOLDER`, of {sets} sets a design; pydeseq2 and moderated t are those of
[DONORS.md](DONORS.md), which says what is simulated and how power is measured.

The simulator is known, so the best order of its genes is known, too: by the posterior probability of the called sign
under the simulator's own negative binomial model. Where the distributions across genes of donor sds, dispersions and
effects are given, but no gene's own, no order has more true calls among its first genes, in the mean over data sets.
That posterior is integrated numerically here (the weak dependence of donor sds on rate and dispersion is left out). Its
power, at 5 % really false, is {gain:.1f} ± {error:.1f} points above that of the better pseudobulk method of each
design, in the mean over designs (± one standard error); ours is {own:+.1f} ± {own_error:.1f}.
**An advantage of 5 points is not in the data.** It takes a method that knows each gene's donor sd, which a few donors
hardly show.

## The ladder

| genes ordered by | what is known |
| --- | --- |
| distributions learned | a log-normal of donor sds and a scale mixture of effects, by EM on the genes of the set |
| sums of samples | a sample's counts by its depth, the logarithm taken as Normal, in place of its cells |
| zeros and log-normals | the mean of a zero-inflated log-normal of normalised values, likewise |

Found of the changed genes where 5 % are really false, in %; the last column is a mean over designs of differences on
the same sets, with its standard error:

{power}

To learn the distributions costs little, and so does the step from zeros and log-normals to our approximate posterior.
The likelihood costs a point or two at most.

## Intervals

95 % intervals of log_fc hold more than 97 % of all truths for the ideal posterior as well. Nine genes in ten do not
change at all, and an interval of a sparse prior hardly excludes an exact 0; changed genes, whose effects are drawn
towards 0, are covered less often. So 93 to 97 % of all is not to be asked of it. Asked of each kind, in %:

{coverage}

## Interferon

Seven known genes among the first 30, and log_fc within 0.3 of the observed log2 ratio for 95 % of called genes, were
asked of two donors. More genes than 30 change as much, and one of the seven can be in few cells. So no order by
certainty has all seven there in both types; ours has, since of equally certain genes those with the largest credible
change come first. The observed ratio is itself uncertain, over cells: were log_fc the truth, it would be within 0.3 of
it for the share of called genes in the last column.

{interferon}
"""
