"""Time and peak memory from 1,000 to 1,000,000 cells of 100 genes at 10 % density, each in a process of its own.

    python benchmarks/scaling.py

Forward and backward of the sum of log_prob, with parameters of each gene: of the dense cells, of the same in CSR, and
of the sufficient statistics of 10 groups; and the reduction to these, which is done once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from reduction import Peak
from torch import Tensor

from pyro_zilognormal import GroupedZeroInflatedLogNormal, SufficientStatistics, ZeroInflatedLogNormal

CELLS, GENES, GROUPS, DENSITY = (1_000, 10_000, 100_000, 1_000_000), 100, 10, 0.1
DENSE, CSR, ONCE, REDUCED = "log_prob, dense", "log_prob_sum, CSR", "reduction, once", "log_prob of the reduction"


def drawn(cells: int) -> Any:
    """Cells as a CSR of float32, with as many positives each, of columns at random."""
    rng = np.random.default_rng(0)
    each = int(DENSITY * GENES)
    columns = (rng.integers(0, GENES, (cells, 1)) + np.arange(each) * (GENES // each)) % GENES
    values = np.exp(rng.standard_normal(cells * each, np.float32))
    indptr = np.arange(cells + 1) * each
    return sp.csr_array((values, np.sort(columns).astype(np.int32).ravel(), indptr), shape=(cells, GENES))


def slopes(total: Callable[..., Tensor], *shape: int) -> Callable[[], object]:
    """Forward and backward of a function of mu, scale and logits."""
    parameters = [torch.full(shape, a, requires_grad=True) for a in (0.1, 0.9, 2.0)]
    return lambda: torch.autograd.grad(total(*parameters).sum(), parameters)


def contender(name: str, cells: Any) -> Callable[[], object]:
    """What is timed; its data are made beforehand."""
    if name == DENSE:
        x = torch.from_numpy(cells.toarray())
        return slopes(lambda *p: ZeroInflatedLogNormal(*p, validate_args=False).log_prob(x), GENES)
    if name == CSR:
        return slopes(lambda *p: ZeroInflatedLogNormal(*p, validate_args=False).log_prob_sum(cells), GENES)
    groups = np.random.default_rng(1).integers(0, GROUPS, cells.shape[0])
    if name == ONCE:
        return lambda: SufficientStatistics.from_cells(cells, groups, GROUPS)
    value = SufficientStatistics.from_cells(cells, groups, GROUPS).value.float()
    law = GroupedZeroInflatedLogNormal
    return slopes(lambda *p: law(*p, validate_args=False).log_prob(value), GROUPS, GENES)


def measure(name: str, cells: int) -> dict[str, float]:
    """Median seconds of five calls, and by how many bytes the first let memory grow."""
    contender(name, drawn(10))()  # what is loaded at the first call of all is not counted
    function = contender(name, drawn(cells))
    watch = Peak("VmRSS")
    watch.start()
    function()
    growth = watch.growth()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return {"cells": cells, "seconds": sorted(times)[2], "growth": growth}


def curves() -> dict[str, list[dict[str, float]]]:
    """Of each contender, the figures by the number of cells."""
    return {name: [in_a_process(name, cells) for cells in CELLS] for name in (DENSE, CSR, ONCE, REDUCED)}


def in_a_process(name: str, cells: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", name, "--cells", str(cells)]
    found: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--cells", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.cells)))
        return
    for name, points in curves().items():
        for p in points:
            print(f"{name}, {p['cells']:,} cells: {1e3 * p['seconds']:.2f} ms, {p['growth'] / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
