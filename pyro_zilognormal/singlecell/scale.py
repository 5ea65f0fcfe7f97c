"""Values as they are stored, to the linear scale; what is not expression is refused by name."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_zilognormal.singlecell.errors import ScaleWarning, SingleCellError, require
from pyro_zilognormal.singlecell.expression import Expression

SCALES = ("linear", "log1p", "log2p1")

# log1p of a share of 1e6 molecules is at most 13.8, log2(x + 1) of it at most 20.
_LARGEST_LOG = 20.0
# Logarithms are not skewed: their largest is a few times their mean, their sd less than it. Of linear expression, over
# genes and cells, the sd is one to three times the mean.
_LARGEST_SKEW = 10.0
_LARGEST_SD = 0.9
# e^30 molecules are in no cell.
_LARGEST_EXPONENT = 30.0


class Scale:
    """Bring blocks of a matrix to the linear scale, and note what they look like.

    Args:
        expression: the matrix that the blocks are of, for its names.
        scale: "linear"; "log1p", log(1 + x); "log2p1", log2(1 + x).
        threshold: linear values of at most this are zeros.
    """

    def __init__(self, expression: Expression, scale: str, threshold: float) -> None:
        if scale not in SCALES:
            raise SingleCellError(f"scale is {scale!r}; needed one of {', '.join(map(repr, SCALES))}")
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold < math.inf:
            raise SingleCellError(f"detection_threshold is {threshold!r}; needed a number >= 0, in linear units")
        self.expression, self.scale, self.threshold = expression, scale, float(threshold)
        self.largest, self.sum, self.squares, self.count, self.whole = 0.0, 0.0, 0.0, 0, True

    def __call__(self, block: Any, first_row: int = 0, first_column: int = 0) -> Any:
        """Return a block, dense or CSR, in linear float64, with zeros up to the threshold.

        Args:
            block: an array or scipy sparse matrix.
            first_row: where the block starts in the matrix.
            first_column: likewise.
        """
        if not hasattr(block, "tocsr"):
            return self._linear(self._dense(block), None, (first_row, first_column))
        block = block.tocsr()
        if not block.has_canonical_format:
            block = block.copy()
            block.sum_duplicates()
        data = self._linear(self._numbers(block.data), block, (first_row, first_column))
        return require("scipy.sparse").csr_matrix((data, block.indices, block.indptr), shape=block.shape)

    def warn(self) -> None:
        """Warn if what has been seen looks to be on another scale than it was said to be."""
        where = self.expression.where
        if self.scale == "linear" and self._looks_logged():
            said = "adata.uns['log1p'] says that log1p was taken" if self.expression.log1p else "all values are small"
            warnings.warn(
                f"scale is 'linear', but {where} looks logged: {said}, the largest is {self.largest:.3g}; "
                "pass scale='log1p' or 'log2p1' if so, or a layer that holds the linear values",
                ScaleWarning,
                stacklevel=3,
            )
        elif self.scale != "linear" and self.largest > _LARGEST_EXPONENT:
            warnings.warn(
                f"scale is {self.scale!r}, but {where} looks linear: the largest value is {self.largest:.3g}; "
                "pass scale='linear' if so",
                ScaleWarning,
                stacklevel=3,
            )

    def _looks_logged(self) -> bool:
        if self.count == 0 or self.whole or self.largest > _LARGEST_LOG:
            return False
        mean, square = self.sum / self.count, self.squares / self.count
        unskewed = self.largest < _LARGEST_SKEW * mean and square < (1 + _LARGEST_SD**2) * mean**2
        return self.expression.log1p or unskewed

    def _dense(self, block: Any) -> NDArray[np.float64]:
        if not isinstance(block, np.ndarray) or isinstance(block, np.ma.MaskedArray) or block.ndim != 2:
            raise SingleCellError(
                f"{self.expression.where} gives a {type(block).__name__}; needed a numpy array or a scipy CSR or CSC "
                "matrix, in memory or in a backed file"
            )
        return self._numbers(block)

    def _numbers(self, values: NDArray[Any]) -> NDArray[np.float64]:
        if values.dtype.kind not in "fiub":
            raise SingleCellError(f"{self.expression.where} has dtype {values.dtype}; needed real numbers")
        return np.array(values, dtype=np.float64)  # a plain copy, also of a view of an AnnData

    def _linear(self, values: NDArray[np.float64], block: Any, first: tuple[int, int]) -> NDArray[np.float64]:
        self._check(values, block, first)
        self._note(values)
        if self.scale == "log2p1":
            values *= math.log(2.0)
        if self.scale != "linear":
            with np.errstate(over="ignore"):
                np.expm1(values, out=values)
            self._check_overflow(values, block, first)
        values[values <= self.threshold] = 0.0
        return values

    def _note(self, values: NDArray[np.float64]) -> None:
        positive = values[values > 0]
        if positive.size:
            self.largest = max(self.largest, float(positive.max()))
            self.sum += float(positive.sum())
            self.squares += float(np.square(positive, dtype=np.float64).sum())
            self.count += positive.size
            self.whole = self.whole and bool((positive == np.floor(positive)).all())

    def _check(self, values: NDArray[np.float64], block: Any, first: tuple[int, int]) -> None:
        bad = ~((values >= 0) & (values < np.inf))  # NaN fails both
        if not bad.any():
            return
        value, place = self._place(values, bad, block, first)
        if value < 0 and value > -np.inf:
            raise SingleCellError(
                f"{place}: values are centred or scaled; needed values >= 0: give the layer that holds them, or "
                "use_raw=True"
            )
        raise SingleCellError(f"{place}; needed finite values >= 0: repair or leave out such cells or genes")

    def _check_overflow(self, values: NDArray[np.float64], block: Any, first: tuple[int, int]) -> None:
        bad = np.isinf(values)
        if bad.any():
            _, place = self._place(values, bad, block, first)
            raise SingleCellError(
                f"{place} once scale={self.scale!r} is undone; the stored values are no logarithms: scale='linear'?"
            )

    def _place(
        self, values: NDArray[np.float64], bad: NDArray[np.bool_], block: Any, first: tuple[int, int]
    ) -> tuple[float, str]:
        at = int(np.flatnonzero(bad)[0])
        if block is None:
            row, column = divmod(at, values.shape[1])
        else:
            row, column = int(np.searchsorted(block.indptr, at, side="right")) - 1, int(block.indices[at])
        value = float(values.reshape(-1)[at])
        cell, gene = self.expression.cells[first[0] + row], self.expression.genes[first[1] + column]
        return value, f"{self.expression.where}: {value:g} in cell {cell!r}, gene {gene!r}"
