"""Draws from a fitted guide, their summaries and posterior predictive checks, a batch of rows at a time."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_zilognormal.svi.data import Minibatches, Source, as_source, as_tensor, whole
from pyro_zilognormal.svi.diagnose import row_plate, sample_sites
from pyro_zilognormal.svi.elbo import Batch, SVIModule, isolated
from pyro_zilognormal.svi.fit import FitResult

Values = dict[str, Tensor]


@dataclass(frozen=True)
class SiteSummary:
    """Moments and quantiles of the draws of a site.

    Attributes:
        mean, sd: of the shape of the site over all rows.
        quantiles: of shape (number of quantiles,) + that of the site.
    """

    mean: Tensor
    sd: Tensor
    quantiles: Tensor


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


def posterior_draws(
    result: FitResult, *data: Any, draws: int = 1000, sites: Sequence[str] | None = None, seed: int = 0, **kwargs: Any
) -> Values:
    """Draw from the fitted guide, and hold the draws, of shape (draws,) + that of the site over all rows.

    Args:
        result: a fit.
        data: positional arguments of model and guide, or one ``Minibatches`` or ``BatchStream`` of them.
        draws: how many.
        sites: latent, deterministic or observed sites; None for all latent ones, of minibatches the global ones alone.
            The minibatches of a draw share its global values.
        seed: the random seed.
        kwargs: keyword arguments of model and guide that differ from the fit's.

    Raises:
        ValueError: for an unknown site, one that the guide lacks (an enumerated one), or one of every row of a stream,
            which does not say which rows a batch holds.

    Example:
        >>> from pyro_zilognormal.svi import fit
        >>> def model():
        ...     pyro.sample("m", dist.Normal(0.0, 1.0))
        >>> result = fit(model, pyro.infer.autoguide.AutoNormal(model), steps=5)
        >>> posterior_draws(result, draws=3)["m"].shape
        torch.Size([3])
    """
    draws = whole("draws", draws, 1)
    with _sampling(result, data, kwargs, seed) as sampler:
        return sampler.draw(sampler.choose(sites, with_rows=sampler.source.plate is None), range(draws))


def posterior_summary(
    result: FitResult,
    *data: Any,
    draws: int = 1000,
    quantiles: Sequence[float] = (0.05, 0.5, 0.95),
    sites: Sequence[str] | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> dict[str, SiteSummary]:
    """Summarise draws from the fitted guide; of sites with a value for every row, it holds those of one batch.

    Args:
        result, data, draws, seed, kwargs: as for :func:`posterior_draws`, of at least 2 draws.
        quantiles: probabilities from 0 to 1.
        sites: latent, deterministic or observed sites; None for all latent ones.

    Example:
        ``posterior_summary(result)["m"].mean``, with ``result`` as there.
    """
    draws = whole("draws", draws, 2)

    def summarise(values: Tensor) -> Tensor:
        like = values if values.is_floating_point() else values.to(torch.get_default_dtype())
        return _moments(values.double(), quantiles, correction=1).to(like)

    with _sampling(result, data, kwargs, seed) as sampler:
        found = sampler.draw(sampler.choose(sites, with_rows=True), range(draws), summarise)
        return {k: SiteSummary(v[0], v[1], v[2:]) for k, v in found.items()}


def posterior_predictive(
    result: FitResult,
    *data: Any,
    draws: int = 200,
    quantiles: Sequence[float] = (0.5, 0.9, 0.99),
    sites: Sequence[str] | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> dict[str, PredictiveCheck]:
    """Check the fit against the data: zero fraction, mean, sd and quantiles of each column.

    Each replicated data set, of which one is held at a time, comes from one draw of the latent sites for all rows. Rows
    are those of the plate over rows, or else the first axis; columns are all other axes, flattened.

    Args:
        result, data, seed, kwargs: as for :func:`posterior_draws`; the data are those to compare with.
        draws: how many data sets to replicate.
        quantiles: probabilities from 0 to 1.
        sites: observed sites to check; None for all.

    Raises:
        ValueError: for a site that is not observed, or is masked, or a model that observes none.

    Example:
        >>> from pyro_zilognormal.svi import fit
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
    draws = whole("draws", draws, 1)
    labels = ["zero fraction", "mean", "sd", *(f"quantile {q:g}" for q in quantiles)]
    with _sampling(result, data, kwargs, seed) as sampler:
        names = sampler.observed(sites)
        observed = sampler.statistics(names, quantiles, 0, replicate=False)
        replicated = [sampler.statistics(names, quantiles, draw, replicate=True) for draw in range(draws)]
    checks = {}
    for name, seen in observed.items():
        drawn = torch.stack([each[name] for each in replicated])
        above, equal = (drawn > seen).double().mean(0), (drawn == seen).double().mean(0)
        tail = torch.where(seen.isnan() | drawn.isnan().any(0), math.nan, above + equal / 2)
        found = (dict(zip(labels, part.unbind(-2), strict=True)) for part in (seen, drawn, tail))
        checks[name] = PredictiveCheck(name, *found)
    return checks


@contextmanager
def _sampling(result: FitResult, data: tuple[Any, ...], kwargs: dict[str, Any], seed: int) -> Iterator["_Sampler"]:
    """Run a block with the fit's parameters in eval mode; put parameters, modes and seeds back after it."""
    module, seed = result.module, whole("seed", seed, 0, 2**32 - 1)
    kwargs = {**module.kwargs, **{k: as_tensor(value) for k, value in kwargs.items()}}
    source = as_source(data, kwargs)
    if isinstance(source, Minibatches):
        source.shuffle = False  # so that joined batches are in the order of the data
    if source.plate not in (None, module.plate) and source.batches > 1:
        raise ValueError(f"data have plate {source.plate!r}; needed that of the fit, {module.plate!r}")
    # A guide with a parameter for every row has none for other rows.
    evaluating = module.evaluating(source.rows != module.rows, kwargs)
    with isolated(seed), result.scope(), evaluating, torch.no_grad():
        yield _Sampler(module, source, seed)


class _Sampler:
    """Draws guide and model, a batch of rows at a time.

    ``axes`` holds for each site the axis of its value that runs over rows, counted from the end; None if it is global.
    """

    def __init__(self, module: SVIModule, source: Source, seed: int) -> None:
        self.module, self.source, self.seed = module, source, seed
        self.first = next(source.epoch(0, seed))
        guide, model = map(sample_sites, module.traces(self.first))
        self.guide = {n["name"]: n for n in guide if not n["is_observed"]}
        self.model = {n["name"]: n for n in model}
        plate, nodes = source.plate or module.plate, {**self.guide, **self.model}
        self.axes = {k: _row_axis(n, plate, self.first.rows) for k, n in nodes.items()}

    def choose(self, sites: Sequence[str] | None, with_rows: bool) -> list[str]:
        """Return the sites to draw, all latent ones if None; raise a ValueError for one without draws."""
        latent = [k for k in self.model if k in self.guide]
        # A deterministic site may follow from an enumerated one.
        follow = all(n["is_observed"] or k in self.guide for k, n in self.model.items())
        observed = [k for k, n in self.model.items() if _holds_data(n) or (_is_deterministic(n) and follow)]
        default = [k for k in latent if with_rows or self.axes[k] is None]
        names = _known(sites, default, [*latent, *observed], "the sites with draws, in the guide or observed,")
        local = [k for k in names if self.axes[k] is not None]
        if local and self.first.indices is None:
            raise ValueError(f"sites {local} have a value for every row, and a stream does not number its rows")
        return names

    def observed(self, sites: Sequence[str] | None) -> list[str]:
        """Return the observed sites to check; raise a ValueError for one that cannot be."""
        observed = [k for k, n in self.model.items() if _holds_data(n)]
        if not observed:
            raise ValueError("the model observes no site; needed at least one to check")
        names = _known(sites, observed, observed, "the model's observed sites")
        for name in names:
            fn, mask = self.model[name]["fn"], self.model[name]["mask"]
            if isinstance(mask, Tensor) or mask is False or isinstance(fn, dist.MaskedDistribution):
                raise ValueError(f"site {name!r} is masked, so a check would count masked rows; leave it out of sites")
        return names

    def draw(
        self,
        names: list[str],
        draws: Iterable[int],
        reduce: Callable[[Tensor], Tensor] = lambda values: values,
        replicate: bool = False,
    ) -> Values:
        """Make draws of some sites a batch at a time, each read once, reduce those of each batch, and join the batches.

        Global sites are drawn in the first batch; their values, auxiliary ones too, serve the other batches.
        """
        parts: dict[str, list[Tensor]] = {k: [] for k in names}
        shared: dict[int, dict[str, Any]] = {draw: {} for draw in draws}
        local = [k for k in names if self.axes[k] is not None]
        later = self.source.epoch(0, self.seed, skip=1) if local else ()
        for block, batch in enumerate(chain([self.first], later) if names else ()):
            here = local if block else names
            drawn = [self._draw(batch, here, [draw, block], given, replicate) for draw, given in shared.items()]
            for name in here:
                parts[name].append(reduce(torch.stack([values.pop(name) for values in drawn])))
        return {k: v[0] if (axis := self.axes[k]) is None else torch.cat(v, axis) for k, v in parts.items()}

    def statistics(self, names: list[str], levels: Sequence[float], draw: int, replicate: bool) -> Values:
        """Return zero fraction, mean, sd and quantiles of each column of observed sites, (3 + levels, columns)."""
        found = {}
        for name, values in self.draw(names, [draw], replicate=replicate).items():
            value, axis = torch.atleast_1d(values[0]).double(), self.axes[name] or 0  # the first, without a plate
            table = value.movedim(axis, 0).reshape(value.shape[axis], -1)
            zeros = (table == 0).double().mean(0)
            found[name] = torch.cat([zeros[None], _moments(table, levels, correction=0)])
        return found

    def _draw(
        self, batch: Batch, names: list[str], number: list[int], shared: dict[str, Any], replicate: bool
    ) -> Values:
        """Return a draw of some sites from random numbers of its own; the guide's global sites are shared."""
        pyro.set_rng_seed(int(np.random.SeedSequence([self.seed, *number]).generate_state(1)[0]))
        model = replicate or not all(k in self.guide for k in names)
        traces = self.module.traces(batch, shared, model, replicate)
        nodes = {n["name"]: n for trace in traces for n in sample_sites(trace)}
        shared |= {k: nodes[k] for k in self.guide if self.axes[k] is None}
        return {k: nodes[k]["value"] for k in names}


def _row_axis(node: Any, plate: str | None, rows: int) -> int | None:
    """Return the axis of a site's value that runs over rows, counted from the end, or None."""
    frame, value, event = row_plate(node, plate, rows), node["value"], node["fn"].event_dim
    if frame is None:
        return None
    if _is_deterministic(node) and event == value.dim():
        # Pyro's default takes all axes of a deterministic value for event axes, inside plates too.
        event -= max(-f.dim for f in node["cond_indep_stack"] if f.vectorized)
    axis: int = frame.dim - event
    return axis if -value.dim() <= axis < 0 and value.shape[axis] == rows else None


def _is_deterministic(node: Any) -> bool:
    return bool(node["infer"].get("_deterministic"))


def _holds_data(node: Any) -> bool:
    """Whether a site is observed, and neither deterministic nor a ``pyro.factor``."""
    return node["is_observed"] and not _is_deterministic(node) and not isinstance(node["fn"], dist.Unit)


def _known(sites: Sequence[str] | None, default: list[str], known: list[str], what: str) -> list[str]:
    """Return the names of sites; raise a ValueError for one that is not known."""
    for name in sites or ():
        if name not in known:
            raise ValueError(f"sites holds {name!r}; {what} are {known}")
    return default if sites is None else list(sites)


def _moments(values: Tensor, levels: Sequence[float], correction: int) -> Tensor:
    """Return mean, sd and quantiles over the first axis, of shape (2 + levels,) + that of the rest."""
    # torch.quantile takes 16 million elements at most.
    quantiles = torch.from_numpy(np.quantile(values.cpu().numpy(), levels, axis=0)).to(values.device)
    return torch.cat([values.mean(0)[None], values.std(0, correction=correction)[None], quantiles])
