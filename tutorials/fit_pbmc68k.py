"""Fit the zero-inflated log-normal to 700 real blood cells x 200 genes, in two cell types, and compare them.

    python tutorials/fit_pbmc68k.py --out out

Every gene gets, in monocytes and in T cells, a mean log expression, a log standard deviation and the log odds of a
zero, under weak priors, by stochastic variational inference in Pyro. Written to the output folder:

    genes.csv  for each gene the log2 ratio of the mean expression, monocytes over T cells: posterior mean and sd, and
               its exact parts in how often the gene is seen, how much of it is there, and how it spreads
    fit.png    observed zero fraction and mean against the fitted ones, and four genes with their fitted laws
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import ClippedAdam
from torch import Tensor

from pyro_zilognormal import ZeroInflatedLogNormal
from pyro_zilognormal.datasets import pbmc68k_reduced

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GROUPS = ("monocytes", "T cells")
MARKERS = ("LYZ", "S100A9", "CD3D", "GNLY")
PARAMETERS = ("mu", "log_scale", "zi_logits")


def load() -> tuple[list[Tensor], list[str]]:
    """Values (cells x genes) of the monocytes and of the T cells, and the genes."""
    data = pbmc68k_reduced()
    labels = data.cell_type.astype(str)
    monocyte = labels == "CD14+ Monocyte"
    t_cell = np.char.startswith(labels, "CD4+") | np.char.startswith(labels, "CD8+")
    return [data.values[torch.from_numpy(cells)] for cells in (monocyte, t_cell)], [str(gene) for gene in data.genes]


def model(groups: list[Tensor]) -> None:
    """x[cell, gene] ~ ZILN(mu[group, gene], scale[group, gene], zi_logits[group, gene])."""
    genes = pyro.plate("genes", groups[0].shape[1], dim=-1)
    with pyro.plate("groups", len(groups), dim=-2), genes:
        mu = pyro.sample("mu", dist.Normal(1.0, 2.0))
        log_scale = pyro.sample("log_scale", dist.Normal(-0.5, 0.5))
        zi_logits = pyro.sample("zi_logits", dist.Normal(0.0, 3.0))
    for g, values in enumerate(groups):
        with pyro.plate(f"cells {g}", len(values), dim=-2), genes:
            # One row of parameters for all cells of a group: nothing is copied per cell.
            law = ZeroInflatedLogNormal(*(p[..., g : g + 1, :] for p in (mu, log_scale.exp(), zi_logits)))
            pyro.sample(f"x {g}", law, obs=values)


def fit(groups: list[Tensor], steps: int, seed: int) -> AutoNormal:
    """A mean-field guide fitted with ClippedAdam, whose learning rate falls a hundredfold."""
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    guide = AutoNormal(model, init_scale=0.05)
    optimizer = ClippedAdam({"lr": 0.05, "lrd": 0.01 ** (1 / steps)})
    svi = SVI(model, guide, optimizer, Trace_ELBO())
    for step in range(steps):
        loss = svi.step(groups) / sum(values.numel() for values in groups)
        if step % max(1, steps // 10) == 0 or step == steps - 1:
            print(f"step {step:5d}  loss per value {loss:.4f}")
    return guide


def draw(guide: AutoNormal, groups: list[Tensor], n: int = 1000) -> ZeroInflatedLogNormal:
    """The law under n posterior draws: batch_shape (n, 2 groups, genes)."""
    posterior = Predictive(guide, num_samples=n, return_sites=PARAMETERS)(groups)
    mu, log_scale, zi_logits = (posterior[name].reshape(n, len(groups), -1) for name in PARAMETERS)
    return ZeroInflatedLogNormal(mu, log_scale.exp(), zi_logits)


def compare(law: ZeroInflatedLogNormal) -> dict[str, Tensor]:
    """log2 E[X | monocyte] / E[X | T cell] and its three parts, which sum to it, each of shape (draws, genes)."""
    parts = {
        "log_fc": law.log_mean,
        "log_fc_detection": law.prob_positive.log(),
        "log_fc_abundance": law.loc,
        "log_fc_dispersion": law.scale.square() / 2,
    }
    return {name: (part[:, 0] - part[:, 1]) / math.log(2) for name, part in parts.items()}


def write_table(path: Path, genes: list[str], change: dict[str, Tensor]) -> list[dict[str, str | float]]:
    """Write the genes, the surest change first (by the end of its 95 % interval nearer to 0), and return the rows."""
    mean, sd = change["log_fc"].mean(0), change["log_fc"].std(0)
    rows: list[dict[str, str | float]] = []
    for i in (mean.abs() - 1.96 * sd).argsort(descending=True).tolist():
        row: dict[str, str | float] = {"gene": genes[i], "log_fc": round(mean[i].item(), 4)}
        row["log_fc_sd"] = round(sd[i].item(), 4)
        rows.append(row | {k: round(part[:, i].mean().item(), 4) for k, part in change.items() if k != "log_fc"})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return rows


def plot(path: Path, groups: list[Tensor], genes: list[str], law: ZeroInflatedLogNormal) -> None:
    """Observed against fitted, and four genes with their laws."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
    mean_law = ZeroInflatedLogNormal(law.loc.mean(0), law.scale.mean(0), law.zi_logits.mean(0))
    for g, colour in enumerate(("tab:orange", "tab:blue")):
        cells = groups[g]
        style = {"s": 8, "alpha": 0.6, "color": colour, "label": GROUPS[g]}
        axes[0, 0].scatter((cells == 0).float().mean(0), law.zi_probs[:, g].mean(0), **style)
        seen = (cells > 0).sum(0) > 2
        axes[1, 0].scatter(cells.mean(0)[seen], law.mean[:, g].median(0).values[seen], **style)
        for ax, gene in zip(axes[:, 1:].flat, MARKERS, strict=True):
            column = genes.index(gene)
            one = ZeroInflatedLogNormal(*(p[g, column] for p in (mean_law.loc, mean_law.scale, mean_law.zi_logits)))
            plot_gene(ax, cells[:, column], one, colour, GROUPS[g])
            ax.set(title=gene, xlabel="counts per ten thousand (log scale)", ylabel="density of log10 x, per cell")
            ax.set_ylim(top=1.02 * max(ax.get_ylim()[1], 1.35 * ax.dataLim.ymax))  # room for the legend
            ax.legend(fontsize=8, loc="upper left")
    axes[0, 0].set(xlabel="observed zero fraction", ylabel="fitted P(X = 0)", title="200 genes, two cell types")
    axes[1, 0].set(
        xscale="log", yscale="log", xlabel="observed mean", ylabel="fitted E[X]", title="seen in over 2 cells"
    )
    for ax, ends in ((axes[0, 0], (0, 1)), (axes[1, 0], (0.02, 1000))):
        ax.plot(ends, ends, color="black", linewidth=0.8)
        ax.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def plot_gene(ax: Axes, x: Tensor, law: ZeroInflatedLogNormal, colour: str, label: str) -> None:
    """Histogram of the positive values on a log scale with the fitted density; the zeros in the legend."""
    positive = x[x > 0].numpy()
    bins = np.logspace(-0.5, 3, 36)
    weights = np.full(len(positive), 1 / len(x) / np.log10(bins[1] / bins[0]))
    label = f"{label}: {(x == 0).float().mean():.0%} zeros, fitted {law.zi_probs:.0%}"
    ax.hist(positive, bins=bins, weights=weights, color=colour, alpha=0.35, label=label)
    grid = torch.logspace(-0.5, 3, 300)
    density = (law.log_prob(grid) + grid.log()).exp() * math.log(10)  # of log10 x
    ax.plot(grid, density, color=colour)
    ax.set_xscale("log")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for genes.csv and fit.png")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    groups, genes = load()
    zeros = torch.cat(groups).eq(0).float().mean()
    print(f"{len(groups[0])} monocytes, {len(groups[1])} T cells, {len(genes)} genes, {zeros:.0%} zeros")
    law = draw(fit(groups, options.steps, options.seed), groups)
    rows = write_table(options.out / "genes.csv", genes, compare(law))
    plot(options.out / "fit.png", groups, genes, law)
    print("log2 fold change of the mean, monocytes over T cells (posterior mean, sd):")
    for row in rows[:12]:
        print(f"  {row['gene']:10s} {row['log_fc']:+6.2f}  {row['log_fc_sd']:5.2f}")
    print(f"wrote {options.out / 'genes.csv'} and {options.out / 'fit.png'}")


if __name__ == "__main__":
    main()
