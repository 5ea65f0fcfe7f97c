"""Posterior predictive checks, column by column."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_zilognormal.svi.batch import Batch
from pyro_zilognormal.svi.quantiles import check_quantiles, quantiles_of
from pyro_zilognormal.svi.result import FitResult
from pyro_zilognormal.svi.sampling import Sampler, check_draws


@dataclass(frozen=True)
class PredictiveCheck:
    """How an observed site compares with data drawn from the fit.

    Attributes:
        site: the name of the observed site.
        observed: by statistic, its value in each column of the data, of shape (columns,).
        replicated: by statistic, its value in each column of each drawn data set, of shape (draws, columns).
        tail: by statistic, P(drawn > observed) + P(drawn = observed) / 2 in each column, of shape (columns,).
            Near 0 or 1 the data are unlike what the fit draws; 0.5 is as good as can be. NaN where a statistic is.
    """

    site: str
    observed: dict[str, Tensor]
    replicated: dict[str, Tensor]
    tail: dict[str, Tensor]


def posterior_predictive(
    result: FitResult,
    *data: Any,
    draws: int = 200,
    quantiles: Sequence[float] = (0.5, 0.9, 0.99),
    sites: Sequence[str] | None = None,
    seed: int = 0,
    max_bytes: int = 2**28,
) -> dict[str, PredictiveCheck]:
    """Check the fit against the data: zero fraction, mean and quantiles of each column.

    Each drawn data set has one draw of the global latent sites and new local ones, for all rows. Drawn data
    are not held: sums are updated block by block, and quantiles taken of as many columns at a time as fit in
    ``max_bytes`` (at least one), drawing again with the same seed for the others.

    Args:
        result: a fit.
        data: the observed data, like the fit's; :class:`Minibatches` are read a batch at a time.
        draws: how many data sets to draw.
        quantiles: from 0 to 1.
        sites: observed sites to check; None for all, but for those that are masked or whose law cannot be drawn,
            which it warns of.
        seed: of the draws.
        max_bytes: memory for one drawn data set's columns.

    Returns:
        A check for each observed site. Columns are the flattened axes other than that of rows, those of an event too.

    Raises:
        ValueError: for a site that is not observed, or cannot be checked, where it is named or there is no other.

    Example:
        >>> from pyro_zilognormal.svi import fit
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     m = pyro.sample("m", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("rows", len(x)):
        ...         pyro.sample("x", dist.Normal(m, 1.0), obs=x)
        >>> x = torch.ones(8)
        >>> result = fit(model, pyro.infer.autoguide.AutoNormal(model), x, steps=5)
        >>> check = posterior_predictive(result, x, draws=10)["x"]
        >>> sorted(check.tail)
        ['mean', 'quantile 0.5', 'quantile 0.9', 'quantile 0.99', 'zero fraction']
    """
    levels = check_quantiles(quantiles)
    check_draws(draws)
    sampler = Sampler(result, data, seed)
    names = _observed(sampler, sites)
    sampler.check_rows(names)
    with sampler.opened():
        seen = _Tables(sampler, names, levels, max_bytes, renew=False)
        found = seen.statistics(0)
        drawn = _Tables(sampler, names, levels, max_bytes, renew=True)
        replicated = [drawn.statistics(draw) for draw in range(draws)]
    return {k: _check(k, found[k], [r[k] for r in replicated]) for k in names}


@dataclass
class _Sums:
    """Sums over the rows of one site, and quantiles of some columns after others."""

    rows: int = 0
    columns: int = 0
    zeros: Tensor | float = 0.0
    total: Tensor | float = 0.0
    quantiles: list[Tensor] = field(default_factory=list)

    def add(self, table: Tensor) -> None:
        self.rows, self.columns = self.rows + len(table), table.shape[1]
        self.zeros = self.zeros + (table == 0).double().sum(0)
        self.total = self.total + table.double().sum(0)

    def statistics(self, levels: list[float]) -> dict[str, Tensor]:
        found = {"zero fraction": self.zeros / self.rows, "mean": self.total / self.rows}
        ordered = torch.cat(self.quantiles, 1)
        return found | {f"quantile {q:g}": v for q, v in zip(levels, ordered, strict=True)}  # type: ignore[return-value]


@dataclass(frozen=True)
class _Tables:
    """Statistics of the columns of observed sites, as they are or drawn anew."""

    sampler: Sampler
    names: list[str]
    levels: list[float]
    max_bytes: int
    renew: bool

    def statistics(self, draw: int) -> dict[str, dict[str, Tensor]]:
        room = max(1, self.max_bytes // (8 * self.sampler.source.rows * len(self.names)))
        sums = {k: _Sums() for k in self.names}
        start, more = 0, True
        while more:
            held: dict[str, list[Tensor]] = {k: [] for k in self.names}
            for tables in self._blocks(draw):
                for name, table in tables.items():
                    if start == 0:
                        sums[name].add(table)
                    held[name].append(table[:, start : start + room].double())
            for name, parts in held.items():
                sums[name].quantiles.append(quantiles_of(torch.cat(parts), self.levels))
            start += room
            more = bool(self.levels) and any(start < s.columns for s in sums.values())
        return {k: s.statistics(self.levels) for k, s in sums.items()}

    def _blocks(self, draw: int) -> Any:
        fixed: dict[str, Tensor] = {}
        renew = tuple(self.names) if self.renew else ()
        for block, batch in enumerate(self.sampler.batches()):
            guide, model = self.sampler.traces(batch, draw, block, fixed, renew)
            fixed = fixed or self.sampler.globals_of(guide)
            yield {k: self._table(k, model.nodes[k]["value"], batch) for k in self.names}

    def _table(self, name: str, value: Tensor, batch: Batch) -> Tensor:
        """Return a value as rows by columns."""
        axis = self.sampler.layouts[name].axis
        if axis is not None:
            return value.movedim(axis, 0).reshape(value.shape[axis], -1)
        return value.reshape(len(value), -1) if value.dim() else value.reshape(1, 1)


def _check(name: str, observed: dict[str, Tensor], drawn: list[dict[str, Tensor]]) -> PredictiveCheck:
    replicated = {k: torch.stack([d[k] for d in drawn]) for k in observed}
    tail = {k: _tail(replicated[k], observed[k]) for k in observed}
    return PredictiveCheck(name, observed, replicated, tail)


def _tail(drawn: Tensor, observed: Tensor) -> Tensor:
    tail = (drawn > observed).double().mean(0) + (drawn == observed).double().mean(0) / 2
    return torch.where(observed.isnan() | drawn.isnan().any(0), math.nan, tail)


def _observed(sampler: Sampler, sites: Sequence[str] | None) -> list[str]:
    """Return the observed sites to check: those named, or else all that can be, with a warning of the others."""
    if isinstance(sites, str):
        raise TypeError(f"sites is the text {sites!r}; needed a list of names, [{sites!r}]")
    names = sampler.observed if sites is None else list(sites)
    if not names:
        raise ValueError("the model observes no site; needed at least one to check")
    for name in names:
        if name not in sampler.observed:
            raise ValueError(f"sites holds {name!r}; the model's observed sites are {sampler.observed}")
    with sampler.opened():
        faults = {k: fault for k in names if (fault := _fault(sampler.model.nodes[k]))}
    told = "; ".join(f"site {k!r} {fault}" for k, fault in faults.items())
    if faults and (sites is not None or len(faults) == len(names)):
        raise ValueError(f"{told}. Name other observed sites in sites, if there are any")
    if faults:
        warnings.warn(f"left out of the check: {told}", stacklevel=3)
    return [k for k in names if k not in faults]


def _fault(node: Any) -> str:
    """Say why data like those of an observed site cannot be checked, or nothing where they can."""
    if node["mask"] is not None:
        return "is masked; a check of all its rows would count the masked ones"
    try:
        node["fn"].sample()
    except NotImplementedError:
        return f"cannot be drawn: its law, {type(node['fn']).__name__}, has no sample()"
    return ""
