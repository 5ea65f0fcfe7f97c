"""What some cells show, such as those of a condition, row by row of the data: what a predictive check looks at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_zilognormal.singlecell.cells import Cells
from pyro_zilognormal.sufficient import SufficientStatistics
from pyro_zilognormal.svi.arrays import pick_rows

# Cells looked at where they are kept.
_MOST_CELLS = 250


@dataclass(frozen=True, eq=False)
class Seen:
    """What was seen in some rows of the data: of strata, or of single cells.

    Attributes:
        index: which rows of the data.
        cells: how many in each row.
        size: mean of their size factors and of the squares of these, of shape (rows, 2).
        zeros: how many of each gene in all.
        total: the sum of the linear values of each gene over all.
        value: statistics of the rows, of shape (rows, genes, 5), size factors taken out.
        alike: whether the cells of a row are alike to the model, so that their spread is that of log x.
    """

    index: Tensor
    cells: Tensor
    size: Tensor
    zeros: Tensor
    total: Tensor
    value: Tensor
    alike: bool

    @property
    def freedom(self) -> Tensor:
        """How many deviations :meth:`squares` is of, less one for each mean that they are from."""
        positive = self.value[..., 1]
        return ((positive - 1).clamp(min=0) if self.alike else positive).sum(0)

    def squares(self, mu: Tensor) -> Tensor:
        """Return the sum of squared deviations of log x of each gene.

        Args:
            mu: what the fit expects of log x in each row, of shape (rows, genes); strata have a mean of their own.
        """
        if self.alike:
            return self.value[..., 3].sum(0)
        return (self.value[..., 1] * (self.value[..., 2] - mu).square()).sum(0)


def look(cells: Cells, chosen: NDArray[np.bool_]) -> Seen:
    """Return what some cells show; at most 250 of them, evenly spaced, where cells are kept."""
    rows = cells.observed.rows(chosen)
    if cells.data.reduced:
        return _strata(cells, chosen, rows)
    return _some_cells(cells, rows[:: max(1, -(-len(rows) // _MOST_CELLS))])


def _strata(cells: Cells, chosen: NDArray[np.bool_], rows: NDArray[np.int64]) -> Seen:
    seen, index = cells.observed, torch.from_numpy(rows)
    arm = seen.arm(chosen)
    return Seen(
        index,
        torch.from_numpy(seen.cells[rows]).double(),
        torch.from_numpy(seen.size[rows]),
        arm.cells - torch.from_numpy(arm.positive).double(),
        torch.from_numpy(arm.total),
        cells.data.value[index],
        alike=True,
    )


def _some_cells(cells: Cells, rows: NDArray[np.int64]) -> Seen:
    index = torch.from_numpy(rows)
    offset = cells.data.offset[index]
    one_each = torch.arange(len(index))
    value = SufficientStatistics.from_cells(pick_rows(cells.data.value, index), one_each, len(index), offset).value
    # A cell is a group of one, whose mean is log x - offset.
    total = (value[..., 1] * (value[..., 2] + offset.unsqueeze(-1)).exp()).sum(0)
    size = torch.stack([offset.exp(), (2 * offset).exp()], 1)
    return Seen(index, torch.ones(len(index)).double(), size, value[..., 0].sum(0), total, value, alike=False)
