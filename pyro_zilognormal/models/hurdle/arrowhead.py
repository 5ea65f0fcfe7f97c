r"""Symmetric matrices of arrowhead shape: diagonal blocks, each beside a border, and a core that all of them border on.

The precision of a gene's coefficients has this shape. Random effects of different donors, with those of the donor's
samples, meet in no row of the design: given the core, which are the fixed effects, they are independent,

.. math::
    A = \begin{pmatrix} T_1 & & B_1 \\ & T_2 & B_2 \\ B_1' & B_2' & C \end{pmatrix}, \qquad
    L = \begin{pmatrix} L_1 & & \\ & L_2 & \\ E_1' & E_2' & L_C \end{pmatrix}, \quad E_t = L_t^{-1} B_t, \quad
    L_C L_C' = C - \textstyle\sum_t E_t' E_t,

and the cost of the factor L of A = L L' grows with the number of blocks, where that of a dense one grows with its cube.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


class Layout:
    """Which elements of a vector have which place in an arrowhead.

    Args:
        width: number of elements.
        blocks: the elements of each diagonal block, in the order in which they are eliminated; all others are the core.
        device: of the indices.
    """

    def __init__(self, width: int, blocks: Sequence[Sequence[int]] = (), device: torch.device | None = None) -> None:
        size = max(map(len, blocks), default=0)
        # Smaller blocks are padded with an element beyond the last.
        filled = [[*block, *[width] * (size - len(block))] for block in blocks]
        self.width = width
        self.blocks = torch.tensor(filled, dtype=torch.int64, device=device).reshape(len(blocks), size)
        others = torch.ones(width + 1, dtype=torch.bool, device=device)
        others[self.blocks], others[width] = False, False
        self.core = others.nonzero().squeeze(-1)
        self.padded = sum(map(len, blocks)) < self.blocks.numel()
        b, c = self.blocks.unsqueeze(-1), self.core
        pairs = (b, b.mT), (b, c), (c.unsqueeze(-1), c)
        self.shapes = [torch.broadcast_shapes(*(v.shape for v in pair)) for pair in pairs]
        self.rows, self.columns = (
            torch.cat([v.expand(shape).flatten() for v, shape in zip(side, self.shapes, strict=True)])
            for side in zip(*pairs, strict=True)
        )

    @functools.cached_property
    def places(self) -> Tensor:
        """The place of each element of a matrix among the numbers of an arrowhead, where it has one, else -1."""
        places = self.rows.new_full((self.width + 1, self.width + 1), -1)
        numbers = torch.arange(len(self.rows), device=places.device)
        places[self.columns, self.rows] = places[self.rows, self.columns] = numbers
        return places

    @functools.cached_property
    def diagonal(self) -> Tensor:
        """The places of the diagonal, those of padding last."""
        size = self.blocks.shape[1]
        of_blocks = torch.arange(self.blocks.numel() * size, device=self.rows.device).reshape(self.shapes[0])
        padding = of_blocks.diagonal(dim1=-2, dim2=-1)[self.blocks == self.width]
        return torch.cat([self.places.diagonal()[:-1], padding])

    @functools.cached_property
    def order(self) -> Tensor:
        """The place of each element of a vector after those of blocks and core are joined."""
        place = torch.cat([self.blocks.flatten(), self.core])
        return place.argsort(stable=True)[: self.width]

    def split(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Return the elements of the blocks, (..., blocks, size), 0 where these are padded, and those of the core."""
        filled = pad(vector, (0, 1)) if self.padded else vector
        blocks = filled.index_select(-1, self.blocks.flatten()).unflatten(-1, self.blocks.shape)
        return blocks, vector.index_select(-1, self.core)

    def join(self, blocks: Tensor, core: Tensor) -> Tensor:
        """Return the vector of these elements."""
        return torch.cat([blocks.flatten(-2), core], -1).index_select(-1, self.order)

    @classmethod
    def of_levels(cls, elements: Tensor, levels: Sequence[int], width: int) -> Layout:
        """Return the cheapest layout of coefficients that begin with the random effects of two parts.

        Blocks are the levels of some factors that rows connect, in both parts: where factors are crossed, those with
        few levels are better in the core.

        Args:
            elements: which of all levels a row has, of shape (rows, factors).
            levels: number of levels of each factor.
            width: number of coefficients.
        """
        layouts, total = [cls(width, device=elements.device)], sum(levels)
        factors = range(len(levels))
        for count in factors:
            for chosen in itertools.combinations(factors, count + 1):
                found = _components(elements[:, list(chosen)].unique(dim=0).cpu(), total)
                blocks = [[*block, *(total + level for level in block)] for block in found]
                layouts.append(cls(width, blocks, elements.device))
        return min(layouts, key=lambda layout: layout.operations)

    @property
    def operations(self) -> int:
        """About the number of multiplications of a factor."""
        (number, size), core = self.blocks.shape, len(self.core)
        return int(number * size * (size**2 + 3 * size * core + 3 * core**2) + core**3)


def _components(edges: Tensor, total: int) -> list[list[int]]:
    """Return the sets of numbers below ``total`` that rows of ``edges`` connect, each in increasing order."""
    label = torch.arange(total)
    while True:
        least = label[edges].amin(1, keepdim=True).expand_as(edges)
        lower = label.scatter_reduce(0, edges.flatten(), least.flatten(), "amin")
        if torch.equal(lower, label):
            break
        label = lower
    found: dict[int, list[int]] = {}
    for number in edges.unique().tolist():
        found.setdefault(int(label[number]), []).append(number)
    return list(found.values())


@dataclass(frozen=True)
class Arrowhead:
    """Symmetric matrices of one layout; ``values`` has their elements in it, of shape (..., numbers)."""

    layout: Layout
    values: Tensor

    @classmethod
    def take(cls, layout: Layout, matrix: Tensor) -> Arrowhead:
        """Return the elements of dense matrices that are in the layout."""
        return cls(layout, pad(matrix, (0, 1, 0, 1))[..., layout.rows, layout.columns])

    def __getitem__(self, some: Tensor) -> Arrowhead:
        """Return some of the matrices."""
        return Arrowhead(self.layout, self.values[some])

    def dense(self) -> Tensor:
        """Return the matrices with their zeros."""
        return pad(self.values, (0, 1))[..., self.layout.places[:-1, :-1]]

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return blocks, (..., blocks, size, size), borders, (..., blocks, size, core), and core, (..., core, core)."""
        numbers = self.values.split([s.numel() for s in self.layout.shapes], -1)
        blocks, border, core = (v.unflatten(-1, s) for v, s in zip(numbers, self.layout.shapes, strict=True))
        return blocks, border, core

    @classmethod
    def of_parts(cls, layout: Layout, blocks: Tensor, border: Tensor, core: Tensor) -> Arrowhead:
        """Return the matrices of these parts."""
        return cls(layout, torch.cat([blocks.flatten(-3), border.flatten(-3), core.flatten(-2)], -1))

    def at(self, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        """Return elements of the matrices that are in the layout."""
        return self.values[..., self.layout.places[rows, columns]]

    def diagonal(self) -> Tensor:
        """Return the diagonals, of shape (..., width)."""
        return self.values.index_select(-1, self.layout.diagonal[: self.layout.width])

    def plus_diagonal(self, diagonal: Tensor) -> Arrowhead:
        """Return the sum with diagonal matrices, and with 1 on the diagonal where blocks are padded."""
        padding = len(self.layout.diagonal) - self.layout.width
        shape = torch.broadcast_shapes(self.values.shape[:-1], diagonal.shape[:-1])
        added = pad(diagonal, (0, padding), value=1.0).expand(*shape, -1)
        return Arrowhead(self.layout, self.values.expand(*shape, -1).index_add(-1, self.layout.diagonal, added))

    def times(self, vector: Tensor) -> Tensor:
        """Return the products with vectors, of shape (..., width)."""
        blocks, border, core = self.parts()
        own, rest = self.layout.split(vector)
        beside = border.flatten(-3, -2)
        first = apply(blocks, own) + apply(beside, rest).unflatten(-1, own.shape[-2:])
        return self.layout.join(first, apply(beside.mT, own.flatten(-2)) + apply(core, rest))

    def sheared(self, slope: Tensor, shears: Tensor) -> Arrowhead:
        """Return S' A S, where S theta is theta less ``slope`` times some of its elements at others.

        Args:
            slope: of the shape of a batch, and one dimension.
            shears: what :meth:`shears` returns.
        """
        first, second = shears
        return Arrowhead(self.layout, self.values - slope * (first - slope * second))

    def shears(self, own: Sequence[int], other: Sequence[int]) -> Tensor:
        """Return terms of S' A S in the slope and its square, for S that takes elements ``own`` from those ``other``.

        An element and that from which it is taken are in one block or in the core.
        """
        unit = self.values.new_zeros(self.layout.width, self.layout.width)
        unit[own, other] = 1.0
        moved, _, moved_core = Arrowhead.take(self.layout, unit).parts()
        blocks, border, core = self.parts()
        first = moved @ blocks, moved @ border, moved_core @ core
        second = first[0] @ moved.mT, first[1] @ moved_core.mT, first[2] @ moved_core.mT
        both = first[0] + first[0].mT, first[1] + border @ moved_core.mT, first[2] + first[2].mT
        return torch.stack([Arrowhead.of_parts(self.layout, *parts).values for parts in (both, second)])

    @classmethod
    def bound(cls, layout: Layout, matrix: Tensor) -> Arrowhead:
        r"""Return an arrowhead that is at least a dense positive semidefinite matrix R.

        It has the core and border of R, and blocks R_tt / p_t, where p_t sum to 1, by the inequality of Cauchy and
        Schwarz, :math:`(\sum_t p_t a_t)^2 \le \sum_t p_t a_t^2`.
        """
        blocks, border, core = cls.take(layout, matrix).parts()
        size = blocks.diagonal(dim1=-2, dim2=-1).sum(-1).clamp(min=0).sqrt()
        # Blocks of size 0 are 0.
        inverse_share = size.sum(-1, keepdim=True) / torch.where(size > 0, size, 1.0)
        return cls.of_parts(layout, blocks * inverse_share[..., None, None], border, core)

    def factor(self) -> Factor:
        """Return the lower factor; an error if a matrix is not positive definite."""
        return self._eliminate(check_errors=True)[0]

    def is_positive(self) -> Tensor:
        """Return whether each of the matrices is positive definite."""
        return ~self._eliminate(check_errors=False)[1]

    def _eliminate(self, check_errors: bool) -> tuple[Factor, Tensor]:
        """Return the lower factor, and for which matrices there is none."""
        blocks, border, core = self.parts()
        lower, failed = torch.linalg.cholesky_ex(blocks, check_errors=check_errors)
        inverse = _inverse(lower)
        border = (inverse @ border).flatten(-3, -2)
        core, core_failed = torch.linalg.cholesky_ex(core - border.mT @ border, check_errors=check_errors)
        return Factor(self.layout, lower, inverse, border, core), (failed != 0).any(-1) | (core_failed != 0)


@dataclass(frozen=True)
class Factor:
    """The lower factors L of arrowheads A = L L'.

    Attributes:
        layout: of the arrowheads.
        blocks: the diagonal blocks of L, (..., blocks, size, size).
        inverse: of each block.
        border: E of all blocks, (..., blocks * size, core).
        core: the last block of L, (..., core, core).
    """

    layout: Layout
    blocks: Tensor
    inverse: Tensor
    border: Tensor
    core: Tensor

    def __getitem__(self, some: slice) -> Factor:
        """Return those of some matrices."""
        return Factor(self.layout, *(v[some] for v in (self.blocks, self.inverse, self.border, self.core)))

    def diagonal(self) -> Tensor:
        """Return the diagonals of L, of shape (..., width)."""
        return self.layout.join(*(v.diagonal(dim1=-2, dim2=-1) for v in (self.blocks, self.core)))

    def whiten(self, vector: Tensor) -> Tensor:
        """Return L^-1 x of vectors of shape (..., width)."""
        own, rest = self.layout.split(vector)
        own = apply(self.inverse, own)
        rest = _solve(self.core, rest - apply(self.border.mT, own.flatten(-2)), upper=False)
        return self.layout.join(own, rest)

    def colour(self, white: Tensor) -> Tensor:
        """Return L'^-1 w: if w is white noise, vectors of precision A."""
        own, rest = self.layout.split(white)
        rest = self.colour_core(rest)
        return self.layout.join(self.colour_blocks(own, rest), rest)

    def colour_core(self, white: Tensor) -> Tensor:
        """Return the core of :meth:`colour`, which depends on the noise of the core alone."""
        return _solve(self.core.mT, white, upper=True)

    def colour_blocks(self, white: Tensor, core: Tensor) -> Tensor:
        """Return the blocks of :meth:`colour`, of noise of shape (..., blocks, size), given its core."""
        return apply(self.inverse.mT, white - apply(self.border, core).unflatten(-1, white.shape[-2:]))

    def uncolour(self, vector: Tensor) -> Tensor:
        """Return L' x, of which :meth:`colour` is the inverse."""
        own, rest = self.layout.split(vector)
        own = apply(self.blocks.mT, own) + apply(self.border, rest).unflatten(-1, own.shape[-2:])
        return self.layout.join(own, apply(self.core.mT, rest))

    def solve(self, vector: Tensor) -> Tensor:
        """Return A^-1 x."""
        return self.colour(self.whiten(vector))

    def covariance(self) -> Arrowhead:
        """Return the elements of A^-1 that are in the layout; its others are not 0."""
        core = torch.linalg.solve_triangular(self.core, torch.eye(self.core.shape[-1]).to(self.core), upper=False)
        shape = self.inverse.shape[-3:-1]
        # The rows of L^-1 beside the core, transposed.
        beside = self.inverse.mT @ (self.border @ -core.mT).unflatten(-2, shape)
        rows = torch.cat([self.inverse.mT, beside], -1)
        border = (beside.flatten(-3, -2) @ core).unflatten(-2, shape)
        return Arrowhead.of_parts(self.layout, rows @ rows.mT, border, core.mT @ core)


def _inverse(lower: Tensor) -> Tensor:
    """Return the inverse of lower triangles, row by row of all at once: a call of LAPACK for each small one is slow."""
    inverse = lower[..., :0, :]
    for i, unit in enumerate(torch.eye(lower.shape[-1]).to(lower)):
        before = (lower[..., i, :i, None] * inverse).sum(-2)
        inverse = torch.cat([inverse, ((unit - before) / lower[..., i, i, None]).unsqueeze(-2)], -2)
    return inverse


def apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return products of matrices, (..., m, n), and vectors, (..., n), which may have more dimensions before."""
    return _columns(lambda columns: matrix @ columns, matrix, vector)


def _solve(matrix: Tensor, vector: Tensor, upper: bool) -> Tensor:
    """Return the solution of triangular systems; shapes as those of `_apply`."""
    return _columns(lambda columns: torch.linalg.solve_triangular(matrix, columns, upper=upper), matrix, vector)


def _columns(function: Callable[[Tensor], Tensor], matrix: Tensor, vector: Tensor) -> Tensor:
    """Apply a function of columns to vectors: those of one matrix are the columns of one argument."""
    batch = matrix.shape[:-2]
    vector = vector.expand(*torch.broadcast_shapes(vector.shape[:-1], batch), vector.shape[-1])
    sample = vector.shape[: vector.dim() - 1 - len(batch)]
    found = function(vector.reshape(sample.numel(), *batch, vector.shape[-1]).movedim(0, -1)).movedim(-1, 0)
    return found.reshape(*sample, *found.shape[1:])
