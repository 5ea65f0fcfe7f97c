"""Run tutorials in their short mode, each in a fork of one process that has imported what most of them need.

    python -m tests.tutorials.forks

reads a line for each, the path of a notebook, and answers it with a line of JSON: what came to standard error, or "".
A new kernel for each, as ``tools/run_tutorials.py`` has it, takes seconds to import the same.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
import warnings

import anndata  # noqa: F401
import matplotlib.pyplot as plt  # noqa: F401
import nbformat
import pyro.infer.autoguide  # noqa: F401
import sklearn.pipeline  # noqa: F401
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from tools.run_tutorials import code_cells


class Shell(InteractiveShell):
    """The shell of a kernel, but for a kernel's messages."""

    def _showtraceback(self, kind: type, error: BaseException, lines: list[str]) -> None:
        print(*lines, sep="\n", file=sys.stderr)


def run(path: str) -> None:
    """Run cells up to the first that fails, with warnings as errors."""
    shell = Shell.instance(config=Config({"HistoryManager": {"enabled": False}}), colors="nocolor")
    warnings.simplefilter("error")
    all(shell.run_cell(cell.source).success for cell in code_cells(nbformat.read(path, as_version=4)))


def in_a_fork(path: str) -> str:
    """Run it in a fork, in an empty folder; return what the fork wrote to standard error."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said, open(os.devnull, "wb") as nothing:
        if (child := os.fork()) == 0:
            os.dup2(nothing.fileno(), 1)
            os.dup2(said.fileno(), 2)
            os.chdir(folder)
            try:
                run(path)
            except BaseException:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        said.seek(0)
        return said.read().decode() + (f"ended by signal {status}" if status else "")


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(in_a_fork(line.strip())), flush=True)
