"""A folder of results that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyro_zilognormal.singlecell.errors import SingleCellError

_CHECKPOINT = "fit.ckpt"
_WRITING = ".writing"


class OutputFolder:
    """A folder for results, made if need be, and found to be writable before the work begins.

    Args:
        path: of the folder.

    Attributes:
        path: of the folder.
        checkpoint: the file to save a fit to.

    Raises:
        SingleCellError: it cannot be made or written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / _CHECKPOINT
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._partial.mkdir(exist_ok=True)
            self._partial.rmdir() if not any(self._partial.iterdir()) else shutil.rmtree(self._partial)
        except OSError as error:
            raise _not_writable(path, error) from error

    @property
    def _partial(self) -> Path:
        return self.path / _WRITING

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Give a folder to write to, whose files then replace those of the same names, the last named the last."""
        self._partial.mkdir()
        try:
            yield self._partial
            for file in sorted(self._partial.iterdir()):
                os.replace(file, self.path / file.name)
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)

    def forget_previous(self) -> None:
        """Delete the checkpoint before the last, once the fit is done."""
        self.checkpoint.with_name(f"{_CHECKPOINT}.previous").unlink(missing_ok=True)


def check_folder(path: Path) -> None:
    """Raise if a folder can neither be written to nor made, as far as can be told without doing so."""
    nearest = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists() or p.is_symlink())
    if not nearest.is_dir():
        raise SingleCellError(f"out: {str(nearest)!r} is a file; needed a folder to write to")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise SingleCellError(f"out: {str(path)!r} is not writable; needed a folder to write to: choose another")


def _not_writable(path: Path, error: OSError) -> SingleCellError:
    return SingleCellError(f"out: {str(path)!r} cannot be written to ({error.strerror}); choose another folder")
