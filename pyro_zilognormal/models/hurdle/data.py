"""The data of a hurdle regression: cells, or groups of cells that share their row of the design."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_zilognormal.sufficient import SufficientStatistics

# Enough cells to find the posterior mode and the unit of the data.
_MOST_CELLS = 2000


@dataclass(frozen=True)
class HurdleData:
    """Expression, and the designs that explain it, row by row.

    A row is a cell, or a group of all cells that share their rows of all designs and their levels of all factors, held
    by its sufficient statistics: the likelihood is the same to rounding, and its cost does not depend on the number of
    cells.

    Attributes:
        value: statistics, a float64 tensor of shape (rows, genes, 5) in the order of
            :class:`~pyro_zilognormal.SufficientStatistics`, or cells, of shape (rows, genes): a tensor, numpy array or
            CSR matrix.
        design: of the log mean, float64, of shape (rows, columns); the first column is 1, the intercept.
        zero_design: of the zero part, float64, of shape (rows, zero columns), likewise.
        scale_design: of log sigma, float64, of shape (rows, scale columns), likewise.
        factors: the level of each random-effects factor, int64, of shape (rows, factors), each from 0.
        offset: float64, of shape (rows,), added to the mean of log x: the log size factor; 0 for groups, from whose
            statistics it has been taken out.
        levels: number of levels of each factor.

    Example:
        >>> x = torch.tensor([[0.0, 2.0], [1.5, 0.0], [3.0, 1.0], [2.0, 2.0]])
        >>> treated = torch.tensor([0, 0, 1, 1])
        >>> data = HurdleData.from_cells(x, torch.stack([torch.ones(4), treated], 1), factors=treated)
        >>> data.value.shape, data.design.tolist(), data.levels
        (torch.Size([2, 2, 5]), [[1.0, 0.0], [1.0, 1.0]], (2,))
    """

    value: Any
    design: Tensor
    zero_design: Tensor
    scale_design: Tensor
    factors: Tensor
    offset: Tensor
    levels: tuple[int, ...] = ()

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
    def sizes(self) -> dict[str, Any]:
        """The sizes that a model made from these data needs of any others."""
        sizes: dict[str, Any] = {"rows": len(self.design), "genes": self.genes, "levels": self.levels}
        for name in ("design", "zero_design", "scale_design"):
            sizes[f"{name} columns"] = getattr(self, name).shape[1]
        return sizes

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Any]:
        """What model and guide take, the value last; ``arguments[:-1]`` predicts it."""
        designs = self.design, self.zero_design, self.scale_design
        return *designs, self.factors, self.offset, self.cells, self.value

    @property
    def random_elements(self) -> Tensor:
        """Which elements of the random effects' sites a row has, of shape (rows, factors)."""
        before = [sum(self.levels[:k]) for k in range(len(self.levels))]
        return self.factors + torch.tensor(before, dtype=torch.int64, device=self.factors.device)

    def some(self) -> HurdleData:
        """Return 2000 of many cells, at random, and groups or fewer cells as they are."""
        if self.reduced or len(self.design) <= _MOST_CELLS:
            return self
        order = torch.randperm(len(self.design), generator=torch.Generator().manual_seed(0))
        kept = order[:_MOST_CELLS].sort().values.to(self.design.device)
        value = self.value[kept if isinstance(self.value, Tensor) else kept.numpy(force=True)]
        rows = {k: getattr(self, k)[kept] for k in ("design", "zero_design", "scale_design", "factors", "offset")}
        return replace(self, value=value, **rows)

    def as_groups(self) -> HurdleData:
        """Return the data as groups; a cell becomes a group of one, and of many cells 2000 are kept, at random."""
        if self.reduced:
            return self
        cells = self.some()
        each = torch.arange(len(cells.design))
        stats = SufficientStatistics.from_cells(cells.value, each, len(each), cells.offset.cpu())
        return replace(cells, value=stats.value.to(cells.design), offset=torch.zeros_like(cells.offset))

    @classmethod
    def from_cells(
        cls,
        x: Any,
        design: Any,
        zero_design: Any = None,
        scale_design: Any = None,
        factors: Any = None,
        offset: Any = None,
        reduce: bool | None = None,
    ) -> HurdleData:
        """Group the cells that share their rows of the designs and their levels of the factors, or keep them.

        Args:
            x: cells x genes, >= 0, on the linear scale: a tensor, numpy array or CSR matrix.
            design: cells x columns, of which the first is 1.
            zero_design: design of the zero part; ``design`` if None.
            scale_design: design of log sigma; ``design`` if None.
            factors: random-effects factors, such as the donor: the level of each cell, whole numbers from 0, of shape
                (cells,) or (cells, factors); None for none.
            offset: log size factor of each cell; 0 if None.
            reduce: whether to group cells; None groups them where that at least halves the rows.

        Returns:
            The data; groups are sorted by their rows of the designs, then by the factors.

        Raises:
            TypeError: an argument that holds no numbers.
            ValueError: shapes that differ, a design without intercept or that is not finite, and values of x that
                are negative or not finite.
        """
        cells = _count_cells(x)
        designs, who, shift = _check_rows((design, zero_design, scale_design), factors, offset, cells)
        widths = [d.shape[1] for d in designs] + [who.shape[1]]
        keys, group = torch.unique(torch.cat([*designs, who], 1), dim=0, return_inverse=True)
        if not (2 * len(keys) <= cells if reduce is None else reduce):
            SufficientStatistics.from_cells(x)  # checks the values
            return cls(x, *designs, who, shift, _count_levels(who))
        stats = SufficientStatistics.from_cells(x, group, len(keys), shift)
        own, zero, scale, who = keys.split(widths, 1)
        return cls.from_groups(stats, own, zero, scale, who)

    @classmethod
    def from_groups(
        cls,
        stats: SufficientStatistics,
        design: Any,
        zero_design: Any = None,
        scale_design: Any = None,
        factors: Any = None,
    ) -> HurdleData:
        """Take statistics of groups that were reduced before, from chunks or a file.

        Args:
            stats: of groups x genes.
            design: groups x columns, of which the first is 1.
            zero_design: design of the zero part; ``design`` if None.
            scale_design: design of log sigma; ``design`` if None.
            factors: random-effects factors, of shape (groups,) or (groups, factors); None for none.

        Returns:
            The data.

        Raises:
            TypeError: stats of another type, or an argument that holds no numbers.
            ValueError: shapes that differ, or a design without intercept or that is not finite.
        """
        if not isinstance(stats, SufficientStatistics):
            raise TypeError(f"stats is a {type(stats).__name__}; needed SufficientStatistics of groups x genes")
        designs, who, shift = _check_rows((design, zero_design, scale_design), factors, None, len(stats.n_zero))
        return cls(stats.value, *designs, who, shift, _count_levels(who))


def _count_cells(x: Any) -> int:
    shape = tuple(getattr(x, "shape", ()))
    if len(shape) != 2 or shape[0] == 0:
        came = f"shape {shape}" if hasattr(x, "shape") else f"a {type(x).__name__}"
        raise ValueError(f"x: {came}; needed a tensor, numpy array or CSR matrix of cells x genes, at least one cell")
    return int(shape[0])


def _check_rows(
    given: tuple[Any, Any, Any], factors: Any, offset: Any, rows: int
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
    """Return designs, factors and offset as checked tensors."""
    design = _check_design("design", given[0], rows)
    zero, scale = (
        design if value is None else _check_design(name, value, rows)
        for name, value in zip(("zero_design", "scale_design"), given[1:], strict=True)
    )
    shift = design.new_zeros(rows) if offset is None else _check_numbers("offset", offset, (rows,))
    return (design, zero, scale), _check_factors(factors, rows), shift


def _check_factors(factors: Any, rows: int) -> Tensor:
    if factors is None:
        return torch.zeros(rows, 0, dtype=torch.int64)
    who = _as_tensor("factors", factors)
    who = _check_numbers("factors", who.unsqueeze(-1) if who.dim() == 1 else who, (rows, -1))
    bad = who[(who < 0) | (who != who.round())]
    if len(bad):
        raise ValueError(f"factors: got {bad[0].item():g}; needed whole numbers from 0, such as pandas' category codes")
    return who.long()


def _count_levels(factors: Tensor) -> tuple[int, ...]:
    return tuple((factors.amax(0) + 1).tolist()) if factors.numel() else ()


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
