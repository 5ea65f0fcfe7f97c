"""A contrast from a cube of 1,000 groups x 2,000 genes: seconds, processor seconds and memory of each part.

Counts of donors x cell types x 2 conditions are drawn, and reduced to a cube. Then a contrast is tested over all
cells and in one cell type, from the cube alone.

    python benchmarks/cube.py --out cube_benchmark.json
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from pyro_zilognormal.singlecell import Cube, differential_expression, reduce

GENES, GROUPS = 2000, 1000
CONTRAST = ("condition", "stim", "ctrl")


def experiment(cells: int, donors: int, seed: int = 0) -> anndata.AnnData:
    """Draw counts: a tenth of the genes differ between conditions, all between cell types, and donors vary."""
    rng, types = np.random.default_rng(seed), GROUPS // 2 // donors
    group = rng.permutation(np.arange(cells) % GROUPS)
    donor, kind, stim = group % donors, group // donors % types, group // (donors * types)
    base = rng.normal(-2.0, 1.2, GENES) + rng.normal(0, 0.5, (types, GENES))
    own, change = rng.normal(0, 0.3, (donors, GENES)), rng.normal(0, 1, GENES) * (rng.random(GENES) < 0.1)
    depth, blocks = rng.normal(0, 0.4, cells), []
    for part in np.array_split(np.arange(cells), max(1, cells // 5000)):
        log_mean = base[kind[part]] + own[donor[part]] + stim[part, None] * change + depth[part, None]
        blocks.append(sp.csr_matrix(rng.poisson(rng.gamma(2, np.exp(log_mean) / 2)).astype(np.float32)))
    names = {"donor": [f"d{i}" for i in donor], "cell_type": [f"type{i}" for i in kind]}
    obs = pd.DataFrame(names | {"condition": np.where(stim, "stim", "ctrl")}, index=np.arange(cells).astype(str))
    return anndata.AnnData(sp.vstack(blocks, format="csr"), obs)


@contextmanager
def timed(found: dict[str, Any], part: str) -> Iterator[None]:
    """Note the seconds of a part, those of the processor, and the largest memory so far."""
    wall, own = time.perf_counter(), time.process_time()
    yield
    seconds = {"seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - own}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found[part] = {name: round(value, 2) for name, value in (seconds | {"gigabytes": memory}).items()}
    print(part, found[part], flush=True)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--donors", type=int, default=10, help="a divisor of 500")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {"cells": options.cells, "genes": GENES, "donors": options.donors}
    adata = experiment(options.cells, options.donors)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cube.zarr"
        with timed(found, "reduce"):
            cube = reduce(adata, ["donor", "cell_type", "condition"], depth=None)
        found["groups"] = len(cube.cells)
        del adata
        with timed(found, "save"):
            cube.save(path)
        found["megabytes"] = round(sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 2**20, 1)
        with timed(found, "load"):
            cube = Cube.load(path)
    for name, part in (("all cells", cube), ("one cell type", cube.select(cell_type="type0"))):
        with timed(found, name):
            table = differential_expression(part, "~ condition", CONTRAST, donor="donor")
        print(f"{table['is_de'].sum()} genes called", flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
