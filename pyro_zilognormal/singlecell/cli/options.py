"""The arguments of ``pyro-zilognormal de``, and those that it shares with other commands."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pyro_zilognormal.singlecell.cli.console import BAD_INPUT
from pyro_zilognormal.singlecell.errors import printable
from pyro_zilognormal.singlecell.files.scale import SCALES

DE = "Test each gene for a difference in mean expression between conditions; write a table, plots and a report."
DEPTH = "column of obs with total counts or detection rates, or auto (total_counts, n_counts or nCount_RNA)"
SCALE = "stored scale: x, log(1 + x) to base e, 2 or 10, or counts; needed unless the file or its values show it"
DEMO = "Compare monocytes with T cells in 700 blood cells that come with the package; nothing is downloaded."


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose options have one name each."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_known_args(join_contrasts(sys.argv[1:] if args is None else args), namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {printable(message)}; see {self.prog} --help\n")


# What stands between the parts of a contrast once they are one argument: no argument of a process can hold it.
_JOINT = "\0"
_MINUS = "-"


def join_contrasts(arguments: Sequence[str]) -> list[str]:
    r"""Make one argument of each contrast, so that levels may start with a dash.

    Example:
        >>> join_contrasts(["--contrast", "cells", "-TNF", "+TNF", "file.h5ad"])
        ['--contrast=cells\x00-TNF\x00+TNF', 'file.h5ad']
    """
    found, left = [], list(arguments)
    while left:
        found.append(left.pop(0))
        if found[-1] == "--contrast":
            length = 3 if "=" not in "".join(left[:1]) else 5 if left[2:3] == [_MINUS] else 2
            parts = list(itertools.takewhile(lambda part: not part.startswith("--"), left[:length]))
            found[-1] = f"--contrast={_JOINT.join(parts)}"
            del left[: len(parts)]
    return found


def contrast(text: str) -> Any:
    """Return the contrast of an argument, as :meth:`HurdleDE.test` takes it."""
    parts = tuple(text.split(_JOINT))
    if len(parts) == 5 and parts[2] == _MINUS:
        return parts[:2], parts[3:]
    if len(parts) == 3 or (len(parts) == 2 and all("=" in part for part in parts)):
        return parts
    raise argparse.ArgumentTypeError(
        f"got {' '.join(parts)!r}; needed a column and two levels, such as condition stim ctrl, or two conditions, "
        "such as condition=stim,dose=high condition=ctrl,dose=high"
    )


def add_de(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="INPUT", help="an AnnData file, h5ad or zarr, or a cube, as reduce writes it")
    _add_comparison(parser.add_argument)
    add_matrix(parser.add_argument)
    add_normalisation(parser.add_argument)
    parser.add_argument("--depth", metavar="COLUMN", help=DEPTH)
    _add_processes(parser)
    add_common(parser)


def _add_comparison(add: Callable[..., Any]) -> None:
    add(
        "--formula",
        required=True,
        help='model formula of columns of obs, such as "~ condition + `orig.ident` + (1 | lane)"',
    )
    add(
        "--contrast",
        required=True,
        type=contrast,
        action="append",
        metavar="COLUMN TEST REFERENCE",
        help="the column and the two levels to compare; or two conditions, condition=stim,dose=high "
        "condition=ctrl,dose=high; or four, with a lone - after the second, for the difference of two comparisons; can "
        "be repeated",
    )
    add(
        "--donor",
        metavar="COLUMN",
        help="column of obs that names the donors, for random effects of donors and samples",
    )


def add_matrix(add: Callable[..., Any]) -> None:
    """Add what says which matrix of a file is read, and on which scale it is."""
    add("--follow-links", action="store_true", help="read a file whose links reach other files")
    add("--layer", help="use this layer instead of X")
    add("--use-raw", action="store_true", help="use raw instead of X")
    add("--scale", choices=SCALES, help=SCALE)


def add_normalisation(add: Callable[..., Any]) -> None:
    """Add what makes values comparable between cells."""
    add("--offset", metavar="COLUMN", help="column of obs with log size factors, for values that are not normalised")
    add("--detection-threshold", type=float, default=0.0, metavar="X", help="take values of at most X as zeros (0)")


def _add_processes(parser: argparse.ArgumentParser) -> None:
    engine = parser.add_mutually_exclusive_group()
    engine.add_argument("--workers", type=whole(1), metavar="N", help="read and reduce the cells in N processes")
    engine.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="read and reduce the cells on the Dask cluster whose scheduler is at ADDRESS, such as "
        "tcp://10.0.0.1:8786; its workers need INPUT at the same path",
    )
    add = parser.add_argument
    add("--each", metavar="COLUMN", help="compare in each level of this column, such as cell_type, in parallel")
    add("--jobs", type=whole(1), metavar="N", help="with --each, the number of processes; by default, of cores")


def add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=folder, required=True, metavar="DIR", help="output folder; created if missing")
    add("--delta", type=float, default=0.25, help="smallest change of interest, in log2 units (0.25)")
    add("--fdr", type=float, default=0.05, help="expected false discovery rate of the calls (0.05)")
    add("--max-error", type=float, default=0.2, help="largest probability that a called gene does not change (0.2)")
    add("--steps", type=whole(10), default=None, help="number of steps of the fit; increase if it has not converged")
    add_fit(add)


def add_fit(add: Callable[..., Any]) -> None:
    """Add how a model is fitted, and what is said of it."""
    add("--seed", type=whole(0), default=0, help="random seed (0)")
    add("--device", default="cpu", help="torch device, such as cpu or cuda (cpu)")
    add("--resume", action="store_true", help="resume from the checkpoint in DIR, if there is one")
    add("--strict", action="store_true", help="exit with code 3 if the fit has not converged")
    add("--quiet", action="store_true", help="print only warnings and errors")


def folder(text: str) -> Path:
    """Return the path of a folder, or cube, to write to."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is empty; needed the name of a folder")
    return Path(text)


def whole(least: int) -> Any:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return number
