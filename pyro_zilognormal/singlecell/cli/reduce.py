"""The command ``pyro-zilognormal reduce``: files of cells to a cube, or appended to one."""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack

from pyro_zilognormal.singlecell.cli import console
from pyro_zilognormal.singlecell.cube.reduce import extend_cube, reduce
from pyro_zilognormal.singlecell.errors import SingleCellError, listed, printable
from pyro_zilognormal.singlecell.files.on_disk import open_cells

_SETTINGS = ("layer", "use_raw", "scale", "offset", "depth_within", "detection_threshold")


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    out, append = options.out, options.append
    if not append and options.by is None:
        raise SingleCellError("by is not given; needed the columns of obs that name the groups, such as --by donor")
    if not append and out.exists():
        raise SingleCellError(f"out: {str(out)!r} exists; needed a new name, or --append to add cells to a cube")
    if options.merge and not append:
        raise SingleCellError("merge is given without --append; needed both, or none")
    if len({os.path.realpath(path) for path in options.sources}) < len(options.sources):
        raise SingleCellError(f"INPUT: got {listed(options.sources)}; needed each file once")
    given = {name: getattr(options, name) for name in _SETTINGS}
    with console.record_warnings() as recorded, ExitStack() as files:
        adatas = [files.enter_context(open_cells(path, follow_links=options.follow_links)) for path in options.sources]
        if append:
            cube = extend_cube(out, adatas, by=options.by, merge=options.merge, **given)
        else:
            cube = reduce(adatas, options.by, depth=None if options.depth == "none" else options.depth, **given)
            cube.save(out)
    console.warn(recorded)
    depth, within = cube.settings["depth"], cube.settings["depth_within"]
    bins = "no bins of depth" if depth is None else f"bins of {depth}" + (f" in each {within}" if within else "")
    console.say(options, printable(f"{out}: {cube}"), printable(f"scale: {cube.settings['scale']}; {bins}"))
    return 0
