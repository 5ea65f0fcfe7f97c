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
import scipy.stats
import torch
from torch import Tensor

from pyro_zilognormal.models import cell_parameters, log_fold_change
from pyro_zilognormal.singlecell import HurdleDE
from pyro_zilognormal.svi import posterior_draws

# Switched on in myotubes, and genes of dividing cells, which are switched off.
UP = ("MYOG", "MYH3", "TNNT1", "ENO3", "CDH15", "MYH8")
DOWN = ("CDK1", "TOP2A", "CCNB2", "ID1", "ID3", "MKI67")
CONTRAST = ("hours", "72", "0")
THRESHOLD = 0.1
RESAMPLED, SIMULATED = 2000, 4
# Log2 fold changes below this are none.
NEGLIGIBLE = 0.1


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
    fits = {t: fit(adata, t) for t in (0.0, THRESHOLD)}
    tables = {t: tabulate(de) for t, de in fits.items()}
    sigma = tables[0.0].attrs["sigma"]
    wide = sigma.index[sigma > 5]
    print(f"\n72 hours against 0. {len(wide)} genes have a sigma above 5 without a threshold.\n")
    print("| | " + " | ".join(f"`detection_threshold={t:g}`" for t in tables) + " |\n| --- | --- | --- |")
    for name, cell in rows(wide).items():
        print(f"| {name} | {' | '.join(cell(t) for t in tables.values())} |")
    print(WHY)
    markers(tables, observed(adata))
    print(MARKERS)
    print("| | mean of the sets |\n| --- | --- |")
    for name, values in pd.concat([calibrate(adata, fits[THRESHOLD], s) for s in range(SIMULATED)], axis=1).iterrows():
        print(f"| {name} | {values.mean():{'.0f' if name.startswith('calls') else '.1%'}} |")
    print(DEVIATIONS.format(*deviations(fits[THRESHOLD])))


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


def fit(adata: anndata.AnnData, threshold: float) -> HurdleDE:
    """The fit of a threshold."""
    return HurdleDE(adata, "~ hours", detection_threshold=threshold, scale="linear").fit()


def tabulate(de: HurdleDE) -> pd.DataFrame:
    """The table, with each gene's larger sigma of the two and how many means are not as predicted."""
    table = de.test(CONTRAST).set_index("variable")
    check = de.predictive_check(credible=0.95)
    sigma = [cell_parameters(de.draws, de.cond(hours=hours)).scale.median(0).values for hours in CONTRAST[1:]]
    table.attrs["sigma"] = pd.Series(torch.stack(sigma).amax(0).numpy(), de.genes)
    table.attrs["ratio"] = (check["mean_predicted"] / check["mean"]).set_axis(check["variable"])
    table.attrs["outside"] = ((check["mean"] < check.mean_low) | (check["mean"] > check.mean_high)).mean()
    return table


def arms(x: np.ndarray, adata: anndata.AnnData) -> list[np.ndarray]:
    """Return the cells of both conditions."""
    return [x[adata.obs["hours"] == hours] for hours in CONTRAST[1:]]


@np.errstate(divide="ignore", invalid="ignore")  # of a gene that a resampled condition does not have
def observed(adata: anndata.AnnData) -> pd.DataFrame:
    """Return the log2 ratio of the observed means, its bootstrap interval, and what Wilcoxon's test calls."""
    x, rng = np.where(adata.X > THRESHOLD, adata.X, 0.0), np.random.default_rng(0)
    test, reference = arms(x, adata)
    drawn = [
        np.log2(np.divide(*(arm[rng.integers(len(arm), size=len(arm))].mean(0) for arm in (test, reference))))
        for _ in range(RESAMPLED)
    ]
    low, high = np.quantile(
        np.nan_to_num(drawn, nan=0.0, posinf=np.inf, neginf=-np.inf), [0.025, 0.975], axis=0, method="nearest"
    )
    found = {"ratio": np.log2(test.mean(0) / reference.mean(0)), "low": low, "high": high}
    return pd.DataFrame(found | {"called": wilcoxon(test, reference)}, adata.var_names)


def wilcoxon(test: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return which genes Wilcoxon's test calls at 5 %."""
    p = scipy.stats.mannwhitneyu(test, reference, axis=0).pvalue
    return scipy.stats.false_discovery_control(np.nan_to_num(p, nan=1.0)) <= 0.05


def markers(tables: dict[float, pd.DataFrame], seen: pd.DataFrame) -> None:
    """Print what is known of the markers."""
    heads = [
        "detected, 72 h",
        "0 h",
        "observed log2 ratio",
        "Wilcoxon",
        "log_fc, threshold 0",
        "0.1",
        "log_fc_detection",
    ]
    print(f"| marker | {' | '.join([*heads, 'detection_lfsr'])} |\n{'| --- ' * (len(heads) + 2)}|")
    for gene in (*UP, *DOWN):
        row, one = tables[THRESHOLD].loc[gene], seen.loc[gene]
        cells = [f"{row.detection_test:.0%}", f"{row.detection_ref:.0%}"]
        cells += [f"{one.ratio:.1f} ({one.low:.1f} to {one.high:.1f})", "called" if one.called else ""]
        for t in tables.values():
            called = ", called" if t.is_de[gene] else ""
            cells.append(f"{t.log_fc[gene]:.1f} ± {t.log_fc_sd[gene]:.1f}{called}")
        print(f"| {gene} | {' | '.join([*cells, f'{row.log_fc_detection:.1f}', f'{row.detection_lfsr:.3f}'])} |")
    each = {"Wilcoxon": seen["called"], "ours": tables[THRESHOLD]["is_de"].loc[seen.index]}
    print(f"\nOf {len(seen)} genes Wilcoxon's test calls {each['Wilcoxon'].sum()}, we {each['ours'].sum()}, ", end="")
    table = tables[THRESHOLD]
    switched = ~table["is_de"] & (table["detection_lfsr"] <= 0.05) & (table["log_fc_detection"].abs() >= 1)
    print(f"{(each['ours'] & each['Wilcoxon']).sum()} of them alike. The report names {switched.sum()} more, which are")
    print("detected twice or half as often.")


def calibrate(adata: anndata.AnnData, de: HurdleDE, seed: int) -> pd.Series:
    """Draw cells from the model by one of its posterior draws, fit them, and compare with this truth."""
    pick = slice(seed, seed + 1)
    truth, rng = {name: values[pick] for name, values in de.draws.items()}, torch.Generator().manual_seed(seed)
    x = np.zeros(adata.shape)
    for hours in adata.obs["hours"].unique():
        cell, some = cell_parameters(truth, de.cond(hours=hours)), (adata.obs["hours"] == hours).to_numpy()
        noise, uniform = (f(int(some.sum()), adata.n_vars, generator=rng) for f in (torch.randn, torch.rand))
        x[some] = ((cell.mu + cell.scale * noise).exp() * (uniform > cell.zi_logits.sigmoid())).numpy()
    kept = (x > 0).sum(0) > 4
    real = change(truth, de)[0].numpy()[kept]
    found = fit(anndata.AnnData(x[:, kept], adata.obs, adata.var[kept]), 0.0).test(CONTRAST, delta=0, credible=0.95)
    found = found.set_index("variable").loc[adata.var_names[kept]]
    test, reference = arms(x[:, kept], adata)
    ranks = scipy.stats.rankdata(np.vstack([test, reference]), axis=0)[: len(test)].mean(0)
    methods = {
        "ours": (found["is_de"].to_numpy(), np.sign(found["log_fc"].to_numpy())),
        "Wilcoxon": (wilcoxon(test, reference), np.sign(ranks - (len(test) + len(reference) + 1) / 2)),
    }
    inside = ((found["log_fc_low"] <= real) & (real <= found["log_fc_high"])).to_numpy()
    measures = {"truths in 95 % intervals of log_fc": inside.mean()}
    measures["of called genes"] = inside[methods["ours"][0]].mean()
    for name, (called, sign) in methods.items():
        right = called & (sign * real > NEGLIGIBLE)
        measures[f"calls of {name}"] = called.sum()
        measures[f"{name}: calls of genes whose mean does not change so"] = 1 - right.sum() / called.sum()
        measures[f"{name}: changed means that are found"] = right.sum() / (abs(real) > NEGLIGIBLE).sum()
    return pd.Series(measures)


def change(draws: dict[str, Tensor], de: HurdleDE) -> Tensor:
    """Return draws of log_fc."""
    return log_fold_change(draws, *(de.cond(hours=hours) for hours in CONTRAST[1:])).total


def deviations(de: HurdleDE) -> list[float]:
    """Return the posterior medians of the sds of a median gene's deviations from the line of zeros."""
    found = posterior_draws(de.result, *de.data.arguments, draws=1000, seed=0)["zero_log_sd_mean"]
    return found.exp().median(0).values.tolist()


WHY = """
A value of 1e-185 is a positive number with a logarithm of -426. A handful of these among the positive values of a
gene make its sigma ten or a hundred times too large, and with it E[X] = P(X > 0) exp(mu + sigma^2 / 2): means are
predicted that no cell comes near. Each condition has its own sigma, so that fold changes suffer too: they are smaller
and fewer genes are called. The share of zeros of such a gene is wrong as well.

`detection_threshold=0.1` takes what is at most 0.1 for zeros, a usual limit of detection in FPKM. For other data,
look at a histogram of log10 of the positive values, and cut in the gap between the remnants and the rest.

`HurdleDE` warns where log x has an sd above 5 in any gene.

## Markers

The values at 0 and 72 hours with the threshold, beside Wilcoxon's test (at 5 %, Benjamini and Hochberg), and the ratio
of observed means with its bootstrap interval.
"""
MARKERS = """
Means of such values are known to a factor of two to ten at best. Two of 69 cells have MYOG at 0 hours, one of them 333
FPKM, more than all but two of the 28 cells at 72 hours. What is certain is that it is switched on, which
`detection_lfsr` says of every gene, called or not. A test of ranks asks whether values tend to be larger, not whether
the mean is, as the next section shows. An earlier version of this page had 106 and 98 calls: zeros and positive values
were regressed apart, and a change of zeros was one of the mean unless positive values contradicted it.

## Cells drawn from the fitted model

The truth is known here: a draw of the posterior. A change of the mean by less than 0.1 log2 units is none.
"""
DEVIATIONS = """
## What a change of zeros says of the mean

Genes lie off the line of log odds of zeros by log mean: a median gene by an sd of {:.2f} in its level, and of {:.2f} in
its change. Here zeros nearly follow the mean, so that a gene found in more cells is taken for a higher one. With one sd
for both, the version before called 61 genes with the threshold. MYOG, whose few values at 0 hours are large, is named
by the report, not called.
"""

if __name__ == "__main__":
    main(Path(sys.argv[1]))
