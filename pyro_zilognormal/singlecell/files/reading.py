"""Read a matrix a block at a time, here or on the workers of Dask: clean each block, reduce it to statistics.

Single cells, where they are not reduced, stay in memory on the linear scale, or in their file or on Dask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_zilognormal.singlecell.errors import require
from pyro_zilognormal.singlecell.files.scale import Cleaner, Expression, nothing, on_workers, to_linear
from pyro_zilognormal.singlecell.files.stored_matrix import MatrixOnDisk
from pyro_zilognormal.sufficient import row_chunks
from pyro_zilognormal.sufficient.dask import gathered, is_dask, reduced, small
from pyro_zilognormal.sufficient.rows import as_matrix
from pyro_zilognormal.sufficient.statistics import add_cells


def each_block(clean: Cleaner, each: Callable[..., Any], *vectors: NDArray[Any] | None) -> Iterator[Any]:
    """Yield what a function returns of each clean block, or of Dask of each chunk of columns; check all at the end.

    It takes a block, its (first row, first column) and its piece of each vector, of shape (cells,), that is not None.
    On Dask, workers call it and add up what it returns over all rows.
    """
    if is_dask(clean.expression.matrix):
        yield from on_workers(clean, each, *vectors)
    else:
        for block, rows, columns in clean.expression.blocks():
            first = rows.start, columns.start
            yield each(clean(block, *first), first, *(v[rows] for v in vectors if v is not None))
    clean.check()


def read_totals(expression: Expression) -> NDArray[np.float64]:
    """Return the total counts of all cells, one block in memory at a time."""
    totals = np.zeros(expression.shape[0])
    for found in each_block(Cleaner(expression, "counts", 0.0), partial(_totals_of, len(totals))):
        totals[found.indices] += found.data
    return totals


def _totals_of(cells: int, block: Any, first: tuple[int, int]) -> Any:
    """Return the totals of the cells of a block, as those of all cells, in which others are 0."""
    ends = [0, block.shape[0]]
    return require("scipy.sparse").csr_matrix((_row_sums(block), first[0] + np.arange(ends[1]), ends), (1, cells))


def _row_sums(block: Any) -> NDArray[Any]:
    return np.asarray(block.sum(1)).reshape(-1)


def read_statistics(
    clean: Cleaner, groups: NDArray[np.int64], n_groups: int, offset: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """Reduce all cells to the statistics of their groups, of shape (7, groups, genes), one block in memory at a time.

    They are those of :class:`SufficientStatistics`, then the sums of linear values, and of cubes of the logarithms of
    positive ones. The offset is taken out of all.
    """
    if is_dask(clean.expression.matrix):
        return gathered([*each_block(clean, partial(reduced, numbers=7), small(groups, n_groups), offset)], n_groups)
    total = np.zeros((7, n_groups, clean.expression.shape[1]))
    for _ in each_block(clean, partial(_add, total), groups, offset):
        pass
    return total


def _add(total: Any, block: Any, first: tuple[int, int], groups: NDArray[np.int64], offset: Any = None) -> None:
    add_cells(total[:, :, first[1] : first[1] + block.shape[1]], as_matrix(block), groups, offset)


def read_cells(clean: Cleaner) -> Any:
    """Return all cells in memory, on the linear scale: a float64 tensor, or a CSR matrix."""
    blocks = [*each_block(clean, lambda block, first: block)]
    if not hasattr(blocks[0], "tocsr"):
        return torch.from_numpy(np.concatenate(blocks))
    sparse = require("scipy.sparse")
    return (sparse.hstack if clean.expression.by_column else sparse.vstack)(blocks, "csr")


def read_genes(clean: Cleaner, columns: list[int]) -> NDArray[np.float64]:
    """Return some genes of all cells, linear; their values have been checked before."""
    matrix = clean.expression.matrix
    if is_dask(matrix):
        stored = _dense(matrix[:, columns].compute())
    elif clean.expression.by_column:
        stored = np.concatenate([_dense(matrix.T[column : column + 1]) for column in columns]).T
    else:
        stored = np.concatenate([_dense(block[:, columns]) for block, _, _ in row_chunks(matrix)])
    return to_linear(stored.astype(np.float64), clean.scale, clean.threshold)


def _dense(block: Any) -> NDArray[Any]:
    return block.toarray() if hasattr(block, "toarray") else np.asarray(block)


def keep_cells(clean: Cleaner) -> Any:
    """Check all cells, and return those of a file or dask array by rows as they lie there, any others in memory."""
    matrix = clean.expression.matrix
    if hasattr(getattr(matrix, "_meta", matrix), "format"):  # minibatches of sparse cells have torch's default dtype
        clean.dtype = torch.get_default_dtype()
    if not is_dask(matrix) and (not isinstance(matrix, MatrixOnDisk) or clean.expression.by_column):
        return read_cells(clean)
    for _ in each_block(clean, nothing):
        pass
    if not is_dask(matrix) or matrix.numblocks[1] == 1:
        return clean
    cells = clean[:]
    return torch.from_numpy(cells) if isinstance(cells, np.ndarray) else cells


def count_positives(cells: Any) -> NDArray[np.int64]:
    """Return the number of positive values of each cell."""
    return np.concatenate([_row_sums(as_matrix(block) > 0) for block, _, _ in row_chunks(cells)]).astype(np.int64)


def times(weights: Any, cells: Any, change: Callable[[Any], Any] = lambda x: x) -> NDArray[np.float64]:
    """Return the product of weights, of shape (k, cells), dense or CSR, and the changed values of the cells."""
    total = np.zeros((weights.shape[0], cells.shape[1]))
    for block, rows, _ in row_chunks(cells, np.arange(cells.shape[0])):
        total += _dense(weights[:, rows[0] : rows[-1] + 1] @ change(as_matrix(block)))
    return total
