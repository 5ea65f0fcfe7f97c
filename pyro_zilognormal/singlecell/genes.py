"""Single genes: observed and fitted values, each sample's own mean, and the mean along a number as a curve."""

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

from pyro_zilognormal.models import CellParameters, Condition, cell_parameters
from pyro_zilognormal.singlecell.arguments import items, of_type
from pyro_zilognormal.singlecell.design.design import Contrast
from pyro_zilognormal.singlecell.errors import SingleCellError, unknown
from pyro_zilognormal.singlecell.files.io import Cells
from pyro_zilognormal.singlecell.predictive_check import RANDOM_DRAWS, row_parameters, summarise

# Points of a density and of a curve, and bins of the cells of a curve.
_POINTS, _CURVE_POINTS, _BINS = 150, 100, 10
# Rows of the data that a distribution or a mean is averaged over.
_MOST_ROWS = 60

Floats = NDArray[np.float64]
Interval = tuple[Any, ...]  # a median, and the ends of its interval
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
    positive: Floats
    zero_fitted: Interval
    grid: Floats
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


@dataclass(frozen=True, eq=False)
class Curve:
    """The mean of one gene along a number, for :func:`~pyro_zilognormal.singlecell.plots.curve`.

    Attributes:
        gene: the gene.
        column: the column of obs.
        at: the values of the other variables, in words.
        grid: evenly spaced values over the range of the column.
        mean: the fitted mean of a cell, linear, zeros included, with random effects of 0: posterior median and the ends
            of the credible interval, each like ``grid``.
        credible: probability of the interval.
        bins: the mean of the column in bins of equal numbers of the cells that have the given levels.
        observed: the mean of the gene in these, linear, with size factors divided out.
    """

    gene: str
    column: str
    at: str
    grid: Floats
    mean: Interval
    credible: float
    bins: Floats
    observed: Floats


def _find(cells: Cells, genes: Sequence[str]) -> list[int]:
    """Return the columns of some genes."""
    for gene in items("genes", genes, "a list of names"):
        if not isinstance(gene, str) or gene not in cells.names:
            raise unknown("gene", gene, "genes", cells.names)
    return [cells.names.index(gene) for gene in genes]


# --- The conditions of a contrast


def gene_fits(cells: Cells, draw: Draw, genes: Sequence[str], contrast: Contrast, credible: float) -> list[GeneFit]:
    """Return observations and fits of some genes, whose draws ``draw`` returns; see :meth:`HurdleDE.gene_fits`."""
    columns = _find(cells, genes)
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


def _drawn(cells: Cells, rows: NDArray[np.int64], draws: Mapping[str, Tensor]) -> tuple[CellParameters, Tensor]:
    """Return the parameters of evenly spaced ones of the rows, (rows, draws, genes), and the rows' shares of cells."""
    if len(rows) > _MOST_ROWS:
        rows = rows[np.linspace(0, len(rows) - 1, _MOST_ROWS).astype(int)]
    each = [row_parameters(draws, cells.data, row) for row in rows.tolist()]
    parts = ([getattr(cell, name) for cell in each] for name in ("log_mean", "zi_logits", "scale"))
    count = cells.count[rows]
    return CellParameters(*map(torch.stack, parts)), torch.from_numpy(count / count.sum())[:, None]


def _condition(
    cells: Cells, condition: Condition, draws: Mapping[str, Tensor], values: Floats, credible: float
) -> list[GeneCondition]:
    chosen = cells.chosen(condition.levels)
    if not chosen.any():
        raise SingleCellError(f"contrast: no cell has {condition.name}; needed conditions that cells have, to draw")
    cell, share = _drawn(cells, cells.rows(condition.levels), draws)
    each = zip(values[chosen].T, cell.mu.unbind(-1), cell.scale.unbind(-1), cell.zi_logits.unbind(-1), strict=True)
    found = []
    for own, mu, sigma, zero in each:  # the fitted distribution is a mixture, its parameters of shape (rows, draws)
        positive = own[own > 0]
        logs = np.log10(positive) if len(positive) else np.zeros(1)
        margin = 0.35 * max(float(np.ptp(logs)), 1.0)
        grid = np.logspace(logs.min() - margin, logs.max() + margin, _POINTS)
        weight = share * logsigmoid(-zero).exp()
        z = (torch.from_numpy(grid).log() - mu[..., None]) / sigma[..., None]
        normal = (-0.5 * z.square()).exp() / (sigma[..., None] * math.sqrt(2 * math.pi))
        density = ((weight / weight.sum(0))[..., None] * normal).sum(0) * math.log(10)
        zeros = summarise((share * zero.sigmoid()).sum(0)[:, None], credible)
        fitted = tuple(float(end) for end in zeros), grid, tuple(end.numpy() for end in summarise(density, credible))
        found.append(GeneCondition(condition.name, len(own), 1 - len(positive) / len(own), positive, *fitted))
    return found


# --- Their samples


@np.errstate(divide="ignore", invalid="ignore")  # the log of a mean of 0
def _samples(
    cells: Cells, contrast: Contrast, draws: Mapping[str, Tensor], values: Floats, credible: float
) -> list[list[Sample]]:
    """Return the change of each donor, or the mean of each sample, gene by gene."""
    if not cells.terms or contrast.minus:
        return []
    arms, factors = [cells.rows(end.levels) for end in contrast.ends], cells.data.factors.numpy()
    paired = _paired_term(factors, arms)
    term = len(cells.terms) - 1 if paired is None else paired
    names, means, found = cells.terms[term].names, [], []
    for rows in arms:
        level = factors[rows, term]
        means.append({k: _log2_mean(cells, rows[level == k], draws, values) for k in np.unique(level)})
    if paired is None:
        for end, arm in zip(contrast.ends, means, strict=True):
            found += [(names[k], end.name, *mean) for k, mean in arm.items()]
    else:
        for k in means[0].keys() & means[1].keys():
            (drawn, observed), (less, observed_less) = means[0][k], means[1][k]
            found.append((names[k], contrast.name, drawn - less, observed - observed_less))
    samples = []
    for name, condition, drawn, observed in sorted(found, key=lambda one: (one[1] != contrast.test.name, one[0])):
        fitted = zip(*(end.tolist() for end in summarise(drawn, credible)), strict=True)
        samples.append([Sample(name, condition, f, o) for f, o in zip(fitted, observed.tolist(), strict=True)])
    return samples


def _paired_term(factors: NDArray[np.int64], arms: Sequence[NDArray[np.int64]]) -> int | None:
    """Return the random effects whose levels pair the samples of two conditions, one with one; None if none do."""
    for term in reversed(range(factors.shape[1])):
        levels = [np.unique(factors[rows], axis=0)[:, term] for rows in arms]
        shared = np.intersect1d(levels[0], levels[1])
        if len(shared) and all(np.isin(level, shared).sum() == len(shared) for level in levels):
            return term
    return None


def _log2_mean(
    cells: Cells, rows: NDArray[np.int64], draws: Mapping[str, Tensor], values: Floats
) -> tuple[Tensor, Floats]:
    """Return draws of the log2 mean of the cells of some rows, of shape (draws, genes), and the observed one."""
    cell, share = _drawn(cells, rows, draws)
    observed = np.log2(values[np.isin(cells.row, rows)].mean(0))
    return (cell.log_mean + share[..., None].log()).logsumexp(0) / math.log(2), observed


# --- Curves


def curves(
    cells: Cells, draw: Draw, genes: Sequence[str], column: str, at: Condition | None, credible: float
) -> list[Curve]:
    """Return the curves of some genes, whose draws ``draw`` returns; see :meth:`HurdleDE.curves`."""
    design = cells.design
    variable = design.variables.get(of_type("column", column, str, "the name of a variable of the formula"))
    at = design.condition({}) if at is None else of_type("at", at, Condition, "a condition, from cond(...)")
    levels = at.levels
    if variable is None:
        raise unknown("column", column, f"variables of the formula {design.formula!r}", design.variables)
    if variable.categorical:
        raise SingleCellError(f"column: obs[{column!r}] holds categories; needed a variable of numbers")
    if column in levels:
        raise SingleCellError(f"at gives {column}, along which the curve goes; needed other variables")
    columns = _find(cells, genes)
    if not columns:
        return []
    values = variable.values.to_numpy(dtype=np.float64)
    grid = np.linspace(values.min(), values.max(), _CURVE_POINTS)
    grid[-1] = values.max()  # a spline has no value beyond it
    some = draw(columns, 0)
    conditions = design.conditions([{**levels, column: value} for value in grid.tolist()])
    log_means = torch.stack([cell_parameters(some, condition).log_mean for condition in conditions])
    bins, observed = _binned(values, cells.genes(columns), cells.chosen(levels))
    given = {name: levels.get(name, v.default) for name, v in design.variables.items() if name != column}
    words = ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in given.items())
    found = []
    for k, gene in enumerate(genes):
        middle, low, high = (end.exp().numpy() for end in summarise(log_means[..., k].mT, credible))
        found.append(Curve(str(gene), column, words, grid, (middle, low, high), credible, bins, observed[:, k]))
    return found


def _binned(values: Floats, expression: Floats, chosen: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return the mean values and expressions of the chosen cells in bins of equal numbers of cells."""
    values, expression = values[chosen], expression[chosen]
    edges = np.quantile(values, np.arange(1, _BINS) / _BINS) if len(values) else values
    code = np.unique(np.searchsorted(edges, values, side="right"), return_inverse=True)[1]
    member = (code == np.arange(code.max(initial=-1) + 1)[:, None]).astype(np.float64)
    member /= member.sum(1, keepdims=True)
    return member @ values, member @ expression
