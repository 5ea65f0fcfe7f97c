"""Matrices of cells, dense or sparse, in memory or on disk: checks, and blocks of rows.

A sparse matrix is recognised by its method `tocsr`, so that scipy is never imported here.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

VALUES_A_BLOCK = 1 << 22
SPARSEST = 16  # a block from disk is sized for at least one value in 16 entries, however sparse the last block was


def row_chunks(
    matrix: Any, groups: Any = None, offset: Any = None, rows: int | None = None
) -> Iterator[tuple[Any, NDArray[Any], NDArray[Any] | None]]:
    """Cut a matrix into blocks of rows, one in memory at a time, for `SufficientStatistics.from_chunks`.

    Args:
        matrix: a scipy sparse matrix (converted to CSR first; its arrays may be memmaps), or anything with a `shape` of
            (cells, columns) whose slices ``matrix[a:b]`` are arrays, tensors or scipy sparse matrices: an array, a
            numpy memmap, an HDF5 or Zarr array, `X` of a backed AnnData, or `anndata.io.sparse_dataset` of a layer.
        groups: the group of each cell, whole numbers of shape (cells,); None for one group.
        offset: log size factor of each cell, of shape (cells,); None for zeros.
        rows: rows per block; by default about as many as hold four million values.

    Yields:
        (block, groups, offset) of at most `rows` cells each.

    Raises:
        TypeError: matrix does not have a shape of two dimensions.
        ValueError: groups or offset are not as long as the matrix has rows, or rows is below 1.

    Example:
        >>> x = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 0.0]])
        >>> [(block.tolist(), group.tolist()) for block, group, _ in row_chunks(x, [0, 1, 1], rows=2)]
        [([[0.0, 1.0], [2.0, 3.0]], [0, 1]), ([[4.0, 0.0]], [1])]
    """
    if len(getattr(matrix, "shape", ())) != 2 or getattr(matrix, "layout", torch.strided) != torch.strided:
        needed = "dense or of scipy.sparse, of shape (cells, columns)"
        raise TypeError(f"the matrix of cells must be {needed}, got {what(matrix)}.")
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        raise ValueError(f"rows must be a whole number of at least 1, got {rows!r}.")
    cells = matrix.shape[0]
    groups = np.zeros(cells, np.int64) if groups is None else as_vector("groups", groups, cells)
    offset = None if offset is None else as_vector("offset", offset, cells)
    return _cut(matrix.tocsr() if hasattr(matrix, "tocsr") else matrix, groups, offset, rows)


def _cut(
    matrix: Any, groups: NDArray[Any], offset: NDArray[Any] | None, rows: int | None
) -> Iterator[tuple[Any, NDArray[Any], NDArray[Any] | None]]:
    cells, columns = matrix.shape
    start, density = 0, 1.0
    while start == 0 or start < cells:  # a matrix without cells yields one empty block, which has its columns
        if rows or not hasattr(matrix, "indptr"):
            stop = start + (rows or max(1, int(VALUES_A_BLOCK / max(1.0, density * columns))))
        else:
            stop = row_after(matrix.indptr, start, VALUES_A_BLOCK)
        part = slice(start, min(stop, cells))
        block = _slice(matrix, part)
        yield block, groups[part], None if offset is None else offset[part]
        if hasattr(block, "nnz"):
            density = max(block.nnz / max(1, len(groups[part]) * columns), 1 / SPARSEST)
        start = max(part.stop, 1)


def row_after(indptr: NDArray[Any], start: int, values: int) -> int:
    """Return the end of the rows of a CSR that hold at most so many values from a row on, or of that row."""
    last = indptr.dtype.type(min(int(indptr[start]) + values, int(indptr[-1])))  # another dtype would copy indptr
    return max(start + 1, int(np.searchsorted(indptr, last, side="right")) - 1)


def _slice(matrix: Any, part: slice) -> Any:
    """Return some rows. A CSR is sliced by its arrays: they may be memmaps, which scipy's own slicing reads slower."""
    if not hasattr(matrix, "tocsr"):
        return matrix[part]
    indptr = matrix.indptr[part.start : part.stop + 1]
    within = slice(int(indptr[0]), int(indptr[-1]))
    arrays = matrix.data[within], matrix.indices[within], indptr - indptr[0]
    return type(matrix)(arrays, shape=(part.stop - part.start, matrix.shape[1]))


def as_array(given: Any) -> NDArray[Any]:
    """Return a tensor, array or list as an array."""
    return given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)


def as_vector(name: str, vector: Any, cells: int) -> NDArray[Any]:
    """Return a tensor, array or list as an array of shape (cells,), or raise ValueError."""
    array = as_array(vector)
    if array.shape != (cells,):
        raise ValueError(f"{name} must have shape ({cells},), one entry for each cell, got {array.shape}.")
    return array


def as_matrix(x: Any, first_row: int = 0, first_column: int = 0) -> Any:
    """Check a matrix and return it as a numpy array, or as a CSR without duplicates and stored zeros.

    Args:
        x: tensor, numpy array or scipy sparse matrix of shape (rows, columns).
        first_row, first_column: the numbers of its first row and column, for errors.

    Raises:
        TypeError: x is of another type, or does not hold real numbers.
        ValueError: a value is negative, NaN or infinite.
    """
    matrix = _as_csr(x) if hasattr(x, "tocsr") else _as_array(x)
    values = stored(matrix)
    if values.size and not (values.min() >= 0 and values.max() < np.inf):  # NaN fails both
        value, row, column = first(matrix, ~((values >= 0) & (values < np.inf)))
        raise ValueError(
            f"x must be nonnegative and finite, got {value} in row {first_row + row}, column {first_column + column}. "
            "Clean the data first."
        )
    return matrix


def positives(matrix: Any, part: slice) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return the positive values in some rows of a matrix from `as_matrix`: (number per row, columns, values)."""
    if not hasattr(matrix, "tocsr"):
        block = matrix[part]
        inside = block != 0
        at = np.flatnonzero(inside)  # several times faster than indexing in two dimensions
        return inside.sum(1), at % block.shape[1], block.ravel()[at]
    indptr = matrix.indptr[part.start : part.stop + 1]
    within = slice(int(indptr[0]), int(indptr[-1]))
    return np.diff(indptr), matrix.indices[within], matrix.data[within]


def _as_csr(x: Any) -> Any:
    _check_numbers(x)
    matrix = without_duplicates(x.tocsr())
    if not matrix.data.all():
        matrix = matrix.copy()
        matrix.eliminate_zeros()
    return matrix


def without_duplicates(csr: Any) -> Any:
    """Return a CSR whose entries are sorted and each there once; the caller's stays as it is."""
    if not csr.has_canonical_format:
        csr = csr.copy()
        csr.sum_duplicates()
    return csr


def _as_array(x: Any) -> NDArray[Any]:
    if isinstance(x, Tensor) and x.layout == torch.strided:
        if x.requires_grad:
            raise ValueError("x requires grad, and statistics carry no gradient to their cells. Pass x.detach().")
        x = (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy()
    if not isinstance(x, np.ndarray) or isinstance(x, np.ma.MaskedArray) or x.ndim != 2:
        needed = "a dense tensor, a numpy array or a scipy sparse matrix of shape (cells, columns)"
        raise TypeError(f"x must be {needed}, got {what(x)}. Convert it first.")
    _check_numbers(x)
    return np.asarray(x)


def _check_numbers(x: Any) -> None:
    if x.dtype.kind not in "fiub":
        raise TypeError(f"x must hold real numbers, got dtype {x.dtype}.")


def stored(matrix: Any) -> NDArray[Any]:
    """Return the values that a matrix from `as_matrix` stores; a dense one stores its zeros too."""
    values: NDArray[Any] = matrix.data if hasattr(matrix, "tocsr") else matrix
    return values


def first(matrix: Any, marked: NDArray[np.bool_]) -> tuple[Any, int, int]:
    """Return the first marked value of those that a matrix stores, with its row and column."""
    at = int(np.flatnonzero(marked)[0])
    if hasattr(matrix, "tocsr"):
        return matrix.data[at], int(np.searchsorted(matrix.indptr, at, side="right")) - 1, int(matrix.indices[at])
    row, column = divmod(at, matrix.shape[1])
    return matrix[row, column], row, column


def what(x: Any) -> str:
    """Return the type and shape of something, for errors."""
    shape = getattr(x, "shape", None)
    kind = str(x.layout) if isinstance(x, Tensor) else type(x).__name__
    return kind + ("" if shape is None else f" of shape {tuple(shape)}")
