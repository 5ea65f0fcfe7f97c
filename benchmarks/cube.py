"""A contrast from a cube of 1,000 groups x 2,000 genes: seconds, processor seconds and memory of each part.

Counts of 50 donors x 10 cell types x 2 conditions are drawn, and reduced to a cube. Then a contrast is tested over all
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

DONORS, TYPES, GENES = 50, 10, 2000
CONTRAST = ("condition", "stim", "ctrl")
FITS = {
    "all cells, ~ condition + (1 | donor) + (1 | donor:condition)": ("~ condition", None),
    "all cells, ~ condition + cell_type + (1 | donor)": ("~ condition + cell_type + (1 | donor)", None),
    "one cell type, ~ condition + (1 | donor) + (1 | donor:condition)": ("~ condition", "type0"),
}


def experiment(cells: int, seed: int = 0) -> anndata.AnnData:
    """Draw counts: a tenth of the genes differ between conditions, all between cell types, and donors vary."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.arange(cells) % (DONORS * TYPES * 2))
    donor, kind, stim = group % DONORS, group // DONORS % TYPES, group // (DONORS * TYPES)
    base = rng.normal(-2.0, 1.2, GENES) + rng.normal(0, 0.5, (TYPES, GENES))
    own, change = rng.normal(0, 0.3, (DONORS, GENES)), rng.normal(0, 1, GENES) * (rng.random(GENES) < 0.1)
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
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {"cells": options.cells, "genes": GENES}
    adata = experiment(options.cells)
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
    for name, (formula, kind) in FITS.items():
        part = cube if kind is None else cube.select(cell_type=kind)
        donor = None if "(" in formula else "donor"
        with timed(found, name):
            table = differential_expression(part, formula, CONTRAST, donor=donor)
        print(f"{table['is_de'].sum()} genes called")
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
