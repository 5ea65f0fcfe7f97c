"""The reduction on one and on two processes of Dask: time, memory, exactness, and what 100,000,000 cells cost.

    pip install -c constraints.txt -e ".[singlecell,dask]"
    python benchmarks/dask_scaling.py > benchmarks/DASK.md

Writes cells x 2,000 genes at 10 % density as an h5ad file to a temporary folder (1,000,000 cells take 1.6 GB), and
reduces it to 40 groups by `open_cells(path, dask=True)` and `SufficientStatistics.from_dask`. The numbers of workers
run in turn, so that a change of the machine's speed meets all alike. Seconds of the processor are those of the workers
alone, which other programs on the machine lengthen less than the clock's.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from distributed import Client
from reduction import GENES, GROUPS, PIECE, draw

from pyro_zilognormal import SufficientStatistics, __version__, row_chunks
from pyro_zilognormal.singlecell import open_cells
from pyro_zilognormal.singlecell.cli.cluster import local_cluster

WORKERS = (1, 2)
TARGET = 100_000_000


@dataclass(frozen=True)
class Run:
    """One reduction: seconds of the clock, seconds of the workers' processors, peak memory of a worker in MB."""

    seconds: float
    busy: float
    memory: float


def write(path: Path, cells: int) -> None:
    """Write an h5ad file of so many cells, a piece in memory at a time."""
    rng, stored = np.random.default_rng(0), 0
    obs = pd.DataFrame(index=pd.RangeIndex(cells).astype(str))
    anndata.AnnData(obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(GENES)])).write_h5ad(path)
    with h5py.File(path, "a") as file:
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (cells, GENES)})
        kinds = {"data": "f4", "indices": "i4"}
        parts = {name: group.create_dataset(name, (0,), kind, maxshape=(None,)) for name, kind in kinds.items()}
        indptr = [np.zeros(1, np.int64)]
        for start in range(0, cells, PIECE):
            piece = draw(rng, min(PIECE, cells - start))
            for name, dataset in parts.items():
                dataset.resize((stored + piece.nnz,))
                dataset[stored:] = getattr(piece, name)
            indptr.append(stored + piece.indptr[1:].astype(np.int64))
            stored += piece.nnz
        group["indptr"] = np.concatenate(indptr)


def groups_of(cells: int) -> Any:
    """The group of each cell."""
    return np.random.default_rng(1).integers(0, GROUPS, cells)


def status(field: str) -> float:
    """A field of the memory of this process, in MB."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1e3 if found else float("nan")


def reduce(client: Client, path: Path, cells: int) -> tuple[Run, Any]:
    """Reduce the first cells of the file, and return how it went, and the statistics."""
    with open_cells(path, dask=True) as adata:
        array, before, start = adata.X[:cells], busy(client), time.perf_counter()
        found = SufficientStatistics.from_dask(array, groups_of(cells), GROUPS).value
        seconds = time.perf_counter() - start
    memory = max(client.run(status, "VmHWM").values())
    return Run(seconds, busy(client) - before, memory), found


def busy(client: Client) -> float:
    """Seconds that the processors have spent on the workers so far."""
    return float(sum(client.run(time.process_time).values()))


def started(workers: int) -> Client:
    """A client of so many fresh workers, which have imported what they need."""
    client = Client(local_cluster(workers))
    client.run(__import__, "pyro_zilognormal.singlecell.files.stored_matrix")
    return client


def in_turn(path: Path, sizes: tuple[int, ...], rounds: int) -> tuple[dict[tuple[int, int], list[Run]], Any]:
    """Runs by workers and cells, and the statistics of all cells."""
    runs: dict[tuple[int, int], list[Run]] = {}
    for _ in range(rounds):
        for workers in WORKERS:
            client = started(workers)
            for cells in sizes:  # memory is the highest so far, so that sizes ascend
                run, found = reduce(client, path, cells)
                runs.setdefault((workers, cells), []).append(run)
            client.shutdown()
    return runs, found


def in_one_pass(path: Path, cells: int) -> tuple[Run, Any]:
    """The same without Dask, in this process; its memory is not measured."""
    with open_cells(path) as adata:
        chunks = row_chunks(adata.X, groups_of(cells))
        start, before = time.perf_counter(), time.process_time()
        found = SufficientStatistics.from_chunks(chunks, GROUPS).value
        return Run(time.perf_counter() - start, time.process_time() - before, float("nan")), found


def largest_error(found: Any, wanted: Any) -> float:
    """Relative to each number, or to 1 where that is larger."""
    return float(((found - wanted).abs() / wanted.abs().clamp(min=1)).max())


def page(runs: dict[tuple[int, int], list[Run]], alone: Run, error: float, load: float) -> str:
    """What DASK.md says."""
    (few, many), rounds = sorted({cells for _, cells in runs}), len(next(iter(runs.values())))
    middle = {
        key: [statistics.median(getattr(r, f) for r in own) for f in Run.__annotations__] for key, own in runs.items()
    }
    ratios = [one.seconds / two.seconds for one, two in zip(runs[1, many], runs[2, many], strict=True)]
    slope = (middle[2, many][1] - middle[2, few][1]) / (many - few)
    names = ("dask", "distributed", "anndata", "h5py", "torch")
    return f"""# The reduction on Dask

Printed by `python benchmarks/dask_scaling.py --cells {many} --rounds {rounds}`.
Versions: ours {__version__}, {", ".join(f"{n} {version(n)}" for n in names)}; \
Python {platform.python_version()}; {os.cpu_count()} cores, load {load:.1f} by others before the start.

{many:,} cells x {GENES:,} genes at 10 % density, CSR in an h5ad file, {GROUPS} groups; medians of {rounds} rounds.

{table(alone, {workers: middle[workers, many] for workers in WORKERS})}

Two workers are {statistics.median(ratios):.2f} times as fast as one (single rounds: \
{", ".join(f"{r:.2f}" for r in ratios)}), by the seconds of processors at most \
{2 * middle[1, many][1] / middle[2, many][1]:.2f} times on free cores.
The statistics differ from those of one pass by at most {error:.0e}, relative to each number or 1.

From {few:,} to {many:,} cells the processors need {1e6 * slope:.1f} s more for each million cells of \
{GENES:,} genes, so that {TARGET:,} cells take {TARGET * slope / 3600:.2f} core hours."""


def table(alone: Run, middle: dict[int, list[float]]) -> str:
    """The medians of seconds, seconds of processors and memory, by workers."""
    lines = ["| | seconds | seconds of processors | peak memory of a worker, MB |", "| --- | --- | --- | --- |"]
    lines.append(f"| one pass, without Dask | {alone.seconds:.1f} | {alone.busy:.1f} | |")
    for workers, (seconds, processors, memory) in middle.items():
        lines.append(f"| {workers} worker{'s'[: workers - 1]} | {seconds:.1f} | {processors:.1f} | {memory:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Write, reduce, print, delete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where to put the temporary folder")
    options = parser.parse_args()
    few, many, load = options.cells // 4, options.cells, os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "cells.h5ad"
        write(path, many)
        runs, found = in_turn(path, (few, many), options.rounds)
        alone, wanted = in_one_pass(path, many)
    print(page(runs, alone, largest_error(found, wanted), load))


if __name__ == "__main__":
    main()
