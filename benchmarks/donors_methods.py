"""The methods that are compared: each takes :class:`donors_data.Cells` and returns a table with a row for each gene.

Columns: ``order``, larger for genes that are more certain to change; ``p``, two-sided; ``called`` at a claimed false
discovery rate of 5 %, ``called_delta`` beyond 0.25 where a method can ask for that; ``log2_fc`` with its 95 % interval
from ``low`` to ``high``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import anndata
import donors_r
import numpy as np
import pandas as pd
import scipy.stats
from donors_data import Cells, pseudobulk
from statsmodels.nonparametric.smoothers_lowess import lowess

from pyro_zilognormal.singlecell.moderated_t import moderated_t as fit_moderated_t

FDR = 0.05


def ours(cells: Cells) -> pd.DataFrame:
    """One fit of the hurdle regression of counts and depth, asked at both deltas."""
    import torch

    from pyro_zilognormal.singlecell import HurdleDE

    torch.set_num_threads(1)  # importing scanpy sets OpenMP's threads to all cores, whatever OMP_NUM_THREADS says
    contrast = ("condition", "stim", "ctrl")
    data = _adata(cells, cells.counts)
    data.obs["depth"] = cells.depth
    given = {"scale": "counts", "depth": "depth", "donor": None if cells.donor is None else "donor"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of depths that differ: the parts of log_fc are not judged here
        de = HurdleDE(data, "~ condition", **given).fit()
    tables = [de.test(contrast, delta=delta, credible=0.95) for delta in (0, 0.25)]
    order = pd.Series(-tables[0].index, tables[0]["variable"])[cells.genes]
    table, beyond = (found.set_index("variable").loc[cells.genes] for found in tables)
    p = table["pval"].where(table["pval"].notna(), np.minimum(2 * table["lfsr"], 1))
    found = {"order": order, "p": p, "called": table["is_de"]}
    found |= {"called_delta": beyond["is_de"], "log2_fc": table["log_fc"], "low": table["log_fc_low"]}
    return pd.DataFrame(found | {"high": table["log_fc_high"]})


def pydeseq2(cells: Cells) -> pd.DataFrame:
    """Run pydeseq2 on the sums of counts of each sample, with its defaults but the size factors of all methods."""
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.default_inference import DefaultInference
    from pydeseq2.ds import DeseqStats

    class Sums(DeseqDataSet):
        def fit_size_factors(self, fit_type: object = None, control_genes: object = None) -> None:
            self.obs["size_factors"] = depth / np.exp(np.log(depth).mean())
            self.layers["normed_counts"] = self.X / self.obs["size_factors"].to_numpy()[:, None]
            self.var["_normed_means"] = self.layers["normed_counts"].mean(axis=0)

    counts, depth, samples = pseudobulk(cells)
    frame = pd.DataFrame(counts.astype(int), samples.index, cells.genes)
    inference = DefaultInference(n_cpus=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        design = "~donor + condition" if cells.paired else "~condition"
        data = Sums(counts=frame, metadata=samples, design=design, inference=inference, quiet=True)
        data.deseq2()
        stats = DeseqStats(data, contrast=["condition", "stim", "ctrl"], inference=inference, quiet=True)
        stats.summary()
    table = stats.results_df.loc[cells.genes]
    return _tested(table["pvalue"], table["padj"], table["log2FoldChange"], 1.96 * table["lfcSE"])


def moderated_t(cells: Cells) -> pd.DataFrame:
    """Moderated t on pseudobulk with voom's weights, after limma (Law et al. 2014, Smyth 2004)."""
    counts, depth, samples = pseudobulk(cells)
    design = np.column_stack([np.ones(len(samples)), samples["condition"] == "stim"]).astype(float)
    if cells.paired:
        design = np.column_stack([design, pd.get_dummies(samples["donor"], drop_first=True)]).astype(float)
    second = np.eye(design.shape[1])[1]
    log2_fc, se, freedom = fit_moderated_t(*voom(counts, depth, design), design, second)
    p = 2 * scipy.stats.t.sf(np.abs(log2_fc / se), freedom)
    padj = scipy.stats.false_discovery_control(p)
    return _tested(*(pd.Series(v, cells.genes) for v in (p, padj, log2_fc, scipy.stats.t.isf(0.025, freedom) * se)))


def wilcoxon(cells: Cells) -> pd.DataFrame:
    """Run scanpy's Wilcoxon on the cells, which takes them as independent."""
    import scanpy

    data = _adata(cells, np.log1p(cells.normalised))
    scanpy.tl.rank_genes_groups(data, "condition", groups=["stim"], reference="ctrl", method="wilcoxon")
    table = scanpy.get.rank_genes_groups_df(data, "stim").set_index("names").loc[cells.genes]
    found = _tested(table["pvals"], table["pvals_adj"], table["logfoldchanges"], np.nan)
    return found.assign(order=table["scores"].abs())


def in_r(name: str, cells: Cells) -> pd.DataFrame:
    """Run a method of R; a gene that it cannot fit is not called."""
    found = donors_r.run(name, cells)
    p = found["p"].fillna(1)
    return _tested(p, pd.Series(scipy.stats.false_discovery_control(p), cells.genes), found["log2_fc"], np.nan)


METHODS: dict[str, Callable[[Cells], pd.DataFrame]] = {
    "ours": ours,
    "pydeseq2": pydeseq2,
    "moderated t": moderated_t,
    "Wilcoxon": wilcoxon,
    **{name: partial(in_r, name) for name in donors_r.PACKAGES},
}


def _adata(cells: Cells, values: np.ndarray) -> anndata.AnnData:
    obs = pd.DataFrame({"condition": np.where(cells.stim, "stim", "ctrl")}, index=np.arange(len(values)).astype(str))
    obs["condition"] = pd.Categorical(obs["condition"], ["ctrl", "stim"])
    if cells.donor is not None:
        obs["donor"] = cells.donor
    return anndata.AnnData(values, obs, pd.DataFrame(index=cells.genes))


def _tested(p: pd.Series, padj: pd.Series, log2_fc: pd.Series, half: pd.Series | float) -> pd.DataFrame:
    """Return the table of a test; a gene without a p-value is not called."""
    called = padj <= FDR
    found = {"order": -p.fillna(1), "p": p, "called": called, "called_delta": called, "log2_fc": log2_fc}
    return pd.DataFrame(found | {"low": log2_fc - half, "high": log2_fc + half})


# --- The moderated t


def voom(counts: np.ndarray, library: np.ndarray, design: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return log2 counts per million, and their weights from the trend of their spread with their mean.

    Args:
        counts: of shape (samples, genes).
        library: library sizes of the samples.
        design: of shape (samples, coefficients).
    """
    scale = 1e6 / (library[:, None] + 1)
    y = np.log2((counts + 0.5) * scale)
    coefficients, residual, *_ = np.linalg.lstsq(design, y, rcond=None)
    sd = np.sqrt(residual / (len(design) - np.linalg.matrix_rank(design)))
    size = y.mean(0) + np.log2(library + 1).mean() - np.log2(1e6)
    some = counts.sum(0) > 0
    trend = lowess(np.sqrt(sd[some]), size[some], frac=0.5, delta=0.01 * np.ptp(size[some]))
    trend = trend[np.unique(trend[:, 0], return_index=True)[1]]
    fitted = np.log2(2.0 ** (design @ coefficients) / scale)
    return y, np.interp(fitted, *trend.T) ** -4
