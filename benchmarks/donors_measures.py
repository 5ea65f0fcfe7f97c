"""How well a method's table fits the truth, or what it calls where nothing was done."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from donors_data import INTERFERON, Cells

FDR = 0.05


def measure(cells: Cells, table: pd.DataFrame) -> dict[str, Any]:
    """Return the measures of one method on one data set, plain numbers; those without a truth are left out."""
    found: dict[str, Any] = {"genes": len(table), "calls": int(table["called"].sum())}
    found["calls_delta"] = int(table["called_delta"].sum())
    if cells.log2_fc is not None:
        found |= against_truth(table, cells.log2_fc)
    elif set(INTERFERON) <= set(table.index):
        found |= interferon_response(cells, table)
    return {name: None if isinstance(v, float) and np.isnan(v) else v for name, v in found.items()}


def against_truth(table: pd.DataFrame, log2_fc: np.ndarray) -> dict[str, float]:
    """Return measures of calls, of order and of intervals. A call with the wrong sign is false.

    ``fdp``: share of false calls; ``tpr``: share of changed genes that are called; ``power``: the same for the longest
    list in the method's order with at most 5 % false; ``mcc`` of the calls; ``mcc_p`` and ``type1`` (share of unchanged
    genes) of p below 0.05; ``coverage`` of 95 % intervals, of all genes, called, changed and unchanged ones.
    """
    changed = log2_fc != 0
    called, right = table["called"].to_numpy(), changed & (np.sign(table["log2_fc"].to_numpy()) == np.sign(log2_fc))
    low, high = (table[end].to_numpy() for end in ("low", "high"))
    known, holds = np.isfinite(low), (low <= log2_fc) & (log2_fc <= high)
    small = (table["p"] < FDR).to_numpy()
    ordered = right[np.argsort(-table["order"].to_numpy(), kind="stable")]
    within = np.cumsum(~ordered) <= FDR * np.arange(1, len(ordered) + 1)
    return {
        "false": int((called & ~right).sum()),
        "fdp": float((called & ~right).sum() / max(called.sum(), 1)),
        "tpr": share(called & right, changed),
        "power": float((np.cumsum(ordered) * within).max() / changed.sum()) if changed.any() else np.nan,
        "mcc": matthews(called, changed),
        "mcc_p": matthews(small, changed),
        "type1": share(small, ~changed),
        "coverage": share(holds, known),
        "coverage_called": share(holds, known & called),
        "coverage_changed": share(holds, known & changed),
        "coverage_unchanged": share(holds, known & ~changed),
    }


def share(event: np.ndarray, among: np.ndarray) -> float:
    """Share of genes for which an event holds, among some; NaN where there are none."""
    return float(event[among].mean()) if among.any() else np.nan


def matthews(called: np.ndarray, changed: np.ndarray) -> float:
    """Matthews' correlation; 0 where nothing or everything is called."""
    if called.all() or not called.any() or changed.all() or not changed.any():
        return 0.0
    return float(np.corrcoef(called, changed)[0, 1])


def interferon_response(cells: Cells, table: pd.DataFrame) -> dict[str, Any]:
    """Return how many known genes are called, their ranks, and how near to those observed the log2 ratios are.

    ``close``: share of called genes whose ratio is within 0.3 of that observed; ``close_sure``: of those whose observed
    ratio has a standard error, over cells, of at most 0.15, so that 0.3 is two of them; ``holds``: share of called
    genes with values in both conditions whose 95 % interval holds the observed ratio.
    """
    rank = (-table["order"]).rank(method="first").astype(int)
    means, errors = zip(*(mean_and_error(cells.normalised[of]) for of in (cells.stim, ~cells.stim)), strict=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        observed = np.log2(means[0]) - np.log2(means[1])
        error = np.hypot(errors[0] / means[0], errors[1] / means[1]) / np.log(2)
    called = table["called"].to_numpy()
    low, high = (table[end].to_numpy() for end in ("low", "high"))
    close = np.abs(table["log2_fc"].to_numpy() - observed) <= 0.3
    return {
        "known": int(table["called"].loc[list(INTERFERON)].sum()),
        "ranks": [int(rank[gene]) for gene in INTERFERON],
        "close": share(close, called),
        "close_sure": share(close, called & (error <= 0.15)),
        "holds": share((low <= observed) & (observed <= high), called & np.isfinite(observed) & np.isfinite(low)),
    }


def mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of each gene, and its standard error over cells."""
    return values.mean(0), values.std(0) / np.sqrt(len(values))
