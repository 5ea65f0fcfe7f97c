"""Run scanpy itself on results that `to_scanpy` wrote, and compare with what the tests say that it reads.

    pip install -c constraints.txt -e ".[test]" && pip install -c constraints.txt scanpy
    python benchmarks/scanpy_reads.py

scanpy brings compilers with it, so the tests read the results by tests/singlecell/scanpy_reader.py instead.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
sys.path.insert(0, str(Path(__file__).parents[1]))

import matplotlib.pyplot as plt
import pandas as pd
import scanpy as sc

from pyro_zilognormal.singlecell import differential_expression, to_scanpy
from tests.singlecell.cell_cases import experiment
from tests.singlecell.scanpy_reader import groups, plotted, rank_genes_groups_df


def check(adata: Any, key: str) -> None:
    """Compare the tables and the plot of one result."""
    found = adata.uns[key]
    for group in (*groups(found), None):
        theirs = sc.get.rank_genes_groups_df(adata, group=group, key=key)
        pd.testing.assert_frame_equal(theirs, rank_genes_groups_df(found, group), check_categorical=False)
    few = sc.get.rank_genes_groups_df(adata, groups(found)[0], key=key, pval_cutoff=0.05, log2fc_min=1)
    print(f"{key}, {groups(found)[0]}: pvals_adj < 0.05 and logfoldchanges > 1 of {list(few['names'])}")
    axes = sc.pl.rank_genes_groups(adata, n_genes=4, key=key, show=False)
    for ax, (title, ylabel, genes) in zip(axes, plotted(found, 4).values(), strict=True):
        assert ax.get_title() == title, (ax.get_title(), title)
        assert ylabel in (ax.get_ylabel(), axes[0].get_ylabel()), ax.get_ylabel()
        assert [text.get_text() for text in ax.texts] == [name for name, _ in genes]
    plt.close("all")
    sc.pl.rank_genes_groups_dotplot(adata, n_genes=2, key=key, show=False)
    plt.close("all")


def main() -> None:
    """Compare results of a contrast with a reference, of several, and of groups against the rest."""
    print(f"scanpy {version('scanpy')}, anndata {version('anndata')}, pandas {version('pandas')}")
    one, several, rest = experiment(), experiment(), experiment()
    differential_expression(one, "~ condition", ("condition", "stim", "ctrl"), steps=10)
    differential_expression(several, "~ donor", [("donor", d, "ctrl0") for d in ("ctrl1", "stim0")], steps=10)
    differential_expression(rest, groupby="sex", steps=10)
    for adata in (one, several, rest):
        to_scanpy(adata)
        to_scanpy(adata, key_added="ours")
        check(adata, "rank_genes_groups")
        check(adata, "ours")
    print("scanpy reads what the tests say")


if __name__ == "__main__":
    main()
