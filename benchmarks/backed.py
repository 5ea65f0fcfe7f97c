"""Differential expression of a file larger than memory should hold: processor time and peak memory, as markdown.

    pip install -c constraints.txt -e ".[singlecell]"
    OMP_NUM_THREADS=1 python benchmarks/backed.py FOLDER > benchmarks/BACKED.md

It writes an h5ad file of 10 GB to the folder, block by block, runs `pyro-zilognormal de` on it in a process of its
own, compares what that says with what was written, and deletes the file.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from pyro_zilognormal import __version__

GENES, POSITIVE, ROWS = 20_000, 2_000, 10_000
CHANGE = 4.0  # of every hundredth gene, in the stimulated cells
RUN = "import sys; from pyro_zilognormal.singlecell.cli.main import main; sys.exit(main(sys.argv[1:]))"
ASKED = ("--formula", "~ condition", "--contrast", "condition", "stim", "ctrl", "--delta", "0.25")


def block() -> sp.csr_matrix:
    """10,000 cells x 20,000 genes with 2,000 positive values a cell, every other cell stimulated."""
    rng = np.random.default_rng(0)
    step = GENES // POSITIVE
    columns = np.arange(POSITIVE) * step + rng.integers(step, size=(ROWS, POSITIVE))
    level = rng.normal(1.0, 1.0, GENES).astype(np.float32)
    logs = level[columns] + 0.6 * rng.standard_normal((ROWS, POSITIVE), dtype=np.float32)
    logs[1::2] += np.where(columns[1::2] % 100 == 0, np.float32(np.log(CHANGE)), np.float32(0))
    pointer = np.arange(ROWS + 1) * POSITIVE
    return sp.csr_matrix((np.exp(logs).ravel(), columns.ravel().astype(np.int32), pointer), shape=(ROWS, GENES))


def write(path: Path, cells: sp.csr_matrix, repeats: int) -> None:
    """Write the cells so many times over, as anndata does, with one block in memory."""
    count = ROWS * repeats
    obs = pd.DataFrame({"condition": pd.Categorical(np.tile(["ctrl", "stim"], count // 2))})
    obs.index = obs.index.astype(str)
    var = pd.DataFrame(index=[f"gene{i}" for i in range(GENES)])
    anndata.AnnData(obs=obs, var=var).write_h5ad(path)
    with h5py.File(path, "a") as file:
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (count, GENES)})
        group["indptr"] = np.arange(count + 1, dtype=np.int64) * POSITIVE
        for name, values in (("data", cells.data), ("indices", cells.indices)):
            stored = group.create_dataset(name, (len(values) * repeats,), values.dtype, chunks=(1 << 18,))
            for i in range(repeats):
                stored[i * len(values) : (i + 1) * len(values)] = values


@dataclass(frozen=True)
class Run:
    """How a run went: processor seconds and peak memory in MB once the file was read, and in all."""

    read: tuple[float, float]
    whole: tuple[float, float]


def run(path: Path, out: Path, more: Sequence[str]) -> Run:
    """Run the command line, which says a line once it has read the file."""
    command = [sys.executable, "-c", RUN, "de", str(path), *ASKED, *more, "--out", str(out)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    line = child.stdout.readline()
    read = processor_seconds(child.pid), peak(child.pid)
    print(line + child.stdout.read(), file=sys.stderr)
    # wait4 counts this child alone.
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"the command failed with status {status}")
    return Run(read, (used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3))


def processor_seconds(process: int) -> float:
    """Return how long processors have worked for a process so far, which does not depend on what else they do."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak(process: int) -> float:
    """Return the most memory that a process has held so far, in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    return float(status.split("VmHWM:")[1].split()[0]) / 1e3


def compare(out: Path, cells: sp.csr_matrix) -> dict[str, str]:
    """Return how far what was found is from what was written."""
    table = pd.read_csv(out / "de.csv").set_index("variable")
    table = table.loc[[f"gene{i}" for i in range(GENES)]]
    stim = cells[1::2].astype(np.float64)
    mean = np.asarray(stim.sum(0)).ravel() / (ROWS // 2)
    seen = stim.getnnz(0) / (ROWS // 2)
    changed = np.arange(GENES) % 100 == 0
    called = table["is_de"].to_numpy()
    ratio = np.log2(mean / (np.asarray(cells[::2].astype(np.float64).sum(0)).ravel() / (ROWS // 2)))
    return {
        "largest relative error of `mean_test`": f"{np.abs(table['mean_test'] / mean - 1).max():.1g}",
        "largest error of `detection_test`": f"{np.abs(table['detection_test'] - seen).max():.1g}",
        "genes that change, called": f"{(called & changed).sum()} of {changed.sum()}",
        "genes whose means differ by more than 0.25 log2 units, called": f"{(called & (abs(ratio) > 0.25)).sum()} of "
        f"{(abs(ratio) > 0.25).sum()}",
        "genes whose means differ by less, called": f"{(called & (abs(ratio) <= 0.25)).sum()} of "
        f"{(abs(ratio) <= 0.25).sum()}",
        "their mean `log_fc`, of a true 2": f"{table['log_fc'][changed].mean():.3f}",
    }


def main() -> None:
    """Write, run, compare, print, delete."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=10.0)
    options, more = parser.parse_known_args()
    path, out = options.folder / "backed.h5ad", options.folder / "backed_out"
    cells = block()
    repeats = max(1, round(options.gigabytes * 1e9 / (cells.data.nbytes + cells.indices.nbytes)))
    try:
        write(path, cells, repeats)
        size = path.stat().st_size
        done = run(path, out, more)
    finally:
        path.unlink(missing_ok=True)
    print("# Differential expression of a file of 10 GB\n\nPrinted by `python benchmarks/backed.py`.")
    versions = f"ours {__version__}, " + ", ".join(f"{n} {version(n)}" for n in ("torch", "anndata", "h5py"))
    print(f"Versions: {versions}; Python {platform.python_version()}; one thread.\n")
    print(f"{ROWS * repeats} cells x {GENES} genes, CSR, {POSITIVE} values a cell, {size / 1e9:.2f} GB on disk;")
    print(
        f"every hundredth gene {CHANGE:g} times as high in the stimulated half. The same {ROWS} cells stand in the file"
    )
    print("over and over, so that what differs among them by chance is a difference too.")
    print(f"`pyro-zilognormal de {path.name} {shlex.join([*ASKED, *more])} --out out`, the whole of it:\n")
    print("| | processor seconds | peak memory, MB |\n| --- | --- | --- |")
    for what, (seconds, memory) in (("until the file is read", done.read), ("in all", done.whole)):
        print(f"| {what} | {seconds:.0f} | {memory:.0f} |")
    print("\n| what came out, beside what was written | |\n| --- | --- |")
    for name, value in compare(out, cells).items():
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
