"""The page of how much power there is: the ladder, the intervals, and what interferon's bars can show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from results import table

PAGE = Path(__file__).parent / "POWER.md"
DESIGNS = ("nested", "paired", "unequal", "depth")
PSEUDOBULK = ("pydeseq2", "moderated t")
# What each row of the ladder is, and how it is called on the page.
BOUND = "known distributions"
LADDER = {
    "true donor sds": "each gene's donor sd known",
    BOUND: "**the bound**: distributions known",
    "learned distributions": "distributions learned",
    "sums of samples": "the same, from sums of samples",
    "zeros and log-normals": "the same, from zeros and log-normals",
    "ours": "ours",
    "ours without depth": "ours, of normalised values",
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
    said = {"gain": gain, "error": error, "own": own, "own_error": own_error}
    facts = {key: value for key, value in record.items() if key.startswith("interferon/")}
    return TEXT.format(power=power, **said, coverage=coverage_table(record, seeds), interferon=interferon(facts))


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
    for rung in (BOUND, "learned distributions", "ours", *PSEUDOBULK):
        found = [[np.nanmean(values(record, d, seeds, rung, m)) for d in DESIGNS] for m in measures]
        rows.append([LADDER[rung], *(f"{100 * np.mean(each):.1f}" for each in found)])
    return table(["posterior or method", "all genes", "unchanged", "changed", "called"], rows)


def interferon(facts: Record) -> str:
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
        "within": "share within 0.3 of it if log_fc were the truth",
    }
    rows = [[key.split("/")[1], *(_shown(f[column]) for column in columns)] for key, f in facts.items()]
    return table(["cell type", *columns.values()], rows)


def _shown(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


TEXT = """# How much power there is

Printed by `python benchmarks/donors_power.py FOLDER`; the power of ours, pydeseq2 and the moderated t on seeds 0 to 19
is that of [DONORS.md](DONORS.md).

The simulator of DONORS.md is known, so the best order of its genes is known, too: by the posterior probability of the
called sign under the simulator's own negative binomial model. Where the distributions across genes of donor sds,
dispersions and effects are given, but no gene's own, nothing orders genes better in the mean over data sets. That
posterior is integrated numerically here, on the same data sets. Its power, at 5 % really false, is {gain:.1f} points
above that of the better pseudobulk method of each design, in the mean over designs, with a standard error of
{error:.1f}; ours is {own:+.1f} ± {own_error:.1f}. **An advantage of 5 points is not in the data**: of 4 donors a side a
gene's own donor sd is hardly known, and only a method that is told it has one.

## The ladder

Each row knows less than the one above it. *Learned*: a log-normal of donor sds and a scale mixture of effects, by EM on
the genes of the set itself. *Sums of samples*: the log of a sample's counts by its depth, taken as Normal, in place of
its cells. *Zeros and log-normals*: the same of a zero-inflated log-normal's mean of normalised values. The last column
is the difference in the mean over designs, with the standard error of differences on the same sets.

{power}

## Intervals

95 % intervals of log_fc hold more than 97 % of all truths for the ideal posterior as well. Nine genes in ten do not
change at all, and hardly an interval of a sparse prior excludes an exact 0; changed genes, whose effects are drawn
towards 0, are covered less often. Asked of each kind, in the sets where that was measured, in %:

{coverage}

## Interferon

Seven known genes among the first 30, and log_fc within 0.3 of the observed log2 ratio for 95 % of called genes, were
asked of two donors. More genes than 30 change as much as the seven do, and some of the seven are in few cells; and the
observed ratio is itself so uncertain, over cells, that the true ratio would be within 0.3 of it for the share of called
genes in the last column (where the standard error is at most 0.15, ours is for all of them).

{interferon}
"""
