"""What was seen in the cells, before any model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_zilognormal.models import HurdleData
from pyro_zilognormal.singlecell.reading import Reading


@dataclass(frozen=True, eq=False)
class Arm:
    """What some cells show, such as those of one side of a contrast.

    Attributes:
        cells: how many.
        positive: how many positive values of each gene.
        total: the sum of the linear values of each gene.
    """

    cells: int
    positive: NDArray[np.int64]
    total: NDArray[np.float64]

    @property
    def detection(self) -> NDArray[np.float64]:
        """Share of the cells with a positive value, by gene; NaN without cells."""
        return self.positive / self.cells if self.cells else np.full(len(self.positive), np.nan)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of the linear values, zeros included, by gene; NaN without cells."""
        return self.total / self.cells if self.cells else np.full(len(self.total), np.nan)


@dataclass(frozen=True, eq=False)
class Observed:
    """What the rows of the data show: strata of cells, or single cells.

    Attributes:
        cells: how many, of shape (rows,).
        size: mean of their size factors exp(offset), and of the squares of these, of shape (rows, 2).
        rows: from a mask of all cells to the rows of these; a mask that splits a stratum takes it whole.
        arm: from a mask to what its cells show, likewise.
    """

    cells: NDArray[np.int64]
    size: NDArray[np.float64]
    rows: Callable[[NDArray[np.bool_]], NDArray[np.int64]]
    arm: Callable[[NDArray[np.bool_]], Arm]

    @classmethod
    def of_strata(cls, reading: Reading, of_cell: NDArray[np.int64], n_strata: int, shift: Any) -> Observed:
        """Return what the strata show."""
        count = np.bincount(of_cell, minlength=n_strata)
        factor = np.ones(len(of_cell)) if shift is None else np.exp(shift)
        size = np.stack([np.bincount(of_cell, factor**k, n_strata) / count for k in (1, 2)], 1)
        positive = reading.statistics.n_pos.numpy().astype(np.int64)

        def rows(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
            return np.unique(of_cell[chosen])

        def arm(chosen: NDArray[np.bool_]) -> Arm:
            its = rows(chosen)
            return Arm(int(count[its].sum()), positive[its].sum(0), reading.totals[its].sum(0))

        return cls(count, size, rows, arm)

    @classmethod
    def of_cells(cls, data: HurdleData, shift: Any) -> Observed:
        """Return what the cells show, which are kept."""
        count = np.ones(len(data.design), np.int64)
        factor = np.ones(len(count)) if shift is None else np.exp(shift)

        def arm(chosen: NDArray[np.bool_]) -> Arm:
            rows = np.flatnonzero(chosen)
            values = data.value[rows]
            positive = np.asarray((values > 0).sum(0)).reshape(-1).astype(np.int64)
            return Arm(len(rows), positive, np.asarray(values.sum(0), dtype=np.float64).reshape(-1))

        return cls(count, np.stack([factor, factor**2], 1), np.flatnonzero, arm)
