"""The likelihood of single cells, with score and information of all genes: sums over cells, a block at a time.

mu depends on the log odds of a zero of the cell itself, so that neither part of the regression reduces to sums once a
covariate differs from cell to cell. But the coefficients of a gene are few, and so are its score and its information,
which are sums over cells: a pass over the cells is a map and a merge, and some passes of Fisher scoring find the mode.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_zilognormal.models.hurdle.components import Block
from pyro_zilognormal.models.hurdle.data import HurdleData
from pyro_zilognormal.models.hurdle.predictors import PAIRS, GroupLikelihood
from pyro_zilognormal.models.hurdle.third_order import observed_information
from pyro_zilognormal.sufficient.rows import VALUES_A_BLOCK, as_matrix, positives, row_chunks

Floats = NDArray[np.float64]
Result = TypeVar("Result")

# Values of a piece, whose dozen temporaries fit the processor's cache, and its rows: 2^512 is a number, and matrix
# products of few rows are slow.
_VALUES_A_PIECE, _ROWS_A_PIECE = 1 << 19, (64, 512)


class CellLikelihood:
    """The likelihood of all genes' cells as a function of their coefficients.

    Cells alike in their random effects are a stratum, in which these are part of the intercept. So information is
    summed over products of the few distinct columns of the designs alone, stratum by stratum.

    Args:
        cells: the data, with the designs that the coefficients refer to; a value that is ``on_dask`` has a method
            ``fold(each, *vectors)``, which adds up what ``each`` returns for blocks of cells and pieces of vectors.
        block: the coefficients of a gene.
    """

    def __init__(self, cells: HurdleData, block: Block) -> None:
        self.value, self.offset, self.block = cells.value, cells.offset.numpy(force=True), block
        designs = [d.numpy(force=True) for d in (cells.design, cells.zero_design, cells.scale_design)]
        self.columns, *self._selections = _distinct_columns(designs)
        elements = cells.random_elements.numpy(force=True)
        levels, stratum = np.unique(elements, axis=0, return_inverse=True)
        self._levels, self._stratum = levels, stratum.reshape(-1)
        self._device = cells.design.device

    @torch.no_grad()
    def derivatives(
        self, theta: Tensor, slope: Tensor, observed: bool = False, genes: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log density, score and information of each gene, in one pass over the cells.

        The log density, of shape (genes,), is that of :class:`GroupLikelihood`.

        Args:
            theta: coefficients, of shape (genes, width).
            slope: that of the zero part, of shape (1,).
            observed: whether the information is the observed one, which costs more; the expected one otherwise.
            genes: which genes these are; None for all.
        """
        at, some = theta.cpu(), None if genes is None or len(genes) == self.value.shape[1] else genes.numpy(force=True)
        matrices = self._matrices(slope.cpu())
        elements = [self._elements(levels) for levels in self._levels]
        coefficients = [(matrices @ at[:, own].mT).numpy() for own in elements]
        totals = _Strata()
        for part in self._parts(partial(_add_up, some, coefficients, observed)):
            totals.add(part)
        log_density, score = torch.zeros(len(at)).double(), torch.zeros_like(at)
        information = at.new_zeros(len(at), at.shape[1], at.shape[1])
        products = _products_of_elements(matrices)
        for stratum, sums in totals.items():
            own = elements[stratum]
            log_density += torch.from_numpy(sums.log_density)
            score[:, own] += torch.einsum("kpg,kpa->ga", torch.from_numpy(sums.score), matrices)
            flat = torch.from_numpy(sums.information).flatten(0, 1).mT @ products
            information[:, own.unsqueeze(-1), own] += flat.unflatten(-1, (len(own), len(own)))
        return log_density.to(self._device), score.to(self._device), information.to(self._device)

    def _matrices(self, slope: Tensor) -> Tensor:
        """Return what makes the coefficients of the columns from the elements of a stratum, (3, columns, elements)."""
        design, zero, scale = (torch.from_numpy(s) for s in self._selections)
        intercept = torch.zeros(self.columns.shape[1], self._levels.shape[1]).double()
        intercept[0] = 1.0
        parts = {
            "random": (0, intercept),
            "intercept": (0, design[:, :1]),
            "effects": (0, design[:, 1:]),
            "zero_random": (1, intercept),
            "zero_intercept": (1, zero[:, :1]),
            "zero_effects": (1, zero[:, 1:]),
            "log_sigma": (2, scale),
        }
        found = []
        for component in self.block:
            predictor, matrix = parts[component.name]
            rows = matrix.new_zeros(3, *matrix.shape)
            rows[predictor] = matrix
            if predictor == 0:
                rows[1] = -slope * matrix
            found.append(rows)
        return torch.cat(found, -1)

    def _elements(self, levels: NDArray[np.int64]) -> Tensor:
        """Return which elements of theta the cells of a stratum have."""
        random, found = torch.from_numpy(levels), []
        for name, own in self.block.slices.items():
            found.append(own.start + random if name.endswith("random") else torch.arange(own.start, own.stop))
        return torch.cat(found)

    def _parts(self, each: Callable[..., _Strata]) -> Iterator[_Strata]:
        """Yield the sums over parts of the cells; workers of Dask merge them, if the cells are there."""
        vectors = self._stratum, self.offset, *self.columns.T
        if getattr(self.value, "on_dask", False):
            yield self.value.fold(each, *vectors)
        else:
            yield from _in_threads(lambda part: each(part[0], *(v[part[1]] for v in vectors)), self._blocks())

    def _blocks(self) -> Iterator[tuple[Any, slice]]:
        """Yield cells, and which they are."""
        # As few rows as of a dense matrix: some blocks are in memory at a time.
        start, most = 0, max(1, VALUES_A_BLOCK // self.value.shape[1])
        for block, _, _ in row_chunks(self.value, rows=most):
            rows = slice(start, start + block.shape[0])
            yield block, rows
            start = rows.stop


def _add_up(
    genes: NDArray[np.int64] | None,
    coefficients: list[Floats],
    observed: bool,
    block: Any,
    stratum: NDArray[np.int64],
    offset: Floats,
    *each: Floats,
) -> _Strata:
    """Return the sums over the cells of a block, of which each column of the designs has a vector."""
    x, columns = as_matrix(block), np.stack(each, 1)
    x = x if genes is None else x[:, genes]
    if (stratum[1:] < stratum[:-1]).any():
        order = np.argsort(stratum, kind="stable")
        x, columns, stratum, offset = x[order], columns[order], stratum[order], offset[order]
    least, most = _ROWS_A_PIECE
    size = min(max(_VALUES_A_PIECE // x.shape[1], least), most)
    found = _Strata()
    for first, last in pairwise([*np.flatnonzero(np.diff(stratum, prepend=-1)), len(stratum)]):
        sums = _Sums(x.shape[1], columns.shape[1])
        for start in range(first, last, size):
            part = slice(start, min(start + size, last))
            sums.add_cells(x, part, columns[part], offset[part], coefficients[stratum[first]], observed)
        found[int(stratum[first])] = sums
    return found


class _Strata(dict[int, "_Sums"]):
    """Sums over the cells of each stratum that some cells have."""

    def add(self, other: _Strata) -> None:
        """Add those of other cells."""
        for stratum, sums in other.items():
            if stratum not in self:
                _, columns, genes = sums.score.shape
                self[stratum] = _Sums(genes, columns)
            self[stratum].add(sums)

    def __add__(self, other: _Strata) -> _Strata:
        found = _Strata()
        found.add(self)
        found.add(other)
        return found


class _Sums:
    """Sums over cells, by the predictors' coefficients of the columns: (genes,), (3, columns, genes), and of products
    of columns, (6, products, genes), for the pairs of predictors."""

    def __init__(self, genes: int, columns: int) -> None:
        self.log_density = np.zeros(genes)
        self.score = np.zeros((3, columns, genes))
        self.information = np.zeros((len(PAIRS), columns * (columns + 1) // 2, genes))

    def add(self, other: _Sums) -> None:
        """Add those of other cells."""
        for name, value in vars(other).items():
            own = getattr(self, name)
            own += value

    def add_cells(
        self, x: Any, rows: slice, columns: Floats, offset: Floats, coefficients: Floats, observed: bool
    ) -> None:
        """Add some cells: all as if they were zeros, then by how much the positive ones differ."""
        first, second = np.triu_indices(columns.shape[1])
        products = columns[:, first] * columns[:, second]
        log_mean, zero, log_sigma = (columns @ own for own in coefficients)
        # The product of at most 512 numbers from 1 to 2.
        self.log_density += np.minimum(zero, 0).sum(0) - np.log((1 + np.exp(-np.abs(zero))).prod(0))
        pi = torch.from_numpy(zero).sigmoid().numpy()
        each, column, value = positives(x, rows)
        at = np.repeat(np.arange(len(columns)) * x.shape[1], each) + column
        y = np.log(value.astype(np.float64)) - np.repeat(offset, each)
        own = [torch.from_numpy(v.ravel()[at]) for v in (log_mean, zero, log_sigma)]
        likelihood = GroupLikelihood.of_positives(torch.from_numpy(y))
        score, information = (v.numpy() for v in likelihood.derivatives(*own))
        if observed:
            information = observed_information(likelihood, own).numpy()
        odds = own[1].numpy()
        log_density = likelihood.log_densities(*own).numpy() + np.log1p(np.exp(-np.abs(odds))) - np.minimum(odds, 0)
        self.log_density += np.bincount(column, log_density, x.shape[1])
        sum_by_gene, none = _summer(x, rows, at, column), None
        for total, weight, of_zeros in zip(self.score, score, (none, 1 - pi, none), strict=True):
            total += sum_by_gene(weight, columns, of_zeros)
        of_pairs = [pi - pi * pi if pair == (1, 1) else none for pair in PAIRS]
        for total, weight, of_zeros in zip(self.information, information, of_pairs, strict=True):
            total += sum_by_gene(weight, products, of_zeros)


def _summer(x: Any, rows: slice, at: NDArray[Any], column: NDArray[Any]) -> Callable[..., Floats]:
    """Return a function of weights of the positive values, a matrix, and weights of all values as if they were zeros.

    It sums rows of the matrix times the weights, by gene; where zeros have none, over the positive values alone.
    """
    shape, sparse = (rows.stop - rows.start, x.shape[1]), None
    if hasattr(x, "tocsr"):
        pointer = x.indptr[rows.start : rows.stop + 1] - x.indptr[rows.start]
        sparse = type(x)((np.zeros(len(column)), column, pointer), shape)

    def sum_by_gene(weight: Floats, matrix: Floats, of_zeros: Floats | None) -> Floats:
        if sparse is not None and of_zeros is None:
            sparse.data = weight
            return (sparse.T @ matrix).T
        dense = np.zeros(shape) if of_zeros is None else of_zeros
        dense.ravel()[at] = weight
        return np.asarray(matrix.T @ dense)

    return sum_by_gene


def _distinct_columns(designs: list[Floats]) -> tuple[Floats, ...]:
    """Return the distinct columns of all designs, and the matrices that make each design of them."""
    columns: list[Floats] = []
    places = []
    for design in designs:
        own = []
        for column in design.T:
            same = next((k for k, other in enumerate(columns) if np.array_equal(column, other)), len(columns))
            if same == len(columns):
                columns.append(column)
            own.append(same)
        places.append(own)
    return np.stack(columns, 1), *(np.eye(len(columns))[:, own] for own in places)


def _products_of_elements(matrices: Tensor) -> Tensor:
    """Return what makes the information on the elements from sums of products, (6 products, elements^2)."""
    first, second = np.triu_indices(matrices.shape[1])
    found = []
    for a, b in PAIRS:
        outer = torch.einsum("pa,pb->pab", matrices[a][first], matrices[b][second])
        other = torch.einsum("pa,pb->pab", matrices[a][second], matrices[b][first])
        outer = outer + other * torch.from_numpy(first != second)[:, None, None]
        found.append(outer if a == b else outer + outer.mT)
    return torch.cat(found).flatten(1)


def _in_threads(function: Callable[[Any], Result], items: Iterable[Any]) -> Iterator[Result]:
    """Yield the results in order, with as many items in work as torch has threads.

    Each thread then computes by itself, which needs threadpoolctl; without it one works, and its matrix products take
    all processors.
    """
    threads = torch.get_num_threads() if find_spec("threadpoolctl") else 1
    if threads == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    limits = import_module("threadpoolctl").threadpool_limits(1, "blas")
    try:
        with limits, ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(threads)  # of threads that are made later
