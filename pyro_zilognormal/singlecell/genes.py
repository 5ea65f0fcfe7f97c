"""Single genes: the values that were seen in two conditions, and the law that was fitted to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_zilognormal.models import Condition
from pyro_zilognormal.singlecell.contrasts import CellCondition, Contrast
from pyro_zilognormal.singlecell.de import HurdleDE
from pyro_zilognormal.singlecell.draws import draw_blocks, law_parameters, summarise
from pyro_zilognormal.singlecell.errors import SingleCellError, unknown
from pyro_zilognormal.singlecell.scale import Scale
from pyro_zilognormal.sufficient import row_chunks

DRAWS = 200
_POINTS = 150
# Kinds of cells (rows of the design, donors) that a law is averaged over.
_MOST_KINDS = 60

Interval = tuple[Any, Any, Any]


@dataclass(frozen=True, eq=False)
class GeneCondition:
    """What a gene does in the cells of one condition.

    Attributes:
        name: of the condition.
        cells: how many.
        zero_fraction: the share of them with a zero.
        positive: the other values, linear, with size factors divided out.
        zero_fitted: the probability of a zero by the fit: posterior median and the ends of its interval.
        grid: values where ``density`` is, rising.
        density: of log10 of a positive value by the fit, likewise.
    """

    name: str
    cells: int
    zero_fraction: float
    positive: NDArray[np.float64]
    zero_fitted: Interval
    grid: NDArray[np.float64]
    density: Interval


@dataclass(frozen=True, eq=False)
class GeneFit:
    """One gene in the two conditions of a contrast, the test first.

    Attributes:
        gene: its name.
        contrast: what is compared.
        conditions: the test and the reference.
        credible: probability of the intervals.
    """

    gene: str
    contrast: str
    conditions: tuple[GeneCondition, GeneCondition]
    credible: float


def gene_fits(
    de: HurdleDE, genes: Sequence[str], contrast: Contrast, *, offset: Any = None, credible: float = 0.95
) -> list[GeneFit]:
    """Return what was seen of some genes and what the fit says of them.

    :func:`~pyro_zilognormal.singlecell.plots.gene` draws it. The law is that of the very cells of a
    condition, averaged over their donors and other variables. The matrix is read once more.

    Args:
        de: a fitted model, its file still open.
        genes: names.
        contrast: what :meth:`~pyro_zilognormal.singlecell.HurdleDE.contrast` returns.
        offset: the log size factor of each cell, where the model was made with one.
        credible: probability of the intervals.

    Raises:
        UnknownNameError: a gene that is not there.
        SingleCellError: a condition that no cell has, such as a value of a number; or no offset where the model has
            one.

    Example:
        >>> import anndata, numpy, pandas
        >>> obs = pandas.DataFrame({"group": ["a", "b"] * 20}, index=numpy.arange(40).astype(str))
        >>> x = numpy.random.default_rng(0).lognormal(4.0, size=(40, 2)) * (numpy.arange(80).reshape(40, 2) % 3 > 0)
        >>> de = HurdleDE(anndata.AnnData(x, obs, pandas.DataFrame(index=["g", "h"])), "~ group").fit(steps=10)
        >>> fit = gene_fits(de, ["g"], de.contrast("group", "b", "a"))[0]
        >>> [(c.name, c.cells, len(c.positive)) for c in fit.conditions]
        [('group=b', 20, 13), ('group=a', 20, 13)]
    """
    columns = [_index(de, gene) for gene in genes]
    values = _values(de, columns, offset)
    draws = _draws(de, columns)
    arms = [_arm(de, condition, draws, values, credible) for condition in (contrast.test, contrast.reference)]
    return [
        GeneFit(str(gene), contrast.name, (test, reference), credible)
        for gene, test, reference in zip(genes, *arms, strict=True)
    ]


def _index(de: HurdleDE, gene: str) -> int:
    if gene not in de.genes:
        raise unknown("gene", gene, "genes", de.genes)
    return de.genes.index(gene)


def _values(de: HurdleDE, columns: list[int], offset: Any) -> NDArray[np.float64]:
    """Return the linear values of some genes in all cells, size factors divided out, cells x genes."""
    if (offset is None) != (de.settings["offset"] is None):
        given = "none" if offset is None else "one"
        raise SingleCellError(f"offset: got {given}; needed the same as the model was made with")
    scale = Scale(de.cells.expression, de.settings["scale"], de.settings["detection_threshold"])
    linear = np.concatenate([scale(block, first) for block, first in _blocks(de, columns)])
    return linear if offset is None else linear / np.exp(np.asarray(offset, dtype=np.float64))[:, None]


def _blocks(de: HurdleDE, columns: list[int]) -> Iterator[tuple[Any, int]]:
    matrix, first = de.cells.expression.matrix, 0
    if getattr(matrix, "format", "") == "csc":  # its rows are scattered over all of it
        yield np.concatenate([_dense(matrix[:, [c]]) for c in columns], 1), 0
        return
    for block, _, _ in row_chunks(matrix, None):
        yield _dense(block[:, columns]), first
        first += block.shape[0]


def _dense(block: Any) -> NDArray[Any]:
    return block.toarray() if hasattr(block, "toarray") else np.asarray(block)


def _draws(de: HurdleDE, columns: list[int]) -> dict[str, Tensor]:
    result = de.result
    if result is None:
        raise SingleCellError("the genes have not been fitted; call fit() first")
    blocks = [
        {name: value[:, columns] for name, value in block.items()}
        for block in draw_blocks(result, de.data, DRAWS, de.settings["seed"], donors=True)
    ]
    return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}


def _arm(
    de: HurdleDE, condition: CellCondition, draws: dict[str, Tensor], values: NDArray[np.float64], credible: float
) -> list[GeneCondition]:
    chosen = np.ones(len(values), dtype=bool)
    for name, level in condition.levels.items():
        chosen &= de.cells.design.variables[name].cells(level)
    if not chosen.any():
        raise SingleCellError(f"contrast: no cell has {condition.name}; needed conditions that cells have, to draw")
    kinds = list(_kinds(de, chosen, draws))
    share = torch.tensor([weight for weight, *_ in kinds], dtype=torch.float64)[:, None, None]
    mu, sigma, gate = (torch.stack(parts) for parts in list(zip(*kinds, strict=True))[1:])
    return [
        _gene(condition.name, values[chosen, g], share[..., 0], (mu[..., g], sigma[..., g], gate[..., g]), credible)
        for g in range(values.shape[1])
    ]


def _kinds(
    de: HurdleDE, chosen: NDArray[np.bool_], draws: dict[str, Tensor]
) -> Iterator[tuple[float, Tensor, Tensor, Tensor]]:
    """Yield the share of each kind of cell, and draws of its law; of evenly spaced cells where kinds are many."""
    design, donors = de.cells.design.matrix[chosen], de.cells.donors
    who = np.zeros(len(design)) if donors is None else donors.code[chosen]
    kinds, count = np.unique(np.column_stack([who, design]), axis=0, return_counts=True)
    if len(kinds) > _MOST_KINDS:
        some = np.linspace(0, len(kinds) - 1, _MOST_KINDS).astype(int)
        kinds, count = kinds[some], count[some]
    for kind, number in zip(kinds, count, strict=True):
        row = torch.from_numpy(kind[1:].copy())
        mu, sigma, gate = law_parameters(draws, Condition(row, row))
        if donors is not None:
            donor = int(kind[0])
            mu, gate = mu + draws["donors"][..., donor], gate + draws["gate_donors"][..., donor]
        yield number / count.sum(), mu, sigma, gate


def _grid(positive: NDArray[np.float64]) -> NDArray[np.float64]:
    logs = np.log10(positive) if len(positive) else np.zeros(1)
    margin = 0.35 * max(float(np.ptp(logs)), 1.0)
    return np.logspace(logs.min() - margin, logs.max() + margin, _POINTS)


def _gene(
    name: str, values: NDArray[np.float64], share: Tensor, law: tuple[Tensor, Tensor, Tensor], credible: float
) -> GeneCondition:
    """Return one gene in one condition, its law a mixture over the kinds of cells: tensors of shape (kinds, draws)."""
    mu, sigma, gate = law
    positive = values[values > 0]
    grid = _grid(positive)
    zero = (share * gate.sigmoid()).sum(0)
    density = _density(torch.from_numpy(grid), share * logsigmoid(-gate).exp(), mu, sigma)
    ends, band = summarise(zero[:, None], credible), summarise(density, credible)
    return GeneCondition(
        name,
        len(values),
        1 - len(positive) / len(values),
        positive,
        _plain(ends, float),
        grid,
        _plain(band, np.asarray),
    )


def _density(grid: Tensor, weight: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """Return the density of log10 of a positive value, where each kind counts for as many as it has."""
    z = (grid.log() - mu[..., None]) / sigma[..., None]
    normal = (-0.5 * z.square()).exp() / (sigma[..., None] * math.sqrt(2 * math.pi))
    return ((weight / weight.sum(0))[..., None] * normal).sum(0) * math.log(10)


def _plain(values: Interval, kind: Callable[[Any], Any]) -> Interval:
    middle, low, high = values
    return kind(middle), kind(low), kind(high)
