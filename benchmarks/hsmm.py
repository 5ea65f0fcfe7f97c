"""Differential expression of myoblasts whose "zeros" are denormal numbers, with and without a detection threshold.

    pip install -c constraints.txt -e ".[singlecell]" && pip install rdata
    apt-get download r-bioc-hsmmsinglecell && dpkg -x r-bioc-hsmmsinglecell_*.deb hsmm
    OMP_NUM_THREADS=1 python benchmarks/hsmm.py hsmm > benchmarks/HSMM.md

C. Trapnell et al. (2014), "The dynamics and regulators of cell fate decisions are revealed by pseudotemporal ordering
of single cells", Nature Biotechnology 32: 271 cells, FPKM, at 0, 24, 48 and 72 hours of differentiation.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import rdata
import torch

from pyro_zilognormal.models import cell_parameters
from pyro_zilognormal.singlecell import HurdleDE

# Switched on in myotubes, and genes of dividing cells, which are switched off.
UP = ("MYOG", "MYH3", "TNNT1", "ENO3", "CDH15", "MYH8")
DOWN = ("CDK1", "TOP2A", "CCNB2", "ID1", "ID3", "MKI67")
CONTRAST = ("hours", "72", "0")


def load(folder: Path) -> anndata.AnnData:
    """The cells, and the markers with every twentieth of the genes that a tenth of the cells has."""
    data = folder / "usr/lib/R/site-library/HSMMSingleCell/data"
    x = part(data, "HSMM_expr_matrix").to_pandas().T
    names = part(data, "HSMM_gene_annotation")["gene_short_name"].astype(str)
    hours = part(data, "HSMM_sample_sheet")["Hours"].astype(str)
    common = x.columns[(x > 0).mean() > 0.1]
    markers = [i for i in x.columns if names[i] in (*UP, *DOWN)]
    x = x[list(dict.fromkeys([*markers, *common[::20]]))]
    genes = [names[i] if i in markers else i for i in x.columns]
    obs = pd.DataFrame({"hours": hours[x.index].to_numpy()}, index=x.index.astype(object))
    return anndata.AnnData(x.to_numpy(), obs, pd.DataFrame(index=pd.Index(genes, dtype=object)))


def part(data: Path, name: str) -> Any:
    """One R object, without remarks on how it was saved."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rdata.read_rda(data / f"{name}.rda")[name]


def main(folder: Path) -> None:
    """Print what stands in the data, and what comes out of them."""
    adata = load(folder)
    print("# FPKM with numbers that stand for nothing\n\nPrinted by `python benchmarks/hsmm.py`.\n")
    print(about(adata))
    tables = {t: fit(adata, t) for t in (0.0, 0.1)}
    sigma = tables[0.0].attrs["sigma"]
    wide = sigma.index[sigma > 5]
    print(f"\n72 hours against 0. {len(wide)} genes have a sigma above 5 without a threshold.\n")
    print("| | " + " | ".join(f"`detection_threshold={t:g}`" for t in tables) + " |\n| --- | --- | --- |")
    for name, cell in rows(wide).items():
        print(f"| {name} | {' | '.join(cell(t) for t in tables.values())} |")
    print("\n| marker | " + " | ".join(f"log_fc, threshold {t:g}" for t in tables) + " |\n| --- | --- | --- |")
    for gene in (*UP, *DOWN):
        cells = [
            f"{t.log_fc[gene]:.1f} ± {t.log_fc_sd[gene]:.1f}{', called' if t.is_de[gene] else ''}"
            for t in tables.values()
        ]
        print(f"| {gene} | {' | '.join(cells)} |")
    print(WHY)


def about(adata: anndata.AnnData) -> str:
    """Return what the positive values are."""
    positive = adata.X[adata.X > 0]
    denormal = (positive < np.finfo(float).tiny).sum()
    return (
        f"HSMM, {adata.n_obs} cells x {adata.n_vars} genes of Debian's r-bioc-hsmmsinglecell. Of its positive values,\n"
        f"{(positive < 0.1).mean():.1%} are below 0.1, {(positive < 1e-9).mean():.2%} below 1e-9, and\n"
        f"{denormal} below the smallest normal float64; the least is {positive.min():.3g}.\n"
        "They stand for transcripts that were not found."
    )


def rows(wide: pd.Index) -> dict[str, Callable[[pd.DataFrame], str]]:
    """Return what is printed of each table, for all genes and for those of a large sigma."""
    return {
        "median sigma of log x": lambda t: f"{t.attrs['sigma'].median():.2f}",
        "largest sigma": lambda t: f"{t.attrs['sigma'].max():.0f}",
        f"median sigma of the {len(wide)} genes": lambda t: f"{t.attrs['sigma'][wide].median():.2f}",
        "their median `log_fc_sd`": lambda t: f"{t.log_fc_sd[wide].median():.2f}",
        "their calls at 5 %": lambda t: str(int(t.is_de[wide].sum())),
        "their largest ratio of predicted and observed mean": lambda t: f"{t.attrs['ratio'][wide].max():.3g}",
        "genes called at 5 %": lambda t: str(int(t.is_de.sum())),
        "observed means outside the predicted 95 %": lambda t: f"{t.attrs['outside']:.0%}",
    }


def fit(adata: anndata.AnnData, threshold: float) -> pd.DataFrame:
    """The table of a threshold, with each gene's larger sigma of the two and how many means are not as predicted."""
    de = HurdleDE(adata, "~ hours", detection_threshold=threshold, scale="linear").fit()
    table = de.test(CONTRAST).set_index("variable")
    check = de.predictive_check(credible=0.95)
    sigma = [cell_parameters(de.draws, de.cond(hours=hours)).scale.median(0).values for hours in CONTRAST[1:]]
    table.attrs["sigma"] = pd.Series(torch.stack(sigma).amax(0).numpy(), de.genes)
    table.attrs["ratio"] = (check["mean_predicted"] / check["mean"]).set_axis(check["variable"])
    table.attrs["outside"] = ((check["mean"] < check.mean_low) | (check["mean"] > check.mean_high)).mean()
    return table


WHY = """
A value of 1e-185 is a positive number with a logarithm of -426. A handful of these among the positive values of a
gene make its sigma ten or a hundred times too large, and with it E[X] = P(X > 0) exp(mu + sigma^2 / 2): means are
predicted that no cell comes near. Each condition has its own sigma, so that fold changes suffer too: they are smaller
and fewer genes are called. The share of zeros of such a gene is wrong as well.

`detection_threshold=0.1` takes what is at most 0.1 for zeros, a usual limit of detection in FPKM. For other data,
look at a histogram of log10 of the positive values, and cut in the gap between the remnants and the rest.
"""

if __name__ == "__main__":
    main(Path(sys.argv[1]))
