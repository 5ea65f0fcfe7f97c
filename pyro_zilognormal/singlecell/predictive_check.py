"""What the posterior predicts: a cell of a condition, and statistics of replicated cells beside the observed ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_zilognormal import ZeroInflatedLogNormal
from pyro_zilognormal.models import CellParameters, Condition, HurdleData, cell_parameters
from pyro_zilognormal.singlecell.arguments import items, real
from pyro_zilognormal.singlecell.errors import require
from pyro_zilognormal.singlecell.files.io import Cells
from pyro_zilognormal.sufficient import SufficientStatistics

STATISTICS = ("zero_fraction", "mean", "sd_log")
# Draws that have random effects, for replicated cells and pictures of genes: enough for 99 % intervals.
RANDOM_DRAWS = 200
# Cells that are compared where rows are single cells.
_MOST_CELLS = 250
# exp(sigma^2) overflows at sigma^2 = 709; from here on it is taken in log space.
_WIDE = 100.0


def summarise(values: Tensor, credible: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the median and the ends of the central credible interval over draws, each of shape (genes,)."""
    # NumPy partitions, and takes a third of the time of torch.quantile, which sorts.
    middle, low, high = np.quantile(values.numpy(), [0.5, (1 - credible) / 2, (1 + credible) / 2], axis=0)
    return torch.from_numpy(middle), torch.from_numpy(low), torch.from_numpy(high)


def _summary(name: str, values: Tensor, credible: float, median: str = "") -> dict[str, NDArray[np.float64]]:
    """Return median and interval of draws as columns ``name`` and ``median``, ``_low`` and ``_high``."""
    ends = zip((median, "_low", "_high"), summarise(values, credible), strict=True)
    return {f"{name}{end}": summary.numpy() for end, summary in ends}


def by_condition(genes: list[str], columns: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return the columns of several conditions as one DataFrame, with those of genes and conditions before them."""
    pandas = require("pandas")
    tables = [pandas.DataFrame({"variable": genes, "condition": name} | dict(c)) for name, c in columns.items()]
    return pandas.concat(tables, ignore_index=True).astype({"variable": object, "condition": object})


# --- Predictions


def check_quantiles(quantiles: Sequence[float]) -> list[float]:
    """Return the quantiles as numbers."""
    needed = "a number from 0 to below 1: there is no largest value"
    each = items("quantiles", quantiles, "a list of numbers")
    return [real("an element of quantiles", q, lambda v: 0 <= v < 1, needed) for q in each]


def prediction_columns(
    draws: Mapping[str, Tensor], condition: Condition, quantiles: Sequence[float], credible: float
) -> dict[str, NDArray[np.float64]]:
    """Return predictions for a cell of a condition, of some genes; see :meth:`HurdleDE.predict`."""
    cell = cell_parameters(draws, condition)
    distribution = ZeroInflatedLogNormal(cell.mu, cell.scale, cell.zi_logits)
    predicted = {
        "mean": cell.log_mean.exp(),
        "median": distribution.median,
        "prob_zero": cell.zi_logits.sigmoid(),
        "positive_mean": (cell.mu + cell.scale.square() / 2).exp(),
    } | {f"q{q:g}": distribution.icdf(torch.tensor(q, dtype=torch.float64)) for q in quantiles}
    return {k: v for name, values in predicted.items() for k, v in _summary(name, values, credible).items()}


# --- The predictive check


def row_parameters(draws: Mapping[str, Tensor], data: HurdleData, row: int) -> CellParameters:
    """Return the parameters of a cell of a row of the data, with its random effects, draw by draw."""
    condition = Condition(data.design[row], data.zero_design[row], data.scale_design[row])
    return cell_parameters(draws, condition, data.random_elements[row].tolist())


@dataclass(frozen=True, eq=False)
class Check:
    """The check of the cells of some rows, whose replicates are made for some genes at a time."""

    cells: Cells  # all cells
    rows: NDArray[np.int64]  # those that are checked
    value: Tensor  # the statistics of these, of shape (rows, genes, 5)
    totals: Tensor  # their sums of normalised values, of shape (genes,)
    credible: float  # probability of the intervals

    @classmethod
    def of(cls, cells: Cells, levels: Mapping[str, Any], credible: float) -> Check:
        """Return the check of the cells with some levels."""
        rows = cells.rows(levels)
        if cells.totals is not None:
            return cls(cells, rows, cells.data.value[rows], torch.from_numpy(cells.totals[rows].sum(0)), credible)
        rows = rows[:: max(1, -(-len(rows) // _MOST_CELLS))]
        offset, each = cells.data.offset[rows], torch.arange(len(rows))
        value = SufficientStatistics.from_cells(cells.data.value[rows], each, len(rows), offset).value
        # A cell is a group of one, whose mean is log x - offset.
        return cls(cells, rows, value, (value[..., 1] * value[..., 2].exp()).sum(0), credible)

    def columns(self, draws: Mapping[str, Tensor], genes: slice, seed: int) -> dict[str, NDArray[np.float64]]:
        """Return observed and replicated statistics of some genes, by the first of their draws."""
        draws = {name: values[:RANDOM_DRAWS] for name, values in draws.items()}
        cells, rows, seed = self.cells, self.rows, seed + genes.start
        number, value, totals = int(cells.count[rows].sum()), self.value[:, genes], self.totals[genes]
        zeros, total, mu = _replicate(draws, cells, rows, torch.Generator().manual_seed(seed))
        positive = value[..., 1]
        if cells.totals is None:  # the deviation of a single cell is that from its posterior mean
            freedom, squares = positive, (positive * (value[..., 2] - mu).square()).sum(0)
        else:
            freedom, squares = (positive - 1).clamp(min=0), value[..., 3].sum(0)
        replicated = _replicate_squares(draws, cells.data, rows, freedom, seed)
        freedom = freedom.sum(0)
        compared = {
            "zero_fraction": (value[..., 0].sum(0) / number, zeros / number),
            "mean": (totals / number, total / number),
            "sd_log": ((squares / freedom).sqrt(), (replicated / freedom).sqrt()),
        }
        columns: dict[str, Any] = {}
        for name, (observed, drawn) in compared.items():
            columns |= {name: observed.numpy()} | _summary(name, drawn, self.credible, "_predicted")
        return columns | {"sd_log_freedom": freedom.numpy()}


def inside(check: Any, statistic: str) -> NDArray[np.bool_]:
    """Return which genes' observed values lie in the posterior predictive interval, ends included."""
    observed, low, high = (np.asarray(check[name]) for name in (statistic, f"{statistic}_low", f"{statistic}_high"))
    rounding = 1e-9 * np.abs(observed)  # a gene of zeros only is predicted without error
    return ~((observed < low - rounding) | (observed > high + rounding))


def outside_of(*checks: Any) -> dict[str, NDArray[np.bool_]]:
    """Return, for each statistic, which genes lie outside of its interval in one of the conditions."""
    return {name: ~np.all([inside(check, name) for check in checks], axis=0) for name in STATISTICS}


def _replicate(
    draws: Mapping[str, Tensor], cells: Cells, rows: NDArray[np.int64], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Replicate cells: return numbers of zeros and sums of values, (draws, genes), and mean mu, (rows, genes)."""
    zeros = torch.zeros(draws["intercept"].shape[:2], dtype=torch.float64)
    total, means, data = torch.zeros_like(zeros), [], cells.data
    for row in rows.tolist():
        cell = row_parameters(draws, data, row)
        mu = cell.mu
        means.append(mu.mean(0))
        count = torch.full_like(mu, float(cells.count[row]))
        positive = torch.binomial(count, logsigmoid(-cell.zi_logits).exp(), generator=generator)
        zeros += count - positive
        total += sum_of_log_normals(positive, mu, cell.scale, generator)
    return zeros, total, torch.stack(means)


def sum_of_log_normals(count: Tensor, mu: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """Draw sums of log-normals, each as one log-normal of the same mean and variance.

    This is the approximation of Fenton (1960) and Wilkinson; it is exact for a count of 1.
    """
    variance = sigma.square()
    log_mean, number = count.log() + mu + variance / 2, count.clamp(min=1)
    # Where exp(variance) overflows: log((exp(variance) + number - 1) / number).
    wide = torch.logaddexp(variance, (number - 1).log()) - number.log()
    spread = torch.where(variance < _WIDE, (variance.expm1() / number).log1p(), wide)
    noise = torch.randn(mu.shape, dtype=mu.dtype, generator=generator)
    drawn = (log_mean - spread / 2 + spread.sqrt() * noise).exp()
    return torch.where(count > 0, drawn, torch.zeros_like(drawn))


def _replicate_squares(
    draws: Mapping[str, Tensor], data: HurdleData, rows: NDArray[np.int64], freedom: Tensor, seed: int
) -> Tensor:
    """Draw sums of squared deviations of log x, of shape (draws, genes), for degrees of freedom of (rows, genes)."""
    generator, total = np.random.default_rng(seed), torch.zeros((), dtype=torch.float64)
    designs, kind = torch.unique(data.scale_design[rows], dim=0, return_inverse=True)
    for number in range(len(designs)):  # rows of one sigma are one
        some = kind == number
        known, sigma = freedom[some].sum(0), row_parameters(draws, data, int(rows[some.numpy()][0])).scale
        squares = generator.chisquare(np.maximum(known.numpy(), 1), tuple(sigma.shape))
        total = total + sigma.square() * torch.from_numpy(squares) * (known > 0)
    return total
