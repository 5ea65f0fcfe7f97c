"""Single genes: the observed values in two conditions, and the distribution that was fitted to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_zilognormal.models import Condition
from pyro_zilognormal.singlecell.design import Contrast
from pyro_zilognormal.singlecell.errors import SingleCellError, unknown
from pyro_zilognormal.singlecell.io import Cells
from pyro_zilognormal.singlecell.results import parameters, summarise

_POINTS = 150
# Combinations of design row and donor that a distribution is averaged over.
_MOST_COMBINATIONS = 60

Interval = tuple[Any, Any, Any]


@dataclass(frozen=True, eq=False)
class GeneCondition:
    """One gene in the cells of one condition.

    Attributes:
        name: the condition.
        cells: the number of cells.
        zero_fraction: the observed share of zeros.
        positive: the observed positive values, linear, with size factors divided out.
        zero_fitted: the fitted P(X = 0): posterior median and the ends of the credible interval.
        grid: increasing values at which ``density`` is given.
        density: the fitted density of log10 X where X > 0: median and interval, each like ``grid``.
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
    """One gene in the two conditions of a contrast, for :func:`~pyro_zilognormal.singlecell.plots.gene`.

    Attributes:
        gene: the gene.
        contrast: the name of the contrast.
        conditions: the test condition and the reference.
        credible: probability of the intervals.
    """

    gene: str
    contrast: str
    conditions: tuple[GeneCondition, GeneCondition]
    credible: float


def gene_fits(
    cells: Cells, draws: Mapping[str, Tensor], genes: Sequence[str], contrast: Contrast, credible: float
) -> list[GeneFit]:
    """Return observations and fits of some genes; see :meth:`HurdleDE.gene_fits`."""
    names = cells.names
    for gene in genes:
        if gene not in names:
            raise unknown("gene", gene, "genes", names)
    columns = [names.index(gene) for gene in genes]
    values = cells.genes(columns)
    some = {name: value[:, columns] for name, value in draws.items()}
    ends = [_condition(cells, end, some, values, credible) for end in (contrast.test, contrast.reference)]
    both = zip(genes, *ends, strict=True)
    return [GeneFit(str(gene), contrast.name, (test, reference), credible) for gene, test, reference in both]


def _condition(
    cells: Cells, condition: Condition, draws: Mapping[str, Tensor], values: NDArray[np.float64], credible: float
) -> list[GeneCondition]:
    chosen = cells.chosen(condition.levels)
    if not chosen.any():
        raise SingleCellError(f"contrast: no cell has {condition.name}; needed conditions that cells have, to draw")
    share, mu, sigma, zero = _mixture(cells, chosen, draws)
    return [
        _gene(condition.name, values[chosen, g], share, mu[..., g], sigma[..., g], zero[..., g], credible)
        for g in range(values.shape[1])
    ]


def _mixture(cells: Cells, chosen: NDArray[np.bool_], draws: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Return the shares of design rows and donors among some cells, (combinations, 1), and draws of their parameters.

    The draws are of shape (combinations, draws, genes). Where combinations are many, they are evenly spaced ones.
    """
    donors = cells.donors
    who = np.zeros(chosen.sum()) if donors is None else donors.code[chosen]
    kinds, count = np.unique(np.column_stack([who, cells.design.matrix[chosen]]), axis=0, return_counts=True)
    if len(kinds) > _MOST_COMBINATIONS:
        some = np.linspace(0, len(kinds) - 1, _MOST_COMBINATIONS).astype(int)
        kinds, count = kinds[some], count[some]
    drawn = [
        parameters(draws, Condition(torch.from_numpy(kind[1:].copy())), None if donors is None else int(kind[0]))
        for kind in kinds
    ]
    share = torch.from_numpy(count / count.sum())[:, None]
    return share, *(torch.stack(values) for values in zip(*drawn, strict=True))


def _gene(
    name: str, values: NDArray[np.float64], share: Tensor, mu: Tensor, sigma: Tensor, zero: Tensor, credible: float
) -> GeneCondition:
    """Return one gene in one condition; the fitted distribution is a mixture, its parameters (combinations, draws)."""
    positive = values[values > 0]
    logs = np.log10(positive) if len(positive) else np.zeros(1)
    margin = 0.35 * max(float(np.ptp(logs)), 1.0)
    grid = np.logspace(logs.min() - margin, logs.max() + margin, _POINTS)
    weight = share * logsigmoid(-zero).exp()
    z = (torch.from_numpy(grid).log() - mu[..., None]) / sigma[..., None]
    normal = (-0.5 * z.square()).exp() / (sigma[..., None] * math.sqrt(2 * math.pi))
    density = ((weight / weight.sum(0))[..., None] * normal).sum(0) * math.log(10)
    zeros, band = summarise((share * zero.sigmoid()).sum(0)[:, None], credible), summarise(density, credible)
    return GeneCondition(
        name,
        len(values),
        1 - len(positive) / len(values),
        positive,
        (float(zeros[0]), float(zeros[1]), float(zeros[2])),
        grid,
        (band[0].numpy(), band[1].numpy(), band[2].numpy()),
    )
