"""Cells that are fitted one by one, because the formula tells each from the others."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_zilognormal.models import HurdleData
from pyro_zilognormal.singlecell.donors import Donors
from pyro_zilognormal.singlecell.errors import SingleCellError
from pyro_zilognormal.sufficient import SufficientStatistics


@dataclass(frozen=True)
class KeptCells(HurdleData):
    """Cells in a dense tensor or a CSR matrix."""

    @classmethod
    def make(cls, values: Any, design: NDArray[np.float64], donors: Donors | None, shift: Any) -> HurdleData:
        """Return the data of cells.

        Raises:
            SingleCellError: values of a CSR matrix that minibatches cannot hold.
        """
        if hasattr(values, "tocsr"):
            _check_range(values)
        who = None if donors is None else donors.code
        data = cls.from_cells(values, design, None, who, shift, reduce=False)
        return dataclasses.replace(data, donors=0 if donors is None else len(donors.names))

    def statistics(self, most: int = 2000) -> Tensor:
        """Return the statistics of at most so many cells, evenly spaced, each a group of one."""
        some = self.some_rows(most)
        # scipy takes no tensor for an index.
        values = self.value[some.numpy()] if hasattr(self.value, "tocsr") else self.value[some]
        return SufficientStatistics.from_cells(
            values, torch.arange(len(some)), len(some), self.offset[some].cpu()
        ).value


def _check_range(values: Any) -> None:
    """Raise for what does not fit in torch's default dtype, which minibatches of a CSR matrix are of."""
    limits = torch.finfo(torch.get_default_dtype())
    positive = values.data[values.data > 0]
    if positive.size and not (limits.tiny <= positive.min() and positive.max() <= limits.max):
        raise SingleCellError(
            f"adata holds values from {positive.min():.3g} to {positive.max():.3g}, which {limits.dtype} cannot hold; "
            "needed other units, or a detection_threshold above the smallest"
        )
