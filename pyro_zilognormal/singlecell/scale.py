"""Read a matrix in one pass: check each value once, bring it to the linear scale, reduce it to statistics."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_zilognormal.singlecell.errors import ScaleWarning, SingleCellError, require
from pyro_zilognormal.sufficient import SufficientStatistics, row_chunks

#: The scales that values can be stored on. Logarithms are of 1 + x, to base e, 2 or 10.
SCALES = ("linear", "log1p", "log2p1", "log10p1", "counts")
_BASES = {"log1p": math.e, "log2p1": 2.0, "log10p1": 10.0}

# No cell has e^30 molecules, so that larger values are no logarithms.
_LARGEST_LOGARITHM = 30.0
# log1p of a share of 1e6 molecules is at most 13.8, log2(x + 1) of it at most 20.
_LARGEST_USUAL = 20.0
# Logarithms are not skewed: their largest is a few times their mean, their sd is less than it. Linear expression has an
# sd of one to three times the mean over genes and cells.
_LARGEST_SKEW = 10.0
_LARGEST_SD = 0.9
# Whole numbers among so many positive values are counts; all others are checked as they are read.
_ENOUGH_WHOLE = 1 << 20
_NO_COUNT = (
    "; needed whole numbers, as scale is 'counts': name the layer that holds raw counts, or the scale of these values, "
    "'linear' or 'log1p'"
)
_NOTHING = "{} holds no value above the detection threshold; needed some"
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
    log1p: bool  # whether uns["log1p"] of the AnnData is of these values

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of cells and genes."""
        return int(self.matrix.shape[0]), int(self.matrix.shape[1])


def to_linear(values: NDArray[np.float64], scale: str, threshold: float) -> NDArray[np.float64]:
    """Bring values to the linear scale, in place, and set those of at most the threshold to 0."""
    if scale in _BASES:
        values *= math.log(_BASES[scale])
        with np.errstate(over="ignore"):
            np.expm1(values, out=values)
    values[values <= threshold] = 0.0
    return values


def declared_scale(uns: Any) -> str | None:
    """Return the scale that ``uns["log1p"]`` declares, as scanpy.pp.log1p writes it; None without it.

    Raises:
        SingleCellError: logarithms to another base than e, 2 or 10.
    """
    if "log1p" not in uns:
        return None
    base = uns["log1p"].get("base") if isinstance(uns["log1p"], Mapping) else None
    if base is None:  # scanpy's natural logarithm
        return "log1p"
    try:
        number = float(np.asarray(base).item())
    except (TypeError, ValueError):
        number = math.nan
    for name, known in _BASES.items():
        if math.isclose(number, known, rel_tol=1e-6):
            return name
    raise SingleCellError(
        f"adata.uns['log1p']['base'] is {base!r}; needed e, 2 or 10: take the logarithm of the values anew, or name a "
        "layer that holds counts or linear values"
    )


def choose_scale(given: Any, expression: Expression, declared: str | None, offset: bool) -> tuple[str, str]:
    """Return the scale of a matrix and how it is known.

    It is the one that is given, else the one that the AnnData declares, else the one that the values show: whole
    numbers are counts, or linear where an offset normalises them; fractions beside values above 30 are linear.

    Args:
        given: the argument, or None.
        expression: the matrix.
        declared: the scale that uns declares for it.
        offset: whether there are size factors.

    Raises:
        SingleCellError: an unknown scale, one that the AnnData or the values contradict, or none that is known.
    """
    if given is not None and (not isinstance(given, str) or given not in SCALES):
        raise SingleCellError(f"scale is {given!r}; needed one of {', '.join(map(repr, SCALES))}")
    if given is not None and declared in (None, given):
        return given, "given"
    where, seen = expression.where, _Values.of(expression)
    shows = "counts" if seen.counts else "linear" if seen.linear else None
    if given is not None:
        if shows is None:
            raise SingleCellError(
                f"scale is {given!r}, but adata.uns['log1p'] says that {where} is {declared!r}; needed that one, or a "
                "layer of another scale; if uns is wrong, del adata.uns['log1p']"
            )
        return given, "given"  # values disprove what is declared; those that disprove this are refused as they are read
    if declared is not None:
        if shows is not None:
            raise SingleCellError(
                f"scale: adata.uns['log1p'] says that {where} is {declared!r}, but its values look {shows}, the "
                f"largest {seen.largest:.3g}; pass scale={shows!r} if they are"
            )
        return declared, "adata.uns['log1p'] says so"
    if shows == "counts":
        return ("linear", "whole numbers with an offset") if offset else (shows, "all values are whole numbers")
    if shows == "linear":
        return shows, f"values up to {seen.largest:.3g} are no logarithms, and not all are whole numbers"
    if seen.count == 0:
        raise SingleCellError(_NOTHING.format(where))
    raise SingleCellError(
        f"scale is not given, and {where} does not tell: its largest value is {seen.largest:.3g}; pass scale='log1p' "
        "for log(1 + x), 'log2p1' or 'log10p1' for other bases, or 'linear' for normalised values without a logarithm"
    )


class _Values:
    """What the stored positive values look like."""

    def __init__(self) -> None:
        self.largest, self.sum, self.squares, self.count, self.whole = 0.0, 0.0, 0.0, 0, True

    def add(self, values: NDArray[np.float64]) -> None:
        """Take values into account."""
        positive = values[values > 0]
        self.largest = max(self.largest, float(positive.max(initial=0.0)))
        self.sum += float(positive.sum())
        with np.errstate(over="ignore"):
            self.squares += float(np.square(positive).sum())
        self.count += len(positive)
        self.whole = self.whole and bool((positive == np.floor(positive)).all())

    @classmethod
    def of(cls, expression: Expression) -> _Values:
        """Return what a matrix looks like, of which as much is read as tells its scale."""
        clean = Cleaner(expression, "linear", 0.0)
        for block, rows, columns in _blocks(expression):
            clean(block, rows.start, columns.start)
            if clean.seen.linear or (clean.seen.counts and clean.seen.count > _ENOUGH_WHOLE):
                break
        return clean.seen

    @property
    def counts(self) -> bool:
        """Whether all are whole numbers."""
        return self.whole and self.count > 0

    @property
    def linear(self) -> bool:
        """Whether they are neither counts nor logarithms."""
        return not self.whole and self.largest > _LARGEST_LOGARITHM

    @property
    def unskewed(self) -> bool:
        """Whether they look like logarithms."""
        if self.count == 0 or self.whole or self.largest > _LARGEST_USUAL:
            return False
        mean, square = self.sum / self.count, self.squares / self.count
        return self.largest < _LARGEST_SKEW * mean and square < (1 + _LARGEST_SD**2) * mean**2


class Cleaner:
    """Check blocks of a matrix, bring them to the linear scale, and record what their values look like.

    Args:
        expression: the matrix.
        scale: that of its stored values.
        threshold: linear values of at most this are zeros.
        offset: whether there are size factors for them.
    """

    def __init__(self, expression: Expression, scale: str, threshold: float, offset: bool = False) -> None:
        self.expression, self.scale, self.threshold, self.offset = expression, scale, threshold, offset
        self.seen = _Values()
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

    def check(self) -> None:
        """Raise or warn if all values together contradict the scale."""
        where, seen = self.expression.where, self.seen
        if not self.positive:
            raise SingleCellError(_NOTHING.format(where))
        if seen.counts and (self.scale in _BASES or (self.scale == "linear" and not self.offset)):
            raise SingleCellError(
                f"scale is {self.scale!r}, but {where} holds whole numbers, as raw counts do; pass scale='counts', or "
                "offset=, the log size factors (0 for values that are normalised and rounded)"
            )
        if self.scale in _BASES and seen.linear:
            raise SingleCellError(
                f"scale is {self.scale!r}, but {where} holds {seen.largest:.3g}, which is no logarithm; pass "
                "scale='linear'"
            )
        if self.scale == "linear" and seen.unskewed:
            warnings.warn(
                f"scale is 'linear', but {where} looks logged: all values are small, the largest {seen.largest:.3g}; "
                "pass scale='log1p' or 'log2p1' if so, or a layer that holds the linear values",
                ScaleWarning,
                stacklevel=2,
            )

    def _clean(self, stored: NDArray[Any], block: Any, first: tuple[int, int]) -> NDArray[np.float64]:
        if stored.dtype.kind not in "fiub":
            raise SingleCellError(f"{self.expression.where} has dtype {stored.dtype}; needed real numbers")
        values = np.array(stored, dtype=np.float64)  # a plain copy, also of a view of an AnnData
        if values.size and not (values.min() >= 0 and values.max() < np.inf):  # NaN fails both
            self._refuse(values, ~((values >= 0) & (values < np.inf)), block, first)
        if self.scale == "counts" and (values != np.floor(values)).any():
            self._refuse(values, values != np.floor(values), block, first, _NO_COUNT)
        self.seen.add(values)
        to_linear(values, self.scale, self.threshold)
        if self.scale in _BASES and np.isinf(values).any():
            self._refuse(values, np.isinf(values), block, first, _NO_LOGARITHM.format(self.scale))
        self.positive += int(np.count_nonzero(values))
        return values

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
) -> tuple[SufficientStatistics, NDArray[np.float64], NDArray[np.float64]]:
    """Reduce all cells to the statistics of their groups, one block in memory at a time.

    With them come sums of linear values, and of cubes of the logarithms of positive ones. The offset is taken out of
    all three.
    """
    totals, cubes = (np.zeros((n_groups, clean.expression.shape[1])) for _ in range(2))
    one = np.ones(len(groups))
    weight = np.ones(len(groups)) if offset is None else np.exp(-offset)

    def chunks() -> Iterator[tuple[Any, NDArray[np.int64], Any]]:
        for block, rows, columns in clean_blocks(clean):
            _add_totals(totals[:, columns], block, groups[rows], weight[rows])
            _add_totals(cubes[:, columns], _cubes(block, weight[rows]), groups[rows], one[rows])
            yield block, groups[rows], None if offset is None else offset[rows]

    if not _by_column(clean.expression.matrix):
        return SufficientStatistics.from_chunks(chunks(), n_groups), totals, cubes
    parts = [SufficientStatistics.from_cells(block, who, n_groups, shift).value for block, who, shift in chunks()]
    return SufficientStatistics.from_value(torch.cat(parts, 1)), totals, cubes


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
    """Yield the matrix in clean blocks, with the rows and columns of each; check all of it at the end."""
    for block, rows, columns in _blocks(clean.expression):
        yield clean(block, rows.start, columns.start), rows, columns
    clean.check()


def _blocks(expression: Expression) -> Iterator[tuple[Any, slice, slice]]:
    try:
        yield from _stored_blocks(expression.matrix, *expression.shape)
    except OSError as error:
        raise SingleCellError(f"{expression.where} cannot be read; the file is damaged: {error}") from error


def _stored_blocks(matrix: Any, cells: int, genes: int) -> Iterator[tuple[Any, slice, slice]]:
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
