"""Types of cells compared by the autoencoder in donors it has not seen, beside pseudobulk and the regression.

    pip install -c constraints.txt -e ".[singlecell]"
    OMP_NUM_THREADS=1 python benchmarks/vae_types.py FILE.h5ad COLUMN_OF_DONORS

The file holds raw counts, and the cells' types in `cell_type`. Every other donor trains the fit, without batches, as a
new donor has none; the others are judged. Pseudobulk is the log2 ratio of two types' means in each donor, with a t test
of the donors. At the end, cells that are alike are compared: random halves of a type, and two donors with the others.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import anndata
import numpy as np
import torch
from scipy.stats import false_discovery_control, ttest_1samp
from torch import Tensor
from vae import Cells, counts, false_calls, fit

from pyro_zilognormal.models import ZILNVAE, FittedVAE
from pyro_zilognormal.singlecell import differential_expression

PAIRS = ("CD4 T cells", "CD14+ Monocytes"), ("CD8 T cells", "CD4 T cells")
FDR, MOST, DRAWS = 0.05, 500, 100


def train(cells: Cells, rows: np.ndarray) -> FittedVAE:
    """Fit some cells, a tenth of which stop it."""
    rows = torch.from_numpy(np.random.default_rng(0).permutation(rows))
    return fit(ZILNVAE, cells, rows[len(rows) // 10 :].sort().values, rows[: len(rows) // 10])


def some(rows: np.ndarray) -> Tensor:
    """Return at most 500 of the cells, in order."""
    return torch.from_numpy(np.sort(np.random.default_rng(0).permutation(rows)[:MOST]))


def pseudobulk(x: np.ndarray, groups: list[np.ndarray], donors: np.ndarray) -> np.ndarray:
    """Return log2 ratios of two groups' means in each donor, of shape (donors, genes); not finite where a mean is 0."""
    means = [np.stack([x[g[donors[g] == d]].mean(0) for d in np.unique(donors[groups[0]])]) for g in groups]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log2(means[0]) - np.log2(means[1])


def compare(fitted: FittedVAE, cells: Cells, adata: anndata.AnnData, donor: str, pair: tuple[str, str]) -> list[str]:
    """Compare two types by three methods; return a row of the table."""
    groups = [np.flatnonzero((cells.label == kind) & adata.obs["judged"]) for kind in pair]
    change = fitted.differential_expression(*(cells.part(some(rows)) for rows in groups), draws=DRAWS)
    called, found = change.expected_fdr.numpy() <= FDR, change.draws.mean(0).numpy()
    ratios = pseudobulk(cells.x.numpy(), groups, adata.obs[donor].astype(str).to_numpy())
    known = np.isfinite(ratios).all(0)
    mean, p = ratios[:, known].mean(0), false_discovery_control(ttest_1samp(ratios[:, known], 0).pvalue)
    called_known, found_known = called[known], found[known]
    differ = called_known & (p <= FDR)
    table = differential_expression(
        adata[np.sort(np.concatenate(groups))].copy(), "~ cell_type", ("cell_type", *pair), donor=donor, scale="counts"
    )
    table = table.set_index("variable").loc[adata.var_names]
    by_regression, effect = table["is_de"].to_numpy(bool), table["log_fc"].to_numpy()
    both = called & by_regression
    return [
        " against ".join(pair),
        f"{called.sum()} of {len(called)}",
        f"{np.corrcoef(found_known[called_known], mean[called_known])[0, 1]:.3f}",
        f"{np.mean(np.sign(found_known[called_known]) == np.sign(mean[called_known])):.1%}",
        f"{differ.sum()} of {(p <= FDR).sum()}",
        f"{both.sum()} of {by_regression.sum()}",
        f"{np.corrcoef(found[both], effect[both])[0, 1]:.3f}",
        f"{np.mean(np.sign(found[both]) == np.sign(effect[both])):.1%}",
    ]


def alike(fitted: FittedVAE, cells: Cells, rows: Tensor, donors: np.ndarray) -> tuple[float, float]:
    """Return the share of genes that are called between random halves of cells, and between halves of their donors."""
    first = np.isin(donors[rows], np.unique(donors[rows])[::2])
    halves = (cells.part(rows[torch.from_numpy(chosen)]) for chosen in (first, ~first))
    called = fitted.differential_expression(*halves, draws=DRAWS).expected_fdr <= FDR
    return false_calls(fitted, cells, rows), float(called.float().mean())


def main(path: str, donor: str) -> None:
    adata, cells = anndata.read_h5ad(path), replace(counts(path, donor), batch=None)
    donors = adata.obs[donor].astype(str).to_numpy()
    names = np.unique(donors)
    adata.obs["judged"] = np.isin(donors, names[1::2])
    fitted = train(cells, np.flatnonzero(~adata.obs["judged"]))
    print("## Types of cells in donors that did not train the fit\n")
    print(
        f"Trained on donors {', '.join(names[::2])} in {fitted.result.steps} steps; judged: {', '.join(names[1::2])}.\n"
    )
    print("| comparison | genes called | correlation with pseudobulk | same sign | called, of pseudobulk's ", end="")
    print("| called, of the regression's | correlation with it | same sign |")
    print(f"|{' --- |' * 8}")
    for pair in PAIRS:
        print(f"| {' | '.join(compare(fitted, cells, adata, donor, pair))} |", flush=True)
    print("\n| cells that are alike | called between random halves | between two donors and the others |")
    print("| --- | --- | --- |")
    for kind in PAIRS[0]:
        rows = some(np.flatnonzero((cells.label == kind) & adata.obs["judged"]))
        halves, between = alike(fitted, cells, rows, donors)
        print(f"| {len(rows)} {kind} | {halves:.2%} | {between:.1%} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
