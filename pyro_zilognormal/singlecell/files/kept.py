"""Single cells on the linear scale, where they are not reduced: in memory, in their file, or on Dask, by the block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_zilognormal.singlecell.errors import require
from pyro_zilognormal.singlecell.files.reading import clean_blocks, read_cells
from pyro_zilognormal.singlecell.files.scale import Cleaner, on_workers
from pyro_zilognormal.singlecell.files.stored_matrix import MatrixOnDisk, checked
from pyro_zilognormal.sufficient import row_chunks
from pyro_zilognormal.sufficient.dask import each_block, fold, is_dask
from pyro_zilognormal.sufficient.rows import as_matrix


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
        on_workers(clean, each_block, _size)
        clean.check()
        return CellsOnDask(clean)
    if not isinstance(matrix, MatrixOnDisk) or getattr(matrix, "format", "csr") != "csr":
        return read_cells(clean)
    for _ in clean_blocks(clean):
        pass
    return CellsOnDisk(clean)


def _size(block: Any) -> int:
    return int(block.shape[0])


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
