"""Single genes: the observed values in two conditions, the distribution fitted to them, and each sample's own mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_zilognormal.models import Condition
from pyro_zilognormal.singlecell.arguments import items
from pyro_zilognormal.singlecell.design.design import Contrast
from pyro_zilognormal.singlecell.errors import SingleCellError, unknown
from pyro_zilognormal.singlecell.files.io import Cells
from pyro_zilognormal.singlecell.predictive_check import RANDOM_DRAWS, row_parameters
from pyro_zilognormal.singlecell.results import summarise

_POINTS = 150
# Rows of the data that a distribution or a mean is averaged over.
_MOST_ROWS = 60

Interval = tuple[Any, Any, Any]
# Returns the draws of some genes, from their columns, and from how many draws are to have random effects.
Draw = Callable[[Sequence[int], int], Mapping[str, Tensor]]


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
class Sample:
    """The expression of one gene in one sample, or the change of one donor, in log2 units.

    Attributes:
        name: the level of the random effects.
        condition: the name of the condition; that of the contrast for a change.
        fitted: posterior median and the ends of the credible interval.
        observed: from the means of the cells; infinite or NaN where one is 0.
    """

    name: str
    condition: str
    fitted: Interval
    observed: float


@dataclass(frozen=True, eq=False)
class GeneFit:
    """One gene in the two conditions of a contrast, for :func:`~pyro_zilognormal.singlecell.plots.gene`.

    Attributes:
        gene: the gene.
        contrast: the name of the contrast.
        conditions: those of the contrast, the test condition first.
        samples: with random effects, the log2 fold change of each donor that has cells in both conditions, or, where
            none has, the log2 mean of each sample. None for a difference of two contrasts.
    """

    gene: str
    contrast: str
    conditions: tuple[GeneCondition, ...]
    samples: tuple[Sample, ...]


def gene_fits(cells: Cells, draw: Draw, genes: Sequence[str], contrast: Contrast, credible: float) -> list[GeneFit]:
    """Return observations and fits of some genes, whose draws ``draw`` returns; see :meth:`HurdleDE.gene_fits`."""
    columns = find_genes(cells, genes)
    if not columns:
        return []
    values = cells.genes(columns)
    some = {name: drawn[:RANDOM_DRAWS] for name, drawn in draw(columns, RANDOM_DRAWS).items()}
    ends = [_condition(cells, end, some, values, credible) for end in contrast.ends]
    samples = _samples(cells, contrast, some, values, credible)
    return [
        GeneFit(str(gene), contrast.name, tuple(e[g] for e in ends), tuple(sample[g] for sample in samples))
        for g, gene in enumerate(genes)
    ]


def find_genes(cells: Cells, genes: Sequence[str]) -> list[int]:
    """Return the columns of some genes; raise for names that the matrix does not have."""
    for gene in items("genes", genes, "a list of names"):
        if not isinstance(gene, str) or gene not in cells.names:
            raise unknown("gene", gene, "genes", cells.names)
    return [cells.names.index(gene) for gene in genes]


def _condition(
    cells: Cells, condition: Condition, draws: Mapping[str, Tensor], values: NDArray[np.float64], credible: float
) -> list[GeneCondition]:
    chosen = cells.chosen(condition.levels)
    if not chosen.any():
        raise SingleCellError(f"contrast: no cell has {condition.name}; needed conditions that cells have, to draw")
    rows, share = _some(cells, cells.rows(condition.levels))
    drawn = [row_parameters(draws, cells.data, row) for row in rows.tolist()]
    mu, sigma, zero = (torch.stack([getattr(cell, name) for cell in drawn]) for name in ("mu", "scale", "zi_logits"))
    return [
        _gene(condition.name, values[chosen, g], share, mu[..., g], sigma[..., g], zero[..., g], credible)
        for g in range(values.shape[1])
    ]


def _some(cells: Cells, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], Tensor]:
    """Return evenly spaced ones of many rows, and their shares of the cells, of shape (rows, 1)."""
    if len(rows) > _MOST_ROWS:
        rows = rows[np.linspace(0, len(rows) - 1, _MOST_ROWS).astype(int)]
    count = cells.count[rows]
    return rows, torch.from_numpy(count / count.sum())[:, None]


@np.errstate(divide="ignore", invalid="ignore")  # the log of a mean of 0
def _samples(
    cells: Cells, contrast: Contrast, draws: Mapping[str, Tensor], values: NDArray[np.float64], credible: float
) -> list[list[Sample]]:
    """Return the change of each donor, or the mean of each sample, gene by gene."""
    if not cells.terms or contrast.minus:
        return []
    arms = [cells.rows(end.levels) for end in (contrast.test, contrast.reference)]
    factors, last = cells.data.factors.numpy(), len(cells.terms) - 1
    paired = _paired_term(factors, arms)
    term = last if paired is None else paired
    names = cells.terms[term].names
    within = [{level: rows[factors[rows, term] == level] for level in np.unique(factors[rows, term])} for rows in arms]
    means = [{k: _log2_mean(cells, rows, draws, values) for k, rows in arm.items()} for arm in within]
    found = []
    if paired is not None:
        for level in means[0].keys() & means[1].keys():
            (drawn, observed), (less, observed_less) = means[0][level], means[1][level]
            found.append((names[level], contrast.name, drawn - less, observed - observed_less))
    else:
        for end, arm in zip((contrast.test, contrast.reference), means, strict=True):
            found += [(names[level], end.name, *mean) for level, mean in arm.items()]
    return [
        _summarised(*one, credible) for one in sorted(found, key=lambda one: (one[1] != contrast.test.name, one[0]))
    ]


def _paired_term(factors: NDArray[np.int64], arms: Sequence[NDArray[np.int64]]) -> int | None:
    """Return the random effects whose levels pair the samples of two conditions, one with one; None if none do."""
    for term in reversed(range(factors.shape[1])):
        levels = [np.unique(factors[rows], axis=0)[:, term] for rows in arms]
        shared = np.intersect1d(levels[0], levels[1])
        if len(shared) and all(np.isin(level, shared).sum() == len(shared) for level in levels):
            return term
    return None


def _log2_mean(
    cells: Cells, rows: NDArray[np.int64], draws: Mapping[str, Tensor], values: NDArray[np.float64]
) -> tuple[Tensor, NDArray[np.float64]]:
    """Return draws of the log2 mean of the cells of some rows, of shape (draws, genes), and the observed one."""
    some, share = _some(cells, rows)
    drawn = torch.stack([row_parameters(draws, cells.data, row).log_mean for row in some.tolist()])
    observed = np.log2(values[np.isin(cells.row, rows)].mean(0))
    return (drawn + share[..., None].log()).logsumexp(0) / math.log(2), observed


def _summarised(
    name: str, condition: str, drawn: Tensor, observed: NDArray[np.float64], credible: float
) -> list[Sample]:
    fitted = zip(*(end.tolist() for end in summarise(drawn, credible)), strict=True)
    return [Sample(name, condition, f, o) for f, o in zip(fitted, observed.tolist(), strict=True)]


def _gene(
    name: str, values: NDArray[np.float64], share: Tensor, mu: Tensor, sigma: Tensor, zero: Tensor, credible: float
) -> GeneCondition:
    """Return one gene in one condition; the fitted distribution is a mixture, its parameters (rows, draws)."""
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
