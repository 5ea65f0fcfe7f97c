"""Read a matrix in one pass: check each value once, bring it to the linear scale, reduce it to statistics."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_zilognormal.singlecell.errors import ScaleWarning, SingleCellError, require
from pyro_zilognormal.sufficient import SufficientStatistics, row_chunks

SCALES = ("linear", "log1p", "log2p1", "counts")
_LOGARITHMS = ("log1p", "log2p1")

# log1p of a share of 1e6 molecules is at most 13.8, log2(x + 1) of it at most 20.
_LARGEST_LOG = 20.0
# Logarithms are not skewed: their largest is a few times their mean, their sd is less than it. Linear expression has an
# sd of one to three times the mean over genes and cells.
_LARGEST_SKEW = 10.0
_LARGEST_SD = 0.9
# No cell has e^30 molecules.
_LARGEST_EXPONENT = 30.0
_NO_COUNT = (
    "; needed whole numbers, as scale is 'counts': name the layer that holds raw counts, or the scale of these values, "
    "'linear' or 'log1p'"
)
_NO_LOGARITHM = " once scale={!r} is undone; the stored values are not logarithms: scale='linear'?"
# Stored values in a block of columns: about 200 MB of working memory.
_VALUES_A_BLOCK = 1 << 21


@dataclass(frozen=True, eq=False)
class Expression:
    """A matrix of cells x genes, in memory or on disk, with its names."""

    matrix: Any  # has a shape; its slices of rows are arrays or scipy sparse matrices
    genes: list[str]
    cells: Any  # names of the rows
    where: str  # what errors call it
    log1p: bool  # whether the AnnData says that its values are log1p

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of cells and genes."""
        return int(self.matrix.shape[0]), int(self.matrix.shape[1])


def to_linear(values: NDArray[np.float64], scale: str, threshold: float) -> NDArray[np.float64]:
    """Bring values to the linear scale, in place, and set those of at most the threshold to 0."""
    if scale == "log2p1":
        values *= math.log(2.0)
    if scale in _LOGARITHMS:
        with np.errstate(over="ignore"):
            np.expm1(values, out=values)
    values[values <= threshold] = 0.0
    return values


class Cleaner:
    """Check blocks of a matrix, bring them to the linear scale, and record what their values look like."""

    def __init__(self, expression: Expression, scale: str, threshold: float) -> None:
        if scale not in SCALES:
            raise SingleCellError(f"scale is {scale!r}; needed one of {', '.join(map(repr, SCALES))}")
        if not 0 <= threshold < math.inf:
            raise SingleCellError(f"detection_threshold is {threshold!r}; needed a number >= 0, in linear units")
        self.expression, self.scale, self.threshold = expression, scale, float(threshold)
        # Of the stored positive values.
        self.largest, self.sum, self.squares, self.count, self.whole = 0.0, 0.0, 0.0, 0, True
        self.positive = 0  # of the linear ones, above the threshold

    def __call__(self, block: Any, first_row: int = 0, first_column: int = 0) -> Any:
        """Return a block, dense or CSR, in linear float64."""
        if not hasattr(block, "tocsr"):
            if not isinstance(block, np.ndarray):
                raise SingleCellError(
                    f"{self.expression.where} gives a {type(block).__name__}; needed a numpy array or a scipy CSR or "
                    "CSC matrix, in memory or on disk"
                )
            return self._clean(block, None, (first_row, first_column))
        block = block.tocsr()
        if not block.has_canonical_format:
            block = block.copy()
            block.sum_duplicates()
        data = self._clean(block.data, block, (first_row, first_column))
        return require("scipy.sparse").csr_matrix((data, block.indices, block.indptr), shape=block.shape)

    def warn(self) -> None:
        """Warn if the values look as if they were on another scale than they are said to be."""
        if self.scale == "linear" and self._looks_logged():
            why = "adata.uns['log1p'] says that log1p was taken" if self.expression.log1p else "all values are small"
            looks, fix = f"logged: {why}", "'log1p' or 'log2p1' if so, or a layer that holds the linear values"
        elif self.scale in _LOGARITHMS and self.largest > _LARGEST_EXPONENT:
            looks, fix = "linear", "'linear' if so"
        else:
            return
        said = f"scale is {self.scale!r}, but {self.expression.where} looks {looks}"
        text = f"{said}; the largest value is {self.largest:.3g}; pass scale={fix}"
        warnings.warn(text, ScaleWarning, stacklevel=2)

    def _looks_logged(self) -> bool:
        if self.count == 0 or self.whole or self.largest > _LARGEST_LOG:
            return False
        mean, square = self.sum / self.count, self.squares / self.count
        unskewed = self.largest < _LARGEST_SKEW * mean and square < (1 + _LARGEST_SD**2) * mean**2
        return self.expression.log1p or unskewed

    def _clean(self, stored: NDArray[Any], block: Any, first: tuple[int, int]) -> NDArray[np.float64]:
        if stored.dtype.kind not in "fiub":
            raise SingleCellError(f"{self.expression.where} has dtype {stored.dtype}; needed real numbers")
        values = np.array(stored, dtype=np.float64)  # a plain copy, also of a view of an AnnData
        if values.size and not (values.min() >= 0 and values.max() < np.inf):  # NaN fails both
            self._refuse(values, ~((values >= 0) & (values < np.inf)), block, first)
        if self.scale == "counts":
            if (values != np.floor(values)).any():
                self._refuse(values, values != np.floor(values), block, first, _NO_COUNT)
        else:
            self._record(values)
        to_linear(values, self.scale, self.threshold)
        if self.scale in _LOGARITHMS and np.isinf(values).any():
            self._refuse(values, np.isinf(values), block, first, _NO_LOGARITHM.format(self.scale))
        self.positive += int(np.count_nonzero(values))
        return values

    def _record(self, values: NDArray[np.float64]) -> None:
        positive = values[values > 0]
        self.largest = max(self.largest, float(positive.max(initial=0.0)))
        self.sum += float(positive.sum())
        self.squares += float(np.square(positive).sum())
        self.count += len(positive)
        self.whole = self.whole and bool((positive == np.floor(positive)).all())

    def _refuse(
        self, values: NDArray[np.float64], bad: NDArray[np.bool_], block: Any, first: tuple[int, int], says: str = ""
    ) -> None:
        """Raise for the first bad value, by the names of its cell and gene; ``says`` is what is wrong with it."""
        at = int(np.flatnonzero(bad)[0])
        if block is None:
            row, column = divmod(at, values.shape[1])
        else:
            row, column = int(np.searchsorted(block.indptr, at, side="right")) - 1, int(block.indices[at])
        value = float(values.reshape(-1)[at])
        cell, gene = self.expression.cells[first[0] + row], self.expression.genes[first[1] + column]
        place = f"{self.expression.where}: {value:g} in cell {cell!r}, gene {gene!r}"
        if says:
            raise SingleCellError(f"{place}{says}")
        if -np.inf < value < 0:
            raise SingleCellError(
                f"{place}: values are centred or scaled; needed values >= 0: give the layer that holds them, or "
                "use_raw=True"
            )
        raise SingleCellError(f"{place}; needed finite values >= 0: repair or leave out such cells or genes")


def read_totals(expression: Expression) -> NDArray[np.float64]:
    """Return the total counts of all cells, one block in memory at a time."""
    totals = np.zeros(expression.shape[0])
    for block, rows, _ in clean_blocks(Cleaner(expression, "counts", 0.0)):
        totals[rows] += np.asarray(block.sum(1)).reshape(-1)
    return totals


def read_statistics(
    clean: Cleaner, groups: NDArray[np.int64], n_groups: int, offset: NDArray[np.float64] | None
) -> tuple[SufficientStatistics, NDArray[np.float64]]:
    """Reduce all cells to the statistics of their groups, one block in memory at a time.

    The offset is taken out of the statistics, and of the sums of linear values that come with them.
    """
    totals = np.zeros((n_groups, clean.expression.shape[1]))
    weight = np.ones(len(groups)) if offset is None else np.exp(-offset)

    def chunks() -> Iterator[tuple[Any, NDArray[np.int64], Any]]:
        for block, rows, columns in clean_blocks(clean):
            _add_totals(totals[:, columns], block, groups[rows], weight[rows])
            yield block, groups[rows], None if offset is None else offset[rows]

    if not _by_column(clean.expression.matrix):
        return SufficientStatistics.from_chunks(chunks(), n_groups), totals
    parts = [SufficientStatistics.from_cells(block, who, n_groups, shift).value for block, who, shift in chunks()]
    return SufficientStatistics.from_value(torch.cat(parts, 1)), totals


def read_cells(clean: Cleaner) -> Any:
    """Return all cells in memory, on the linear scale: a float64 tensor, or a CSR matrix."""
    blocks = [block for block, _, _ in clean_blocks(clean)]
    axis = 1 if _by_column(clean.expression.matrix) else 0
    if not hasattr(blocks[0], "tocsr"):
        return torch.from_numpy(np.concatenate(blocks, axis))
    sparse = require("scipy.sparse")
    found = (sparse.hstack if axis else sparse.vstack)(blocks, format="csr")
    # Minibatches of a CSR matrix have torch's default dtype.
    limits, positive = torch.finfo(torch.get_default_dtype()), found.data[found.data > 0]
    if positive.size and not (limits.tiny <= positive.min() and positive.max() <= limits.max):
        raise SingleCellError(
            f"adata holds values from {positive.min():.3g} to {positive.max():.3g}, which {limits.dtype} cannot hold; "
            "needed other units, or a detection_threshold above the smallest"
        )
    return found


def clean_blocks(clean: Cleaner) -> Iterator[tuple[Any, slice, slice]]:
    """Yield the matrix in clean blocks, with the rows and columns of each; warn and check at the end."""
    expression = clean.expression
    try:
        for block, rows, columns in _blocks(expression):
            yield clean(block, rows.start, columns.start), rows, columns
    except OSError as error:
        raise SingleCellError(f"{expression.where} cannot be read; the file is damaged: {error}") from error
    if not clean.positive:
        raise SingleCellError(f"{expression.where} holds no value above the detection threshold; needed some")
    clean.warn()


def _blocks(expression: Expression) -> Iterator[tuple[Any, slice, slice]]:
    matrix, (cells, genes) = expression.matrix, expression.shape
    if _by_column(matrix):  # its rows are scattered over all of the matrix
        for columns in _column_blocks(matrix):
            yield matrix[:, columns], slice(0, cells), columns
        return
    start = 0
    for block, _, _ in row_chunks(matrix):
        yield block, slice(start, start + block.shape[0]), slice(0, genes)
        start += block.shape[0]


def read_genes(clean: Cleaner, columns: list[int]) -> NDArray[np.float64]:
    """Return some genes of all cells, linear; their values have been checked before."""
    matrix = clean.expression.matrix
    if _by_column(matrix):
        stored = np.concatenate([_dense(matrix[:, [column]]) for column in columns], 1)
    else:
        stored = np.concatenate([_dense(block[:, columns]) for block, _, _ in row_chunks(matrix)])
    return to_linear(stored.astype(np.float64), clean.scale, clean.threshold)


def _dense(block: Any) -> NDArray[Any]:
    return block.toarray() if hasattr(block, "toarray") else np.asarray(block)


def _by_column(matrix: Any) -> bool:
    return getattr(matrix, "format", "") == "csc"


def _column_blocks(matrix: Any) -> Iterator[slice]:
    """Yield slices of columns that hold at most _VALUES_A_BLOCK stored values, or one column."""
    # A dataset on disk has a group.
    pointer = np.asarray(matrix.indptr if hasattr(matrix, "indptr") else matrix.group["indptr"][:])
    start, columns = 0, len(pointer) - 1
    while start < columns:
        stop = int(np.searchsorted(pointer, pointer[start] + _VALUES_A_BLOCK, side="right")) - 1
        stop = min(max(stop, start + 1), columns)
        yield slice(start, stop)
        start = stop


def _add_totals(
    totals: NDArray[np.float64], block: Any, groups: NDArray[np.int64], weight: NDArray[np.float64]
) -> None:
    """Add each row of a block, times its weight, to the totals of its group, in place."""
    present, local = np.unique(groups, return_inverse=True)
    rows = np.arange(len(groups))
    member = require("scipy.sparse").csr_matrix((weight, (local, rows)), (len(present), len(rows)))
    sums = member @ block
    totals[present] += sums.toarray() if hasattr(sums, "toarray") else sums
