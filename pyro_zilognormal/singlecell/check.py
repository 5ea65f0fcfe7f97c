"""The posterior predictive check: zeros and means of cells drawn anew, beside those of the cells that were seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_zilognormal.models import Condition
from pyro_zilognormal.singlecell.cells import Cells
from pyro_zilognormal.singlecell.draws import law_parameters, summarise
from pyro_zilognormal.singlecell.errors import require

DRAWS = 200
_ROWS = 500


@dataclass(frozen=True, eq=False)
class _Rows:
    """What was seen, row by row of the data: of strata, or of single cells.

    Attributes:
        cells: how many in each row.
        size: mean of their size factors and of the squares of these, of shape (rows, 2).
        zeros: how many of each gene in all.
        total: the sum of the linear values of each gene over all.
        index: which rows of the data.
    """

    cells: Tensor
    size: Tensor
    zeros: Tensor
    total: Tensor
    index: Tensor


def check_table(cells: Cells, blocks: Iterable[dict[str, Tensor]], credible: float, seed: int) -> Any:
    """Return observed and predicted share of zeros and mean of each gene over all cells."""
    rows = _strata(cells) if cells.data.reduced else _some_cells(cells)
    generator = torch.Generator().manual_seed(seed)
    drawn = [_draw(block, cells, rows, generator) for block in blocks]
    zeros, total = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    number = float(rows.cells.sum())
    columns: dict[str, Any] = {"variable": cells.expression.genes}
    for name, seen, anew in (("zero_fraction", rows.zeros, zeros), ("mean", rows.total, total)):
        columns[name] = (seen / number).numpy()
        ends = zip(("_predicted", "_low", "_high"), summarise(anew / number, credible), strict=True)
        columns |= {f"{name}{end}": values.numpy() for end, values in ends}
    return require("pandas").DataFrame(columns).astype({"variable": object})


def _strata(cells: Cells) -> _Rows:
    seen = cells.observed
    count = torch.from_numpy(seen.cells).double()
    everything = seen.arm(np.ones(len(cells.design.matrix), dtype=bool))
    zeros = count.sum() - torch.from_numpy(everything.positive).double()
    total = torch.from_numpy(everything.total)
    return _Rows(count, torch.from_numpy(seen.size), zeros, total, torch.arange(len(count)))


def _some_cells(cells: Cells) -> _Rows:
    index = cells.data.some_rows(_ROWS)
    value = cells.data.statistics(_ROWS)
    offset = cells.data.offset[index]
    # A cell is a group of one, whose mean is log x - offset.
    total = (value[..., 1] * (value[..., 2] + offset.unsqueeze(-1)).exp()).sum(0)
    size = torch.stack([offset.exp(), (2 * offset).exp()], 1)
    return _Rows(torch.ones(len(index), dtype=torch.float64), size, value[..., 0].sum(0), total, index)


def _draw(draws: dict[str, Tensor], cells: Cells, rows: _Rows, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return draws of the number of zeros and of the sum of all values, each of shape (draws, genes)."""
    zeros = torch.zeros(draws["intercept"].shape[:2], dtype=torch.float64)
    total = torch.zeros_like(zeros)
    for row, at in enumerate(rows.index.tolist()):
        mu, sigma, gate = _law(draws, cells, at)
        count = rows.cells[row].expand_as(mu).contiguous()
        positive = torch.binomial(count, logsigmoid(-gate).exp(), generator=generator)
        zeros += count - positive
        total += _sum_of_log_normals(positive, mu, sigma, rows.size[row], generator)
    return zeros, total


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
    relative = (variance.exp() * size[1] / size[0].square() - 1) / count.clamp(min=1)
    spread = relative.log1p()
    noise = torch.randn(mu.shape, dtype=mu.dtype, generator=generator)
    drawn = (log_mean - spread / 2 + spread.sqrt() * noise).exp()
    return torch.where(count > 0, drawn, torch.zeros_like(drawn))
