"""Compare ways in which the depth of a cell explains its zeros, on held-out real cells: bins, logits and cloglog.

    OMP_NUM_THREADS=1 python benchmarks/depth.py FOLDER

FOLDER has ``kang_control_donors.h5ad`` (raw counts of Kang et al. 2018; obs ``donor`` and ``cell_type``). Each gene is
fitted by itself to a random half of the cells of a type, and judged by the log likelihood of the zeros of the other
half. It writes DEPTH.md, in a minute.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import torch
from torch import Tensor

PAGE = Path(__file__).with_name("DEPTH.md")
TYPES = ("CD14+ Monocytes", "CD4 T cells", "B cells")
SPLITS, LEAST = 2, 30  # random halves; positive cells, and zeros, of a gene that is judged
STEPS = 12  # of Fisher scoring


@dataclass(frozen=True)
class Way:
    """A model of zeros: whether its link is cloglog, its design and its offset."""

    cloglog: bool
    x: Tensor
    offset: Tensor

    def shares(self, beta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return P(X > 0) and its derivative by the linear predictor, each of shape (cells, genes)."""
        eta = (self.x[rows] @ beta + self.offset[rows, None]).clamp(-12, 12 if not self.cloglog else 3)
        if not self.cloglog:
            p = eta.sigmoid()
            return p, p * (1 - p)
        rate = eta.exp()
        return -torch.expm1(-rate), rate * (-rate).exp()

    def fit(self, positive: Tensor, rows: Tensor) -> Tensor:
        """Return the maximum likelihood coefficients of each gene, of shape (columns, genes)."""
        x, share = self.x[rows], positive[rows].mean(0)
        beta = torch.zeros(x.shape[1], positive.shape[1], dtype=torch.float64)
        beta[0] = (-(-share).log1p()).log() if self.cloglog else share.logit()
        for _ in range(STEPS):
            p, slope = self.shares(beta, rows)
            weight = slope / (p * (1 - p))
            score = x.mT @ ((positive[rows] - p) * weight)
            information = torch.einsum("nj,ng,nk->gjk", x, slope * weight, x)
            beta = beta + torch.linalg.solve(information, score.mT).mT.clamp(-1, 1)
        return beta

    def log_likelihood(self, beta: Tensor, positive: Tensor, rows: Tensor) -> Tensor:
        """Return the log likelihood of each gene, of shape (genes,)."""
        p, _ = self.shares(beta, rows)
        return torch.where(positive[rows] > 0, p.log(), (-p).log1p()).sum(0)


def ways(depth: Tensor) -> dict[str, Way]:
    """Return each way by name, for the log depth of all cells."""
    one, none = torch.ones(len(depth), 1, dtype=torch.float64), torch.zeros(len(depth), dtype=torch.float64)
    centred = depth - depth.mean()
    found = {"logit, no depth": Way(False, one, none)}
    for bins in (2, 4, 8, 16):
        edges = depth.quantile(torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1])
        which = torch.bucketize(depth, edges)
        mean = torch.stack([centred[which == k].mean() for k in range(bins)])[which]
        found[f"logit, {bins} bins of equal size"] = Way(False, torch.cat([one, mean[:, None]], 1), none)
    slope = torch.cat([one, centred[:, None]], 1)
    found["logit, the log depth of each cell"] = Way(False, slope, none)
    found["cloglog, log depth as offset"] = Way(True, one, centred)
    found["cloglog, a slope of log depth"] = Way(True, slope, none)
    return found


def measure(folder: Path, cell_type: str) -> tuple[int, int, dict[str, float]]:
    """Return numbers of cells and genes, and the held-out gain of each way in nats a gene and 1,000 cells."""
    data = anndata.read_h5ad(folder / "kang_control_donors.h5ad")
    data = data[data.obs["cell_type"] == cell_type]
    counts = torch.from_numpy(data.X.toarray()).double()
    depth = counts.sum(1).log()
    positive = (counts > 0).double()
    number = positive.sum(0)
    positive = positive[:, (number >= LEAST) & (number <= len(counts) - LEAST)]
    total: dict[str, float] = {}
    for seed in range(SPLITS):
        half = torch.from_numpy(np.random.default_rng(seed).permutation(len(counts)) < len(counts) // 2)
        for name, way in ways(depth).items():
            held = way.log_likelihood(way.fit(positive, half), positive, ~half)
            total[name] = total.get(name, 0.0) + float(held.mean()) * 1000 / int((~half).sum()) / SPLITS
    return len(counts), positive.shape[1], {k: v - total["logit, no depth"] for k, v in total.items()}


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder of the data")
    found = {cell_type: measure(parser.parse_args().folder, cell_type) for cell_type in TYPES}
    heads = [f"{name} ({cells:,} cells, {genes} genes)" for name, (cells, genes, _) in found.items()]
    rows = [["zeros of a cell by", *heads], ["---"] * (1 + len(heads))]
    rows += [[way, *(f"{gains[way]:.2f}" for *_, gains in found.values())] for way in found[TYPES[0]][2]]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    PAGE.write_text(f"# How depth explains zeros, as measured\n\n{INTRODUCTION}\n\n{table}\n")


INTRODUCTION = f"""Printed by `python benchmarks/depth.py FOLDER`. Log likelihood of which values of held-out cells
are zero, above that of one share of zeros for each gene, in nats a gene and 1,000 cells; larger is better. Means over
{SPLITS} random halves."""


if __name__ == "__main__":
    main()
