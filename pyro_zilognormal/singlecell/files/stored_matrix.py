"""A matrix of cells in a file or on Dask, of which every part is checked before it is used."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from typing import Any, NoReturn
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from pyro_zilognormal.singlecell.errors import SingleCellError, reason, require
from pyro_zilognormal.sufficient.dask import check_chunks, is_dask
from pyro_zilognormal.sufficient.rows import row_after

# Values of a block that a worker of Dask reads and reduces in one task, in about 0.1 GB.
_VALUES_A_TASK = 1 << 20


class MatrixOnDisk:
    """A dense matrix in an open file, read by slices of rows; another process opens the file anew."""

    def __init__(self, matrix: Any, where: str) -> None:
        self.shape, self.dtype, self._where, self._arrays = tuple(matrix.shape), matrix.dtype, where, [matrix]
        if absent := _absent(matrix):  # which a chunk of zeros may be
            text = f"{where}: {absent} of {matrix.nchunks} chunks are not in the folder and read as zeros; is it whole?"
            warnings.warn(text, UserWarning, stacklevel=2)

    def __getitem__(self, rows: slice) -> Any:
        with self._telling():
            return np.asarray(self._arrays[0][rows])

    def __getstate__(self) -> dict[str, Any]:
        """Leave out indptr, which has a number for each cell of the file; a worker reads as much as it needs."""
        places = [(a.file.filename, a.name) if hasattr(a, "file") else a for a in self._arrays]  # zarr's can be pickled
        return {key: value for key, value in self.__dict__.items() if key != "indptr"} | {"_arrays": places}

    def ends(self, values: int) -> list[int]:
        """Return the ends of blocks of rows, whole chunks of the file, of about so many values, from 0."""
        cells, columns = self.shape
        stored = (self._arrays[0].chunks or (1,))[0]
        return [*range(0, max(cells, 1), max(1, values // max(1, columns) // stored) * stored), cells]

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Open what another process had open, and say what cannot be read."""
        try:
            self._arrays = [hdf5().File(a[0], "r")[a[1]] if isinstance(a, tuple) else a for a in self._arrays]
            yield
        except SingleCellError:
            raise
        except Exception as error:
            arrays = [array for array in self._arrays if not isinstance(array, tuple)]
            for array in arrays:
                check_open(array, self._where)
            said = next(filter(None, map(missing_filter, arrays)), None) or (  # HDF5 does not say that memory is short
                f"the file is damaged, or a chunk of it is larger than memory: {reason(error)}; get a whole copy of "
                "it, store it in smaller chunks"
            )
            raise SingleCellError(f"{self._where} cannot be read; {said}, or name another layer") from error


class SparseOnDisk(MatrixOnDisk):
    """A CSR matrix in an open file, or a CSC, whose transpose ``T`` is read by rows; scipy sees what is checked."""

    def __init__(self, dataset: Any, where: str) -> None:
        self.shape, self.format, self._where, self._arrays = tuple(dataset.shape), dataset.format, where, []
        with self._telling():
            rows, self._columns = self.shape if self.format == "csr" else self.shape[::-1]
            self._arrays = [dataset.group[name] for name in ("data", "indices", "indptr")]
            data, indices, pointer = self._arrays
            self.dtype = data.dtype
            if any(len(a.shape) != 1 for a in self._arrays) or {pointer.dtype.kind, indices.dtype.kind} - {*"iu"}:
                self._refuse("its arrays are not vectors, or their indices not whole numbers")
            if data.shape != indices.shape or pointer.shape[0] != rows + 1:
                self._refuse("its arrays differ in length")
            if self._columns > 1 and any(map(_absent, self._arrays)):
                self._refuse("chunks of its arrays are not in the folder")
            self.indptr: NDArray[np.int64] = np.asarray(pointer[:]).astype(np.int64)
        if self.indptr[0] != 0 or self.indptr[-1] != data.shape[0] or (np.diff(self.indptr) < 0).any():
            self._refuse("its indptr does not rise from 0 to the number of stored values")
        if self.dtype.kind not in "fiub":
            raise SingleCellError(f"{where} has dtype {self.dtype}; needed real numbers")

    @property
    def T(self) -> SparseOnDisk:
        """The transpose, of the same arrays."""
        turned = SparseOnDisk.__new__(SparseOnDisk)
        other = "csc" if self.format == "csr" else "csr"
        turned.__dict__ = self.__dict__ | {"shape": self.shape[::-1], "format": other}
        return turned

    def __getitem__(self, rows: slice) -> Any:
        with self._telling():
            pointer = self.__dict__.get("indptr", self._arrays[2])  # which another process has on disk only
            pointer = np.asarray(pointer[rows.start : rows.stop + 1]).astype(np.int64)
            within = slice(int(pointer[0]), int(pointer[-1]))
            data, indices = (np.asarray(array[within]) for array in self._arrays[:2])
        if len(indices) and not (indices.min() >= 0 and indices.max() < self._columns):
            self._refuse(f"an index is outside of 0 to {self._columns - 1}")
        # Scipy computes with neither 16 bits nor foreign bytes.
        data = data.astype(np.float64, copy=False)
        indices = indices.astype(np.int32 if self._columns < 2**31 else np.int64, copy=False)
        shape = (len(pointer) - 1, self._columns)
        return require("scipy.sparse").csr_matrix((data, indices, pointer - within.start), shape=shape)

    def ends(self, values: int) -> list[int]:
        """Return the ends of blocks of rows (of a CSC, columns) of at most so many values, or of one row, from 0."""
        ends, last = [0], len(self.indptr) - 1
        while ends[-1] < last or len(ends) == 1:
            ends.append(min(row_after(self.indptr, ends[-1], values), last))
        return ends

    def _refuse(self, why: str) -> NoReturn:
        raise SingleCellError(f"{self._where} is damaged: {why}; get a whole copy of the file, or name another layer")


def lazy(matrix: MatrixOnDisk) -> Any:
    """Return a dask array of a matrix on disk, in blocks of about a million values, each read and checked by a task."""
    by_column = getattr(matrix, "format", "") == "csc"
    sizes = tuple(stop - start for start, stop in pairwise(matrix.ends(_VALUES_A_TASK)))
    chunks = ((matrix.shape[0],), sizes) if by_column else (sizes, (matrix.shape[1],))
    read = partial(_block, matrix)
    meta = read({None: {"array-location": ((0, 0), (0, 0))}})
    return require("dask.array").map_blocks(read, chunks=chunks, meta=meta, name=f"cells-{uuid4()}")


def _block(matrix: Any, block_info: Any) -> Any:
    """Return the block of a task."""
    rows, columns = (slice(*ends) for ends in block_info[None]["array-location"])
    return matrix.T[columns].T if getattr(matrix, "format", "") == "csc" else matrix[rows]


def checked(matrix: Any, where: str) -> Any:
    """Return a matrix that is safe to read by rows, or by columns if it is CSC; raise for damaged indices.

    The blocks of a dask array are checked as they are read.
    """
    if is_dask(matrix):
        try:
            check_chunks(matrix)
        except ValueError as error:
            raise SingleCellError(f"{where}: {error}") from error
        return matrix
    check_open(matrix, where)
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


def hdf5() -> Any:
    """Return h5py, with the filters of hdf5plugin where it is installed."""
    with suppress(ImportError):
        importlib.import_module("hdf5plugin")
    return require("h5py")


def missing_filter(element: Any) -> str | None:
    """Return which dataset of an element of an HDF5 file is compressed by a filter that is not installed, in words."""
    h5py = require("h5py")  # which speaks of a folder of plugins
    if isinstance(element, h5py.Group):
        found: str | None = element.visititems(lambda _, inner: missing_filter(inner))
        return found
    created = element.id.get_create_plist() if isinstance(element, h5py.Dataset) else None  # that of zarr has no id
    for number, *_, name in map(created.get_filter, range(created.get_nfilters())) if created else ():
        if not h5py.h5z.filter_avail(number):
            said = name.decode(errors="replace").partition(";")[0] or "a filter"
            return (
                f"dataset '{element.file.filename}{element.name}' is compressed by {said} (HDF5 filter {number}), "
                "which is not installed: pip install hdf5plugin, which has most filters, or write the file again with "
                "another compression"
            )
    return None


def _absent(array: Any) -> int:
    """Return how many chunks of an array of zarr are not in its folder; HDF5 files are whole or do not open."""
    known = int(getattr(array, "nchunks_initialized", -1))
    return max(0, int(array.nchunks) - known) if known >= 0 else 0  # the last shard may have more than the array


def check_open(matrix: Any, where: str) -> None:
    """Raise for a matrix of an HDF5 file that has been closed."""
    stored = getattr(matrix, "group", matrix)
    if type(stored).__module__.startswith("h5py.") and not stored:
        raise SingleCellError(f"{where}: its file has been closed; open it anew, or stay within the with block")
