"""A contrast from a cube of 1,000 groups x 2,000 genes: seconds, processor seconds and memory of each part.

Counts of donors x cell types x 2 conditions are drawn, and reduced to a cube. Then a contrast is tested over all
cells and in one cell type, from the cube alone.

    python benchmarks/cube.py > benchmarks/CUBE.md
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from pyro_zilognormal.singlecell import Cube, differential_expression, reduce

GROUPS = 1000
CONTRAST = ("condition", "stim", "ctrl")


def experiment(cells: int, genes: int, donors: int, seed: int = 0) -> anndata.AnnData:
    """Draw counts: a tenth of the genes differ between conditions, all between cell types, and donors vary."""
    rng, types = np.random.default_rng(seed), GROUPS // 2 // donors
    group = rng.permutation(np.arange(cells) % GROUPS)
    donor, kind, stim = group % donors, group // donors % types, group // (donors * types)
    base = rng.normal(-2.0, 1.2, genes) + rng.normal(0, 0.5, (types, genes))
    own, change = rng.normal(0, 0.3, (donors, genes)), rng.normal(0, 1, genes) * (rng.random(genes) < 0.1)
    depth, blocks = rng.normal(0, 0.4, cells), []
    for part in np.array_split(np.arange(cells), max(1, cells // 5000)):
        log_mean = base[kind[part]] + own[donor[part]] + stim[part, None] * change + depth[part, None]
        blocks.append(sp.csr_matrix(rng.poisson(rng.gamma(2, np.exp(log_mean) / 2)).astype(np.float32)))
    names = {"donor": [f"d{i}" for i in donor], "cell_type": [f"type{i}" for i in kind]}
    obs = pd.DataFrame(names | {"condition": np.where(stim, "stim", "ctrl")}, index=np.arange(cells).astype(str))
    return anndata.AnnData(sp.vstack(blocks, format="csr"), obs)


@contextmanager
def timed(part: str) -> Iterator[None]:
    """Print a row of the table: seconds of a part, those of the processor, and the largest memory so far."""
    wall, own = time.perf_counter(), time.process_time()
    yield
    seconds, of_processor = time.perf_counter() - wall, time.process_time() - own
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"| {part} | {seconds:.1f} | {of_processor:.1f} | {memory:.2f} |", flush=True)


def print_head() -> None:
    """Print what made the page."""
    names = "anndata", "zarr", "torch"
    versions = ", ".join(f"{name} {version(name)}" for name in ("pyro-zilognormal", *names))
    command = " ".join(["python benchmarks/cube.py", *sys.argv[1:]])
    print(f"# A contrast from a cube\n\nPrinted by `{command}`.", flush=True)
    print(f"Versions: {versions}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start.\n")


def main() -> None:
    """Measure, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--donors", type=int, default=10, help="a divisor of 500")
    options = parser.parse_args()
    print_head()
    adata = experiment(options.cells, options.genes, options.donors)
    print(f"Counts of {options.cells:,} cells x {options.genes:,} genes of {options.donors} donors in 2 conditions,")
    print(f"in {GROUPS:,} groups with their cell types. Once they are reduced, no line reads a cell.\n")
    print("| | seconds | seconds of processors | peak memory so far, GB |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cube.zarr"
        with timed("reduce the cells"):
            cube = reduce(adata, ["donor", "cell_type", "condition"], depth=None)
        del adata
        with timed("save the cube"):
            cube.save(path)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
        with timed("load it"):
            cube = Cube.load(path)
    called = []
    for name, part in (("all cells", cube), ("one cell type", cube.select(cell_type="type0"))):
        with timed(f"stim against ctrl, {name}"):
            table = differential_expression(part, "~ condition", CONTRAST, donor="donor")
        called.append(f"{table['is_de'].sum()} in {name}")
    print(f"\nThe cube has {len(cube.cells):,} groups and {size:.0f} MB on disk. Genes called: {', '.join(called)};")
    print("a tenth of all genes truly differ.")


if __name__ == "__main__":
    main()
