"""Small files of cells, good and bad, and a way to run the command line on them."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from pyro_zilognormal.singlecell.cli import console, de
from pyro_zilognormal.singlecell.cli import main as cli

N = 60
GENES = ("up", "down", "same", "rare")
# Other processes are forks of one that has imported this module.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])
ASKED = ("--formula", "~ condition", "--contrast", "condition", "stim", "ctrl", "--steps", "10")


@dataclass(frozen=True)
class Ran:
    """How a run of the command line ended."""

    code: int
    said: str
    problems: str


def run(*arguments: Any) -> Ran:
    """Run the command line in this process."""
    said, problems = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(problems):
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Ran(code, said.getvalue(), problems.getvalue())


def undrawn(results: Any) -> tuple[dict[str, bytes], dict[str, bytes], list[str]]:
    """Stands for ``de.draw``, which takes most of the time of a small run."""
    genes = {f"{one.gene}, {one.contrast}": b"no picture" for one in results.genes}
    return dict.fromkeys(("loss", "volcano", "predictive"), b"no picture"), genes, []


def in_a_process(asked: list[str], folder: Path) -> None:
    """Run the command line, with what it writes in files of a folder and a checkpoint every 0.01 s, and end."""
    for name, descriptor in (("said", 1), ("problems", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have set it to be ignored
    console.SECONDS_A_SAVE = 0.01
    de.draw = undrawn
    sys.exit(cli.main(asked))


def cells(x: Any = None, **columns: Any) -> anndata.AnnData:
    """60 cells x 4 genes of four donors in two conditions; one gene 16 times as high, one as low, in the stimulated."""
    rng = np.random.default_rng(0)
    stim = np.arange(N) % 2 == 1
    values = rng.lognormal([3.0, 6.0, 3.0, 3.0], 0.5, (N, 4)) * (rng.random((N, 4)) < [0.7, 0.8, 0.9, 0.2])
    values[stim] *= [16, 1 / 16, 1, 1]
    obs = pd.DataFrame({"condition": np.where(stim, "stim", "ctrl")}, index=[f"cell{i}" for i in range(N)])
    obs["donor"] = [f"d{i // 2 % 4}" for i in range(N)]
    obs["age"] = rng.normal(50, 9, N)
    obs = obs.assign(**columns)
    made = anndata.AnnData(values if x is None else x, obs, pd.DataFrame(index=list(GENES)))
    made.layers["counts"] = sp.csr_matrix(np.floor(values))
    return made


def values_with(row: int, column: int, value: float, sparse: bool = False) -> Any:
    """The values with another one somewhere."""
    x = np.array(cells().X)
    x[row, column] = value
    return sp.csr_matrix(x) if sparse else x


def file_of(folder: Path, adata: anndata.AnnData | None = None, name: str = "cells.h5ad") -> Path:
    """Write a file of cells."""
    path = folder / name
    (cells() if adata is None else adata).write_h5ad(path)
    return path
