"""Posterior predictive checks, column by column."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_zilognormal.svi.data import whole
from pyro_zilognormal.svi.diagnose import data_frames, holds_data, known_sites
from pyro_zilognormal.svi.fit import FitResult
from pyro_zilognormal.svi.posterior import Sampler, Values, check_levels, quantiles_of


@dataclass(frozen=True)
class PredictiveCheck:
    """Statistics of an observed site, of the data and of data replicated from the fit.

    Attributes:
        site: the name of the observed site.
        observed: by statistic, its value in each column of the data, of shape (columns,).
        replicated: by statistic, its value in each column of each replicated data set, of shape (draws, columns).
        tail: by statistic, P(replicated > observed) + P(replicated = observed) / 2 in each column, of shape (columns,).
            Near 0 or 1 the fit does not reproduce the data; NaN where a statistic is not a number.
    """

    site: str
    observed: Values
    replicated: Values
    tail: Values


def posterior_predictive(
    result: FitResult,
    *data: Any,
    draws: int = 200,
    quantiles: Sequence[float] = (0.5, 0.9, 0.99),
    sites: Sequence[str] | None = None,
    seed: int = 0,
    max_bytes: int = 2**28,
    **kwargs: Any,
) -> dict[str, PredictiveCheck]:
    """Check the fit against the data: zero fraction, mean, sd and quantiles of each column.

    Each replicated data set comes from one draw of the latent sites for all rows. Its columns are held as many at a
    time as fit in ``max_bytes`` (at least one), drawing again with the same seed for the others.

    Args:
        result: a fit.
        data: the observed data: positional arguments of model and guide, or one ``Minibatches`` or ``BatchStream``.
        draws: how many data sets to replicate.
        quantiles: probabilities from 0 to 1.
        sites: observed sites to check; None for all but, with a warning, those that are masked or whose distribution
            has no ``sample``.
        seed: the random seed.
        max_bytes: memory for the columns of one data set.
        kwargs: keyword arguments of model and guide.

    Returns:
        A check for each observed site. Rows are those of the plate over rows, or else the first axis; columns are all
        other axes, flattened.

    Raises:
        ValueError: for a site that is not observed, or cannot be checked, where it is named or there is no other.

    Example:
        >>> from pyro_zilognormal.svi import fit
        >>> import pyro
        >>> def model(x):
        ...     m = pyro.sample("m", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("rows", len(x)):
        ...         pyro.sample("x", dist.Normal(m, 1.0), obs=x)
        >>> x = torch.ones(8)
        >>> result = fit(model, pyro.infer.autoguide.AutoNormal(model), x, steps=5)
        >>> check = posterior_predictive(result, x, draws=10)["x"]
        >>> list(check.tail)
        ['zero fraction', 'mean', 'sd', 'quantile 0.5', 'quantile 0.9', 'quantile 0.99']
    """
    draws, levels = whole("draws", draws, 1), check_levels(quantiles)
    with Sampler(result, data, kwargs, seed).opened() as sampler:
        names = _observed(sampler, sites)
        statistics = partial(_statistics, sampler, names, levels, max_bytes)
        observed = statistics(0)
        replicated = [statistics(draw, redraw=names) for draw in range(draws)]
    return {k: _compare(k, observed[k], [r[k] for r in replicated]) for k in names}


def _observed(sampler: Sampler, sites: Sequence[str] | None) -> list[str]:
    """Return the observed sites to check: those named, or else all that can be, with a warning of the others."""
    known = [k for k, n in sampler.model.items() if holds_data(n)]
    if not known:
        raise ValueError("the model observes no site; needed at least one to check")
    names = known if sites is None else known_sites(sites, known, "observed sites")
    faults = {k: fault for k in names if (fault := _fault(sampler.model[k], sampler.plate, sampler.source.rows))}
    reasons = "; ".join(f"site {k!r} {fault}" for k, fault in faults.items())
    if faults and (sites is not None or len(faults) == len(names)):
        raise ValueError(f"{reasons}. Name other observed sites in sites, if there are any")
    if faults:
        warnings.warn(f"left out of the check: {reasons}", stacklevel=3)
    names = [k for k in names if k not in faults]
    sampler.check_rows(names)
    return names


def _statistics(
    sampler: Sampler, names: list[str], levels: list[float], max_bytes: int, draw: int, redraw: Sequence[str] = ()
) -> dict[str, Values]:
    """Return statistics of each column of observed sites: of the data, or of one draw of the sites in ``redraw``."""
    widths = [_table(sampler.model[k]["value"], sampler.axes[k]).shape[1] for k in names]
    room = max(1, max_bytes // (8 * sampler.source.rows * len(names)))
    parts: dict[str, list[Values]] = {k: [] for k in names}
    for start in range(0, max(widths), room):
        held: dict[str, list[Tensor]] = {k: [] for k in names}
        shared: Values = {}
        for block, batch in enumerate(sampler.batches(names)):
            values = sampler.draw(batch, block, draw, names, shared, redraw)
            shared = shared or sampler.shared(values)
            for name in sampler.here(names, block):
                columns = _table(values[name], sampler.axes[name])[:, start : start + room]
                held[name].append(columns.to(torch.float64, copy=True))  # a view would keep all columns
        for name in names:
            parts[name].append(_column_statistics(torch.cat(held[name]), levels))
    return {k: {s: torch.cat([part[s] for part in found]) for s in found[0]} for k, found in parts.items()}


def _table(value: Tensor, axis: int | None) -> Tensor:
    """Return a value as rows by columns; its rows are the first axis where no plate says otherwise."""
    value = value.reshape(1) if value.dim() == 0 else value
    return value.movedim(axis or 0, 0).reshape(value.shape[axis or 0], -1)


def _column_statistics(table: Tensor, levels: list[float]) -> Values:
    named = {f"quantile {q:g}": v for q, v in zip(levels, quantiles_of(table, levels), strict=True)}
    zeros = (table == 0).double().mean(0)
    return {"zero fraction": zeros, "mean": table.mean(0), "sd": table.std(0, correction=0), **named}


def _compare(name: str, observed: Values, drawn: list[Values]) -> PredictiveCheck:
    replicated = {k: torch.stack([d[k] for d in drawn]) for k in observed}
    tail = {}
    for key, values in replicated.items():
        above, equal = ((f(values, observed[key])).double().mean(0) for f in (torch.gt, torch.eq))
        tail[key] = torch.where(observed[key].isnan() | values.isnan().any(0), math.nan, above + equal / 2)
    return PredictiveCheck(name, observed, replicated, tail)


def _fault(node: Any, plate: str | None, rows: int) -> str:
    """Say why an observed site cannot be checked, or nothing."""
    frames = data_frames(node, plate, rows)
    if len(frames) > 1:
        names = [f.name for f in frames]
        return f"has {rows} elements in each of plates {names}; pass Minibatches(..., batch_size={rows}, plate=...)"
    if isinstance(node["mask"], Tensor) or node["mask"] is False or isinstance(node["fn"], dist.MaskedDistribution):
        return "is masked; a check of all its rows would count the masked ones"
    try:
        node["fn"].sample()
    except NotImplementedError:
        return f"cannot be drawn: its distribution, {type(node['fn']).__name__}, has no sample()"
    return ""
