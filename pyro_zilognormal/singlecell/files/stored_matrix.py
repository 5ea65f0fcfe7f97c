"""A matrix of cells in a file or on Dask, of which every part is checked before it is used."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from pyro_zilognormal.singlecell.errors import SingleCellError, reason, require
from pyro_zilognormal.sufficient.dask import check_chunks, is_dask

# HDF5 does not say that memory was lacking; blocks of so many bytes are the likely cause.
_MUCH = 1 << 30
# Stored values of a part that is read only to be checked.
_VALUES_A_CHECK = 1 << 22
# Values of a block that a worker of Dask reads and reduces in one task, in about 0.1 GB.
_VALUES_A_TASK = 1 << 20


class MatrixOnDisk:
    """A dense matrix in an open file, read by rows; in another process :meth:`reopen` opens the file anew."""

    def __init__(self, matrix: Any, where: str) -> None:
        self.shape, self.dtype, self._where, self._arrays = tuple(matrix.shape), matrix.dtype, where, [matrix]
        if absent := _absent(matrix):  # which a chunk of zeros may be
            text = f"{where}: {absent} of {matrix.nchunks} chunks are not in the folder and read as zeros; is it whole?"
            warnings.warn(text, UserWarning, stacklevel=2)

    def __getitem__(self, rows: Any) -> Any:
        with self._telling((rows.stop - rows.start) * math.prod(self.shape[1:])):
            return np.asarray(self._arrays[0][rows])

    def __getstate__(self) -> dict[str, Any]:
        """Leave out indptr, which has a number for each cell of the file; a worker reads as much as it needs."""
        state = self.__dict__ | {"_arrays": [_Address.of(array) for array in self._arrays]}
        state.pop("indptr", None)
        return state

    def reopen(self) -> None:
        """Open the file, where that has not been done in this process."""
        with self._telling():
            self._arrays = [_opened(array) for array in self._arrays]

    def spans(self, values: int) -> list[tuple[int, int]]:
        """Return the first and last rows of blocks, whole chunks of the file, of about so many values."""
        cells, columns = self.shape
        stored = (self._arrays[0].chunks or (1,))[0]
        rows = max(1, values // max(1, columns) // stored) * stored
        return [(start, min(start + rows, cells)) for start in range(0, max(cells, 1), rows)]

    @contextmanager
    def _telling(self, values: int = 0) -> Iterator[None]:
        """Say what cannot be read, and how much memory it takes."""
        try:
            yield
        except SingleCellError:
            raise
        except Exception as error:
            for array in self._arrays:
                check_open(array, self._where)
            said, needed = reason(error), self._bytes(values)
            if missing := next(filter(None, map(missing_filter, self._arrays)), None):
                said = missing
            elif isinstance(error, MemoryError) or needed >= _MUCH:
                said = f"a block of it needs {needed / 2**30:.2g} GiB of memory ({said}); store it in smaller chunks"
            else:
                said = f"the file is damaged: {said}; get a whole copy of it"
            raise SingleCellError(f"{self._where} cannot be read; {said}, or name another layer") from error

    def _bytes(self, values: int) -> int:
        """Return the memory that so many values take, or a chunk on disk where that is more."""
        open_ones = [array for array in self._arrays[:2] if not isinstance(array, _Address)]
        return sum(max(values, math.prod(a.chunks or (1,))) * a.dtype.itemsize for a in open_ones)


class SparseOnDisk(MatrixOnDisk):
    """A CSR or CSC matrix in an open file, read by rows or columns, each part checked before scipy sees it."""

    def __init__(self, dataset: Any, where: str) -> None:
        group, self._arrays = dataset.group, []
        self.shape, self.format, self._where = tuple(dataset.shape), dataset.format, where
        self._major, self._minor = self.shape if self.format == "csr" else self.shape[::-1]
        with self._telling():
            self._arrays = [group["data"], group["indices"], group["indptr"]]
            self.dtype, pointer = self._arrays[0].dtype, self._arrays[2]
            stored = {int(math.prod(array.shape)) for array in self._arrays[:2]}
            vectors = all(len(array.shape) == 1 for array in self._arrays)
            if not vectors or pointer.dtype.kind not in "iu" or self._arrays[1].dtype.kind not in "iu":
                self._refuse("its arrays are not vectors, or their indices not whole numbers")
            if len(stored) > 1 or pointer.shape[0] != self._major + 1:
                self._refuse("its arrays differ in length")
            if self._minor > 1 and any(map(_absent, self._arrays)):
                self._refuse("chunks of its arrays are not in the folder")
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

    def spans(self, values: int) -> list[tuple[int, int]]:
        """Return the first and last rows (of a CSC, columns) of blocks of at most so many values, or of one row."""
        return spans(self.indptr, values) or [(0, 0)]

    def check(self) -> None:
        """Read all of it once, for whoever slices it without a check."""
        for start, stop in self.spans(_VALUES_A_CHECK):
            self._part(start, stop)

    def _part(self, start: int, stop: int) -> Any:
        """Return some rows of a CSR or columns of a CSC, in memory."""
        pointer = self._pointer(start, stop)
        within = slice(int(pointer[0]), int(pointer[-1]))
        with self._telling(within.stop - within.start):
            # Scipy computes with neither 16 bits nor foreign bytes.
            data, indices = np.asarray(self._arrays[0][within]).astype(np.float64), np.asarray(self._arrays[1][within])
        if len(indices) and not (indices.min() >= 0 and indices.max() < self._minor):
            self._refuse(f"an index is outside of 0 to {self._minor - 1}")
        shape = (stop - start, self._minor) if self.format == "csr" else (self._minor, stop - start)
        make = getattr(require("scipy.sparse"), f"{self.format}_matrix")
        return make((data, indices.astype(np.int64), pointer - within.start), shape=shape)

    def _pointer(self, start: int, stop: int) -> NDArray[np.int64]:
        pointer = self.__dict__.get("indptr", self._arrays[2])  # which another process has on disk only
        with self._telling():
            return np.asarray(pointer[start : stop + 1]).astype(np.int64)

    def _refuse(self, why: str) -> None:
        raise SingleCellError(f"{self._where} is damaged: {why}; get a whole copy of the file, or name another layer")


class _Address(NamedTuple):
    """Where an HDF5 dataset is: unlike an array of zarr, it cannot be pickled."""

    path: str
    name: str

    @classmethod
    def of(cls, array: Any) -> Any:
        """Return the address of a dataset of HDF5, and anything else as it is."""
        return cls(array.file.filename, array.name) if hasattr(array, "file") else array


def _opened(array: Any) -> Any:
    return hdf5().File(array.path, "r")[array.name] if isinstance(array, _Address) else array


def spans(pointer: NDArray[np.int64], values: int) -> list[tuple[int, int]]:
    """Cut the rows of a CSR, or the columns of a CSC, into pieces of at most so many stored values, or of one row."""
    found, start, last = [], 0, len(pointer) - 1
    while start < last:
        stop = int(np.searchsorted(pointer, pointer[start] + values, side="right")) - 1
        found.append((start, min(max(stop, start + 1), last)))
        start = found[-1][1]
    return found


def lazy(matrix: MatrixOnDisk) -> Any:
    """Return a dask array of a matrix on disk, in blocks of about a million values, each read and checked by a task."""
    by_column = getattr(matrix, "format", "") == "csc"
    sizes = tuple(stop - start for start, stop in matrix.spans(_VALUES_A_TASK))
    chunks = ((matrix.shape[0],), sizes) if by_column else (sizes, (matrix.shape[1],))
    meta = matrix[:, 0:0] if by_column else matrix[0:0]
    return require("dask.array").map_blocks(partial(_block, matrix), chunks=chunks, meta=meta, name=f"cells-{uuid4()}")


def _block(matrix: MatrixOnDisk, block_info: Any) -> Any:
    """Return the block of a task."""
    matrix.reopen()
    rows, columns = (slice(*ends) for ends in block_info[None]["array-location"])
    return matrix[:, columns] if getattr(matrix, "format", "") == "csc" else matrix[rows]


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
    if hasattr(matrix, "group") or type(matrix).__module__.partition(".")[0] in ("h5py", "zarr"):
        hdf5()
        return (SparseOnDisk if hasattr(matrix, "group") else MatrixOnDisk)(matrix, where)
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


def _absent(array: Any) -> int:
    """Return how many chunks of an array of zarr are not in its folder; HDF5 files are whole or do not open."""
    if not hasattr(array, "nchunks_initialized"):
        return 0
    return max(0, int(array.nchunks - array.nchunks_initialized))  # the last shard may have more than the array


def check_open(matrix: Any, where: str) -> None:
    """Raise for a matrix of an HDF5 file that has been closed."""
    stored = getattr(matrix, "group", matrix)
    if type(stored).__module__.startswith("h5py.") and not stored:
        raise SingleCellError(f"{where}: its file has been closed; open it anew, or stay within the with block")


def missing_filter(element: Any) -> str | None:
    """Return which dataset of an element of an HDF5 file is compressed by a filter that is not installed, in words."""
    h5py = require("h5py")
    if isinstance(element, h5py.Group):
        found: str | None = element.visititems(lambda _, inner: missing_filter(inner))
        return found
    if not isinstance(element, h5py.Dataset):  # of zarr
        return None
    created = element.id.get_create_plist()
    for number, *_, name in map(created.get_filter, range(created.get_nfilters())):
        if not h5py.h5z.filter_avail(number):
            said = name.decode(errors="replace").partition(";")[0] or "a filter"
            return (
                f"dataset '{element.file.filename}{element.name}' is compressed by {said} (HDF5 filter {number}), "
                "which is not installed: pip install hdf5plugin, which has most filters, or write the file again with "
                "another compression"
            )
    return None
