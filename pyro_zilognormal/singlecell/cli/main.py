"""The command line, ``pyro-zilognormal de``, ``reduce``, ``embed`` and ``demo``, and its arguments."""

from __future__ import annotations

import argparse
import csv
import itertools
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pyro_zilognormal import __version__
from pyro_zilognormal.singlecell.cli import console, de, each, embed, reduce
from pyro_zilognormal.singlecell.errors import printable
from pyro_zilognormal.singlecell.files.scale import SCALES

_COMMANDS = {"de": de.run, "embed": embed.run, "reduce": reduce.run, "demo": de.run}
# What stands between the parts of a contrast once they are one argument: no argument of a process can hold it.
_JOINT = "\0"
_MINUS = "-"
# Help of the commands, and of the options that need more than a line.
_DE = "Test each gene for a difference in mean expression between conditions; write a table, plots and a report."
_EMBED = "Embed cells in a few dimensions, corrected for batches; write an h5ad file, checks of genes and a report."
_REDUCE = """Reduce cells to a cube, the statistics of groups by columns of obs, which de takes in place of the cells,
or append new cells to one."""
_DEMO = "Compare monocytes with T cells in 700 blood cells that come with the package; nothing is downloaded."
_CONTRAST = """the column and the two levels to compare; or two conditions, condition=stim,dose=high
condition=ctrl,dose=high; or four, with a lone - after the second, for the difference of two comparisons; can be
repeated"""
_CLUSTER = """read and reduce the cells on the Dask cluster whose scheduler is at ADDRESS, such as tcp://10.0.0.1:8786;
its workers need INPUT at the same path"""

Add = Callable[..., Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: those of the command line; None for the process's own.

    Returns:
        The exit code, 0; 1 if the run failed, such as for lack of disk space; 2 for input that cannot be used, with one
        line on standard error that says why; 3 with ``--strict`` if the fit has not converged; 130 on Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):  # a terminal may lack the letters of some names
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    options = make_parser().parse_args(arguments)
    options.command = shlex.join(["pyro-zilognormal", *arguments])
    run = _COMMANDS[options.verb] if getattr(options, "each", None) is None else each.run
    try:
        console.check_out(options.out)
        return run(options)
    except console.REFUSED as error:
        return _fail(console.BAD_INPUT, error)
    except console.BROKEN as error:
        return _fail(console.FAILED, error)
    except MemoryError as error:
        return _fail(console.FAILED, f"not enough memory: {error}; use fewer genes or a machine with more")
    except KeyboardInterrupt:
        return _fail(console.INTERRUPTED, "interrupted; run it again with --resume to go on")


def _fail(code: int, problem: object) -> int:
    print(f"pyro-zilognormal: {printable(console.one_line(problem))}", file=sys.stderr)
    return code


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose options have one name each."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_known_args(join_contrasts(sys.argv[1:] if args is None else args), namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(console.BAD_INPUT, f"{self.prog}: {printable(message)}; see {self.prog} --help\n")


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="pyro-zilognormal", description="Bayesian differential expression of single cells.")
    parser.add_argument("--version", action="version", version=f"pyro-zilognormal {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    _de(verbs.add_parser("de", help="compare conditions in an h5ad or zarr file", description=_DE))
    _embed(verbs.add_parser("embed", help="embed cells, corrected for batches", description=_EMBED).add_argument)
    reduce = verbs.add_parser("reduce", help="reduce cells to a cube, which de takes too", description=_REDUCE)
    _reduce(reduce.add_argument)
    demo = verbs.add_parser("demo", help="compare monocytes with T cells in embedded data", description=_DEMO)
    _calls(demo.add_argument)
    demo.set_defaults(source="pbmc68k_reduced", scale="linear", formula="~ cell_type", workers=None, cluster=None)
    demo.set_defaults(contrast=[("cell_type", "monocyte", "T cell")])
    return parser


def _de(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="INPUT", help="an AnnData file, h5ad or zarr, or a cube, as reduce writes it")
    formula = 'model formula of columns of obs, such as "~ condition + `orig.ident` + (1 | lane)"'
    add("--formula", required=True, help=formula)
    contrast_of: dict[str, Any] = {"type": contrast, "action": "append", "metavar": "COLUMN TEST REFERENCE"}
    add("--contrast", required=True, help=_CONTRAST, **contrast_of)
    donor = "column of obs that names the donors, for random effects of donors and samples"
    add("--donor", metavar="COLUMN", help=donor)
    _matrix(add)
    _normalisation(add)
    depth = "column of obs with total counts or detection rates, or auto (total_counts, n_counts or nCount_RNA)"
    add("--depth", metavar="COLUMN", help=depth)
    engine = parser.add_mutually_exclusive_group()
    engine.add_argument("--workers", type=whole(1), metavar="N", help="read and reduce the cells in N processes")
    engine.add_argument("--cluster", metavar="ADDRESS", help=_CLUSTER)
    add("--each", metavar="COLUMN", help="compare in each level of this column, such as cell_type, in parallel")
    add("--jobs", type=whole(1), metavar="N", help="with --each, the number of processes; by default, of cores")
    _calls(add)


def _calls(add: Add) -> None:
    """Add where a comparison goes, what is called and how it is fitted."""
    add("--out", type=folder, required=True, metavar="DIR", help="output folder; created if missing")
    add("--delta", type=float, default=0.25, help="smallest change of interest, in log2 units (0.25)")
    add("--fdr", type=float, default=0.05, help="expected false discovery rate of the calls (0.05)")
    add("--max-error", type=float, default=0.2, help="largest probability that a called gene does not change (0.2)")
    add("--steps", type=whole(10), help="number of steps of the fit; increase if it has not converged")
    _fit(add)


def _embed(add: Add) -> None:
    add("source", metavar="INPUT", help="an AnnData file, h5ad or zarr")
    add("--out", type=folder, required=True, metavar="DIR", help="output folder; created if missing")
    add("--batch", metavar="COLUMN", help="column of obs that names the batches to correct for, such as samples")
    add("--label", metavar="COLUMN", help="column of obs to colour the picture by, such as the cell type; not fitted")
    _matrix(add)
    add("--depth", metavar="COLUMN", default="auto", help="column of obs with total counts or detection rates (auto)")
    add("--latent", type=whole(1), default=10, help="number of latent dimensions (10)")
    add("--linear", action="store_true", help="use a linear decoder")
    add("--steps", type=whole(1), default=20_000, help="number of steps at most (20000)")
    _fit(add)


def _reduce(add: Add) -> None:
    add("sources", metavar="INPUT", nargs="+", help="AnnData files of the same genes, h5ad or zarr")
    add("--out", type=folder, required=True, metavar="CUBE", help="the cube, a zarr folder")
    add("--by", type=columns, metavar="COLUMNS", help="columns of obs that name the groups: donor,cell_type,condition")
    add("--append", action="store_true", help="append the cells to the cube that is there, reduced as it was")
    add("--merge", action="store_true", help="with --append, add cells to groups that the cube has already")
    _matrix(add)
    _normalisation(add)
    depth = "column of obs to make bins of depth of; none for none (auto)"
    add("--depth", metavar="COLUMN", default="auto", help=depth)
    add("--depth-within", metavar="COLUMN", help="make bins of depth within levels of this key, such as cell_type")
    add("--quiet", action="store_true", help="print only warnings and errors")


def _matrix(add: Add) -> None:
    """Add what says which matrix of a file is read, and on which scale it is."""
    add("--follow-links", action="store_true", help="read a file whose links reach other files")
    add("--layer", help="use this layer instead of X")
    add("--use-raw", action="store_true", help="use raw instead of X")
    scale = "stored scale: x, log(1 + x) to base e, 2 or 10, or counts; needed unless the file or its values show it"
    add("--scale", choices=SCALES, help=scale)


def _normalisation(add: Add) -> None:
    """Add what makes values comparable between cells."""
    add("--offset", metavar="COLUMN", help="column of obs with log size factors, for values that are not normalised")
    add("--detection-threshold", type=float, default=0.0, metavar="X", help="take values of at most X as zeros (0)")


def _fit(add: Add) -> None:
    """Add how a model is fitted, and what is said of it."""
    add("--seed", type=whole(0), default=0, help="random seed (0)")
    add("--device", default="cpu", help="torch device, such as cpu or cuda (cpu)")
    add("--resume", action="store_true", help="resume from the checkpoint in DIR, if there is one")
    add("--strict", action="store_true", help="exit with code 3 if the fit has not converged")
    add("--quiet", action="store_true", help="print only warnings and errors")


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


def columns(text: str) -> list[str]:
    """Return columns that are separated by commas; quotes hold names with commas.

    Example:
        >>> columns('donor, "type, fine"')
        ['donor', 'type, fine']
    """
    try:
        return next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of columns ({error})") from error


def folder(text: str) -> Path:
    """Return the path of a folder, or cube, to write to."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is empty; needed the name of a folder")
    return Path(text)


def whole(least: int) -> Callable[[str], int]:
    """Return a type of arguments: whole numbers of at least ``least``."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return number


if __name__ == "__main__":
    sys.exit(main())
