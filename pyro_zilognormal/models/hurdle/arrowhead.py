"""Arrowhead matrices, the precision of a regression with one grouping factor (donors).

A cell has one donor, so the effects of two donors never meet in the likelihood. Their block of the precision is
diagonal, bordered by the few coefficients that all cells share:

    P = [ diag(d)  C' ]        L = [ diag(l)  0 ]
        [ C        S  ],           [ K        R ],      P = L L'.

With the diagonal block first the Cholesky factor has no fill-in, so every cost is linear in the number of donors.
Vectors are (donors, core) along their last dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Arrowhead:
    """A symmetric arrowhead matrix, or its lower triangular factor; leading dimensions are a batch."""

    block: Tensor  # the diagonal of the diagonal block, of shape (..., donors)
    border: Tensor  # the rows below it, of shape (..., core, donors)
    core: Tensor  # the last block, of shape (..., core, core)

    @classmethod
    def from_diagonal(cls, values: Tensor) -> Arrowhead:
        """Return the diagonal matrix of values (..., n)."""
        *batch, size = values.shape
        return cls(values, values.new_zeros(*batch, 0, size), values.new_zeros(*batch, 0, 0))

    def __matmul__(self, other: Arrowhead) -> Arrowhead:
        """Return the product of two lower triangular factors, again one."""
        border = self.border * other.block.unsqueeze(-2) + self.core @ other.border
        return Arrowhead(self.block * other.block, border, self.core @ other.core)

    def solve_factor(self, other: Arrowhead) -> Arrowhead:
        """Return L^-1 M of two lower triangular factors L (self) and M (other), again one."""
        block = other.block / self.block
        border = other.border - self.border * block.unsqueeze(-2)
        border, core = (torch.linalg.solve_triangular(self.core, m, upper=False) for m in (border, other.core))
        return Arrowhead(block, border, core)

    def gram(self) -> Arrowhead:
        """Return L L' of a lower triangular factor L."""
        core = self.core @ self.core.mT + self.border @ self.border.mT
        return Arrowhead(self.block.square(), self.border * self.block.unsqueeze(-2), core)

    def add_diagonal(self, diagonal: Tensor) -> Arrowhead:
        """Return P + diag(diagonal) of a symmetric P."""
        block, core = diagonal.tensor_split([self.block.shape[-1]], -1)
        return Arrowhead(self.block + block, self.border, self.core + torch.diag_embed(core))

    def scale(self, scale: Tensor) -> Arrowhead:
        """Return scale * P, for a scale of shape (..., 1)."""
        return Arrowhead(self.block * scale, self.border * scale.unsqueeze(-1), self.core * scale.unsqueeze(-1))

    def cholesky(self) -> Arrowhead:
        """Return the lower triangular factor of a positive definite P."""
        block = self.block.sqrt()
        border = self.border / block.unsqueeze(-2)
        return Arrowhead(block, border, torch.linalg.cholesky(self.core - border @ border.mT))

    def times(self, vector: Tensor) -> Tensor:
        """Return L v of a lower triangular factor L."""
        first, core = self._split(vector)
        return torch.cat([self.block * first, _times(self.border, first) + _times(self.core, core)], -1)

    def transpose_times(self, vector: Tensor) -> Tensor:
        """Return L' v of a lower triangular factor L."""
        first, core = self._split(vector)
        return torch.cat([self.block * first + _times(self.border.mT, core), _times(self.core.mT, core)], -1)

    def solve(self, vector: Tensor) -> Tensor:
        """Return L^-1 v of a lower triangular factor L."""
        first, core = self._split(vector)
        first = first / self.block
        return torch.cat([first, _solve(self.core, core - _times(self.border, first), upper=False)], -1)

    def transpose_solve(self, vector: Tensor) -> Tensor:
        """Return L'^-1 v of a lower triangular factor L."""
        first, core = self._split(vector)
        core = _solve(self.core.mT, core, upper=True)
        return torch.cat([(first - _times(self.border.mT, core)) / self.block, core], -1)

    def diagonal(self) -> Tensor:
        """Return the diagonal of the whole matrix, of shape (..., donors + core)."""
        return torch.cat([self.block, self.core.diagonal(dim1=-2, dim2=-1)], -1)

    def inverse_diagonal(self) -> Tensor:
        """Return the diagonal of P^-1 = L'^-1 L^-1 from the lower triangular factor L of P."""
        inverse = torch.linalg.solve_triangular(self.core, torch.eye(self.core.shape[-1]).to(self.core), upper=False)
        through_core = (inverse @ self.border).square().sum(-2)
        return torch.cat([(1 + through_core) / self.block.square(), inverse.square().sum(-2)], -1)

    def _split(self, vector: Tensor) -> tuple[Tensor, ...]:
        return vector.tensor_split([self.block.shape[-1]], -1)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _solve(matrix: Tensor, vector: Tensor, upper: bool) -> Tensor:
    return torch.linalg.solve_triangular(matrix, vector.unsqueeze(-1), upper=upper).squeeze(-1)


class DonorDesign:
    """Rows of a design, each with a donor: eta_rg = design_r . core_g + donor effect_g[donor_r]."""

    def __init__(self, design: Tensor, donor: Tensor, donors: int) -> None:
        self.design, self.donors = design, donors
        self.codes = torch.nn.functional.one_hot(donor, max(donors, 1)).to(design)[:, :donors]
        self.products = (design.unsqueeze(-1) * design.unsqueeze(-2)).flatten(1)

    def predict(self, theta: Tensor) -> Tensor:
        """Return eta, of shape (genes, rows), from theta (genes, donors + core)."""
        effects, core = theta.tensor_split([self.donors], -1)
        return core @ self.design.mT + effects @ self.codes.mT

    def score(self, slopes: Tensor) -> Tensor:
        """Return the derivative by theta, of shape (genes, donors + core), from that by eta (genes, rows)."""
        return torch.cat([slopes @ self.codes, slopes @ self.design], -1)

    def information(self, weights: Tensor) -> Arrowhead:
        """Return the sum over rows of weight * row row', gene by gene, from weights (genes, rows)."""
        size = self.design.shape[1]
        border = [(weights * column) @ self.codes for column in self.design.mT]
        core = (weights @ self.products).unflatten(-1, (size, size))
        return Arrowhead(weights @ self.codes, torch.stack(border, -2), core)
