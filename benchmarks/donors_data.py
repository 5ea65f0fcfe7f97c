"""Cells of donors in two conditions: simulated with known truth, or real cells to which nothing was done.

The negative binomial simulator has the parameters of real unstimulated cells (Kang et al. 2018, GEO GSE96583); the
other is that of Zimmerman et al. 2021 (https://doi.org/10.1038/s41467-021-21038-1), rebuilt from the paper and fitted
to the same pancreatic alpha cells.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.stats

GENES, CHANGED = 400, 0.1
INTERFERON = ("ISG15", "IFI6", "IFIT1", "IFIT3", "MX1", "ISG20", "IFITM3")
TYPES = ("CD14+ Monocytes", "CD4 T cells")
# Sds of donors' effects on log expression, as measured in unstimulated monocytes with the noise of counting taken out.
DONOR_SDS = ([0, 0.25, 0.5, 0.75, 0.9, 0.99, 1], [0.02, 0.06, 0.12, 0.19, 0.3, 0.64, 1.2])


@dataclass(frozen=True)
class Cells:
    """Raw counts of cells in two conditions.

    Attributes:
        counts: of shape (cells, genes).
        depth: of each cell; expected counts are proportional to it.
        stim: whether a cell is in the condition that is tested, not in the reference.
        donor: of each cell; None where the cells are taken as independent.
        genes: their names.
        log2_fc: the true log2 ratio of expected normalised counts of each gene; None where nobody knows it.
    """

    counts: np.ndarray
    depth: np.ndarray
    stim: np.ndarray
    donor: np.ndarray | None
    genes: np.ndarray
    log2_fc: np.ndarray | None = None

    @property
    def normalised(self) -> np.ndarray:
        """Counts of each cell as if it had the median depth."""
        return self.counts / (self.depth / np.median(self.depth))[:, None]

    @property
    def paired(self) -> bool:
        """Whether donors have cells in both conditions."""
        return self.donor is not None and bool(set(self.donor[self.stim]) & set(self.donor[~self.stim]))


def pseudobulk(cells: Cells) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Return sums of counts and of depth of each sample, a donor in a condition, and who they are."""
    condition = np.where(cells.stim, "stim", "ctrl")
    name = np.char.add(np.char.add(cells.donor.astype(str), " "), condition)
    names, first, sample = np.unique(name, return_index=True, return_inverse=True)
    counts = np.array([cells.counts[sample == s].sum(0) for s in range(len(names))])
    depth = np.array([cells.depth[sample == s].sum() for s in range(len(names))])
    return counts, depth, pd.DataFrame({"condition": condition[first], "donor": cells.donor[first]}, index=names)


# --- Simulated counts with the parameters of real cells


@dataclass(frozen=True)
class Parameters:
    """What the negative binomial simulator takes from real cells.

    Attributes:
        rate: expected count of each gene a unit of depth.
        dispersion: of each gene among the cells of a donor: the variance is mean + dispersion mean^2.
        donor_sd: of each gene, between donors, on the log scale.
        log_depth: of cells, about their donor's mean.
        donor_log_depth: mean and sd of the donors' means.
    """

    rate: np.ndarray
    dispersion: np.ndarray
    donor_sd: np.ndarray
    log_depth: np.ndarray
    donor_log_depth: tuple[float, float]


def fit_parameters(counts: np.ndarray, depth: np.ndarray, donor: np.ndarray) -> Parameters:
    """Fit the simulator by moments. Genes get the sds of ``DONOR_SDS`` in the order of their own, noisy estimates."""
    names = np.unique(donor)
    log_depth = np.log(depth)
    centres = np.array([log_depth[donor == d].mean() for d in names])
    square = np.zeros(counts.shape[1])
    above = np.zeros(counts.shape[1])
    rates, variances = [], []
    for d in names:
        x, t = counts[donor == d], depth[donor == d]
        rate = (x.sum(0) + 0.5) / (t.sum() + 0.5 / (counts.sum(0) / depth.sum()))
        mean = t[:, None] * rate
        above += ((x - mean) ** 2 - mean).sum(0)
        square += (mean**2).sum(0)
        rates.append(rate)
        variances.append((mean.sum(0), (t**2).sum() / t.sum() ** 2))
    dispersion = np.clip(above / square, 0.01, 10)
    noise = np.mean([1 / expected + dispersion * share for expected, share in variances], axis=0)
    excess = np.log(rates).var(axis=0, ddof=1) - noise
    donor_sd = np.interp((scipy.stats.rankdata(excess) - 0.5) / len(excess), *DONOR_SDS)
    residual = log_depth - centres[np.searchsorted(names, donor)]
    return Parameters(
        counts.sum(0) / depth.sum(), dispersion, donor_sd, residual, (centres.mean(), centres.std(ddof=1))
    )


def simulate(
    parameters: Parameters,
    seed: int,
    *,
    donors: int = 8,
    paired: bool = False,
    cells: tuple[int, int] = (100, 200),
    depth_ratio: float = 1.0,
    changed: float = CHANGED,
    genes: int = GENES,
) -> Cells:
    """Return negative binomial counts of ``genes`` genes, of which a share changes by a median of 2-fold, up or down.

    A gene's log mean is log rate + log depth + log fold change + the sample's effect, where a sample is a donor in a
    condition. Its effect has the gene's own sd; where donors are paired, the donor has one of the same sd in addition,
    in both conditions alike. So the effects have one distribution in both conditions, and the true log fold change of
    the mean is that of the simulator, exactly.

    Args:
        parameters: what :func:`fit_parameters` returns.
        seed: of the random numbers.
        donors: how many; half in each condition, or all in both.
        paired: whether each donor has cells in both conditions.
        cells: fewest and most cells of a sample, log-uniform.
        depth_ratio: how much deeper cells of the tested condition are sequenced.
        changed: share of genes that change.
        genes: how many.
    """
    rng = np.random.default_rng(seed)
    sides = np.tile([False, True], donors) if paired else np.arange(donors) >= donors / 2
    people = np.repeat(np.arange(donors), 2) if paired else np.arange(donors)
    number = np.exp(rng.uniform(*np.log(cells), len(sides))).round().astype(int)
    sample = np.repeat(np.arange(len(sides)), number)
    centre = rng.normal(*parameters.donor_log_depth, len(sides)) + np.log(depth_ratio) * sides
    depth = np.exp(centre[sample] + rng.choice(parameters.log_depth, len(sample)))
    effect = np.where(
        rng.random(len(parameters.rate)) < changed, np.log(2) * rng.lognormal(0, 0.5, len(parameters.rate)), 0
    )
    effect *= rng.choice([-1, 1], len(effect))
    level = rng.standard_normal((len(sides), len(effect))) * parameters.donor_sd
    if paired:
        level += (rng.standard_normal((donors, len(effect))) * parameters.donor_sd)[people]
    mean = depth[:, None] * (parameters.rate * np.exp(level + sides[:, None] * effect))[sample]
    counts = rng.poisson(mean * rng.gamma(1 / parameters.dispersion, parameters.dispersion, mean.shape))
    keep = choose_genes(counts, rng, genes)
    donor = np.array([f"d{person}" for person in people[sample]])
    names = np.array([f"g{gene}" for gene in keep])
    return Cells(counts[:, keep], depth, sides[sample], donor, names, effect[keep] / np.log(2))


def choose_genes(counts: np.ndarray, rng: np.random.Generator, genes: int = GENES, positive: int = 20) -> np.ndarray:
    """Return the places of up to ``genes`` random genes that are found in at least ``positive`` cells."""
    return np.sort(rng.permutation(np.flatnonzero((counts > 0).sum(0) >= positive))[:genes])


# --- The simulator of Zimmerman et al. 2021

# What the published procedure gives for the package's own 443 alpha cells of 6 donors: shape and rate of the gamma of
# gene means, and of the share of cells that express a gene; the sd of that share, by powers of it; sd of donors' means
# per mean; log size by 1 / mean.
GENE_MEAN, EXPRESSED, EXPRESSED_SD = (0.705, 0.0183), (0.750, 1.904), (0.0303, 0.6922, -0.7178)
DONOR_SD, LOG_SIZE = 0.1727, (1.054, 1.610)


def simulate_zimmerman(
    seed: int, *, donors: int = 10, cells: int = 100, changed: float = 0.5, genes: int = GENES
) -> Cells:
    """Return counts of the hierarchical gamma-Poisson simulator, with the genes of Murphy and Skene 2022 (half change
    by 1.1 to 10).

    A gene's grand mean is gamma, a donor's mean is Normal about it (times the fold change) with an sd proportional to
    the grand mean, cut at 0; counts are negative binomial, with a size that depends on the donor's mean, and lost with
    one probability for all cells of a gene. Genes of a mean count of at most 5 are left out, as there. The true ratio
    is that of the means of the cut Normals.
    """
    rng = np.random.default_rng(seed)
    number = rng.poisson(cells, 2 * donors)
    sample = np.repeat(np.arange(2 * donors), number)
    sides = np.arange(2 * donors) >= donors
    columns: list[np.ndarray] = []
    truth: list[float] = []
    while len(columns) < genes:
        fold = rng.choice(np.arange(1.1, 10.1, 0.5)) ** rng.choice([-1, 1]) if rng.random() < changed else 1.0
        mean = rng.gamma(GENE_MEAN[0], 1 / GENE_MEAN[1])
        share = rng.gamma(EXPRESSED[0], 1 / EXPRESSED[1])
        sd = max(np.polynomial.polynomial.polyval(share, EXPRESSED_SD), 0)
        share = np.clip(rng.normal(share, sd), 0, 1)
        level = np.maximum(rng.normal(mean * np.where(sides, fold, 1), DONOR_SD * mean), 1e-7)
        size = np.exp(np.minimum(LOG_SIZE[0] + LOG_SIZE[1] / level, 30))
        rate = rng.gamma(size[sample], (level / size)[sample])
        count = rng.poisson(rate) * (rng.random(len(sample)) < share)
        if count.mean() > 5:
            columns.append(count)
            truth.append(np.log2(_cut_mean(fold) / _cut_mean(1.0)))
    donor = np.array([f"d{d}" for d in sample])
    names = np.array([f"g{gene}" for gene in range(genes)])
    return Cells(np.array(columns).T, np.full(len(sample), 1e4), sides[sample], donor, names, np.array(truth))


def _cut_mean(fold: float) -> float:
    """Mean of max(0, Normal(fold, DONOR_SD))."""
    z = fold / DONOR_SD
    return float(fold * scipy.stats.norm.cdf(z) + DONOR_SD * scipy.stats.norm.pdf(z))


# --- Real cells


@functools.cache
def read(folder: Path, name: str, cell_type: str) -> anndata.AnnData:
    """Return the cells of a type, with their total counts as ``obs["depth"]``."""
    data = anndata.read_h5ad(folder / f"{name}.h5ad")
    data = data[data.obs["cell_type"] == cell_type].copy()
    data.obs["depth"] = np.asarray(data.X.sum(1)).ravel()
    return data


def real(
    data: anndata.AnnData, stim: np.ndarray, donor: np.ndarray | None, genes: np.ndarray | slice = slice(None)
) -> Cells:
    """Return cells of an AnnData, labelled."""
    chosen = data[:, genes]
    return Cells(chosen.X.toarray(), data.obs["depth"].to_numpy(), stim, donor, chosen.var_names.to_numpy(dtype=object))


def _controls(folder: Path, cell_type: str) -> tuple[anndata.AnnData, np.ndarray, np.ndarray]:
    """Unstimulated cells of a type, their donors, and 400 genes that are the same for every question."""
    data = read(folder, "kang_control_donors", cell_type)
    return data, data.obs["donor"].astype(str).to_numpy(), choose_genes(data.X.toarray(), np.random.default_rng(0))


def null_split(folder: Path, cell_type: str, index: int) -> Cells:
    """Split the donors 4 against 4; there are 35 ways, in a random order, so that the first few are a fair sample."""
    data, donor, genes = _controls(folder, cell_type)
    names = np.unique(donor)
    splits = [(0, *rest) for rest in itertools.combinations(range(1, 8), 3)]
    split = splits[np.random.default_rng(0).permutation(len(splits))[index]]
    return real(data, np.isin(donor, names[list(split)]), donor, genes)


def null_pairs(folder: Path, cell_type: str, index: int) -> Cells:
    """Pair the donors at random, take each pair for a donor, and call one of each pair stimulated."""
    data, donor, genes = _controls(folder, cell_type)
    order = np.random.default_rng(index).permutation(np.unique(donor))
    pair = {name: f"pair{place // 2}" for place, name in enumerate(order)}
    return real(data, np.isin(donor, order[::2]), np.array([pair[d] for d in donor]), genes)


def null_few(folder: Path, cell_type: str, index: int) -> Cells:
    """Compare 5 cells with 235 of the same type, all taken at random."""
    data, _, _ = _controls(folder, cell_type)
    rng = np.random.default_rng(index)
    some = data[rng.permutation(data.n_obs)[:240]]
    genes = choose_genes(some.X.toarray(), rng, genes=some.n_vars)
    return real(some, np.arange(240) < 5, None, genes)


def interferon(folder: Path, cell_type: str, index: int = 0) -> Cells:
    """Compare cells of two donors with and without interferon beta, all genes that are found in at least 20 cells."""
    data = read(folder, "kang_stimulated", cell_type)
    genes = choose_genes(data.X.toarray(), np.random.default_rng(index), genes=data.n_vars)
    return real(data, (data.obs["condition"] == "stim").to_numpy(), data.obs["donor"].astype(str).to_numpy(), genes)


def whole(folder: Path, cell_type: str, index: int = 0) -> Cells:
    """All control cells of a type and all genes, the donors split 4 against 4: how long does a fit take?"""
    data = read(folder, "kang_control_donors", cell_type)
    donor = data.obs["donor"].astype(str).to_numpy()
    return real(data, np.isin(donor, np.unique(donor)[:4]), donor)


# --- Every design by name


@functools.cache
def parameters(folder: Path) -> Parameters:
    """Return the simulator's parameters, fitted to the unstimulated monocytes."""
    data = read(folder, "kang_control_donors", TYPES[0])
    counts = data.X.toarray()
    counts = counts[:, (counts > 0).sum(0) >= 20]
    return fit_parameters(counts, data.obs["depth"].to_numpy(), data.obs["donor"].astype(str).to_numpy())


SIMULATED: dict[str, Callable[[Path, int], Cells]] = {
    "nested": lambda folder, seed: simulate(parameters(folder), seed),
    "paired": lambda folder, seed: simulate(parameters(folder), seed, donors=6, paired=True),
    "unequal": lambda folder, seed: simulate(parameters(folder), seed, cells=(20, 500)),
    "depth": lambda folder, seed: simulate(parameters(folder), seed, depth_ratio=2.0),
    "null": lambda folder, seed: simulate(parameters(folder), seed, changed=0.0),
    "zimmerman": lambda folder, seed: simulate_zimmerman(seed),
}
# Real cells: how many questions there are of a type, and what makes one. None: as many as there are sets.
REAL: dict[str, tuple[int | None, Callable[[Path, str, int], Cells]]] = {
    "splits": (35, null_split),
    "pairs": (None, null_pairs),
    "few": (None, null_few),
    "interferon": (1, interferon),
    "whole": (1, whole),
}
