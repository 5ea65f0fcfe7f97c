"""Arrowhead matrices: what one grouping factor (donors) makes of the precision of a regression's coefficients.

A cell has one donor, so the effects of two donors never meet in the likelihood: their block of the precision is
diagonal, bordered by the few coefficients that all cells share,

    P = [ diag(d)  C' ]        L = [ diag(l)  0 ]
        [ C        S  ],           [ K        R ],      P = L L'.

With the diagonal block first the Cholesky factor fills nothing in, so all costs are linear in the number of donors.
Vectors are (donors, core) along their last dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Arrow:
    """A symmetric arrowhead matrix, or its lower triangular factor; leading dimensions are a batch.

    Attributes:
        tips: the diagonal of the first block, of shape (..., donors).
        border: the rows below it, of shape (..., core, donors).
        core: the last block, of shape (..., core, core).
    """

    tips: Tensor
    border: Tensor
    core: Tensor

    @classmethod
    def from_diagonal(cls, values: Tensor) -> Arrow:
        """Return the diagonal matrix of values (..., n)."""
        *batch, size = values.shape
        return cls(values, values.new_zeros(*batch, 0, size), values.new_zeros(*batch, 0, 0))

    def __matmul__(self, other: Arrow) -> Arrow:
        """Return the product of two lower triangular factors, again one."""
        border = self.border * other.tips.unsqueeze(-2) + self.core @ other.border
        return Arrow(self.tips * other.tips, border, self.core @ other.core)

    def divide(self, other: Arrow) -> Arrow:
        """Return the lower triangular C with L C = other, for lower triangular L and other."""
        tips = other.tips / self.tips
        border = torch.linalg.solve_triangular(self.core, other.border - self.border * tips.unsqueeze(-2), upper=False)
        return Arrow(tips, border, torch.linalg.solve_triangular(self.core, other.core, upper=False))

    def gram(self) -> Arrow:
        """Return L L' of a lower triangular factor L."""
        core = self.core @ self.core.mT + self.border @ self.border.mT
        return Arrow(self.tips.square(), self.border * self.tips.unsqueeze(-2), core)

    def add_diagonal(self, diagonal: Tensor) -> Arrow:
        """Return P + diag(diagonal) of a symmetric P."""
        tips, core = diagonal.tensor_split([self.tips.shape[-1]], -1)
        return Arrow(self.tips + tips, self.border, self.core + torch.diag_embed(core))

    def scale(self, scale: Tensor | float) -> Arrow:
        """Return scale * P, of a number or a tensor of shape (..., 1)."""
        by_matrix = scale.unsqueeze(-1) if isinstance(scale, Tensor) else scale
        return Arrow(self.tips * scale, self.border * by_matrix, self.core * by_matrix)

    def cholesky(self) -> Arrow:
        """Return the lower triangular factor of a positive definite P."""
        tips = self.tips.sqrt()
        border = self.border / tips.unsqueeze(-2)
        return Arrow(tips, border, torch.linalg.cholesky(self.core - border @ border.mT))

    def times(self, vector: Tensor) -> Tensor:
        """Return L v of a lower triangular factor L."""
        tips, core = vector.tensor_split([self.tips.shape[-1]], -1)
        return torch.cat([self.tips * tips, _times(self.border, tips) + _times(self.core, core)], -1)

    def transpose_times(self, vector: Tensor) -> Tensor:
        """Return L' v of a lower triangular factor L."""
        tips, core = vector.tensor_split([self.tips.shape[-1]], -1)
        return torch.cat([self.tips * tips + _times(self.border.mT, core), _times(self.core.mT, core)], -1)

    def solve(self, vector: Tensor) -> Tensor:
        """Return L^-1 v of a lower triangular factor L."""
        tips, core = vector.tensor_split([self.tips.shape[-1]], -1)
        tips = tips / self.tips
        return torch.cat([tips, _solve(self.core, core - _times(self.border, tips), upper=False)], -1)

    def transpose_solve(self, vector: Tensor) -> Tensor:
        """Return L'^-1 v of a lower triangular factor L."""
        tips, core = vector.tensor_split([self.tips.shape[-1]], -1)
        core = _solve(self.core.mT, core, upper=True)
        return torch.cat([(tips - _times(self.border.mT, core)) / self.tips, core], -1)

    def diagonal(self) -> Tensor:
        """Return the diagonal, of shape (..., donors + core)."""
        return torch.cat([self.tips, self.core.diagonal(dim1=-2, dim2=-1)], -1)

    def inverse_diagonal(self) -> Tensor:
        """Return the diagonal of P^-1 = L'^-1 L^-1 from the lower triangular factor L of P."""
        inverse = torch.linalg.solve_triangular(self.core, torch.eye(self.core.shape[-1]).to(self.core), upper=False)
        through_core = (inverse @ self.border).square().sum(-2)
        return torch.cat([(1 + through_core) / self.tips.square(), inverse.square().sum(-2)], -1)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _solve(matrix: Tensor, vector: Tensor, upper: bool) -> Tensor:
    return torch.linalg.solve_triangular(matrix, vector.unsqueeze(-1), upper=upper).squeeze(-1)
