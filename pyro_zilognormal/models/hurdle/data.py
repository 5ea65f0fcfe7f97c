"""The data of a hurdle regression: cells, or groups of cells that share their row of the design."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_zilognormal.sufficient import SufficientStatistics

# Enough cells to find the posterior mode and the unit of the data.
_MOST_CELLS = 2000


@dataclass(frozen=True)
class HurdleData:
    """Expression, and the design that explains it, row by row.

    A row is a cell, or a group of all cells that share design, zero design and donor, held by its sufficient
    statistics: the likelihood is the same to rounding, and its cost does not depend on the number of cells.

    Attributes:
        value: statistics, a float64 tensor of shape (rows, genes, 5) in the order of
            :class:`~pyro_zilognormal.SufficientStatistics`, or cells, of shape (rows, genes): a tensor, numpy array or
            CSR matrix.
        design: of the positive part, float64, of shape (rows, columns); the first column is 1, the intercept.
        zero_design: of the zero part, float64, of shape (rows, zero columns), likewise.
        donor: int64, of shape (rows,), from 0; all 0 where there are no donors.
        offset: float64, of shape (rows,), added to the mean of log x: the log size factor; 0 for groups, from whose
            statistics it has been taken out.
        donors: number of donors; 0 for none.

    Example:
        >>> x = torch.tensor([[0.0, 2.0], [1.5, 0.0], [3.0, 1.0], [2.0, 2.0]])
        >>> treated = torch.tensor([0, 0, 1, 1])
        >>> data = HurdleData.from_cells(x, torch.stack([torch.ones(4), treated], 1))
        >>> data.value.shape, data.design.tolist(), data.cells.tolist()
        (torch.Size([2, 2, 5]), [[1.0, 0.0], [1.0, 1.0]], [[2.0, 2.0], [2.0, 2.0]])
    """

    value: Any
    design: Tensor
    zero_design: Tensor
    donor: Tensor
    offset: Tensor
    donors: int = 0

    @property
    def reduced(self) -> bool:
        """Whether rows are groups."""
        return len(self.value.shape) == 3

    @property
    def genes(self) -> int:
        """Number of genes."""
        return int(self.value.shape[1])

    @property
    def cells(self) -> Tensor | None:
        """Number of cells of each group, of shape (rows, genes); None where rows are cells."""
        return self.value[..., 0] + self.value[..., 1] if self.reduced else None

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that a model made from these data needs of any others."""
        rows, columns = self.design.shape
        sizes = {"rows": rows, "genes": self.genes, "donors": self.donors}
        return sizes | {"columns": columns, "zero columns": self.zero_design.shape[1]}

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Any]:
        """What model and guide take, the value last; ``arguments[:-1]`` predicts it."""
        return self.design, self.zero_design, self.donor, self.offset, self.cells, self.value

    def as_groups(self) -> HurdleData:
        """Return the data as groups; a cell becomes a group of one, and of many cells about 2000 are kept."""
        if self.reduced:
            return self
        every = slice(None, None, -(-len(self.design) // _MOST_CELLS))
        design, offset = self.design[every], self.offset[every]
        stats = SufficientStatistics.from_cells(self.value[every], torch.arange(len(design)), len(design), offset)
        rows = design, self.zero_design[every], self.donor[every], torch.zeros_like(offset)
        return HurdleData(stats.value.to(design.device), *rows, self.donors)

    @classmethod
    def from_cells(
        cls,
        x: Any,
        design: Any,
        zero_design: Any = None,
        donor: Any = None,
        offset: Any = None,
        reduce: bool | None = None,
    ) -> HurdleData:
        """Group the cells that share their row of the design, or keep them.

        Args:
            x: cells x genes, >= 0, on the linear scale: a tensor, numpy array or CSR matrix.
            design: cells x columns, of which the first is 1.
            zero_design: design of the zero part; that of the positive part if None.
            donor: of each cell, whole numbers from 0; None for no donors' effects.
            offset: log size factor of each cell; 0 if None.
            reduce: whether to group cells; None groups them where that at least halves the rows.

        Returns:
            The data; groups are sorted by design, zero design and donor.

        Raises:
            TypeError: an argument that holds no numbers.
            ValueError: shapes that differ, a design without intercept or that is not finite, and values of x that
                are negative or not finite.
        """
        cells = _count_cells(x)
        rows = _check_rows(design, zero_design, donor, offset, cells)
        keys, group = torch.unique(torch.cat([*rows[:2], rows[2][:, None]], 1), dim=0, return_inverse=True)
        if not (2 * len(keys) <= cells if reduce is None else reduce):
            SufficientStatistics.from_cells(x)  # checks the values
            return cls(x, *rows, 0 if donor is None else int(rows[2].max()) + 1)
        stats = SufficientStatistics.from_cells(x, group, len(keys), rows[3])
        design, zero, who = keys.split([rows[0].shape[1], rows[1].shape[1], 1], 1)
        return cls.from_groups(stats, design, zero, None if donor is None else who[:, 0])

    @classmethod
    def from_groups(
        cls, stats: SufficientStatistics, design: Any, zero_design: Any = None, donor: Any = None
    ) -> HurdleData:
        """Take statistics of groups that were reduced before, from chunks or a file.

        Args:
            stats: of groups x genes.
            design: groups x columns, of which the first is 1.
            zero_design: design of the zero part; that of the positive part if None.
            donor: of each group, whole numbers from 0; None for no donors' effects.

        Returns:
            The data.

        Raises:
            TypeError: stats of another type, or an argument that holds no numbers.
            ValueError: shapes that differ, or a design without intercept or that is not finite.
        """
        if not isinstance(stats, SufficientStatistics):
            raise TypeError(f"stats is a {type(stats).__name__}; needed SufficientStatistics of groups x genes")
        rows = _check_rows(design, zero_design, donor, None, len(stats.n_zero))
        return cls(stats.value, *rows, 0 if donor is None else int(rows[2].max()) + 1)


def _count_cells(x: Any) -> int:
    shape = tuple(getattr(x, "shape", ()))
    if len(shape) != 2 or shape[0] == 0:
        came = f"shape {shape}" if hasattr(x, "shape") else f"a {type(x).__name__}"
        raise ValueError(f"x: {came}; needed a tensor, numpy array or CSR matrix of cells x genes, at least one cell")
    return int(shape[0])


def _check_rows(
    design: Any, zero_design: Any, donor: Any, offset: Any, rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return design, zero design, donor and offset as checked tensors."""
    positive = _check_design("design", design, rows)
    zero = positive if zero_design is None else _check_design("zero_design", zero_design, rows)
    nothing = positive.new_zeros(rows)
    who, shift = (
        nothing if given is None else _check_numbers(name, given, (rows,))
        for name, given in [("donor", donor), ("offset", offset)]
    )
    bad = who[(who < 0) | (who != who.round())]
    if len(bad):
        raise ValueError(f"donor: got {bad[0].item():g}; needed whole numbers from 0, such as pandas' category codes")
    return positive, zero, who.long(), shift


def _check_design(name: str, value: Any, rows: int) -> Tensor:
    design = _check_numbers(name, value, (rows, -1))
    if design.shape[1] == 0 or (design[:, 0] != 1).any():
        raise ValueError(f"{name}: the first column is not all 1; needed an intercept there (a formula without '0 +')")
    return design


def _check_numbers(name: str, value: Any, shape: tuple[int, ...]) -> Tensor:
    numbers = _as_tensor(name, value)
    if numbers.dim() != len(shape) or numbers.shape[0] != shape[0]:
        needed = " x ".join(str(n) if n >= 0 else "columns" for n in shape)
        raise ValueError(f"{name}: shape {tuple(numbers.shape)}; needed {needed}")
    if not numbers.isfinite().all():
        row = int((~numbers.isfinite()).reshape(shape[0], -1).any(1).nonzero()[0])
        raise ValueError(f"{name}: row {row} is not finite; leave out cells with missing values")
    return numbers


def _as_tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(torch.float64)
    try:  # numpy also reads tables of pandas
        return torch.from_numpy(np.array(value, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name}: a {type(value).__name__} that holds more than numbers; needed numbers (categories: .cat.codes)"
        ) from error
