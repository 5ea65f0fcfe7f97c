"""Files of cells, and their matrices on disk: nothing in them is trusted before it is checked."""

from __future__ import annotations

import functools
import importlib
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_zilognormal.singlecell.errors import SingleCellError, listed, require

_ON_DISK = ("array", "csr_matrix", "csc_matrix")
_ALIGNED = ("layers", "obsm", "varm", "obsp", "varp")
_DEEPEST = 32
# HDF5 does not say that memory was lacking; blocks of so many bytes are the likely cause.
_MUCH = 1 << 30
# Stored values of a part that is read only to be checked.
_VALUES_A_CHECK = 1 << 22


def open_cells(path: str | os.PathLike[str], *, follow_links: bool = False) -> Any:
    """Open an h5ad or zarr file as an AnnData whose matrices stay on disk.

    obs, var and uns are read into memory; X, raw, layers, obsm, varm, obsp and varp are read when they are sliced.
    (``anndata.read_h5ad(path, backed="r")`` reads every layer into memory.) Use it with ``with``, which closes the file
    at the end, or without; the file is then closed with the object. ``to_memory()`` makes an ordinary AnnData of it.
    A column or another element that anndata cannot read is left out, with a warning that names it. Files of anndata
    before 0.7 are read into memory.

    Args:
        path: the h5ad file or zarr folder.
        follow_links: whether to read a file with links, virtual datasets or external storage, which can reach other
            files.

    Returns:
        An ``anndata.AnnData``.

    Raises:
        SingleCellError: the file does not exist, is damaged, holds no AnnData, or holds links.

    Example:
        >>> import anndata, numpy, os, tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "cells.h5ad")
        >>> anndata.AnnData(numpy.eye(3)).write_h5ad(path)
        >>> with open_cells(path) as cells:
        ...     isinstance(cells, anndata.AnnData), cells.X[1:2]
        (True, array([[0., 1., 0.]]))
    """
    path = Path(path)
    if not path.exists():
        raise SingleCellError(f"{str(path)!r} does not exist; needed an h5ad or zarr file of an AnnData")
    with suppress(ImportError):
        importlib.import_module("hdf5plugin")  # registers the filters of compressed files
    try:
        root = require("zarr").open_group(str(path), mode="r") if path.is_dir() else require("h5py").File(path, "r")
        link = None if follow_links else (_symbolic_link(path) if path.is_dir() else _hdf5_link(root))
        if link:
            raise SingleCellError(
                f"{str(path)!r} holds {link}, which may reach other files; if you trust it, pass follow_links=True to "
                "open_cells"
            )
        with warnings.catch_warnings():
            # Duplicate names of genes are refused later; those of cells do no harm.
            warnings.filterwarnings("ignore", r"(Observation|Variable) names are not unique", UserWarning)
            warnings.filterwarnings("ignore", ".*was written with")  # formats of old versions
            cells = _on_disk_class()(root, path)
    except (ModuleNotFoundError, SingleCellError):
        raise
    except Exception as error:  # h5py, zarr and anndata raise many kinds for damaged files
        raise SingleCellError(
            f"{str(path)!r} cannot be read as an AnnData ({_said(error)}); needed a whole file that anndata wrote, "
            "h5ad or zarr"
        ) from error
    if cells.left_out:
        text = f"{str(path)!r}: left out what anndata cannot read: {listed(cells.left_out)}"
        warnings.warn(text, UserWarning, stacklevel=2)
    return cells


@functools.cache
def _on_disk_class() -> Any:
    """Return the class of open cells, made here because anndata is imported only where it is used."""

    class AnnDataOnDisk(require("anndata").AnnData):  # type: ignore[misc]
        """An AnnData over the arrays of an open file, which ``with`` closes."""

        def __init__(self, root: Any, path: Path) -> None:
            # The elements that cannot be read, each with the reason.
            self.left_out: list[str] = []
            if _is_old(root):
                old = require("anndata").read_h5ad(path)
                parts = {name: getattr(old, name) for name in ("X", "obs", "var", "uns", *_ALIGNED)}
                parts["raw"] = None if old.raw is None else {"X": old.raw.X, "var": old.raw.var}
                super().__init__(**parts)
            else:
                super().__init__(**self._parts(root))
                self._add_aligned(root)
            self._root = root

        def _parts(self, root: Any) -> dict[str, Any]:
            parts: dict[str, Any] = {name: _table(root, name, self.left_out) for name in ("obs", "var")}
            parts["X"] = _element(root["X"]) if "X" in root else None
            parts["uns"] = _readable(root["uns"], "uns", self.left_out) if "uns" in root else {}
            if "raw" in root and "X" in root["raw"]:  # a zarr file of no raw has an element for it
                with _leaving_out("raw", self.left_out):
                    raw = {"X": _element(root["raw/X"]), "var": _table(root, "raw/var", self.left_out)}
                    if raw["X"].shape != (len(parts["obs"]), len(raw["var"])):
                        raise ValueError(f"its X has shape {tuple(raw['X'].shape)}, its var {len(raw['var'])} genes")
                    parts["raw"] = raw
            return parts

        def _add_aligned(self, root: Any) -> None:
            for name in (name for name in _ALIGNED if name in root):
                for key in root[name]:
                    with _leaving_out(f"{name}[{key!r}]", self.left_out):
                        getattr(self, name)[key] = _element(root[name][key])

        def __enter__(self) -> AnnDataOnDisk:
            return self

        def __exit__(self, *_: object) -> None:
            if hasattr(self._root, "close"):  # a zarr folder needs no closing
                self._root.close()

    return AnnDataOnDisk


def _is_old(root: Any) -> bool:
    """Whether obs is an array of records, as anndata wrote it before 0.7."""
    return bool(getattr(getattr(root.get("obs"), "dtype", None), "names", None))


@contextmanager
def _leaving_out(what: str, left_out: list[str]) -> Iterator[None]:
    """Note that an element cannot be read, instead of the error."""
    try:
        yield
    except Exception as error:
        left_out.append(f"{what} ({_said(error)})")


def _readable(group: Any, where: str, left_out: list[str], names: Any = None) -> dict[str, Any]:
    """Return the elements of a group that anndata can read, in memory."""
    found = {}
    for name in group if names is None else names:
        with _leaving_out(f"{where}[{name!r}]", left_out):
            found[name] = require("anndata.io").read_elem(group[name])
    return found


def _table(root: Any, where: str, left_out: list[str]) -> Any:
    """Return a table; columns that cannot be read are left out."""
    if where not in root:
        raise KeyError(f"it has no {where}")
    table, read = root[where], require("anndata.io").read_elem
    if not hasattr(table, "keys"):
        raise TypeError(f"its {where} is not a table")
    try:
        return read(table)
    except Exception:
        index = read(table[table.attrs["_index"]])
        names = [str(name) for name in table.attrs["column-order"]]
        columns = _readable(table, where, left_out, names)
        return require("pandas").DataFrame(columns, index=index)


def _element(element: Any) -> Any:
    """Return a dense or sparse matrix on disk, and anything else (a table) in memory."""
    if element.attrs.get("encoding-type", "array") not in _ON_DISK:
        return require("anndata.io").read_elem(element)
    return require("anndata.io").sparse_dataset(element) if hasattr(element, "keys") else element


def _hdf5_link(root: Any) -> str | None:
    """Return the first link or dataset that may lie elsewhere, in words; anndata writes each object once, by name."""
    h5py = require("h5py")

    def of_link(name: str, link: Any) -> str | None:
        if name.count("/") > _DEEPEST:  # HDF5 takes minutes for thousands
            raise SingleCellError(f"{root.filename!r} holds more than {_DEEPEST} groups in each other; needed fewer")
        return None if isinstance(link, h5py.HardLink) else f"a link, {name!r}"

    def of_object(name: str, found: Any) -> str | None:
        if h5py.h5o.get_info(found.id).rc > 1:
            return f"a second name of one object, {name!r}"
        if isinstance(found, h5py.Dataset) and (found.is_virtual or found.external):
            return f"a dataset in other places, {name!r}"
        return None

    said: str | None = root.visititems_links(of_link) or root.visititems(of_object)
    return said


def _symbolic_link(folder: Path) -> str | None:
    """Return the first symbolic link in a folder, in words."""
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if os.path.islink(os.path.join(where, name)):
                return f"a symbolic link, {name!r}"
    return None


def _said(error: BaseException) -> str:
    lines = str(error).strip().strip("'\"").splitlines()
    return lines[0] if lines else type(error).__name__


class MatrixOnDisk:
    """A dense matrix in an open file, read by rows."""

    def __init__(self, matrix: Any, where: str) -> None:
        self.shape, self.dtype, self._where, self._arrays = tuple(matrix.shape), matrix.dtype, where, [matrix]

    def __getitem__(self, rows: slice) -> Any:
        with self._telling((rows.stop - rows.start) * math.prod(self.shape[1:])):
            return np.asarray(self._arrays[0][rows])

    @contextmanager
    def _telling(self, values: int = 0) -> Iterator[None]:
        """Say what cannot be read, and how much memory it takes."""
        try:
            yield
        except SingleCellError:
            raise
        except Exception as error:
            said, needed = _said(error), self._bytes(values)
            if isinstance(error, MemoryError) or needed >= _MUCH:
                said = f"a block of it needs {needed / 2**30:.2g} GiB of memory ({said}); store it in smaller chunks"
            else:
                fix = "pip install hdf5plugin" if "filter" in said else "get a whole copy of the file"
                said = f"the file is damaged, or lacks a filter: {said}; {fix}"
            raise SingleCellError(f"{self._where} cannot be read; {said}, or name another layer") from error

    def _bytes(self, values: int) -> int:
        """Return the memory that so many values take, or a chunk on disk where that is more."""
        return sum(max(values, math.prod(a.chunks or (1,))) * a.dtype.itemsize for a in self._arrays)


class SparseOnDisk(MatrixOnDisk):
    """A CSR or CSC matrix in an open file, read by rows or columns, each part checked before scipy sees it."""

    def __init__(self, dataset: Any, where: str) -> None:
        group, self._arrays = dataset.group, []
        self.shape, self.format, self._where = tuple(dataset.shape), dataset.format, where
        self._major, self._minor = self.shape if self.format == "csr" else self.shape[::-1]
        with self._telling():
            self._arrays = [group["data"], group["indices"]]
            self.dtype, pointer = self._arrays[0].dtype, group["indptr"]
            stored = {int(math.prod(array.shape)) for array in self._arrays}
            vectors = all(len(array.shape) == 1 for array in (*self._arrays, pointer))
            if not vectors or pointer.dtype.kind not in "iu" or self._arrays[1].dtype.kind not in "iu":
                self._refuse("its arrays are not vectors, or their indices not whole numbers")
            if len(stored) > 1 or pointer.shape[0] != self._major + 1:
                self._refuse("its arrays differ in length")
            self.indptr: NDArray[np.int64] = np.asarray(pointer[:]).astype(np.int64)
        if self.indptr[0] != 0 or self.indptr[-1] != stored.pop() or (np.diff(self.indptr) < 0).any():
            self._refuse("its indptr does not rise from 0 to the number of stored values")
        if self.dtype.kind not in "fiub":
            raise SingleCellError(f"{where} has dtype {self.dtype}; needed real numbers")

    def __getitem__(self, key: Any) -> Any:
        """Return rows of a CSR, ``[a:b]``, or columns of a CSC, ``[:, a:b]`` or ``[:, [a, b]]``."""
        which = key if self.format == "csr" else key[1]
        if isinstance(which, slice):
            return self._part(which.start, which.stop)
        return require("scipy.sparse").hstack([self._part(i, i + 1) for i in which], format="csc")

    def check(self) -> None:
        """Read all of it once, for whoever slices it without a check."""
        start = 0
        while start < self._major:
            limit = self.indptr[start] + _VALUES_A_CHECK
            stop = max(start + 1, int(np.searchsorted(self.indptr, limit, side="right")) - 1)
            self._part(start, stop)
            start = stop

    def _part(self, start: int, stop: int) -> Any:
        """Return some rows of a CSR or columns of a CSC, in memory."""
        within = slice(int(self.indptr[start]), int(self.indptr[stop]))
        with self._telling(within.stop - within.start):
            # Scipy computes with neither 16 bits nor foreign bytes.
            data, indices = np.asarray(self._arrays[0][within]).astype(np.float64), np.asarray(self._arrays[1][within])
        if len(indices) and not (indices.min() >= 0 and indices.max() < self._minor):
            self._refuse(f"an index is outside of 0 to {self._minor - 1}")
        pointer, own = self.indptr[start : stop + 1] - within.start, stop - start
        shape = (own, self._minor) if self.format == "csr" else (self._minor, own)
        make = getattr(require("scipy.sparse"), f"{self.format}_matrix")
        return make((data, indices.astype(np.int64), pointer), shape=shape)

    def _refuse(self, why: str) -> None:
        raise SingleCellError(f"{self._where} is damaged: {why}; get a whole copy of the file, or name another layer")


def checked(matrix: Any, where: str) -> Any:
    """Return a matrix that is safe to read by rows, or by columns if it is CSC; raise for damaged indices."""
    if hasattr(matrix, "group"):
        return SparseOnDisk(matrix, where)
    if type(matrix).__module__.partition(".")[0] in ("h5py", "zarr"):
        return MatrixOnDisk(matrix, where)
    if hasattr(matrix, "check_format"):
        try:
            matrix.check_format(full_check=True)
        except ValueError as error:
            raise SingleCellError(f"{where} is damaged: {error}; make or read it anew") from error
        if matrix.dtype == np.float16:  # scipy computes with no 16 bits
            return matrix.astype(np.float32)
    return matrix
