"""What the fit predicts of a cell of a condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_zilognormal.distribution import ZeroInflatedLogNormal
from pyro_zilognormal.singlecell.contrasts import CellCondition
from pyro_zilognormal.singlecell.draws import law_parameters, summarise
from pyro_zilognormal.singlecell.errors import SingleCellError, require


def prediction_table(
    genes: list[str],
    draws: Mapping[str, Tensor],
    conditions: Sequence[CellCondition],
    quantiles: Sequence[float],
    credible: float,
) -> Any:
    """Return a row for each condition and gene."""
    pandas = require("pandas")
    _check(conditions, quantiles)
    tables = []
    for condition in conditions:
        law = ZeroInflatedLogNormal(*law_parameters(dict(draws), condition))
        columns: dict[str, Any] = {"variable": genes, "condition": condition.name}
        for name, values in _quantities(law, quantiles).items():
            columns |= _with_interval(name, values, credible)
        tables.append(pandas.DataFrame(columns).astype({"variable": object, "condition": object}))
    return pandas.concat(tables, ignore_index=True)


def _quantities(law: ZeroInflatedLogNormal, quantiles: Sequence[float]) -> dict[str, Tensor]:
    found = {
        "mean": law.mean,
        "median": law.median,
        "prob_zero": law.zi_logits.sigmoid(),
        "positive_mean": (law.loc + law.scale.square() / 2).exp(),
    }
    return found | {f"q{q:g}": law.icdf(torch.tensor(q, dtype=torch.float64)) for q in quantiles}


def _with_interval(name: str, values: Tensor, credible: float) -> dict[str, Any]:
    ends = summarise(values, credible)
    return {f"{name}{end}": v.numpy() for end, v in zip(("", "_low", "_high"), ends, strict=True)}


def _check(conditions: Sequence[CellCondition], quantiles: Sequence[float]) -> None:
    if not conditions or not all(isinstance(c, CellCondition) for c in conditions):
        raise TypeError(f"conditions: got {conditions!r}; needed what cond(...) returns, one or more")
    for q in quantiles:
        if not 0 <= q < 1:
            raise SingleCellError(
                f"quantiles holds {q!r}; needed numbers from 0 to below 1, as no value is the largest"
            )
