"""What the commands share: exit codes, messages, warnings and the folder that they write to."""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pyro_zilognormal.singlecell.errors import SingleCellError, printable
from pyro_zilognormal.svi import Checkpoint, CheckpointError, DivergenceError, InUseError
from pyro_zilognormal.svi.checkpoint import locked

# Errors for input that cannot be used, and for what went wrong with input that can.
REFUSED, BROKEN = (SingleCellError, CheckpointError, InUseError, ModuleNotFoundError), (DivergenceError, OSError)
FAILED, BAD_INPUT, NOT_CONVERGED, INTERRUPTED = 1, 2, 3, 130
SECONDS_A_SAVE = 10.0
# The last has a name that nobody else uses.
CHECKPOINT, LOCK, PARTIAL = "fit.ckpt", "run.lock", ".pyro-zilognormal-writing"
# The options that say what is fitted.
MODEL = ("donor", "layer", "use_raw", "scale", "offset", "depth", "detection_threshold", "device")
_OPTIONS = (*MODEL, "by", "merge", "depth_within", "follow_links", "resume")


def one_line(problem: object) -> str:
    """Return what an error or warning says in one line, with options in place of the arguments of Python.

    Example:
        >>> one_line("pass scale='log1p', use_raw=True or donor=None")
        'pass --scale log1p, --use-raw or no --donor'
        >>> one_line("compare ('dose=1,sex=f', 'dose=0,sex=f')")
        "compare --contrast 'dose=1,sex=f' 'dose=0,sex=f'"
    """
    text = " ".join(str(problem).split())

    def option(found: re.Match[str]) -> str:
        name, value = f"--{found['name'].replace('_', '-')}", found["value"] or ""
        return {"None": f"no {name}", "False": f"no {name}", "True": name, "": name}.get(value, f"{name} {value}")

    text = re.sub(r"\(('[^']+=[^']*'), ('[^']+=[^']*')\)", r"--contrast \1 \2", text)  # a pair of conditions
    return re.sub(
        rf"(?<![^\s(])(?P<name>{'|'.join(_OPTIONS)})=(?:(?P<quote>'?)(?P<value>\w+)(?P=quote))?", option, text
    )


def check_out(path: Path) -> None:
    """Raise if a folder can neither be written to nor made, as far as that is known without doing so."""
    nearest = next(p for p in (path.absolute(), *path.absolute().parents) if os.path.lexists(p))
    if not nearest.is_dir():
        raise SingleCellError(f"out: {str(nearest)!r} is a file; needed a folder to write to")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise SingleCellError(f"out: {str(path)!r} is not writable; needed a folder to write to: choose another")


def open_out(options: argparse.Namespace, out: ExitStack) -> Checkpoint:
    """Make the folder, see that it can be written to, keep other runs off it, and return its checkpoint."""
    path = options.out
    try:
        path.mkdir(parents=True, exist_ok=True)
        out.enter_context(locked(path / LOCK, f"out: {str(path)!r}"))
    except OSError as error:
        raise SingleCellError(
            f"out: {str(path)!r} cannot be written to ({error.strerror}); choose another folder"
        ) from error
    return Checkpoint(path / CHECKPOINT, seconds=SECONDS_A_SAVE, resume=options.resume)


@contextmanager
def whole_files(out: Path) -> Iterator[Path]:
    """Yield a new folder to write files to, which are moved to ``out`` at the end, so that each of them is whole."""
    partial = out / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed while it wrote
    partial.mkdir()
    try:
        yield partial
        for file in sorted(partial.iterdir()):
            os.replace(file, out / file.name)
    except OSError as error:
        written = sum(file.stat().st_size for file in partial.iterdir())
        said = f"{error.strerror or error} after {written} bytes of results"
        said += f"; {CHECKPOINT} is whole: make room, and run it again with --resume"
        raise OSError(error.errno or errno.EIO, said, str(error.filename2 or out)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_parts(folder: Path, name: str, table: Any, numbers: Mapping[str, Any], pictures: Mapping[str, bytes]) -> None:
    """Write a table, metrics.json and pictures to a folder."""
    table.to_csv(folder / name, index=False)
    (folder / "metrics.json").write_text(json.dumps(numbers, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    for title, png in pictures.items():
        (folder / f"{title}.png").write_bytes(png)


def warn(texts: Iterable[str]) -> None:
    """Print warnings."""
    for text in texts:
        print(f"warning: {printable(text)}", file=sys.stderr)


def say(options: argparse.Namespace, *lines: str) -> None:
    if not options.quiet:
        print("\n".join(lines), flush=True)


@contextmanager
def record_warnings() -> Iterator[list[str]]:
    """Record warnings for users, each once; those for programmers are left out."""
    recorded: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield recorded
    recorded.extend(dict.fromkeys(one_line(w.message) for w in caught))
