"""A matrix of cells, and the scale of its values: how it is known, checked and undone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_zilognormal.singlecell.errors import ScaleWarning, SingleCellError, require
from pyro_zilognormal.singlecell.files.stored_matrix import checked, spans
from pyro_zilognormal.sufficient import row_chunks
from pyro_zilognormal.sufficient.dask import fold, is_dask

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
# Blocks of a dask array that this process reads, before workers read all.
_BLOCKS_HERE = 4
_NO_COUNT = (
    "; needed whole numbers, as scale is 'counts': name the layer that holds raw counts, or the scale of these values, "
    "'linear' or 'log1p'"
)
_NOTHING = "{} holds no value above the detection threshold; needed some"
_UNCLEAR = (
    "scale is not given, and {} does not show it: its largest value is {:.3g}; pass scale='log1p' for log(1 + x), "
    "'log2p1' or 'log10p1' for other bases, or 'linear' for normalised values without a logarithm"
)
_NOT_HELD = ", which {} cannot hold; needed other units, or a detection_threshold above values that are too small"
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

    @property
    def by_column(self) -> bool:
        """Whether columns are what can be sliced: rows of a CSC are scattered over all of it."""
        return getattr(self.matrix, "format", "") == "csc"

    def blocks(self) -> Iterator[tuple[Any, slice, slice]]:
        """Yield all values in blocks, one in memory at a time, with the rows and columns of each."""
        try:
            yield from self._blocks()
        except OSError as error:
            raise SingleCellError(f"{self.where} cannot be read; the file is damaged: {error}") from error

    def _blocks(self) -> Iterator[tuple[Any, slice, slice]]:
        matrix, (cells, genes) = self.matrix, self.shape
        if is_dask(matrix):
            for i, rows in enumerate(_slices(matrix.chunks[0])):
                for j, columns in enumerate(_slices(matrix.chunks[1])):
                    yield checked(matrix.blocks[i, j].compute(), self.where), rows, columns
        elif self.by_column:
            # A dataset on disk has a group.
            pointer = np.asarray(matrix.indptr if hasattr(matrix, "indptr") else matrix.group["indptr"][:])
            for columns in (slice(*ends) for ends in spans(pointer, _VALUES_A_BLOCK)):
                yield matrix[:, columns], slice(0, cells), columns
        else:
            start = 0
            for block, _, _ in row_chunks(matrix):
                yield block, slice(start, start + block.shape[0]), slice(0, genes)
                start += block.shape[0]


def _slices(sizes: Sequence[int]) -> list[slice]:
    ends = np.cumsum((0, *sizes)).tolist()
    return [slice(*pair) for pair in pairwise(ends)]


def to_linear(values: NDArray[np.float64], scale: str, threshold: float) -> NDArray[np.float64]:
    """Bring values to the linear scale, in place, and set those of at most the threshold to 0."""
    if scale in _BASES:
        values *= math.log(_BASES[scale])
        with np.errstate(over="ignore"):
            np.expm1(values, out=values)
    values[values <= threshold] = 0.0
    return values


def declared_scale(uns: Any) -> str | None:
    """Return the scale that ``uns["log1p"]`` declares, as scanpy.pp.log1p writes it; None without it."""
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
    numbers are counts, or linear where there are size factors (``offset``); fractions beside values above 30 are
    linear. A scale that is unknown, or contradicted, is refused.
    """
    if given is not None and (not isinstance(given, str) or given not in SCALES):
        raise SingleCellError(f"scale is {given!r}; needed one of {', '.join(map(repr, SCALES))}")
    if given is not None and declared in (None, given):
        return given, "given"
    where, observed = expression.where, _look(expression)
    shows = "counts" if observed.counts else "linear" if observed.linear else None
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
                f"largest {observed.largest:.3g}; pass scale={shows!r} if they are"
            )
        return declared, "adata.uns['log1p'] says so"
    if shows == "counts":
        return ("linear", "whole numbers with an offset") if offset else (shows, "all values are whole numbers")
    if shows == "linear":
        return shows, f"values up to {observed.largest:.3g} are no logarithms, and not all are whole numbers"
    if observed.count == 0:
        raise SingleCellError(_NOTHING.format(where))
    raise SingleCellError(_UNCLEAR.format(where, observed.largest))


@dataclass(frozen=True)
class Values:
    """What stored positive values look like; those of parts add up."""

    largest: float = 0.0
    sum: float = 0.0
    squares: float = 0.0
    count: int = 0
    whole: bool = True
    kept: int = 0  # of which linear values are above the threshold

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Values:
        """Return what some values look like; those of 0 do not count."""
        positive = values[values > 0]
        with np.errstate(over="ignore"):
            squares = float(np.square(positive).sum())
        whole = bool((positive == np.floor(positive)).all())
        return cls(float(positive.max(initial=0.0)), float(positive.sum()), squares, len(positive), whole)

    def __add__(self, other: Values) -> Values:
        return Values(
            max(self.largest, other.largest),
            self.sum + other.sum,
            self.squares + other.squares,
            self.count + other.count,
            self.whole and other.whole,
            self.kept + other.kept,
        )

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


def _look(expression: Expression) -> Values:
    """Return what the values of a matrix look like; no more is read than shows its scale."""
    clean = Cleaner(expression, "linear", 0.0)
    for number, (block, rows, columns) in enumerate(expression.blocks()):
        if number == _BLOCKS_HERE and is_dask(expression.matrix):
            clean = Cleaner(expression, "linear", 0.0)
            on_workers(clean, fold, nothing)
            break
        clean(block, rows.start, columns.start)
        if clean.observed.linear or (clean.observed.counts and clean.observed.count > _ENOUGH_WHOLE):
            break
    return clean.observed


def nothing(block: Any) -> int:
    """Compute nothing of a block, which is read to be checked alone."""
    return 0


class BadValueError(Exception):
    """A value that is refused, its row, its column and what is wrong with it."""


class Cleaner:
    """Check blocks of a matrix, bring them to the linear scale, and record what their values look like.

    Args:
        expression: the matrix.
        scale: that of its stored values.
        threshold: linear values of at most this are zeros.
        offset: whether there are size factors for them.
        dtype: that of minibatches, which has to hold the positive linear values; None where there are none.
    """

    def __init__(
        self,
        expression: Expression,
        scale: str,
        threshold: float,
        offset: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.expression, self.scale, self.threshold = expression, scale, threshold
        self.offset, self.dtype = offset, dtype
        self.observed = Values()

    def __call__(self, block: Any, first_row: int = 0, first_column: int = 0) -> Any:
        """Return a block, dense or CSR, in linear float64."""
        with self.naming():
            return self.nameless(block, first_row, first_column)

    def blank(self) -> Cleaner:
        """Return a new one for another process, without the matrix and its names, which are large."""
        expression = Expression(None, [], (), self.expression.where, False)
        return Cleaner(expression, self.scale, self.threshold, self.offset, self.dtype)

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Name the cell and the gene of a value that is refused."""
        try:
            yield
        except BadValueError as error:
            raise self._told(*error.args) from None

    def nameless(self, block: Any, first_row: int, first_column: int) -> Any:
        """Return a block in linear float64; raise BadValueError for a value that is refused."""
        if not hasattr(block, "tocsr"):
            return self._clean(np.asanyarray(block), None, (first_row, first_column))
        block = block.tocsr()
        if not block.has_canonical_format:
            block = block.copy()
            block.sum_duplicates()
        data = self._clean(block.data, block, (first_row, first_column))
        return require("scipy.sparse").csr_matrix((data, block.indices, block.indptr), shape=block.shape)

    def check(self) -> None:
        """Raise or warn if all values together contradict the scale."""
        where, observed = self.expression.where, self.observed
        if not self.observed.kept:
            raise SingleCellError(_NOTHING.format(where))
        if observed.counts and (self.scale in _BASES or (self.scale == "linear" and not self.offset)):
            raise SingleCellError(
                f"scale is {self.scale!r}, but {where} holds whole numbers, as raw counts do; pass scale='counts', or "
                "offset=, the log size factors (0 for values that are normalised and rounded)"
            )
        if self.scale in _BASES and observed.linear:
            raise SingleCellError(
                f"scale is {self.scale!r}, but {where} holds {observed.largest:.3g}, which is no logarithm; pass "
                "scale='linear'"
            )
        if self.scale == "linear" and observed.unskewed:
            warnings.warn(
                f"scale is 'linear', but {where} looks logged: all values are small, the largest "
                f"{observed.largest:.3g}; pass scale='log1p' or 'log2p1' if so, or a layer that holds linear values",
                ScaleWarning,
                stacklevel=2,
            )

    def _clean(self, stored: NDArray[Any], block: Any, first: tuple[int, int]) -> NDArray[np.float64]:
        if stored.dtype.kind not in "fiub":
            raise SingleCellError(f"{self.expression.where} has dtype {stored.dtype}; needed real numbers")
        # A plain copy, also of a view of an AnnData; masked values are missing.
        values = np.asarray(np.ma.filled(stored.astype(np.float64), np.nan))
        if values.size and not (values.min() >= 0 and values.max() < np.inf):  # NaN fails both
            self._refuse(values, ~((values >= 0) & (values < np.inf)), block, first)
        if self.scale == "counts" and (values != np.floor(values)).any():
            self._refuse(values, values != np.floor(values), block, first, _NO_COUNT)
        found = Values.of(values)
        to_linear(values, self.scale, self.threshold)
        if self.scale in _BASES and np.isinf(values).any():
            self._refuse(values, np.isinf(values), block, first, _NO_LOGARITHM.format(self.scale))
        if self.dtype is not None:
            limits = torch.finfo(self.dtype)
            lost = (values > limits.max) | ((values > 0) & (values < limits.tiny))
            if lost.any():
                self._refuse(values, lost, block, first, _NOT_HELD.format(limits.dtype))
        self.observed += replace(found, kept=int(np.count_nonzero(values)))
        return values

    def _refuse(
        self, values: NDArray[np.float64], bad: NDArray[np.bool_], block: Any, first: tuple[int, int], says: str = ""
    ) -> None:
        """Raise for the first bad value."""
        at = int(np.flatnonzero(bad)[0])
        if block is None:
            row, column = divmod(at, values.shape[1])
        else:
            row, column = int(np.searchsorted(block.indptr, at, side="right")) - 1, int(block.indices[at])
        raise BadValueError(float(values.reshape(-1)[at]), first[0] + row, first[1] + column, says)

    def _told(self, value: float, row: int, column: int, says: str) -> SingleCellError:
        cell, gene = self.expression.cells[row], self.expression.genes[column]
        place = f"{self.expression.where}: {value:g} in cell {cell!r}, gene {gene!r}"
        if says:
            return SingleCellError(f"{place}{says}")
        if -np.inf < value < 0:
            return SingleCellError(
                f"{place}: values are centred or scaled; needed values >= 0: give the layer that holds them, or "
                "use_raw=True"
            )
        return SingleCellError(f"{place}; needed finite values >= 0: repair or leave out such cells or genes")


class _Cleaned(NamedTuple):
    """What was computed of clean blocks, and what their values look like."""

    result: Any
    values: Values

    def __add__(self, other: Any) -> _Cleaned:
        return _Cleaned(self.result + other.result, self.values + other.values)


def on_workers(clean: Cleaner, way: Callable[..., Any], each: Callable[..., Any], *vectors: Any) -> list[list[Any]]:
    """Compute something of each clean block on the workers of Dask, and record what all values look like.

    ``way`` is `fold` or `each_block`; ``each`` takes a block and its piece of each vector, of shape (cells,).
    """
    with clean.naming():
        grid = way(clean.expression.matrix, partial(_clean_and, clean.blank(), each), *vectors)
    for one in (one for row in grid for one in row):
        clean.observed += one.values
    return [[one.result for one in row] for row in grid]


def _clean_and(clean: Cleaner, each: Callable[..., Any], block: Any, first: tuple[int, int], *vectors: Any) -> _Cleaned:
    own = clean.blank()
    result = each(own.nameless(checked(block, own.expression.where), *first), *vectors)
    return _Cleaned(result, own.observed)
