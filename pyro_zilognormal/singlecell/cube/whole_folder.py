"""A folder that is replaced as a whole, by one process at a time: a failed or killed write leaves the old one."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyro_zilognormal.singlecell.errors import SingleCellError
from pyro_zilognormal.svi.checkpoint import locked


def found_at(path: str | os.PathLike[str]) -> Path:
    """Return where a folder is: a write that is killed between two renames leaves the old one under another name."""
    path = Path(path)
    if os.path.exists(path):
        return path
    old = path.with_name(f"{path.name}.old")
    return old if os.path.exists(old) else path


@contextmanager
def one_writer(path: Path) -> Iterator[None]:
    """Keep other processes off a path, in a folder that exists, for the length of a block."""
    if not path.absolute().parent.is_dir():
        raise SingleCellError(f"path is {str(path)!r}; needed one in a folder that exists")
    with locked(path.with_name(f"{path.name}.lock"), str(path)):
        yield


def replace_folder(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a folder beside the one at a path, and put it there once it is whole; call it within :func:`one_writer`."""
    new, old = path.with_name(f".{path.name}.new"), path.with_name(f"{path.name}.old")
    shutil.rmtree(new, ignore_errors=True)  # of a process that was killed while it wrote
    try:
        write(new)
        if path.exists():  # no single rename replaces a folder that is not empty
            shutil.rmtree(old, ignore_errors=True)
            os.rename(path, old)
        os.rename(new, path)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        whole = "the one before is whole" if path.exists() or old.exists() else "there is none yet"
        raise OSError(error.errno or errno.EIO, f"{error.strerror or error}; {whole}", str(path)) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
