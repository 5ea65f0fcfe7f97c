"""Files of cells whose matrices stay on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_zilognormal.singlecell.errors import SingleCellError, require

# What h5py, zarr and anndata raise for files that are damaged or something else.
_UNREADABLE = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError)


@dataclass(frozen=True)
class RawMatrix:
    """``raw`` of a file.

    Attributes:
        X: its matrix, on disk.
        var_names: names of its columns.
    """

    X: Any
    var_names: Any


class CellFile:
    """An h5ad or zarr file, as much of an AnnData as :class:`HurdleDE` needs, with all matrices on disk.

    ``anndata.read_h5ad(path, backed="r")`` leaves X on disk, but reads every layer into memory.

    Attributes:
        obs: the table of the cells.
        obs_names: their names.
        var_names: names of the genes.
        layers: the layers by name, on disk.
        uns: the names of what is in uns.

    Args:
        path: the file, or a zarr folder.

    Raises:
        SingleCellError: there is no such file, it is no AnnData, or it is damaged.

    Example:
        >>> import anndata, numpy, os, tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "cells.h5ad")
        >>> anndata.AnnData(numpy.eye(3)).write_h5ad(path)
        >>> with open_cells(path) as cells:
        ...     cells.X[1:2]
        array([[0., 1., 0.]])
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._root = self._guarded(self._open)
        try:
            self.obs = self._guarded(lambda: _table(self._root, "obs"))
            self.var_names = self._guarded(lambda: _table(self._root, "var").index)
        except SingleCellError:
            self.close()
            raise
        self.obs_names = self.obs.index
        self.uns = list(self._root["uns"].keys()) if "uns" in self._root else []
        self.layers = _Matrices(self, "layers")

    @property
    def X(self) -> Any:
        """The matrix, or None if the file has none."""
        return self.matrix("X")

    @property
    def raw(self) -> RawMatrix | None:
        """Raw, or None if the file has none."""
        if "raw" not in self._root:
            return None
        return RawMatrix(self.matrix("raw/X"), self._guarded(lambda: _table(self._root, "raw/var").index))

    def matrix(self, where: str) -> Any:
        """Return a matrix of the file, on disk, or None if there is no such."""
        return self._guarded(lambda: _matrix(self._root, where)) if where in self._root else None

    def names(self, where: str) -> list[str]:
        """Return the names of what is in a group of the file."""
        return list(self._root[where].keys()) if where in self._root else []

    def close(self) -> None:
        """Close the file."""
        if hasattr(self._root, "close"):
            self._root.close()

    def _open(self) -> Any:
        if not self.path.exists():
            raise SingleCellError(f"{str(self.path)!r} does not exist; needed an h5ad or zarr file of an AnnData")
        if self.path.is_dir():
            return require("zarr").open_group(str(self.path), mode="r")
        return require("h5py").File(self.path, "r")

    def _guarded(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except SingleCellError:
            raise
        except _UNREADABLE as error:
            said = str(error).strip().splitlines()
            raise SingleCellError(
                f"{str(self.path)!r} cannot be read as an AnnData ({said[0] if said else type(error).__name__}); "
                "needed a whole file that anndata wrote, h5ad or zarr"
            ) from error


class _Matrices(Mapping[str, Any]):
    """The matrices in a group of a file, each opened when it is asked for."""

    def __init__(self, file: CellFile, group: str) -> None:
        self._file, self._group = file, group

    def __getitem__(self, name: str) -> Any:
        if name not in list(self):
            raise KeyError(name)
        return self._file.matrix(f"{self._group}/{name}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.names(self._group))

    def __len__(self) -> int:
        return len(self._file.names(self._group))


@contextmanager
def open_cells(path: str | os.PathLike[str]) -> Iterator[CellFile]:
    """Open a :class:`CellFile` for the length of a block."""
    file = CellFile(path)
    try:
        yield file
    finally:
        file.close()


def _table(root: Any, where: str) -> Any:
    if where not in root:
        raise KeyError(f"it has no {where}")
    if not hasattr(root[where], "keys"):
        raise TypeError(f"its {where} is no table of anndata 0.7 or later")
    return require("anndata.io").read_elem(root[where])


def _matrix(root: Any, where: str) -> Any:
    element = root[where]
    return require("anndata.io").sparse_dataset(element) if hasattr(element, "keys") else element
