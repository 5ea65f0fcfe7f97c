"""The posterior predictive check: cells drawn anew from the fit, beside those that were seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_zilognormal.models import Condition
from pyro_zilognormal.singlecell.cells import Cells
from pyro_zilognormal.singlecell.draws import law_parameters, summarise
from pyro_zilognormal.singlecell.errors import require
from pyro_zilognormal.singlecell.seen import Seen, look

DRAWS = 200
# Of the intervals that tables and reports go by: one gene in a hundred lies outside by chance.
CREDIBLE = 0.99
# sigma^2 from which on exp(sigma^2) is taken in log space; it overflows at 709.
_WIDE = 100.0
QUANTITIES = ("zero_fraction", "mean", "sd_log")


@dataclass(frozen=True, eq=False)
class _Anew:
    """Cells drawn anew.

    Attributes:
        zeros: how many, of shape (draws, genes).
        total: the sum of their values, likewise.
        sigma: of the law they are from, likewise.
        mu: its mean of log x, summed over the draws, of shape (rows, genes).
    """

    zeros: Tensor
    total: Tensor
    sigma: Tensor
    mu: Tensor


def check_table(
    cells: Cells,
    conditions: Mapping[str, NDArray[np.bool_]],
    blocks: Iterable[dict[str, Tensor]],
    credible: float,
    seed: int,
) -> Any:
    """Return what was observed in the cells of each condition, and what is predicted, gene by gene.

    Args:
        cells: all of them.
        conditions: which cells, by name.
        blocks: draws from the posterior, with donors.
        credible: probability of the intervals.
        seed: of the draws.
    """
    seen = [look(cells, chosen) for chosen in conditions.values()]
    generators = [torch.Generator().manual_seed(seed) for _ in seen]
    drawn = [[_draw(block, cells, s, g) for s, g in zip(seen, generators, strict=True)] for block in blocks]
    columns = [_columns(s, d, credible, seed) for s, d in zip(seen, zip(*drawn, strict=True), strict=True)]
    pandas = require("pandas")
    tables = [
        pandas.DataFrame({"variable": cells.expression.genes, "condition": name} | values)
        for name, values in zip(conditions, columns, strict=True)
    ]
    return pandas.concat(tables, ignore_index=True).astype({"variable": object, "condition": object})


def inside(check: Any, quantity: str) -> NDArray[np.bool_]:
    """Return which genes' observed values lie in the interval of the predicted ones, ends included.

    Args:
        check: what :meth:`HurdleDE.predictive_check` returns.
        quantity: "zero_fraction", "mean" or "sd_log".
    """
    # What is all zeros is predicted without error and told apart only by rounding; what cannot be seen is not outside.
    seen, low, high = (check[name].to_numpy() for name in (quantity, f"{quantity}_low", f"{quantity}_high"))
    slack = 1e-9 * np.abs(seen)
    return ~((seen < low - slack) | (seen > high + slack))


def _columns(seen: Seen, drawn: Sequence[_Anew], credible: float, seed: int) -> dict[str, Any]:
    number = seen.cells.sum()
    zeros, total, sigma = (torch.cat([getattr(d, name) for d in drawn]) for name in ("zeros", "total", "sigma"))
    freedom = seen.freedom
    squares = seen.squares(torch.stack([d.mu for d in drawn]).sum(0) / len(sigma))
    compared = {
        "zero_fraction": (seen.zeros / number, zeros / number),
        "mean": (seen.total / number, total / number),
        "sd_log": ((squares / freedom).sqrt(), sigma * _chi(freedom, len(sigma), seed)),
    }
    columns: dict[str, Any] = {}
    for name, (observed, anew) in compared.items():
        ends = zip(("_predicted", "_low", "_high"), summarise(anew, credible), strict=True)
        columns |= {name: observed.numpy()} | {f"{name}{end}": values.numpy() for end, values in ends}
    return columns | {"sd_log_freedom": freedom.numpy()}


def _chi(freedom: Tensor, draws: int, seed: int) -> Tensor:
    """Draw the sd of so many normal deviations in units of sigma, NaN where there are none."""
    some = np.maximum(freedom.numpy(), 1)
    squares = np.random.default_rng(seed).chisquare(some, (draws, len(some)))
    return torch.from_numpy(np.sqrt(squares / some)).where(freedom > 0, torch.nan)


def _draw(draws: dict[str, Tensor], cells: Cells, seen: Seen, generator: torch.Generator) -> _Anew:
    """Draw the cells of all rows."""
    zeros = torch.zeros(draws["intercept"].shape[:2], dtype=torch.float64)
    total, expected, sigma = torch.zeros_like(zeros), [], zeros
    for row, at in enumerate(seen.index.tolist()):
        mu, sigma, gate = _law(draws, cells, at)
        expected.append(mu.sum(0))
        count = seen.cells[row].expand_as(mu).contiguous()
        positive = torch.binomial(count, logsigmoid(-gate).exp(), generator=generator)
        zeros += count - positive
        total += _sum_of_log_normals(positive, mu, sigma, seen.size[row], generator)
    return _Anew(zeros, total, sigma, torch.stack(expected))


def _law(draws: dict[str, Tensor], cells: Cells, row: int) -> tuple[Tensor, Tensor, Tensor]:
    data = cells.data
    mu, sigma, gate = law_parameters(draws, Condition(data.design[row], data.gate_design[row]))
    if data.donors:
        who = int(data.donor[row])
        mu, gate = mu + draws["donors"][..., who], gate + draws["gate_donors"][..., who]
    return mu, sigma, gate


def _sum_of_log_normals(count: Tensor, mu: Tensor, sigma: Tensor, size: Tensor, generator: torch.Generator) -> Tensor:
    """Draw sums of so many log-normals, times their size factors, as one log-normal of their mean and variance."""
    variance = sigma.square()
    log_mean = count.log() + mu + variance / 2 + size[0].log()
    # Var of one value in units of its squared mean, size factors included, and of the sum in units of its.
    ratio, number = size[1] / size[0].square(), count.clamp(min=1)
    relative = (variance.exp() * ratio - 1) / number
    # The same where exp(variance) overflows: log((exp(variance) ratio + number - 1) / number).
    wide = torch.logaddexp(variance + ratio.log(), (number - 1).log()) - number.log()
    spread = torch.where(variance < _WIDE, relative.log1p(), wide)
    noise = torch.randn(mu.shape, dtype=mu.dtype, generator=generator)
    drawn = (log_mean - spread / 2 + spread.sqrt() * noise).exp()
    return torch.where(count > 0, drawn, torch.zeros_like(drawn))
