"""What a hurdle regression is fitted to: cells, or groups of cells that share their row of the design."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_zilognormal.sufficient import SufficientStatistics
from pyro_zilognormal.svi.arrays import pick_rows


@dataclass(frozen=True)
class HurdleData:
    """Expression, and the design that explains it, row by row.

    A row is a cell, or a group of all cells that share design, gate design and donor, held by its sufficient
    statistics: the likelihood is the same to rounding, and its cost no longer depends on the number of cells.

    Attributes:
        value: statistics, a float64 tensor of shape (rows, genes, 5) as
            :class:`~pyro_zilognormal.SufficientStatistics` lays them out, or cells, of shape (rows, genes): a tensor,
            numpy array or CSR matrix.
        design: float64, of shape (rows, columns); the first column is 1, the intercept.
        gate_design: the same for the gate, of shape (rows, gate columns).
        donor: int64, of shape (rows,), from 0; all 0 where there are no donors.
        offset: float64, of shape (rows,), added to the mean of log x: the log size factor; 0 for groups, whose
            statistics have it taken out.
        donors: how many donors; 0 for none.

    Example:
        >>> x = torch.tensor([[0.0, 2.0], [1.5, 0.0], [3.0, 1.0], [2.0, 2.0]])
        >>> treated = torch.tensor([0, 0, 1, 1])
        >>> data = HurdleData.from_cells(x, torch.stack([torch.ones(4), treated], 1))
        >>> data.value.shape, data.design.tolist()
        (torch.Size([2, 2, 5]), [[1.0, 0.0], [1.0, 1.0]])
    """

    value: Any
    design: Tensor
    gate_design: Tensor
    donor: Tensor
    offset: Tensor
    donors: int = 0

    @property
    def reduced(self) -> bool:
        """Whether rows are groups."""
        return len(self.value.shape) == 3

    @property
    def genes(self) -> int:
        """How many genes."""
        return int(self.value.shape[1])

    @property
    def sizes(self) -> dict[str, int]:
        """What a regression made from these data takes others to have as well."""
        columns = {"columns": self.design.shape[1], "gate columns": self.gate_design.shape[1]}
        return {"genes": self.genes, "donors": self.donors, **columns}

    @property
    def arguments(self) -> tuple[Any, Tensor, Tensor, Tensor, Tensor]:
        """The arguments of model and guide."""
        return self.value, self.design, self.gate_design, self.donor, self.offset

    def statistics(self, most: int = 2000) -> Tensor:
        """Return the statistics of the rows, a cell being a group of one; of at most so many cells, evenly spaced."""
        if self.reduced:
            return self.value
        some = self.some_rows(most)
        groups = torch.arange(len(some))
        return SufficientStatistics.from_cells(pick_rows(self.value, some), groups, len(some), self.offset[some]).value

    def some_rows(self, most: int = 2000) -> Tensor:
        """Return which rows :meth:`statistics` tells of."""
        rows = len(self.design)
        step = 1 if self.reduced else -(-rows // most)
        return torch.arange(0, rows, step)

    @classmethod
    def from_cells(
        cls,
        x: Any,
        design: Any,
        gate_design: Any = None,
        donor: Any = None,
        offset: Any = None,
        reduce: bool | None = None,
    ) -> HurdleData:
        """Group the cells that share their row of the design, or keep them.

        Args:
            x: cells x genes, >= 0, on the linear scale: a tensor, numpy array or CSR matrix.
            design: cells x columns, of which the first is 1.
            gate_design: the gate's own design; that of the positive part if None.
            donor: of each cell, whole numbers from 0; None for no donors' effects.
            offset: log size factor of each cell; 0 if None.
            reduce: group cells; None does where that at least halves the rows.

        Returns:
            The data; groups are sorted by their design, gate design and donor.

        Raises:
            TypeError: for what holds no numbers.
            ValueError: for shapes that differ, a design without intercept or that is not finite, and values of x that
                are negative or not finite.
        """
        cells = _cells(x)
        rows = _rows(design, gate_design, donor, offset, cells)
        donors = 0 if donor is None else int(rows[2].max()) + 1
        keys, group = torch.unique(torch.cat([*rows[:2], rows[2][:, None]], 1), dim=0, return_inverse=True)
        if not (2 * len(keys) <= cells if reduce is None else reduce):
            SufficientStatistics.from_cells(x)  # refuses what no reduction takes
            return cls(x, *rows, donors)
        stats = SufficientStatistics.from_cells(x, group, len(keys), rows[3])
        ends = [rows[0].shape[1], rows[0].shape[1] + rows[1].shape[1]]
        design, gate, who = keys.tensor_split(ends, 1)
        return cls.from_groups(stats, design, gate, None if donor is None else who[:, 0])

    @classmethod
    def from_groups(
        cls,
        stats: SufficientStatistics,
        design: Any,
        gate_design: Any = None,
        donor: Any = None,
        donors: int | None = None,
    ) -> HurdleData:
        """Take statistics of groups that were reduced before, from chunks or a file.

        Args:
            stats: of groups x genes.
            design: groups x columns, of which the first is 1.
            gate_design: the gate's own design; that of the positive part if None.
            donor: of each group, whole numbers from 0; None for no donors' effects.
            donors: how many; as many as ``donor`` names if None.

        Returns:
            The data.

        Raises:
            TypeError: for what holds no numbers or statistics.
            ValueError: for shapes that differ, a design without intercept or that is not finite, and too few donors.
        """
        if not isinstance(stats, SufficientStatistics):
            raise TypeError(f"stats is a {type(stats).__name__}; needed SufficientStatistics of groups x genes")
        rows = _rows(design, gate_design, donor, None, len(stats.n_zero))
        named = 0 if donor is None else int(rows[2].max()) + 1
        if donors is not None and (donors < named or (donor is None and donors > 0)):
            raise ValueError(f"donors is {donors}, but donor names {named}; needed at least as many, from 0 on")
        return cls(stats.value, *rows, named if donors is None else donors)


def _cells(x: Any) -> int:
    shape = tuple(getattr(x, "shape", ()))
    if len(shape) != 2 or shape[0] == 0:
        came = f"shape {shape}" if hasattr(x, "shape") else f"a {type(x).__name__}"
        raise ValueError(
            f"x: {came}; needed a tensor, numpy array or CSR matrix of cells x genes, with a cell at least"
        )
    return int(shape[0])


def _rows(design: Any, gate_design: Any, donor: Any, offset: Any, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return design, gate design, donor and offset as checked tensors."""
    positive = _design("design", design, rows)
    gate = positive if gate_design is None else _design("gate_design", gate_design, rows)
    who = torch.zeros(rows, dtype=torch.int64) if donor is None else _donor(donor, rows)
    shift = torch.zeros(rows, dtype=torch.float64) if offset is None else _numbers("offset", offset, (rows,))
    return positive, gate, who, shift


def _design(name: str, value: Any, rows: int) -> Tensor:
    design = _numbers(name, value, (rows, -1))
    if design.shape[1] == 0 or (design[:, 0] != 1).any():
        raise ValueError(f"{name}: the first column is not all 1; needed an intercept there (a formula without '0 +')")
    return design


def _numbers(name: str, value: Any, shape: tuple[int, ...]) -> Tensor:
    numbers = _tensor(name, value)
    if numbers.dim() != len(shape) or numbers.shape[0] != shape[0]:
        needed = " x ".join(str(n) if n >= 0 else "columns" for n in shape)
        raise ValueError(f"{name}: shape {tuple(numbers.shape)}; needed {needed}")
    if not numbers.isfinite().all():
        row = int((~numbers.isfinite()).reshape(shape[0], -1).any(1).nonzero()[0])
        raise ValueError(f"{name}: row {row} is not finite; leave out cells with missing values")
    return numbers


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(torch.float64)
    try:  # numpy reads pandas' tables too
        return torch.from_numpy(np.array(value, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name}: a {type(value).__name__} with other things than numbers; needed numbers (categories: .cat.codes)"
        ) from error


def _donor(value: Any, rows: int) -> Tensor:
    donor = _numbers("donor", value, (rows,))
    bad = donor[(donor < 0) | (donor != donor.round())]
    if len(bad):
        raise ValueError(f"donor: got {bad[0].item():g}; needed whole numbers from 0, such as pandas' category codes")
    return donor.long()
