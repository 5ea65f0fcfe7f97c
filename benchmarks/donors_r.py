"""Peers in R: edgeR on pseudobulk, and the two-part model of MAST with random effects, fitted by lme4.

On Debian, ``apt-get install r-bioc-edger r-cran-lme4``. A method whose package is missing is left out.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from donors_data import Cells, pseudobulk

SCRIPT = Path(__file__).with_suffix(".R")
PACKAGES = {"edgeR": "edgeR", "MAST by lme4": "lme4"}
# Methods that need a minute for each data set, and how many simulated ones of a design they get.
SLOW, SETS_OF_SLOW = ("MAST by lme4",), 3


@cache
def version(name: str) -> str:
    """Return the version of the R package of a method; nothing without it or without R."""
    if shutil.which("Rscript") is None:
        return ""
    package = PACKAGES[name]
    code = f'cat(if (requireNamespace("{package}", quietly = TRUE)) as.character(packageVersion("{package}")))'
    return subprocess.run(["Rscript", "-e", code], capture_output=True, text=True, check=True).stdout


def available() -> list[str]:
    """Return the methods whose packages are there."""
    return [name for name in PACKAGES if version(name)]


def run(name: str, cells: Cells) -> pd.DataFrame:
    """Return p and the log2 fold change of each gene; NaN where the method cannot fit it."""
    values, about = sums(cells) if name == "edgeR" else logarithms(cells)
    with tempfile.TemporaryDirectory() as folder:
        np.savetxt(Path(folder) / "values.csv", values, "%.9g", ",")
        about.to_csv(Path(folder) / "about.csv", index=False)
        subprocess.run(["Rscript", SCRIPT, name, folder], check=True)
        return pd.read_csv(Path(folder) / "table.csv").set_axis(cells.genes)


def sums(cells: Cells) -> tuple[np.ndarray, pd.DataFrame]:
    """Return counts of samples, and who they are, with their depth."""
    counts, depth, samples = pseudobulk(cells)
    stim = (samples["condition"] == "stim").astype(int)
    return counts, pd.DataFrame({"donor": samples["donor"], "stim": stim, "depth": depth})


def logarithms(cells: Cells) -> tuple[np.ndarray, pd.DataFrame]:
    """Return log2(1 + x) of normalised cells, and whose they are."""
    return np.log2(1 + cells.normalised), pd.DataFrame({"donor": cells.donor, "stim": cells.stim.astype(int)})
