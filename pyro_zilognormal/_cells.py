"""Cells as they come (dense, CSR, in memory or on disk), as positives by row: what the reduction reads.

scipy is never imported here: a sparse matrix is known by its `tocsr`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

VALUES_A_CHUNK = 1 << 21  # about 100 MB of working memory
FASTEST_GROWTH = 4  # of the rows a chunk, should the next ones hold more than the last


@dataclass(frozen=True)
class Positives:
    """The positive values of some rows, row after row.

    Args:
        per_row: how many each row has, of shape (rows,).
        column: where they stand, of shape (values,).
        value: what they are, float64, of shape (values,).
        columns: how many columns there are.
    """

    per_row: NDArray[np.int64]
    column: NDArray[Any]
    value: NDArray[np.float64]
    columns: int


def positives(x: Any, first_row: int = 0) -> Positives:
    """The positive values of a dense or sparse matrix.

    Args:
        x: tensor, numpy array or scipy sparse matrix of shape (rows, columns).
        first_row: the number of its first row, for errors.

    Raises:
        TypeError: something else, or values that are not real numbers.
        ValueError: a negative, NaN or infinite value, or a wrong number of dimensions.
    """
    if hasattr(x, "tocsr"):
        per_row, column, value = _sparse(x)
    else:
        array = _dense(x)
        inside = array != 0
        per_row, column, value = inside.sum(1), inside.nonzero()[1], array[inside]
    value = value.astype(np.float64, copy=False)
    if value.size:
        _check(value, per_row, column, first_row)
    return Positives(per_row, column, value, x.shape[1])


def row_chunks(
    matrix: Any, groups: Any, offset: Any = None, rows: int | None = None
) -> Iterator[tuple[Any, NDArray[Any], NDArray[Any] | None]]:
    """Cut a matrix into blocks of rows, one in memory at a time, for `SufficientStatistics.from_chunks`.

    Args:
        matrix: anything with a `shape` of (cells, columns) whose slices ``matrix[a:b]`` are arrays or scipy sparse
            matrices: an array, a tensor, a numpy memmap, an HDF5 dataset, `X` or a layer of a backed AnnData; or a
            scipy sparse matrix, whose arrays may be memmaps. One that is not CSR is converted to CSR first.
        groups: the group of each cell, whole numbers of shape (cells,); None for one group.
        offset: log size factor of each cell, of shape (cells,); None for zeros.
        rows: rows a block; by default as many as hold about two million values.

    Yields:
        (block, groups, offset) of at most `rows` cells each.

    Raises:
        TypeError: a matrix without a shape of two dimensions.
        ValueError: groups or offset of another length than the matrix has rows, or rows below 1.

    Example:
        >>> x = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 0.0]])
        >>> [(block.tolist(), group.tolist()) for block, group, _ in row_chunks(x, [0, 1, 1], rows=2)]
        [([[0.0, 1.0], [2.0, 3.0]], [0, 1]), ([[4.0, 0.0]], [1])]
    """
    if len(getattr(matrix, "shape", ())) != 2:
        raise TypeError(f"matrix must have a shape of (cells, columns), got {_what(matrix)}.")
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        raise ValueError(f"rows must be a whole number of at least 1, got {rows!r}.")
    cells = matrix.shape[0]
    groups = np.zeros(cells, np.int64) if groups is None else as_vector("groups", groups, cells)
    offset = None if offset is None else as_vector("offset", offset, cells)
    return _cut(matrix, groups, offset, rows)


def _cut(
    matrix: Any, groups: NDArray[Any], offset: NDArray[Any] | None, rows: int | None
) -> Iterator[tuple[Any, NDArray[Any], NDArray[Any] | None]]:
    cells, columns = matrix.shape
    if hasattr(matrix, "tocsr"):
        matrix = matrix.tocsr()
    step, start = rows or max(1, VALUES_A_CHUNK // max(1, columns)), 0
    while start < cells:
        part = slice(start, min(start + step, cells))
        block = _slice(matrix, part)
        yield block, groups[part], None if offset is None else offset[part]
        start = part.stop
        if rows is None and hasattr(block, "nnz"):
            step = min(FASTEST_GROWTH * step, max(1, VALUES_A_CHUNK * step // max(step, block.nnz)))


def _slice(matrix: Any, part: slice) -> Any:
    """Rows of the matrix. Of a CSR by its arrays: they may be memmaps, and scipy's own slicing is slower."""
    if not hasattr(matrix, "tocsr"):
        return matrix[part]
    indptr = matrix.indptr[part.start : part.stop + 1]
    within = slice(int(indptr[0]), int(indptr[-1]))
    arrays = matrix.data[within], matrix.indices[within], indptr - indptr[0]
    return type(matrix)(arrays, shape=(part.stop - part.start, matrix.shape[1]))


def as_vector(name: str, vector: Any, cells: int) -> NDArray[Any]:
    """A tensor, array or list as an array of shape (cells,)."""
    array = vector.detach().cpu().numpy() if isinstance(vector, Tensor) else np.asarray(vector)
    if array.shape != (cells,):
        raise ValueError(f"{name} must have shape ({cells},), one entry for each cell, got {array.shape}.")
    return array


def _sparse(x: Any) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]]:
    """CSR arrays, with duplicates summed and stored zeros left out, without touching those that came."""
    x = x.tocsr()
    _check_numbers(x)
    if not x.has_canonical_format:
        x = x.copy()
        x.sum_duplicates()
    per_row, column, value = np.diff(x.indptr).astype(np.int64), x.indices, x.data
    inside = value != 0
    if not inside.all():
        before = np.concatenate([[0], np.cumsum(inside)])
        per_row = np.diff(before[x.indptr])
        column, value = column[inside], value[inside]
    return per_row, column, value


def _dense(x: Any) -> NDArray[Any]:
    if isinstance(x, Tensor):
        if x.requires_grad:
            raise ValueError("x requires grad, and statistics carry no gradient to their cells. Pass x.detach().")
        x = x.cpu().numpy() if str(x.layout) == "torch.strided" else x
    if not isinstance(x, np.ndarray) or isinstance(x, np.ma.MaskedArray) or x.ndim != 2:
        raise TypeError(
            "x must be a dense tensor, a numpy array or a scipy sparse matrix of shape (cells, columns), got "
            f"{_what(x)}."
        )
    _check_numbers(x)
    return np.asarray(x)


def _check_numbers(x: Any) -> None:
    if x.dtype.kind not in "fiub":
        raise TypeError(f"x must hold real numbers, got dtype {x.dtype}.")


def _check(value: NDArray[np.float64], per_row: NDArray[np.int64], column: NDArray[Any], first_row: int) -> None:
    if value.min() > 0 and value.max() < np.inf:  # NaN fails both
        return
    at = int(np.flatnonzero(~((value > 0) & (value < np.inf)))[0])
    row = first_row + int(np.searchsorted(np.cumsum(per_row), at, side="right"))
    raise ValueError(
        f"x must be nonnegative and finite, got {value[at]} in row {row}, column {column[at]}. Clean the data first."
    )


def _what(x: Any) -> str:
    shape = getattr(x, "shape", None)
    return type(x).__name__ + ("" if shape is None else f" of shape {tuple(shape)}")
