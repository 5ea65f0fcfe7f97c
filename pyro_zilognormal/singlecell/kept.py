"""Cells that are fitted one by one, because the formula tells each from the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_zilognormal.models import HurdleData
from pyro_zilognormal.singlecell.errors import SingleCellError
from pyro_zilognormal.sufficient import SufficientStatistics


@dataclass(frozen=True)
class KeptCells(HurdleData):
    """Cells in a dense tensor or a CSR matrix."""

    def statistics(self, most: int = 2000) -> Tensor:
        """Return the statistics of at most so many cells, evenly spaced, each a group of one."""
        some = self.some_rows(most)
        # scipy takes no tensor for an index.
        values = self.value[some.numpy()] if hasattr(self.value, "tocsr") else self.value[some]
        return SufficientStatistics.from_cells(
            values, torch.arange(len(some)), len(some), self.offset[some].cpu()
        ).value


def check_range(values: Any) -> None:
    """Raise for values of a CSR matrix that minibatches cannot hold, which are of torch's default dtype."""
    limits = torch.finfo(torch.get_default_dtype())
    positive = values.data[values.data > 0]
    if positive.size and not (limits.tiny <= positive.min() and positive.max() <= limits.max):
        raise SingleCellError(
            f"adata holds values from {positive.min():.3g} to {np.max(positive):.3g}, which {limits.dtype} cannot "
            "hold; needed other units, or a detection_threshold above the smallest"
        )
