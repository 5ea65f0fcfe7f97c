"""What scanpy 1.11 reads of ``uns["rank_genes_groups"]``, and how, for tests without scanpy and its compilers.

``benchmarks/scanpy_reads.py`` runs scanpy itself and compares it with this.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

FIELDS = ("names", "scores", "logfoldchanges", "pvals", "pvals_adj")


def groups(found: Any) -> list[str]:
    """The groups of a result: the names of the fields of its record arrays."""
    return list(found["names"].dtype.names)


def rank_genes_groups_df(found: Any, group: str | list[str] | None) -> pd.DataFrame:
    """The table that ``sc.get.rank_genes_groups_df`` makes."""
    chosen = groups(found) if group is None else [group] if isinstance(group, str) else group
    parts = []
    for name in chosen:
        part = pd.DataFrame({field: pd.DataFrame(found[field])[name] for field in FIELDS})
        for field, column in (("pts", "pct_nz_group"), ("pts_rest", "pct_nz_reference")):
            if field in found:
                part[column] = part["names"].map(found[field][name])
        parts.append(part.assign(group=name))
    table = pd.concat(parts, ignore_index=True)
    if len(chosen) == 1:
        return table.drop(columns="group")
    return table[["group", *table.columns.drop("group")]]


def plotted(found: Any, n_genes: int) -> dict[str, tuple[str, str, list[tuple[str, float]]]]:
    """What ``sc.pl.rank_genes_groups`` writes: for each group its title, and names and scores of its first genes."""
    reference = str(found["params"]["reference"])
    shown = {}
    for group in groups(found):
        genes = list(zip(found["names"][group], found["scores"][group], strict=True))[:n_genes]
        shown[group] = (f"{group} vs. {reference}", "score", genes)
    return shown
