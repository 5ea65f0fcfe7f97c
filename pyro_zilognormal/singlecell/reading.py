"""One pass over a matrix of cells: its statistics by stratum, and the cells themselves where they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_zilognormal.singlecell.errors import SingleCellError, require
from pyro_zilognormal.singlecell.expression import Expression
from pyro_zilognormal.singlecell.scale import Scale
from pyro_zilognormal.sufficient import SufficientStatistics, row_chunks

# Of stored values, or of cells where they are dense: about 200 MB of working memory.
_VALUES_A_BLOCK = 1 << 21


@dataclass(frozen=True, eq=False)
class Reading:
    """What one pass found.

    Attributes:
        statistics: of the strata.
        totals: the sum of the linear values, of shape (strata, genes).
        cells: all linear values, cells x genes, or None where they were not kept.
    """

    statistics: SufficientStatistics
    totals: NDArray[np.float64]
    cells: Any


def read(
    expression: Expression,
    scale: Scale,
    strata: NDArray[np.int64],
    n_strata: int,
    offset: NDArray[np.float64] | None,
    keep: bool,
) -> Reading:
    """Read all cells once, a block at a time.

    Args:
        expression: what to read.
        scale: what brings blocks to the linear scale.
        strata: of each cell.
        n_strata: how many.
        offset: log size factor of each cell.
        keep: whether to keep the cells.
    """
    by_column = getattr(expression.matrix, "format", "") == "csc"
    reader = _by_columns if by_column else _by_rows
    try:
        found = reader(expression, scale, strata, n_strata, offset, keep)
    except OSError as error:
        raise SingleCellError(f"{expression.where} cannot be read; the file is damaged: {error}") from error
    scale.warn()
    return found


def _by_rows(expression: Expression, scale: Scale, strata: Any, n_strata: int, offset: Any, keep: bool) -> Reading:
    totals = np.zeros((n_strata, expression.shape[1]))
    kept: list[Any] = []

    def linear() -> Iterator[tuple[Any, Any, Any]]:
        row = 0
        for block, groups, shift in row_chunks(expression.matrix, strata, offset):
            block = scale(block, row)
            row += block.shape[0]
            _add_totals(totals, block, groups)
            if keep:
                kept.append(block)
            yield block, groups, shift

    statistics = SufficientStatistics.from_chunks(linear(), n_strata)
    return Reading(statistics, totals, _join(kept, 0) if keep else None)


def _by_columns(expression: Expression, scale: Scale, strata: Any, n_strata: int, offset: Any, keep: bool) -> Reading:
    """Read a matrix stored by columns along them: its rows are scattered over all of it."""
    totals = np.zeros((n_strata, expression.shape[1]))
    parts, kept, column = [], [], 0
    for columns in _column_blocks(expression.matrix):
        block = scale(expression.matrix[:, columns], 0, column)
        _add_totals(totals[:, columns], block, strata)
        parts.append(SufficientStatistics.from_cells(block, strata, n_strata, offset).value)
        column = columns.stop
        if keep:
            kept.append(block)
    value = torch.cat(parts, 1)
    return Reading(SufficientStatistics.from_value(value), totals, _join(kept, 1) if keep else None)


def _column_blocks(matrix: Any) -> Iterator[slice]:
    """Yield slices of columns, each of so many stored values, or of one column."""
    # On disk, the dataset has a group.
    pointer = np.asarray(matrix.indptr if hasattr(matrix, "indptr") else matrix.group["indptr"][:])
    start, columns = 0, len(pointer) - 1
    while start < columns:
        stop = int(np.searchsorted(pointer, pointer[start] + _VALUES_A_BLOCK, side="right")) - 1
        stop = min(max(stop, start + 1), columns)
        yield slice(start, stop)
        start = stop


def _add_totals(totals: NDArray[np.float64], block: Any, groups: NDArray[np.int64]) -> None:
    """Add each row of a block to the totals of its group."""
    sparse = require("scipy.sparse")
    present, local = np.unique(groups, return_inverse=True)
    rows = np.arange(len(groups))
    member = sparse.csr_matrix((np.ones(len(groups)), (local, rows)), shape=(len(present), len(groups)))
    sums = member @ block
    totals[present] += sums.toarray() if hasattr(sums, "toarray") else sums


def _join(blocks: list[Any], axis: int) -> Any:
    if hasattr(blocks[0], "tocsr"):
        sparse = require("scipy.sparse")
        return (sparse.vstack if axis == 0 else sparse.hstack)(blocks, format="csr")
    return torch.from_numpy(np.concatenate(blocks, axis))
