"""The reduction of a large matrix on disk: time, memory, and the same by other means.

Writes 1,000,000 cells x 2,000 genes at 10 % density as a CSR to a temporary folder (1.6 GB, deleted afterwards), and
reduces it to 40 groups in one pass, twice, each time in a process of its own: read into memory block by block, and
through memmaps. Of the first it takes the peak of resident memory, of the second the peak of anonymous memory (what
is mapped from files is the kernel's cache, which it takes back when it wants). Exits with 1 if either grows by 1 GB
or more, or if the statistics of some columns are not those of a direct computation.

    python benchmarks/reduction.py [--cells 1000000] [--folder /tmp]
"""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from pyro_zilognormal import GroupedZeroInflatedLogNormal, SufficientStatistics, ZeroInflatedLogNormal, row_chunks

GENES, GROUPS, DENSITY, PIECE = 2000, 40, 0.1, 20_000
LIMIT = 1e9
WAYS = {"read": "resident", "mapped": "anonymous"}  # how the matrix is read, and which memory is watched
CHECKED = slice(0, 20)  # columns computed directly


class OnDisk:
    """A CSR in three files, whose rows are read when asked for, as an HDF5 dataset's are."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.indptr = folder, np.load(folder / "indptr.npy")
        self.shape = (len(self.indptr) - 1, GENES)

    def __getitem__(self, rows: slice) -> Any:
        indptr = self.indptr[rows.start : rows.stop + 1]
        arrays = (self._read(name, dtype, indptr) for name, dtype in (("data", np.float32), ("indices", np.int32)))
        return sp.csr_array((*arrays, indptr - indptr[0]), shape=(len(indptr) - 1, GENES))

    def _read(self, name: str, dtype: type, indptr: np.ndarray) -> np.ndarray:
        first, count = int(indptr[0]), int(indptr[-1] - indptr[0])
        return np.fromfile(self.folder / name, dtype, count, offset=first * np.dtype(dtype).itemsize)


def write(folder: pathlib.Path, cells: int) -> None:
    """Make the matrix and the groups of its cells, a piece at a time; reduce the checked columns directly."""
    rng = np.random.default_rng(0)
    per_row, kept, groups = [], [], rng.integers(0, GROUPS, cells)
    with (folder / "data").open("wb") as data, (folder / "indices").open("wb") as indices:
        for start in range(0, cells, PIECE):
            piece = draw(rng, min(PIECE, cells - start))
            piece.data.tofile(data)
            piece.indices.tofile(indices)
            per_row.append(np.diff(piece.indptr))
            kept.append(piece[:, CHECKED].toarray())
    np.save(folder / "indptr.npy", np.concatenate([[0], np.cumsum(np.concatenate(per_row))]))
    np.save(folder / "groups.npy", groups)
    np.save(folder / "checked.npy", directly(np.concatenate(kept), groups))


def draw(rng: np.random.Generator, cells: int) -> Any:
    """Zero-inflated log-normal cells as a CSR of float32."""
    row, column = np.nonzero(rng.random((cells, GENES), np.float32) < DENSITY)
    value = np.exp(rng.standard_normal(len(row), np.float32) + (column / GENES).astype(np.float32))
    indptr = np.searchsorted(row, np.arange(cells + 1))
    return sp.csr_array((value, column.astype(np.int32), indptr.astype(np.int32)), shape=(cells, GENES))


def directly(x: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(n_pos, mean, m2) of each group and column by their definition."""
    out = np.zeros((3, GROUPS, x.shape[1]))
    for group in range(GROUPS):
        for column, values in enumerate(x[groups == group].T):
            y = np.log(values[values > 0].astype(np.float64))
            out[:, group, column] = len(y), y.mean(), y.var() * len(y)
    return out


class Peak(threading.Thread):
    """The highest value of a field of /proc/self/status, in bytes, every millisecond until stopped."""

    def __init__(self, field: str) -> None:
        super().__init__(daemon=True)
        self.pattern, self.done = re.compile(rf"{field}:\s+(\d+) kB"), threading.Event()
        self.before = self.highest = self.now()

    def now(self) -> int:
        """The present value."""
        found = self.pattern.search(pathlib.Path("/proc/self/status").read_text())
        if found is None:
            raise RuntimeError(f"/proc/self/status has no {self.pattern.pattern}; needed Linux 4.5 or later")
        return 1024 * int(found.group(1))

    def run(self) -> None:
        """Watch."""
        while not self.done.wait(1e-3):
            self.highest = max(self.highest, self.now())

    def growth(self) -> int:
        """Stop, and return by how much memory grew at most."""
        self.done.set()
        return self.highest - self.before


def reduce(folder: pathlib.Path, mapped: bool) -> dict[str, float]:
    """Reduce the matrix in this process: seconds, growth in bytes, and whether the checked columns are right."""
    groups = np.load(folder / "groups.npy")
    matrix: Any = OnDisk(folder)
    if mapped:
        arrays = [np.memmap(folder / n, t, "r") for n, t in (("data", np.float32), ("indices", np.int32))]
        matrix = sp.csr_array((*arrays, matrix.indptr), shape=matrix.shape)
    watch = Peak("RssAnon" if mapped else "VmRSS")
    watch.start()
    start = time.perf_counter()
    stats = SufficientStatistics.from_chunks(row_chunks(matrix, groups), GROUPS)
    seconds = time.perf_counter() - start
    n_pos, mean, m2 = np.load(folder / "checked.npy")
    right = np.array_equal(stats.n_pos[:, CHECKED], n_pos)
    right &= np.allclose(stats.mean[:, CHECKED], mean, rtol=1e-11, atol=1e-12)
    right &= np.allclose(stats.m2[:, CHECKED], m2, rtol=1e-11)
    return {"seconds": seconds, "growth": watch.growth(), "right": bool(right), "values": int(stats.n_pos.sum())}


def in_a_process(folder: pathlib.Path, mapped: bool) -> dict[str, Any]:
    """What `reduce` says in a process of its own."""
    command = [sys.executable, __file__, "--reduce", str(folder), *(["--mapped"] if mapped else [])]
    result: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return result


def by_indicators(x: Any, groups: np.ndarray) -> Any:
    """Products of an indicator matrix with 1, log x and its square: one pass, and m2 by the textbook difference."""
    member = sp.csr_array((np.ones(len(groups)), (groups, np.arange(len(groups)))), shape=(GROUPS, len(groups)))
    y = sp.csr_array((np.log(x.data.astype(np.float64)), x.indices, x.indptr), shape=x.shape)
    one, square = y.copy(), y.copy()
    one.data[:], square.data = 1, y.data**2
    n_pos, first, second = ((member @ m).toarray() for m in (one, y, square))
    return n_pos, first / np.maximum(n_pos, 1), second - first**2 / np.maximum(n_pos, 1)


def by_pandas(x: Any, groups: np.ndarray) -> Any:
    """groupby on a dense frame of log x, NaN where x is 0."""
    import pandas as pd

    dense = x.toarray().astype(np.float64)
    with np.errstate(divide="ignore"):
        frame = pd.DataFrame(np.where(dense > 0, np.log(dense), np.nan)).groupby(groups)
    return frame.count(), frame.mean(), frame.var()


def by_loops(x: Any, groups: np.ndarray) -> Any:
    """One group after the other, dense, in two passes."""
    for group in range(GROUPS):
        part = x[groups == group].toarray().astype(np.float64)
        inside = part > 0
        y, n_pos = np.log(np.where(inside, part, 1)), inside.sum(0)
        mean = y.sum(0) / np.maximum(n_pos, 1)
        np.where(inside, (y - mean) ** 2, 0).sum(0)


def in_turn(contenders: dict[str, Callable[[], Any]], rounds: int = 5) -> dict[str, float]:
    """The median seconds of each; they run in turn, so that a change of the machine's speed meets all alike."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def compare(cells: int = 20_000) -> dict[str, dict[str, float]]:
    """How long other means take for a matrix in memory, and a likelihood on cells and on groups, in seconds."""
    x, groups = draw(np.random.default_rng(1), cells), np.random.default_rng(2).integers(0, GROUPS, cells)
    contenders: dict[str, Callable[[], Any]] = {
        "SufficientStatistics": lambda: SufficientStatistics.from_cells(x, groups, GROUPS),
        "scipy indicator products (loses digits of m2)": lambda: by_indicators(x, groups),
        "numpy, dense, group by group": lambda: by_loops(x, groups),
        "pandas groupby, dense": lambda: by_pandas(x, groups),
    }
    small = 1000
    dense, value = torch.from_numpy(x[:small].toarray()).double(), contenders["SufficientStatistics"]().value
    mu, logits, scale = (p.double().requires_grad_() for p in (*torch.randn(2, GROUPS, GENES), torch.rand(GENES) + 0.5))
    group = torch.from_numpy(groups[:small])
    likelihoods = {
        f"GroupedZeroInflatedLogNormal, {cells:,} cells": lambda: slopes(
            GroupedZeroInflatedLogNormal(mu, scale, logits).log_prob(value), mu, scale, logits
        ),
        f"ZeroInflatedLogNormal, {small:,} cells": lambda: slopes(
            ZeroInflatedLogNormal(mu[group], scale, logits[group]).log_prob(dense), mu, scale, logits
        ),
    }
    return {
        f"{cells:,} cells x {GENES:,} genes in memory, 10 % density": in_turn(contenders),
        f"log_prob and its gradient, {GROUPS} groups x {GENES:,} genes": in_turn(likelihoods, 15),
    }


def slopes(log_prob: torch.Tensor, *parameters: torch.Tensor) -> Any:
    """The gradient of a sum."""
    return torch.autograd.grad(log_prob.sum(), parameters)


def report(title: str, seconds: dict[str, float]) -> None:
    """Print times, and ratios to the first."""
    print(f"\n{title}:")
    ours = next(iter(seconds.values()))
    for name, taken in seconds.items():
        print(f"  {name:48s} {1e3 * taken:9.1f} ms  {taken / ours:6.2f}")


@contextmanager
def matrix_on_disk(parent: str | None, cells: int) -> Iterator[pathlib.Path]:
    """A temporary folder with the matrix."""
    with tempfile.TemporaryDirectory(dir=parent) as name:
        start = time.perf_counter()
        write(pathlib.Path(name), cells)
        print(f"{cells:,} cells x {GENES:,} genes written in {time.perf_counter() - start:.0f} s")
        yield pathlib.Path(name)


def from_disk(cells: int, parent: str | None = None) -> dict[str, dict[str, Any]]:
    """What `reduce` says of a matrix on disk, for each way to read it."""
    with matrix_on_disk(parent, cells) as folder:
        return {how: in_a_process(folder, how == "mapped") for how in WAYS}


def main() -> int:
    """Print the figures; return 1 where memory or the statistics are not as claimed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--folder", help="where to put the temporary folder")
    parser.add_argument("--reduce", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--mapped", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.reduce:
        print(json.dumps(reduce(arguments.reduce, arguments.mapped)))
        return 0
    found = from_disk(arguments.cells, arguments.folder)
    for how, r in found.items():
        rate, verdict = r["values"] / r["seconds"], "right" if r["right"] else "WRONG"
        print(
            f"{how}: {r['values']:,} values in {r['seconds']:.1f} s, {rate / 1e6:.0f} million a second; {WAYS[how]} "
            f"memory grew by {r['growth'] / 1e6:.0f} MB (limit {LIMIT / 1e6:.0f}); statistics {verdict}"
        )
    for title, seconds in compare().items():
        report(title, seconds)
    return int(any(r["growth"] >= LIMIT or not r["right"] for r in found.values()))


if __name__ == "__main__":
    sys.exit(main())
