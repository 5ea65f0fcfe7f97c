"""Single cells on the linear scale, where they are not reduced: in memory, or in their file, read a block at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_zilognormal.singlecell.errors import require
from pyro_zilognormal.singlecell.reading import clean_blocks, read_cells
from pyro_zilognormal.singlecell.scale import Cleaner
from pyro_zilognormal.singlecell.stored_matrix import MatrixOnDisk
from pyro_zilognormal.sufficient import row_chunks
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


def keep_cells(clean: Cleaner) -> Any:
    """Check all cells, and return those of a file that is stored by rows as they lie there, any others in memory."""
    matrix = clean.expression.matrix
    if hasattr(getattr(matrix, "_meta", matrix), "format"):  # minibatches of sparse cells have torch's default dtype
        clean.dtype = torch.get_default_dtype()
    if not isinstance(matrix, MatrixOnDisk) or getattr(matrix, "format", "csr") != "csr":
        return read_cells(clean)
    for _ in clean_blocks(clean):
        pass
    return CellsOnDisk(clean)


def count_positives(cells: Any) -> NDArray[np.int64]:
    """Return the number of positive values of each cell."""
    counts = [np.asarray((as_matrix(block) > 0).sum(1)).reshape(-1) for block, _, _ in row_chunks(cells)]
    return np.concatenate(counts).astype(np.int64)


def times(weights: Any, cells: Any) -> NDArray[np.float64]:
    """Return the product of weights, of shape (k, cells), dense or CSR, and the values of the cells."""
    total, start = np.zeros((weights.shape[0], cells.shape[1])), 0
    for block, _, _ in row_chunks(cells):
        stop = start + block.shape[0]
        part = weights[:, start:stop] @ as_matrix(block)
        total += part.toarray() if hasattr(part, "toarray") else part
        start = stop
    return total
