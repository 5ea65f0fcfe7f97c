"""The stored entries of a sparse matrix, and sums over them and over all others."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pyro_zilognormal.density.blocks import lift


@dataclass(frozen=True)
class Entries:
    """Entries of a matrix: the column and value of each, and how many there are in each row."""

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

    def pick(self, chosen: Tensor) -> "Entries":
        """Those for which a boolean is true."""
        lengths = torch.bincount(self.rows[chosen], minlength=self.shape[0])
        return Entries(lengths, self.columns[chosen], self.values[chosen], self.shape)

    def at(self, tensor: Tensor) -> Tensor:
        """What a tensor that broadcasts to the matrix is there."""
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

    def sum_of(self, function: Callable[[Tensor], Tensor], tensor: Tensor, dim: int | None) -> Tensor:
        """The same of a function of a tensor that broadcasts to the matrix, applied no more often than need be."""
        axes = _axes(lift(tensor, 2), dim)
        if len(axes) == 2:
            few = tensor.numel() < len(self.values)
            there = self.at(function(tensor)) if few else function(self.at(tensor))
            return self.sum(there.expand(len(self.values)), dim)
        return _weighted(self._counts(*axes), function(tensor), dim)

    def sum_elsewhere(self, tensor: Tensor, dim: int | None) -> Tensor:
        """The same over all other entries of the matrix."""
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


def _axes(grid: Tensor, dim: int | None) -> set[int]:
    """The axes along which a tensor or what remains after a sum over a dimension varies."""
    return {axis for axis, length in enumerate(grid.shape) if length != 1} | (set() if dim is None else {1 - dim})


def _weighted(counts: Tensor, tensor: Tensor, dim: int | None) -> Tensor:
    # Where the count is 0 the tensor may be infinite.
    sums = torch.where(counts > 0, counts * tensor.reshape(-1).double(), 0)
    return sums.sum() if dim is None else sums
