"""All that is taken from an AnnData: the design, the data to fit, and what was observed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_zilognormal.models import HurdleData
from pyro_zilognormal.singlecell.design import Design
from pyro_zilognormal.singlecell.donors import Donors, find_donors
from pyro_zilognormal.singlecell.errors import SingleCellError
from pyro_zilognormal.singlecell.expression import Expression
from pyro_zilognormal.singlecell.kept import KeptCells, check_range
from pyro_zilognormal.singlecell.reading import Reading, read
from pyro_zilognormal.singlecell.scale import Scale
from pyro_zilognormal.singlecell.variables import column, strata


@dataclass(frozen=True, eq=False)
class Observed:
    """What the cells of each stratum show, a stratum being the cells that share all variables and the donor.

    Attributes:
        cells: how many, of shape (strata,).
        positive: how many positive values, of shape (strata, genes).
        total: the sum of the linear values, of shape (strata, genes).
        size: mean of the size factors exp(offset) and of their squares, of shape (strata, 2).
        examples: a cell of each stratum, of shape (strata,).
        of_cell: the stratum of each cell.
    """

    cells: NDArray[np.int64]
    positive: NDArray[np.int64]
    total: NDArray[np.float64]
    size: NDArray[np.float64]
    examples: NDArray[np.int64]
    of_cell: NDArray[np.int64]

    def arm(self, chosen: NDArray[np.bool_]) -> Arm:
        """Return what some strata show together."""
        return Arm(int(self.cells[chosen].sum()), self.positive[chosen].sum(0), self.total[chosen].sum(0))


@dataclass(frozen=True, eq=False)
class Arm:
    """What the cells of one side of a contrast show.

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
class Cells:
    """The cells of an experiment, read and checked.

    Attributes:
        expression: where they came from.
        design: what explains them.
        donors: of the cells, or None.
        data: what is fitted.
        observed: what they show.
    """

    expression: Expression
    design: Design
    donors: Donors | None
    data: HurdleData
    observed: Observed

    def arm(self, levels: Mapping[str, Any]) -> Arm:
        """Return what the cells with some values of the variables show."""
        chosen = np.ones(len(self.observed.cells), dtype=bool)
        for name, level in levels.items():
            variable = self.design.variables[name]
            chosen &= variable.cells(level)[self.observed.examples]
        return self.observed.arm(chosen)


def read_cells(expression: Expression, obs: Any, formula: str, donor: str | None, offset: Any, scale: Scale) -> Cells:
    """Read all cells in one pass.

    Cells that share all variables and the donor are reduced to statistics, unless these would be more than half as many
    as the cells, as with a covariate that has a value of its own in each cell; then the cells are kept in memory.
    """
    design = Design(formula, obs)
    donors = None if donor is None else find_donors(obs, donor, design)
    shift = None if offset is None else _offset(obs, offset, len(obs))
    of_cell, examples = _strata(design, donors, only_categories=False)
    keep = 2 * len(examples) > len(of_cell)
    if keep:
        of_cell, examples = _strata(design, donors, only_categories=True)
    reading = read(expression, scale, of_cell, len(examples), shift, keep)
    _check_any(reading, expression)
    make = _cells_data if keep else _groups_data
    data = make(reading, design, donors, shift, examples)
    return Cells(expression, design, donors, data, _observed(reading, of_cell, examples, shift))


def _strata(design: Design, donors: Donors | None, only_categories: bool) -> tuple[Any, Any]:
    used = [v.values for v in design.variables.values() if v.categorical or not only_categories]
    return strata(used if donors is None else [*used, donors.values], len(design.matrix))


def _groups_data(reading: Reading, design: Design, donors: Donors | None, shift: Any, examples: Any) -> HurdleData:
    donor = None if donors is None else donors.code[examples]
    count = None if donors is None else len(donors.names)
    return HurdleData.from_groups(reading.statistics, design.matrix[examples], None, donor, count)


def _cells_data(reading: Reading, design: Design, donors: Donors | None, shift: Any, examples: Any) -> HurdleData:
    donor = None if donors is None else donors.code
    if hasattr(reading.cells, "tocsr"):
        check_range(reading.cells)
    data = KeptCells.from_cells(reading.cells, design.matrix, None, donor, shift, reduce=False)
    return data if donors is None else dataclasses.replace(data, donors=len(donors.names))


def _observed(reading: Reading, of_cell: Any, examples: Any, shift: Any) -> Observed:
    count = np.bincount(of_cell, minlength=len(examples))
    factor = np.ones(len(of_cell)) if shift is None else np.exp(shift)
    size = np.stack([np.bincount(of_cell, factor**k, len(examples)) / count for k in (1, 2)], 1)
    return Observed(
        count,
        reading.statistics.n_pos.numpy().astype(np.int64),
        reading.totals,
        size,
        examples,
        of_cell,
    )


def _check_any(reading: Reading, expression: Expression) -> None:
    if not bool((reading.statistics.n_pos > 0).any()):
        raise SingleCellError(
            f"{expression.where} holds no positive value above the detection threshold; needed some expression"
        )


def _offset(obs: Any, offset: Any, cells: int) -> NDArray[np.float64]:
    """Return the log size factors of the cells."""
    if isinstance(offset, str):
        values, said = column(obs, offset, "offset").to_numpy(), f"offset: obs[{offset!r}]"
    else:
        values, said = np.asarray(offset), "offset"
    if values.shape != (cells,):
        raise SingleCellError(f"{said} has shape {values.shape}; needed one number for each of the {cells} cells")
    if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise SingleCellError(f"{said} is not a finite number for every cell; needed the log of a positive size factor")
    return values.astype(np.float64)


def on_device(data: HurdleData, device: str) -> HurdleData:
    """Return the data on a device of torch."""
    fields = {f.name: getattr(data, f.name) for f in dataclasses.fields(data)}
    moved: dict[str, Any] = {
        name: value.to(device) for name, value in fields.items() if isinstance(value, torch.Tensor)
    }
    return dataclasses.replace(data, **moved)
