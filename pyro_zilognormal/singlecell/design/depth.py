"""The depth of cells: where it is known from, the bins that explain zeros by it, and a warning where it is needed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_zilognormal.singlecell.design.design import strata
from pyro_zilognormal.singlecell.design.formula import column
from pyro_zilognormal.singlecell.errors import DepthWarning, SingleCellError
from pyro_zilognormal.singlecell.files.reading import read_totals
from pyro_zilognormal.singlecell.files.scale import Cleaner

AUTO = "auto"
TOTALS = "total counts"
BINS = 4
# What scanpy, its older versions and Seurat call the total counts of a cell.
_KNOWN = ("total_counts", "n_counts", "nCount_RNA")
# Log depths that differ by less are one depth, such as totals of values that are normalised already.
_SAME = 0.01
# Depths that differ by this factor between conditions or donors matter.
_APART = 1.3


@dataclass(frozen=True, eq=False)
class Depth:
    """The depth of cells, positive: total counts, or the share of genes that are detected."""

    name: str  # the column of obs, or "total counts" for those of the matrix
    value: NDArray[np.float64]  # of each cell; of each group, the sum over its cells
    bin: NDArray[np.int64]  # of each cell or group, from 0; 0 in all if all depths are about the same
    log: NDArray[np.float64]  # the log depth of each cell; of each group, the sum over its cells
    cells: NDArray[np.int64]  # the number of cells in each group, 1 for cells

    @classmethod
    def find(cls, obs: Any, depth: str | None, clean: Cleaner) -> Depth | None:
        """Return the depth that an argument names, or None; that of counts also if no depth is asked for."""
        if depth in (None, AUTO) and clean.scale == "counts":
            totals, where = read_totals(clean.expression), clean.expression.where
            return cls._of(TOTALS, totals, f"{where}: the total of cell", clean.expression.cells)
        name = _known(obs) if depth == AUTO else depth
        return None if name is None else cls._of_column(obs, name)

    @classmethod
    def hinted(cls, obs: Any) -> Depth | None:
        """Return the total counts that obs holds under a usual name, if it has a positive number for each cell."""
        try:
            return cls._of_column(obs, name) if (name := _known(obs)) else None
        except SingleCellError:  # it was not asked for
            return None

    @classmethod
    def _of_column(cls, obs: Any, name: str) -> Depth:
        return cls._of(name, column(obs, name, "depth").to_numpy(), f"depth: obs[{name!r}] of cell", obs.index)

    @classmethod
    def _of(cls, name: str, value: NDArray[Any], said: str, cells: Any) -> Depth:
        bad = ~(value > 0) if value.dtype.kind in "fiu" else np.ones(len(value), dtype=bool)
        if bad.any():
            first = int(np.argmax(bad))
            raise SingleCellError(
                f"{said} {cells[first]!r} is {value[first]}; needed a number > 0, which {bad.sum()} of {len(value)} "
                "cells have not: leave out cells without counts, as scanpy.pp.filter_cells(adata, min_counts=1) does"
                + ("" if name == TOTALS else ", or pass depth=None")
            )
        value = value.astype(np.float64)
        log = np.log(value)
        # Cells of equal depth share a bin.
        bins = strata([np.searchsorted(edges(log), log, side="right")], len(log))[0]
        return cls(name, value, bins, log, np.ones(len(log), np.int64))

    def rows(self, rows: NDArray[np.int64]) -> Depth:
        """Return the depth of some cells or groups."""
        return Depth(self.name, self.value[rows], self.bin[rows], self.log[rows], self.cells[rows])

    @property
    def size_factor(self) -> NDArray[np.float64]:
        """The depth of each cell, divided by the median of all."""
        return self.value / np.median(self.value)

    @property
    def column(self) -> NDArray[np.float64]:
        """The mean log depth of the cells of a bin, less the mean over all cells; 0 if there is one bin."""
        if not self.bin.any():
            return np.zeros(len(self.bin))
        centred = self.log - self.cells * (self.log.sum() / self.cells.sum())
        return (np.bincount(self.bin, centred) / np.bincount(self.bin, self.cells))[self.bin]


def _known(obs: Any) -> str | None:
    return next((name for name in _KNOWN if name in obs.columns), None)


def edges(log: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the log depths between bins, which hold quarters of the cells; none if all are about the same."""
    return np.quantile(log, np.arange(1, BINS) / BINS) if np.ptp(log) >= _SAME else np.zeros(0)


def warn_of_depths(
    measures: Mapping[str, NDArray[np.float64]], groups: Mapping[str, Any], count: NDArray[np.int64]
) -> None:
    """Warn once if a measure of depth, the means of each row, differs much between groups, the levels of each row."""
    for measure, value in measures.items():
        for name, levels in groups.items():
            code, _ = strata([levels], len(value))
            mean = np.bincount(code, count * value) / np.bincount(code, count)
            if mean.max() >= _APART * mean.min():
                text = (
                    f"{measure}: means of {mean.min():.3g} to {mean.max():.3g} in levels of {name}, and no depth "
                    "explains zeros, so that the parts of log_fc, detection and abundance, hold differences of depth; "
                    "pass depth= the column of obs that holds total counts or the detection rate, or depth='auto'"
                )
                warnings.warn(text, DepthWarning, stacklevel=2)
                return
