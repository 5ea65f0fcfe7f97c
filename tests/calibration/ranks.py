"""Simulation-based calibration of model, guide and fit (Talts et al. 2018).

    python -m tests.calibration.ranks --out docs/calibration.png --json ranks.json

Truths are drawn from the prior, data from the truths, and posterior draws from the fitted guide; then the rank of a
truth among its posterior draws is uniform if the posterior is right.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from pyro_zilognormal.models import log_fold_change
from pyro_zilognormal.svi import posterior_draws
from tests.calibration.simulations import PRIORS, REFERENCE, TEST, draw_from_prior, fit

DRAWS = 199
BARS = 10
LEVELS = (0.5, 0.9, 0.95)


def replicate(seed: int, genes: int = 10, donors: int = 6, cells: int = 40) -> dict[str, np.ndarray]:
    """Return the ranks, from 0 to DRAWS, of all elements of each site, and of the log fold changes ("log_fc")."""
    data, truth = draw_from_prior(seed, genes, donors, cells)
    result = fit(data, PRIORS, seed)
    drawn = posterior_draws(result, *data.arguments, draws=DRAWS, seed=seed)
    drawn["log_fc"] = log_fc(drawn)
    truth["log_fc"] = log_fc({k: v[None] for k, v in truth.items()})[0]
    return {k: (drawn[k] < truth[k]).sum(0).numpy().reshape(-1) for k in drawn}


def log_fc(draws: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return draws of log2 fold changes; the slope of the zero part is the same for all genes."""
    return log_fold_change(draws | {"zero_slope": draws["zero_slope"].unsqueeze(-1)}, TEST, REFERENCE).total


def coverage(ranks: np.ndarray, level: float) -> tuple[float, float]:
    """Return the share of truths within the central interval of that level, and its standard error by replicate."""
    below = (1 - level) / 2 * (DRAWS + 1)
    # A rank at the interval's edge is inside with the share of it that is.
    uniform = ranks + np.random.default_rng(0).random(ranks.shape)
    inside = ((uniform >= below) & (uniform <= DRAWS + 1 - below)).mean(1)
    return float(inside.mean()), float(inside.std(ddof=1) / np.sqrt(len(inside)))


def collect(replicates: int, kept: Path | None = None) -> dict[str, np.ndarray]:
    """Return ranks of shape (replicates, elements) by site; those of a file are taken from it, new ones added to it."""
    rows = json.loads(kept.read_text())["ranks"] if kept and kept.exists() else []
    for seed in range(len(rows), replicates):
        rows.append({site: found.tolist() for site, found in replicate(seed).items()})
        if kept:
            _write(kept, rows)
    return {site: np.array([row[site] for row in rows[:replicates]]) for site in rows[0]}


def _write(path: Path, rows: list[dict[str, list[int]]]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"draws": DRAWS, "ranks": rows}))
    part.replace(path)


def draw(ranks: dict[str, np.ndarray], path: Path) -> None:
    """Draw a histogram of the ranks of each site, with the band in which 99 % of the bars of a uniform one fall."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(5, -(-len(ranks) // 5), figsize=(14, 11), layout="constrained")
    for ax, (name, found) in zip(axes.flat, sorted(ranks.items()), strict=False):
        share = np.histogram((found.reshape(-1) + 0.5) / (DRAWS + 1), bins=BARS, range=(0, 1))[0] / found.size * BARS
        error = 2.58 * np.sqrt((BARS - 1) / found.shape[0] / min(found.shape[1], 10))
        ax.axhspan(1 - error, 1 + error, color="0.9")
        ax.bar((np.arange(BARS) + 0.5) / BARS, share, width=1 / BARS, color="#4c72b0", edgecolor="white")
        ax.set(title=name, xlim=(0, 1), ylim=(0, 2), yticks=[0, 1, 2])
    for ax in axes.flat[len(ranks) :]:
        ax.remove()
    figure.supxlabel("rank of the truth among posterior draws")
    figure.supylabel("density relative to uniform")
    figure.savefig(path, dpi=80)


def main() -> None:
    """Run, print the coverage of log fold changes, and keep picture and ranks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--replicates", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True, help="ranks, replicate by replicate; a run goes on with it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ranks = collect(args.replicates, args.json)
    for level in LEVELS:
        share, error = coverage(ranks["log_fc"], level)
        print(f"{level:.0%} intervals of log2 fold changes hold {share:.1%} of the truths, standard error {error:.1%}")
    draw(ranks, args.out)


if __name__ == "__main__":
    main()
