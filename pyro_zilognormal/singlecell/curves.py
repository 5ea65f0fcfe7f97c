"""How the mean of a gene goes along a number of obs, such as an age or a pseudotime: its curve, with a band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_zilognormal.models import Condition, cell_parameters
from pyro_zilognormal.singlecell.errors import SingleCellError, unknown
from pyro_zilognormal.singlecell.files.io import Cells
from pyro_zilognormal.singlecell.genes import Draw, find_genes
from pyro_zilognormal.singlecell.results import summarise

_POINTS, _BINS = 100, 10

Floats = NDArray[np.float64]


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
    mean: tuple[Floats, Floats, Floats]
    credible: float
    bins: Floats
    observed: Floats


def curves(cells: Cells, draw: Draw, genes: Sequence[str], column: str, at: Condition, credible: float) -> list[Curve]:
    """Return the curves of some genes, whose draws ``draw`` returns; see :meth:`HurdleDE.curves`."""
    design = cells.design
    variable = design.variables.get(column)
    if variable is None:
        raise unknown("column", column, f"variables of the formula {design.formula!r}", design.variables)
    if variable.categorical:
        raise SingleCellError(f"column: obs[{column!r}] holds categories; needed a variable of numbers")
    if column in at.levels:
        raise SingleCellError(f"at: {at.name!r} gives {column}, along which the curve goes; needed other variables")
    columns = find_genes(cells, genes)
    if not columns:
        return []
    values = variable.values.to_numpy(dtype=np.float64)
    grid = np.linspace(values.min(), values.max(), _POINTS)
    grid[-1] = values.max()  # a spline has no value beyond it
    some = draw(columns, 0)
    conditions = design.along(column, grid, at.levels)
    log_means = torch.stack([cell_parameters(some, condition).log_mean for condition in conditions])
    bins, observed = _binned(values, cells.genes(columns), cells.chosen(at.levels))
    given = {name: at.levels.get(name, v.default) for name, v in design.variables.items() if name != column}
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
