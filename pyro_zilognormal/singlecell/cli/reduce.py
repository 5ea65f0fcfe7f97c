"""The command ``pyro-zilognormal reduce``: files of cells to a cube, or appended to one."""

from __future__ import annotations

import argparse
import csv
import os
from contextlib import ExitStack

from pyro_zilognormal.singlecell.cli.console import record_warnings, say, warn
from pyro_zilognormal.singlecell.cli.options import add_matrix, add_normalisation, folder
from pyro_zilognormal.singlecell.cube.reduce import extend_cube, reduce
from pyro_zilognormal.singlecell.errors import SingleCellError, listed, printable
from pyro_zilognormal.singlecell.files.on_disk import open_cells

DESCRIPTION = (
    "Reduce cells to a cube, the statistics of groups by columns of obs, which de takes in place of the cells, or "
    "append new cells to one."
)
_SETTINGS = ("layer", "use_raw", "scale", "offset", "depth_within", "detection_threshold")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add = parser.add_argument
    add("sources", metavar="INPUT", nargs="+", help="AnnData files of the same genes, h5ad or zarr")
    add("--out", type=folder, required=True, metavar="CUBE", help="the cube, a zarr folder")
    add("--by", type=_columns, metavar="COLUMNS", help="columns of obs that name the groups: donor,cell_type,condition")
    add("--append", action="store_true", help="append the cells to the cube that is there, reduced as it was")
    add("--merge", action="store_true", help="with --append, add cells to groups that the cube has already")
    add_matrix(add)
    add_normalisation(add)
    add(
        "--depth", metavar="COLUMN", default="auto", help="column of obs to make bins of depth of; none for none (auto)"
    )
    add("--depth-within", metavar="COLUMN", help="make bins of depth within levels of this key, such as cell_type")
    add("--quiet", action="store_true", help="print only warnings and errors")


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    given = {name: getattr(options, name) for name in _SETTINGS}
    if not options.append and options.by is None:
        raise SingleCellError("by is not given; needed the columns of obs that name the groups, such as --by donor")
    if not options.append and options.out.exists():
        raise SingleCellError(
            f"out: {str(options.out)!r} exists; needed a new name, or --append to add cells to a cube"
        )
    if options.merge and not options.append:
        raise SingleCellError("merge is given without --append; needed both, or none")
    if len({os.path.realpath(path) for path in options.sources}) < len(options.sources):
        raise SingleCellError(f"INPUT: got {listed(options.sources)}; needed each file once")
    with record_warnings() as recorded, ExitStack() as files:
        adatas = [files.enter_context(open_cells(path, follow_links=options.follow_links)) for path in options.sources]
        if options.append:
            cube = extend_cube(options.out, adatas, by=options.by, merge=options.merge, **given)
        else:
            cube = reduce(adatas, options.by, depth=None if options.depth == "none" else options.depth, **given)
            cube.save(options.out)
    warn(recorded)
    say(options, printable(f"{options.out}: {cube}"), f"scale: {cube.settings['scale']}; {_depth(cube.settings)}")
    return 0


def _depth(settings: dict[str, object]) -> str:
    if settings["depth"] is None:
        return "no bins of depth"
    return printable(f"bins of {settings['depth']}" + (f" in each {w}" if (w := settings["depth_within"]) else ""))


def _columns(text: str) -> list[str]:
    """Return columns that are separated by commas; quotes hold names with commas.

    Example:
        >>> _columns('donor, "type, fine"')
        ['donor', 'type, fine']
    """
    try:
        return next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of columns ({error})") from error
