"""Sums of the log density over a sparse matrix, at a cost that grows with its stored values alone."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pyro_zilognormal.density.blockwise import lift
from pyro_zilognormal.density.reference import outside
from pyro_zilognormal.numerics.normal import HALF_LOG_2PI
from pyro_zilognormal.numerics.zero_part import ZeroPart


@dataclass(frozen=True)
class Entries:
    """The stored entries of a matrix: the column and value of each, and how many there are in each row."""

    row_lengths: Tensor
    columns: Tensor
    values: Tensor
    shape: tuple[int, int]

    @cached_property
    def rows(self) -> Tensor:
        """The row of each."""
        return torch.repeat_interleave(self.row_lengths, output_size=len(self.values))

    @cached_property
    def flat(self) -> Tensor:
        """The index of each in the flattened matrix."""
        return self.rows * self.shape[1] + self.columns

    def select(self, condition: Tensor) -> "Entries":
        """Those for which a condition is true."""
        lengths = torch.bincount(self.rows[condition], minlength=self.shape[0])
        return Entries(lengths, self.columns[condition], self.values[condition], self.shape)

    def at(self, tensor: Tensor) -> Tensor:
        """The elements, one for each entry, of a tensor that broadcasts to the matrix."""
        grid = lift(tensor, 2)
        high, wide = (length != 1 for length in grid.shape)
        if not high and not wide:
            return grid.reshape(())
        index = self.flat if high and wide else self.rows if high else self.columns
        return grid.reshape(-1).index_select(0, index)

    def sum(self, numbers: Tensor, dim: int | None) -> Tensor:
        """The sums over a dimension of the matrix, or all, of a number for each entry, in double precision."""
        if dim is None:
            return numbers.sum(dtype=torch.float64)
        index = self.rows if dim else self.columns
        return numbers.new_zeros(self.shape[1 - dim], dtype=torch.float64).index_add(0, index, numbers.double())

    def sum_elsewhere(self, tensor: Tensor, dim: int | None) -> Tensor:
        """The sums of a tensor that broadcasts to the matrix over all entries of the matrix that are not stored."""
        grid = lift(tensor, 2)
        axes = _axes(grid, dim)
        if len(axes) == 2:
            others = grid.expand(self.shape).reshape(-1).index_fill(0, self.flat, 0).view(self.shape)
            return others.sum(dim, dtype=torch.float64)
        all_of_them = math.prod(n for axis, n in enumerate(self.shape) if axis not in axes)
        return _weighted(all_of_them - self._counts(*axes), tensor, dim)

    def _counts(self, axis: int | None = None) -> Tensor:
        """How many there are, in each index of an axis or in all."""
        if axis is None:
            return torch.tensor(len(self.values), device=self.values.device)
        return torch.bincount(self.columns, minlength=self.shape[1]) if axis else self.row_lengths


def log_density_sum(entries: Entries, loc: Tensor, scale: Tensor, zero_part: ZeroPart, dim: int | None) -> Tensor:
    """The sum of the log density over a dimension of a matrix, or all, in double precision."""
    if not entries.values.all():  # of zeros that are stored
        entries = entries.select(entries.values != 0)
    x, others = entries, None
    inside = (x.values > 0) & (x.values < math.inf)
    if not inside.all():
        x, others = entries.select(inside), entries.select(~inside)
    log_x, at_scale = x.values.to(torch.promote_types(x.values.dtype, loc.dtype)).log(), x.at(scale)
    z = (log_x - x.at(loc)) / at_scale
    loss = log_x + z * z / 2 + (at_scale.log() + HALF_LOG_2PI)
    total = entries.sum_elsewhere(zero_part.log_zero, dim) + x.sum(x.at(zero_part.log_positive) - loss, dim)
    return total if others is None else total + others.sum(outside(others.values), dim)


def _axes(grid: Tensor, dim: int | None) -> set[int]:
    """The axes along which a tensor or what remains after a sum over a dimension varies."""
    return {axis for axis, length in enumerate(grid.shape) if length != 1} | (set() if dim is None else {1 - dim})


def _weighted(counts: Tensor, tensor: Tensor, dim: int | None) -> Tensor:
    # Where the count is 0 the tensor may be infinite.
    sums = torch.where(counts > 0, counts * tensor.reshape(-1).double(), 0)
    return sums.sum() if dim is None else sums
