"""Differential expression with donors at two sizes: seconds, processor seconds and peak memory of the command `de`.

    pip install -c constraints.txt -e ".[singlecell]"
    python benchmarks/donors_large.py FOLDER

Raw counts are negative binomial, with an sd of donors of its own for each gene, and a tenth of the genes change; donors
have one condition each. They are written to h5ad files in FOLDER, 3 GB, which it keeps for further runs. The command
fits, tests, checks and draws on one thread.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

# Cells, genes, donors, and the mean and sd across genes of the log count of a cell.
SIZES = ((5_000, 20_000, 8, -1.5, 1.8), (1_000_000, 2_000, 20, -2.6, 1.5))
COUNTS_A_BLOCK, DISPERSION = 10_000_000, 0.3
RUN = "import sys; from pyro_zilognormal.singlecell.cli.main import main; sys.exit(main(sys.argv[1:]))"
MODEL = ["--formula", "~ condition", "--donor", "donor", "--scale", "counts"]
OPTIONS = [*MODEL, "--contrast", "condition", "stim", "ctrl"]


def blocks(cells: int, genes: int, donors: int, mean: float, sd: float) -> Iterator[sp.csr_matrix]:
    """Draw counts, some cells at a time; cell i is of donor i modulo the number of donors."""
    rng = np.random.default_rng(0)
    base = rng.normal(mean, sd, genes).clip(-6, 4)
    change = np.where(rng.random(genes) < 0.1, rng.normal(0, 0.7, genes), 0)
    own = rng.normal(size=(donors, genes)) * np.exp(rng.normal(np.log(0.12), 0.6, genes))
    log_mean = base + own + np.outer(np.arange(donors) % 2, change)
    rows = COUNTS_A_BLOCK // genes // donors * donors
    for start in range(0, cells, rows):
        donor = np.arange(start, min(start + rows, cells)) % donors
        depth = np.exp(rng.normal(0, 0.3, (len(donor), 1)))
        rate = np.exp(log_mean[donor]) * depth * rng.gamma(1 / DISPERSION, DISPERSION, (len(donor), genes))
        yield sp.csr_matrix(rng.poisson(rate).astype(np.float32))


def write(path: Path, cells: int, genes: int, donors: int, mean: float, sd: float) -> None:
    """Write the file as anndata does, with one block in memory."""
    donor = np.arange(cells) % donors
    obs = {
        "donor": pd.Categorical(donor.astype(str)),
        "condition": pd.Categorical.from_codes(donor % 2, ["ctrl", "stim"]),
    }
    var = pd.DataFrame(index=[f"gene{i}" for i in range(genes)])
    anndata.AnnData(obs=pd.DataFrame(obs, index=np.arange(cells).astype(str)), var=var).write_h5ad(path)
    with h5py.File(path, "a") as file:
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (cells, genes)})
        stored = {
            n: group.create_dataset(n, (0,), t, maxshape=(None,), chunks=(1 << 18,))
            for n, t in (("data", "f4"), ("indices", "i4"))
        }
        pointer = [np.zeros(1, np.int64)]
        for block in blocks(cells, genes, donors, mean, sd):
            start, stop = pointer[-1][-1], pointer[-1][-1] + block.nnz
            pointer.append(start + block.indptr[1:].astype(np.int64))
            for name, dataset in stored.items():
                dataset.resize((stop,))
                dataset[start:] = getattr(block, name)
        group["indptr"] = np.concatenate(pointer)


def main(folder: Path) -> None:
    """Write if need be, and run the command on each file."""
    columns = "cells x genes", "donors", "positive", "seconds", "of the processor", "peak memory, GB"
    print(f"| {' | '.join(columns)} |\n{'| --- ' * len(columns)}|")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for cells, genes, donors, *log_counts in SIZES:
        path = folder / f"donors_{cells}x{genes}.h5ad"
        if not path.exists():
            write(path, cells, genes, donors, *log_counts)
        with h5py.File(path) as file:
            share = len(file["X/data"]) / cells / genes
        start, command = time.perf_counter(), [sys.executable, "-c", RUN, "de", str(path), *OPTIONS]
        child = subprocess.Popen([*command, "--out", str(path.with_suffix(""))], stdout=subprocess.DEVNULL, env=env)
        _, status, used = os.wait4(child.pid, 0)
        if status:
            sys.exit(f"the command ended with status {status}")
        seconds, processor, memory = time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20
        size = f"{cells:,} x {genes:,} | {donors} | {share:.0%}"
        print(f"| {size} | {seconds:.0f} | {processor:.0f} | {memory:.2f} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
