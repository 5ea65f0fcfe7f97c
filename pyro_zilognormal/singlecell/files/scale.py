"""A matrix of cells, and the scale of its values: how it is known, checked and undone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_zilognormal.singlecell.errors import ScaleWarning, SingleCellError, require
from pyro_zilognormal.singlecell.files.stored_matrix import checked
from pyro_zilognormal.sufficient import row_chunks
from pyro_zilognormal.sufficient.dask import fold, is_dask
from pyro_zilognormal.sufficient.rows import first, stored, without_duplicates

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
_NOTHING = "{} holds no value above the detection threshold; needed some"
_UNCLEAR = (
    "scale is not given, and {} does not show it: its largest value is {:.3g}; pass scale='log1p' for log(1 + x), "
    "'log2p1' or 'log10p1' for other bases, or 'linear' for normalised values without a logarithm"
)
# Why a value is refused.
_NOT_FINITE = "; needed finite values >= 0: repair or leave out such cells or genes"
_CENTRED = ": values are centred or scaled; needed values >= 0: give the layer that holds them, or use_raw=True"
_NO_COUNT = (
    "; needed whole numbers, as scale is 'counts': name the layer that holds raw counts, or the scale of these values, "
    "'linear' or 'log1p'"
)
_NOT_HELD = ", which {} cannot hold; needed other units, or a detection_threshold above values that are too small"
_NO_LOGARITHM = " once scale={!r} is undone; the stored values are not logarithms: scale='linear'?"


@dataclass(frozen=True, eq=False)
class Expression:
    """A matrix of cells x genes, in memory, on disk or on Dask, with its names."""

    matrix: Any  # has a shape; its slices of rows, or those of the T of a CSC, are arrays or scipy sparse matrices
    genes: list[str]
    cells: Any  # names of the rows
    where: str  # what errors call it
    declared: str | None  # the scale that uns["log1p"] of the AnnData declares for them

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of cells and genes."""
        return int(self.matrix.shape[0]), int(self.matrix.shape[1])

    @property
    def by_column(self) -> bool:
        """Whether columns are what can be sliced: rows of a CSC are scattered over all of it."""
        return getattr(self.matrix, "format", "") == "csc"

    def blocks(self) -> Iterator[tuple[Any, slice, slice]]:
        """Yield all values that are not on Dask in blocks, one in memory at a time, with rows and columns of each."""
        (cells, genes), start = self.shape, 0
        for block, _, _ in row_chunks(self.matrix.T if self.by_column else self.matrix):
            part = slice(start, start + block.shape[0])
            yield (block.T, slice(0, cells), part) if self.by_column else (block, part, slice(0, genes))
            start = part.stop


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
    raise SingleCellError(f"adata.uns['log1p']['base'] is {base!r}; needed e, 2 or 10: name a layer without logarithms")


def choose_scale(given: Any, expression: Expression, offset: bool) -> tuple[str, str]:
    """Return the scale of a matrix and how it is known.

    It is the one that is given, else the one that the AnnData declares, else the one that the values show: whole
    numbers are counts, or linear where there are size factors (``offset``); fractions beside values above 30 are
    linear. A scale that is unknown is refused here, and one that values contradict as they are read.
    """
    if given is not None and (not isinstance(given, str) or given not in SCALES):
        raise SingleCellError(f"scale is {given!r}; needed one of {', '.join(map(repr, SCALES))}")
    declared = expression.declared
    if given is not None and declared in (None, given):
        return given, "given"
    if given is None and declared is not None:
        return declared, "adata.uns['log1p'] says so"
    where, observed = expression.where, _look(expression)
    if given is not None:
        if observed.shows is None:
            raise SingleCellError(
                f"scale is {given!r}, but adata.uns['log1p'] says that {where} is {declared!r}; needed that one, or a "
                "layer of another scale; if uns is wrong, del adata.uns['log1p']"
            )
        return given, "given"  # values disprove what is declared; those that disprove this are refused as they are read
    if observed.shows == "counts":
        return ("linear", "whole numbers with an offset") if offset else ("counts", "all values are whole numbers")
    if observed.shows == "linear":
        return "linear", f"values up to {observed.largest:.3g} are no logarithms, and not all are whole numbers"
    if observed.number == 0:
        raise SingleCellError(_NOTHING.format(where))
    raise SingleCellError(_UNCLEAR.format(where, observed.largest))


class Values(NamedTuple):
    """What stored positive values look like; those of parts add up."""

    largest: float = 0.0
    sum: float = 0.0
    squares: float = 0.0
    number: int = 0
    fractions: int = 0
    kept: int = 0  # of which linear values are above the threshold

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Values:
        """Return what some values look like; those of 0 do not count."""
        positive = values[values > 0]
        with np.errstate(over="ignore"):
            sums = float(positive.sum()), float(np.square(positive).sum())
        fractions = int(np.count_nonzero(positive != np.floor(positive)))
        return cls(float(positive.max(initial=0.0)), *sums, len(positive), fractions)

    def __add__(self, other: Any) -> Values:
        return Values(max(self.largest, other.largest), *(a + b for a, b in zip(self[1:], other[1:], strict=True)))

    @property
    def shows(self) -> str | None:
        """The scale that all of them show: whole numbers are counts, and other values that are no logarithms linear."""
        if not self.fractions:
            return "counts" if self.number else None
        return "linear" if self.largest > _LARGEST_LOGARITHM else None

    @property
    def unskewed(self) -> bool:
        """Whether they look like logarithms."""
        if not self.fractions or self.largest > _LARGEST_USUAL:
            return False
        mean, square = self.sum / self.number, self.squares / self.number
        return self.largest < _LARGEST_SKEW * mean and square < (1 + _LARGEST_SD**2) * mean**2


def _look(expression: Expression) -> Values:
    """Return what the values of a matrix look like; no more is read than shows its scale."""
    clean, matrix, corner = Cleaner(expression, "linear", 0.0), expression.matrix, slice(0, 0)
    blocks = expression.blocks()
    if is_dask(matrix):  # workers look at the other blocks
        blocks = iter([(checked(matrix.blocks[0, 0].compute(), expression.where), corner, corner)])
    for block, rows, columns in blocks:
        clean(block, rows.start, columns.start)
        shows = clean.observed.shows
        if shows == "linear" or (shows == "counts" and clean.observed.number > _ENOUGH_WHOLE):
            return clean.observed
    if is_dask(matrix):
        clean = Cleaner(expression, "linear", 0.0)
        on_workers(clean, nothing)
    return clean.observed


def nothing(block: Any, first: tuple[int, int]) -> int:
    """Compute nothing of a block, which is read to be checked alone."""
    return 0


class BadValueError(Exception):
    """A value that is refused, its row, its column and why."""


@dataclass(eq=False)
class Cleaner:
    """Check blocks of a matrix, bring them to the linear scale, and record what their values look like.

    Slices, and arrays of the numbers of cells, give cells as an array or a CSR matrix of float64.
    """

    expression: Expression
    scale: str  # that of its stored values
    threshold: float  # linear values of at most this are zeros
    offset: bool = False  # whether there are size factors for them
    dtype: torch.dtype | None = None  # that of minibatches, which has to hold the positive linear values
    scale_from: str = ""  # how the scale is known
    observed: Values = field(default_factory=Values)  # of the blocks so far

    def __call__(self, block: Any, first_row: int = 0, first_column: int = 0) -> Any:
        """Return a block, dense or CSR, in linear float64."""
        with self.naming():
            return self.nameless(block, first_row, first_column)

    def __getitem__(self, rows: Any) -> Any:
        matrix, where = self.expression.matrix, self.expression.where
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self.shape[0])
            block = matrix[start:stop]
            return self(checked(block.compute(), where) if self.on_dask else block, start)
        if self.on_dask:
            rows, back = np.unique(rows, return_inverse=True)
            return self(checked(matrix[rows].compute(), where))[back]
        blocks = [self[row : row + 1] for row in np.asarray(rows).tolist()]
        return require("scipy.sparse").vstack(blocks, "csr") if hasattr(blocks[0], "tocsr") else np.concatenate(blocks)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of cells and genes."""
        return self.expression.shape

    @property
    def on_dask(self) -> bool:
        """Whether workers of Dask have the cells, so that `fold` reads them there."""
        return is_dask(self.expression.matrix)

    def fold(self, each: Callable[..., Any], *vectors: NDArray[Any]) -> Any:
        """Return what a function of (block, a piece of each vector) returns, added up over all cells by the workers."""
        return on_workers(self, partial(_without_place, each), *vectors)[0]

    def blank(self) -> Cleaner:
        """Return a new one for another process, without the matrix and its names, which are large."""
        return replace(self, expression=Expression(None, [], (), self.expression.where, None), observed=Values())

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Name the cell and the gene of a value that is refused."""
        try:
            yield
        except BadValueError as error:
            value, row, column, why = error.args
            cell, gene = self.expression.cells[row], self.expression.genes[column]
            raise SingleCellError(f"{self.expression.where}: {value:g} in cell {cell!r}, gene {gene!r}{why}") from None

    def nameless(self, block: Any, first_row: int, first_column: int) -> Any:
        """Return a block in linear float64; raise BadValueError for a value that is refused."""
        block = without_duplicates(block.tocsr()) if hasattr(block, "tocsr") else np.asanyarray(block)
        if block.dtype.kind not in "fiub":
            raise SingleCellError(f"{self.expression.where} has dtype {block.dtype}; needed real numbers")
        # A plain copy, also of a view of an AnnData; masked values are missing.
        values = np.asarray(np.ma.filled(stored(block).astype(np.float64), np.nan))

        def refuse(bad: NDArray[np.bool_], why: str) -> None:
            if bad.any():
                _, row, column = first(block, bad)
                value = float(values[bad][0])
                why = _CENTRED if why == _NOT_FINITE and -np.inf < value < 0 else why
                raise BadValueError(value, first_row + row, first_column + column, why)

        refuse(~((values >= 0) & (values < np.inf)), _NOT_FINITE)
        if self.scale == "counts":
            refuse(values != np.floor(values), _NO_COUNT)
        as_stored = Values.of(values)
        to_linear(values, self.scale, self.threshold)
        refuse(values == np.inf, _NO_LOGARITHM.format(self.scale))
        if self.dtype is not None:
            limits = torch.finfo(self.dtype)
            refuse((values > limits.max) | ((values > 0) & (values < limits.tiny)), _NOT_HELD.format(limits.dtype))
        self.observed += as_stored._replace(kept=int(np.count_nonzero(values)))
        if not hasattr(block, "tocsr"):
            return values
        return require("scipy.sparse").csr_matrix((values, block.indices, block.indptr), shape=block.shape)

    def check(self) -> None:
        """Raise or warn if all values together contradict the scale."""
        where, observed, logged = self.expression.where, self.observed, self.scale in _BASES
        source = " (see adata.uns['log1p'])" if self.expression.declared else ""
        said = f"scale is {self.scale!r}{source}, but {where}"
        if not observed.kept:
            raise SingleCellError(_NOTHING.format(where))
        if observed.shows == "counts" and (logged or (self.scale == "linear" and not self.offset)):
            raise SingleCellError(
                f"{said} holds whole numbers, as raw counts do; pass scale='counts', or offset=, the log size factors "
                "(0 for values that are normalised and rounded)"
            )
        if logged and observed.shows == "linear":
            raise SingleCellError(f"{said} holds {observed.largest:.3g}, which is no logarithm; pass scale='linear'")
        if self.scale == "linear" and observed.unskewed:
            warnings.warn(
                f"{said} looks logged: all values are small, the largest {observed.largest:.3g}; pass scale='log1p' or "
                "'log2p1' if so, or a layer that holds linear values",
                ScaleWarning,
                stacklevel=2,
            )


def _without_place(each: Callable[..., Any], block: Any, _: tuple[int, int], *vectors: NDArray[Any]) -> Any:
    return each(block, *vectors)


class _Cleaned(NamedTuple):
    """What was computed of clean blocks, and what their values look like."""

    result: Any
    values: Values

    def __add__(self, other: Any) -> _Cleaned:
        return _Cleaned(self.result + other.result, self.values + other.values)


def on_workers(clean: Cleaner, each: Callable[..., Any], *vectors: Any) -> list[Any]:
    """Add up something of each clean block on the workers of Dask, and record what all values look like.

    Arguments and results are those of `fold`.
    """
    with clean.naming():
        found = fold(clean.expression.matrix, partial(_clean_and, clean.blank(), each), *vectors)
    clean.observed = sum((one.values for one in found), clean.observed)
    return [one.result for one in found]


def _clean_and(clean: Cleaner, each: Callable[..., Any], block: Any, first: tuple[int, int], *vectors: Any) -> _Cleaned:
    own = clean.blank()
    clean_block = own.nameless(checked(block, own.expression.where), *first)
    return _Cleaned(each(clean_block, first, *vectors), own.observed)
