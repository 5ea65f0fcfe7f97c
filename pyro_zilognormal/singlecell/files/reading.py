"""Read a matrix a block at a time, here or on the workers of Dask: clean each block, reduce it to statistics.

Single cells on the linear scale, where they are not reduced, stay in memory, in their file or on Dask.
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
from pyro_zilognormal.singlecell.files.stored_matrix import MatrixOnDisk, checked
from pyro_zilognormal.sufficient import SufficientStatistics, row_chunks
from pyro_zilognormal.sufficient.dask import Part, each_block, fold, gathered, is_dask, small, statistics_of
from pyro_zilognormal.sufficient.rows import as_matrix


def clean_blocks(clean: Cleaner) -> Iterator[tuple[Any, slice, slice]]:
    """Yield the matrix in clean blocks, with the rows and columns of each; check all of it at the end."""
    for block, rows, columns in clean.expression.blocks():
        yield clean(block, rows.start, columns.start), rows, columns
    clean.check()


def read_totals(expression: Expression) -> NDArray[np.float64]:
    """Return the total counts of all cells, one block in memory at a time."""
    clean = Cleaner(expression, "counts", 0.0)
    if is_dask(expression.matrix):
        grid = on_workers(clean, each_block, _row_totals)
        clean.check()
        return np.concatenate([np.sum(row, 0) for row in grid])
    totals = np.zeros(expression.shape[0])
    for block, rows, _ in clean_blocks(clean):
        totals[rows] += _row_totals(block)
    return totals


def _row_totals(block: Any) -> NDArray[np.float64]:
    return np.asarray(block.sum(1)).reshape(-1)


def read_statistics(
    clean: Cleaner, groups: NDArray[np.int64], n_groups: int, offset: NDArray[np.float64] | None
) -> tuple[SufficientStatistics, NDArray[np.float64], NDArray[np.float64]]:
    """Reduce all cells to the statistics of their groups, one block in memory at a time.

    With them come sums of linear values, and of cubes of the logarithms of positive ones. The offset is taken out of
    all three.
    """
    if is_dask(clean.expression.matrix):
        (sums_of_blocks,) = on_workers(clean, fold, _part, small(groups, n_groups), offset)
        clean.check()
        value = gathered(sums_of_blocks, n_groups)
        return SufficientStatistics(*torch.from_numpy(value[:5])), value[5], value[6]
    sums = np.zeros((2, n_groups, clean.expression.shape[1]))

    def chunks() -> Iterator[tuple[Any, NDArray[np.int64], Any]]:
        for block, rows, columns in clean_blocks(clean):
            shift = None if offset is None else offset[rows]
            _add_sums(sums[:, :, columns], block, groups[rows], shift)
            yield block, groups[rows], shift

    if not clean.expression.by_column:
        return SufficientStatistics.from_chunks(chunks(), n_groups), sums[0], sums[1]
    parts = [SufficientStatistics.from_cells(block, who, n_groups, shift).value for block, who, shift in chunks()]
    return SufficientStatistics.from_value(torch.cat(parts, 1)), sums[0], sums[1]


def _part(block: Any, groups: NDArray[Any], offset: NDArray[np.float64] | None = None) -> Part:
    """Return the statistics and sums of a clean block."""
    present, local = np.unique(groups, return_inverse=True)
    sums = np.zeros((2, len(present), block.shape[1]))
    _add_sums(sums, block, local, offset)
    return Part(present, np.concatenate([statistics_of(as_matrix(block), local, len(present), offset), sums]))


def read_cells(clean: Cleaner) -> Any:
    """Return all cells in memory, on the linear scale: a float64 tensor, or a CSR matrix."""
    grid: dict[int, list[Any]] = {}
    for block, rows, _ in clean_blocks(clean):
        grid.setdefault(rows.start, []).append(block)
    if not hasattr(grid[0][0], "tocsr"):
        return torch.from_numpy(np.block(list(grid.values())))
    return require("scipy.sparse").bmat(list(grid.values()), format="csr")


def read_genes(clean: Cleaner, columns: list[int]) -> NDArray[np.float64]:
    """Return some genes of all cells, linear; their values have been checked before."""
    matrix, wanted = clean.expression.matrix, np.asarray(columns)
    if is_dask(matrix):
        chunk = np.searchsorted(np.cumsum(matrix.chunks[1]), wanted, side="right")
        order = np.argsort(chunk, kind="stable")  # as the chunks of columns have them
        stored = np.block(each_block(matrix, partial(_chosen, wanted)))[:, np.argsort(order)]
    elif clean.expression.by_column:
        stored = np.concatenate([_dense(matrix[:, [column]]) for column in columns], 1)
    else:
        stored = np.concatenate([_dense(block[:, columns]) for block, _, _ in row_chunks(matrix)])
    return to_linear(stored.astype(np.float64), clean.scale, clean.threshold)


def _chosen(wanted: NDArray[np.int64], block: Any, first: tuple[int, int]) -> NDArray[Any]:
    """Return those of the wanted columns that a block has."""
    own = wanted - first[1]
    return _dense(block[:, own[(own >= 0) & (own < block.shape[1])]])


def _dense(block: Any) -> NDArray[Any]:
    return block.toarray() if hasattr(block, "toarray") else np.asarray(block)


def _add_sums(
    sums: NDArray[np.float64], block: Any, groups: NDArray[np.int64], offset: NDArray[np.float64] | None
) -> None:
    """Add linear values, and cubes of logarithms, both without the offset, to sums of shape (2, groups, genes)."""
    one = np.ones(len(groups))
    weight = one if offset is None else np.exp(-offset)
    _add_totals(sums[0], block, groups, weight)
    _add_totals(sums[1], _cubes(block, weight), groups, one)


def _cubes(block: Any, weight: NDArray[np.float64]) -> Any:
    """Return the cubes of the logarithms of the positive values, each times its row's weight; 0 where there is none."""
    sparse = hasattr(block, "tocsr")
    values = block.tocoo() if sparse else block
    linear = values.data * weight[values.row] if sparse else values * weight[:, None]
    cubes = np.log(linear, out=np.zeros_like(linear), where=linear > 0) ** 3
    return require("scipy.sparse").csr_matrix((cubes, (values.row, values.col)), block.shape) if sparse else cubes


def _add_totals(
    totals: NDArray[np.float64], block: Any, groups: NDArray[np.int64], weight: NDArray[np.float64]
) -> None:
    """Add each row of a block, times its weight, to the totals of its group, in place."""
    present, local = np.unique(groups, return_inverse=True)
    rows = np.arange(len(groups))
    member = require("scipy.sparse").csr_matrix((weight, (local, rows)), (len(present), len(rows)))
    sums = member @ block
    totals[present] += sums.toarray() if hasattr(sums, "toarray") else sums


# --- Single cells


class CellsOnDisk:
    """The cells of a matrix on disk, which are read, checked and brought to the linear scale when they are sliced.

    Args:
        clean: the matrix, and how its values are brought to the linear scale.
    """

    def __init__(self, clean: Cleaner) -> None:
        self._clean, self.shape = clean, clean.expression.shape

    def __getitem__(self, rows: Any) -> Any:
        """Return the cells of a slice, or of an array of their numbers, as an array or a CSR matrix of float64."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self.shape[0])
            return self._clean(self._clean.expression.matrix[start:stop], start)
        blocks = [self[row : row + 1] for row in np.asarray(rows).tolist()]
        if hasattr(blocks[0], "tocsr"):
            return require("scipy.sparse").vstack(blocks, format="csr")
        return np.concatenate(blocks)


class CellsOnDask:
    """The cells of a dask array in chunks of whole rows, which workers check and bring to the linear scale."""

    def __init__(self, clean: Cleaner) -> None:
        self._clean, self.shape = clean, clean.expression.shape

    def __getitem__(self, rows: Any) -> Any:
        """Return the cells of a slice, or of an array of their numbers, as an array or a CSR matrix of float64."""
        if isinstance(rows, slice):
            return self._compute(rows)
        rows, back = np.unique(rows, return_inverse=True)
        return self._compute(rows)[back]

    def _compute(self, rows: Any) -> Any:
        expression = self._clean.expression
        return self._clean(checked(expression.matrix[rows].compute(), expression.where))

    def fold(self, each: Callable[..., Any], *vectors: NDArray[Any]) -> Any:
        """Return what a function of (block, a piece of each vector) returns, added up over all cells by the workers."""
        ((total,),) = on_workers(self._clean, fold, each, *vectors)
        return total


def keep_cells(clean: Cleaner) -> Any:
    """Check all cells, and return those of a file or dask array by rows as they lie there, any others in memory."""
    matrix = clean.expression.matrix
    if hasattr(getattr(matrix, "_meta", matrix), "format"):  # minibatches of sparse cells have torch's default dtype
        clean.dtype = torch.get_default_dtype()
    if is_dask(matrix) and matrix.numblocks[1] == 1:
        on_workers(clean, fold, nothing)
        clean.check()
        return CellsOnDask(clean)
    if not isinstance(matrix, MatrixOnDisk) or getattr(matrix, "format", "csr") != "csr":
        return read_cells(clean)
    for _ in clean_blocks(clean):
        pass
    return CellsOnDisk(clean)


def count_positives(cells: Any) -> NDArray[np.int64]:
    """Return the number of positive values of each cell."""
    counts = [np.asarray((as_matrix(block) > 0).sum(1)).reshape(-1) for block, _, _ in row_chunks(cells)]
    return np.concatenate(counts).astype(np.int64)


def times(weights: Any, cells: Any, change: Callable[[Any], Any] = lambda x: x) -> NDArray[np.float64]:
    """Return the product of weights, of shape (k, cells), dense or CSR, and the changed values of the cells."""
    total, start = np.zeros((weights.shape[0], cells.shape[1])), 0
    for block, _, _ in row_chunks(cells):
        stop = start + block.shape[0]
        part = weights[:, start:stop] @ change(as_matrix(block))
        total += part.toarray() if hasattr(part, "toarray") else part
        start = stop
    return total
