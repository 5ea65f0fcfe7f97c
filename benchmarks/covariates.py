"""Differential expression with covariates of which each cell has its own value: time, peak memory and errors.

    pip install -c constraints.txt -e ".[singlecell]"
    python benchmarks/covariates.py FOLDER --cells 100000 --genes 500

It draws cells from zero-inflated log-normals whose parameters depend on the condition, the age and a spline of
pseudotime, writes them to an h5ad file in FOLDER, which it keeps for further runs, and runs the same formula on it in a
process of its own; with --bins the covariates are put in so many bins of equal size first, so that cells are grouped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from pyro_zilognormal.models.hurdle import passes
from pyro_zilognormal.models.hurdle.effects import location
from pyro_zilognormal.singlecell import HurdleDE, open_cells
from pyro_zilognormal.singlecell.design.design import Design

FORMULA = "~ condition + age + bs(pseudotime, df=4)"
CONTRASTS = {
    "condition": ("condition", "stim", "ctrl"),
    "age": ("age=61", "age=60"),
    "pseudotime": ("pseudotime=0.8", "pseudotime=0.2"),
}
ROWS = 5_000
# A share of the genes has an effect of a column, of this sd, in natural log units per sd of the column.
SHARE, EFFECT = 0.3, 0.4


def observations(cells: int) -> pd.DataFrame:
    """Conditions, ages and pseudotimes."""
    rng = np.random.default_rng(0)
    condition = pd.Categorical(np.where(np.arange(cells) % 2 == 1, "stim", "ctrl"))
    values = {"condition": condition, "age": rng.normal(60, 10, cells), "pseudotime": rng.beta(2, 2, cells)}
    return pd.DataFrame(values, index=np.arange(cells).astype(str))


class Truth:
    """Coefficients of all genes: of the log mean, and what the log odds of a zero have beyond its fall with that."""

    def __init__(self, design: Design, genes: int, detection: float) -> None:
        rng, columns = np.random.default_rng(1), design.matrix.shape[1]
        unit = np.append(1.0, design.matrix[:, 1:].std(0))
        hit = rng.random((columns - 1, genes)) < SHARE
        effects = EFFECT * rng.standard_normal((columns - 1, genes)) * hit
        centre = np.append(0.0, design.matrix[:, 1:].mean(0))
        self.mean = np.vstack([rng.normal(0, 1, genes), effects]) / unit[:, None]
        self.zero = np.vstack([rng.normal(0, 0.5, genes), 0.1 * rng.standard_normal(effects.shape)]) / unit[:, None]
        self.mean[0] -= centre @ self.mean
        self.zero[0] += np.log(1 / detection - 1) - centre @ self.zero
        self.sigma = np.exp(rng.normal(-0.4, 0.2, genes))

    def draw(self, matrix: NDArray[np.float64]) -> sp.csr_matrix:
        """Draw cells with these rows of the design: which values are positive, then these."""
        log_mean = torch.from_numpy(matrix @ self.mean)
        zero = torch.from_numpy(matrix @ self.zero) - log_mean
        cell, gene = (torch.rand_like(zero) > zero.sigmoid()).nonzero(as_tuple=True)
        sigma = torch.from_numpy(self.sigma)[gene]
        mu = location(log_mean[cell, gene], sigma, zero[cell, gene])
        values = (mu + sigma * torch.randn_like(mu)).exp().float()
        pointer = np.append(0, np.cumsum(np.bincount(cell, minlength=len(zero))))
        return sp.csr_matrix((values.numpy(), gene.int().numpy(), pointer), zero.shape)


def write(path: Path, obs: pd.DataFrame, design: Design, truth: Truth) -> None:
    """Write cells as anndata does, with one block in memory."""
    genes = len(truth.sigma)
    torch.manual_seed(0)
    anndata.AnnData(obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(genes)])).write_h5ad(path)
    with h5py.File(path, "a") as file:
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (len(obs), genes)})
        options: Any = {"maxshape": (None,), "chunks": (1 << 16,)}
        data, indices = (group.create_dataset(n, (0,), t, **options) for n, t in (("data", "f4"), ("indices", "i4")))
        pointer = [np.zeros(1, np.int64)]
        for start in range(0, len(obs), ROWS):
            block = truth.draw(design.matrix[start : start + ROWS])
            pointer.append(pointer[-1][-1] + block.indptr[1:])
            for stored, values in ((data, block.data), (indices, block.indices)):
                stored.resize((pointer[-1][-1],))
                stored[pointer[-2][-1] :] = values
        group["indptr"] = np.concatenate(pointer)


def measure(path: Path, out: Path, bins: int) -> None:
    """Run in a process of its own: read, start, fit and test, and print time and memory of each."""
    marks = [("", time.perf_counter(), time.process_time())]

    def mark(name: str) -> None:
        marks.append((name, time.perf_counter(), time.process_time()))
        before, last = marks[-2:]
        memory = float(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1e6
        print(f"| {name} | {last[1] - before[1]:.0f} | {last[2] - before[2]:.0f} | {memory:.2f} |", flush=True)

    counted = passes.CellLikelihood.derivatives
    taken: list[int] = []

    def count(self: Any, theta: Any, *arguments: Any, **named: Any) -> Any:
        if len(self.columns) == len(obs):
            taken.append(len(theta))
        return counted(self, theta, *arguments, **named)

    passes.CellLikelihood.derivatives = count  # type: ignore[method-assign]
    with open_cells(path) as cells:
        obs = cells.obs
        for name in ("age", "pseudotime") if bins else ():
            at = pd.qcut(obs[name], bins)
            obs[name] = obs.groupby(at, observed=True)[name].transform("mean")
        de = HurdleDE(cells, FORMULA, scale="linear")
        mark("read and check")
        de.fit()
        mark("fit")
        de.test(CONTRASTS).to_csv(out)
        mark("test 3 contrasts")
    print(f"\nPasses over all cells took {', '.join(f'{genes:,}' for genes in taken)} genes.", flush=True)


def compare(out: Path, design: Design, truth: Truth) -> None:
    """Print how far log fold changes are from the truth, and how many of the 99 % intervals hold it."""
    table = pd.read_csv(out)
    print("\n| contrast | median absolute error, log2 | in posterior sds, rms | 99 % intervals that hold the truth |")
    print("| --- | --- | --- | --- |")
    for name, contrast in zip(CONTRASTS, design.contrasts(CONTRASTS), strict=True):
        true = contrast.direction @ truth.mean / np.log(2)
        own = table[table.contrast == name].set_index("variable").loc[[f"gene{i}" for i in range(len(true))]]
        error = own.log_fc.to_numpy() - true
        held = (own.log_fc_low <= true + 1e-9) & (true - 1e-9 <= own.log_fc_high)
        z = np.sqrt(np.mean((error / own.log_fc_sd) ** 2))
        print(f"| {name} | {np.median(np.abs(error)):.4f} | {z:.2f} | {100 * held.mean():.1f} % |")


def main() -> None:
    """Write if need be, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=500)
    parser.add_argument("--detection", type=float, default=0.06, help="P(X > 0) of a gene of mean 1")
    parser.add_argument("--bins", type=int, default=0)
    parser.add_argument("--run", action="store_true")
    options = parser.parse_args()
    name = f"covariates_{options.cells}x{options.genes}_{options.detection:g}"
    path, out = (options.folder / f"{name}.{kind}" for kind in ("h5ad", "csv"))
    if options.run:
        measure(path, out, options.bins)
        return
    obs = observations(options.cells)
    design = Design(FORMULA, obs)
    truth = Truth(design, options.genes, options.detection)
    if not path.exists():
        write(path, obs, design, truth)
    with h5py.File(path) as file:
        share = len(file["X/data"]) / options.cells / options.genes
    print(f"{options.cells:,} cells x {options.genes:,} genes, {100 * share:.1f} % of the values positive.\n")
    print("| | seconds | CPU seconds | peak memory so far, GB |\n| --- | --- | --- | --- |", flush=True)
    subprocess.run([sys.executable, __file__, *sys.argv[1:], "--run"], check=True)
    compare(out, design, truth)


if __name__ == "__main__":
    main()
