"""All that is taken from an AnnData: the design, the data to fit, and what was observed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_zilognormal.models import HurdleData
from pyro_zilognormal.singlecell.design import Design
from pyro_zilognormal.singlecell.donors import Donors, check_confounding, find_donors
from pyro_zilognormal.singlecell.errors import SingleCellError
from pyro_zilognormal.singlecell.expression import Expression
from pyro_zilognormal.singlecell.observed import Arm, Observed
from pyro_zilognormal.singlecell.reading import Reading, read
from pyro_zilognormal.singlecell.scale import Scale
from pyro_zilognormal.singlecell.variables import column, strata


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of an experiment, read and checked.

    Attributes:
        expression: where they came from.
        design: what explains them.
        donors: of the cells, or None.
        data: what is fitted: strata of cells that share all variables and the donor, or the cells themselves.
        observed: what the strata show, or the cells where these are fitted.
    """

    expression: Expression
    design: Design
    donors: Donors | None
    data: HurdleData
    observed: Observed

    def having(self, levels: Mapping[str, Any]) -> NDArray[np.bool_]:
        """Return which cells have some values of the variables.

        Args:
            levels: by variable; cells with any values of the others count.
        """
        chosen = np.ones(len(self.design.matrix), dtype=bool)
        for name, level in levels.items():
            chosen &= self.design.variables[name].cells(level)
        return chosen

    def arm(self, levels: Mapping[str, Any]) -> Arm:
        """Return what the cells with some values of the variables show."""
        return self.observed.arm(self.having(levels))


def read_cells(expression: Expression, obs: Any, formula: str, donor: str | None, offset: Any, scale: Scale) -> Cells:
    """Read all cells in one pass.

    Cells that share all variables and the donor are reduced to statistics, unless these would be more than half as many
    as the cells, as with a covariate that has a value of its own in each cell; then the cells are kept in memory.
    """
    _check_table(obs, expression)
    design = Design(formula, obs)
    donors = None if donor is None else find_donors(obs, donor, design)
    shift = None if offset is None else _offset(obs, offset)
    columns = [v.values for v in design.variables.values()] + ([] if donors is None else [donors.values])
    of_cell, examples = strata(columns, len(obs))
    if donors is not None:
        check_confounding(design, donors, examples)
    keep = 2 * len(examples) > len(obs)
    reading = read(
        expression, scale, np.zeros_like(of_cell) if keep else of_cell, 1 if keep else len(examples), shift, keep
    )
    _check_any(reading, expression)
    if keep:
        cells = _kept(reading.cells, design, donors, shift)
        return Cells(expression, design, donors, cells, Observed.of_cells(cells, shift))
    data = _groups(reading, design, donors, examples)
    return Cells(expression, design, donors, data, Observed.of_strata(reading, of_cell, len(examples), shift))


def _groups(reading: Reading, design: Design, donors: Donors | None, examples: NDArray[np.int64]) -> HurdleData:
    who, count = (None, None) if donors is None else (donors.code[examples], len(donors.names))
    return HurdleData.from_groups(reading.statistics, design.matrix[examples], None, who, count)


def _kept(values: Any, design: Design, donors: Donors | None, shift: Any) -> HurdleData:
    if hasattr(values, "tocsr"):
        _check_range(values.data[values.data > 0])
    return HurdleData.from_cells(
        values, design.matrix, None, None if donors is None else donors.code, shift, reduce=False
    )


def _check_range(positive: NDArray[np.float64]) -> None:
    """Raise for what does not fit in torch's default dtype, which minibatches of a CSR matrix are of."""
    limits = torch.finfo(torch.get_default_dtype())
    if positive.size and not (limits.tiny <= positive.min() and positive.max() <= limits.max):
        raise SingleCellError(
            f"adata holds values from {positive.min():.3g} to {positive.max():.3g}, which {limits.dtype} cannot hold; "
            "needed other units, or a detection_threshold above the smallest"
        )


def _check_table(obs: Any, expression: Expression) -> None:
    cells = expression.shape[0]
    if len(obs) != cells:
        raise SingleCellError(f"{expression.where} has {cells} rows, adata.obs {len(obs)}; needed one for each cell")
    if cells < 2:
        raise SingleCellError(f"{expression.where} holds one cell; needed cells to compare")


def _check_any(reading: Reading, expression: Expression) -> None:
    if not bool((reading.statistics.n_pos > 0).any()):
        raise SingleCellError(
            f"{expression.where} holds no value above the detection threshold; needed some expression"
        )


def _offset(obs: Any, offset: Any) -> NDArray[np.float64]:
    """Return the log size factors of the cells."""
    if isinstance(offset, str):
        values, said = column(obs, offset, "offset").to_numpy(), f"offset: obs[{offset!r}]"
    else:
        values, said = np.asarray(offset), "offset"
    if values.shape != (len(obs),):
        raise SingleCellError(f"{said} has shape {values.shape}; needed one number for each of the {len(obs)} cells")
    if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise SingleCellError(f"{said} is not a finite number in every cell; needed the log of a positive size factor")
    return values.astype(np.float64)
