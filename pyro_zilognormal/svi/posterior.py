"""Draws from a fitted guide, their summaries and posterior predictive checks, in bounded memory."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_zilognormal.svi.data import Batch, Minibatches, Source, as_source, whole
from pyro_zilognormal.svi.diagnose import row_plate, sample_sites
from pyro_zilognormal.svi.elbo import SVIModule
from pyro_zilognormal.svi.fit import FitResult
from pyro_zilognormal.svi.isolation import isolated

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
    """Draw from the fitted guide, and hold the draws.

    Args:
        result: a fit.
        data: positional arguments of model and guide, or one ``Minibatches`` or ``BatchStream`` of them.
        draws: how many.
        sites: latent, deterministic or observed sites; None for all latent ones, of minibatches the global ones alone.
            The minibatches of a draw share its global values.
        seed: the random seed.
        kwargs: keyword arguments of model and guide.

    Returns:
        A dict of tensors of shape (draws,) + that of the site over all rows.

    Raises:
        ValueError: for an unknown site, one that the guide lacks (an enumerated one), or one of every row of a stream
            that shuffles.

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
        names = sampler.choose(sites, with_rows=sampler.source.plate is None)
        parts: dict[str, list[Tensor]] = {k: [] for k in names}
        shared: list[Values] = [{} for _ in range(draws)]
        for block, batch, here in sampler.batches(names):  # each is read once
            drawn = [sampler.draw(batch, block, draw, here, shared[draw]) for draw in range(draws)]
            for name in here:
                parts[name].append(torch.stack([values.pop(name) for values in drawn]))
        return {k: sampler.join(k, v) for k, v in parts.items()}


def posterior_summary(
    result: FitResult,
    *data: Any,
    draws: int = 1000,
    quantiles: Sequence[float] = (0.05, 0.5, 0.95),
    sites: Sequence[str] | None = None,
    seed: int = 0,
    max_bytes: int = 2**28,
    **kwargs: Any,
) -> dict[str, SiteSummary]:
    """Summarise draws from the fitted guide without holding them all.

    Args:
        result, data, draws, seed, kwargs: as for :func:`posterior_draws`, of at least 2 draws.
        quantiles: probabilities from 0 to 1.
        sites: latent, deterministic or observed sites; None for all latent ones.
        max_bytes: memory for held draws; elements that do not fit are drawn again with the same seed.

    Returns:
        A dict of summaries by site, over all rows.

    Raises:
        ValueError: for quantiles out of range, and for sites as :func:`posterior_draws`.

    Example:
        >>> from pyro_zilognormal.svi import fit
        >>> def model():
        ...     pyro.sample("m", dist.Normal(0.0, 1.0))
        >>> result = fit(model, pyro.infer.autoguide.AutoNormal(model), steps=5)
        >>> posterior_summary(result, draws=10)["m"].quantiles.shape
        torch.Size([3])
    """
    draws = whole("draws", draws, 2)
    with _sampling(result, data, kwargs, seed) as sampler:
        names = sampler.choose(sites, with_rows=True)
        parts: dict[str, list[Tensor]] = {k: [] for k in names}
        for block, batch, here in sampler.batches(names):
            draw = partial(sampler.draw, batch, block, names=here)
            for name, part in _summarise(draw, draws, quantiles, max_bytes).items():
                parts[name].append(part)
        joined = {k: sampler.join(k, v) for k, v in parts.items()}
        return {k: SiteSummary(v[0], v[1], v[2:]) for k, v in joined.items()}


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

    Each replicated data set comes from one draw of the latent sites for all rows.

    Args:
        result, data, seed, kwargs: as for :func:`posterior_draws`; the data are those to compare with.
        draws: how many data sets to replicate.
        quantiles: probabilities from 0 to 1.
        sites: observed sites to check; None for all.
        max_bytes: memory for the columns of one data set; those that do not fit are drawn again with the same seed.

    Returns:
        A check for each observed site. Rows are those of the plate over rows, or else the first axis; columns are all
        other axes, flattened.

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
    checks = {}
    with _sampling(result, data, kwargs, seed) as sampler:
        for name in sampler.observed(sites):
            of = partial(_statistics, sampler, name, quantiles, max_bytes)
            observed, replicated = of(0), torch.stack([of(draw, replicate=True) for draw in range(draws)])
            above, equal = ((f(replicated, observed)).double().mean(0) for f in (torch.gt, torch.eq))
            tail = torch.where(observed.isnan() | replicated.isnan().any(0), math.nan, above + equal / 2)
            found = (dict(zip(labels, part.unbind(-2), strict=True)) for part in (observed, replicated, tail))
            checks[name] = PredictiveCheck(name, *found)
    return checks


@contextmanager
def _sampling(result: FitResult, data: tuple[Any, ...], kwargs: dict[str, Any], seed: int) -> Iterator["_Sampler"]:
    """Run a block with the fit's parameters in eval mode; put parameters, modes and seeds back after it."""
    module, source, seed = result.module, as_source(data, kwargs), whole("seed", seed, 0, 2**32 - 1)
    if isinstance(source, Minibatches):
        source.shuffle = False  # so that joined batches are in the order of the data
    if source.plate not in (None, module.plate) and source.batches > 1:
        raise ValueError(
            f"data are minibatches along plate {source.plate!r}, but the plate over rows of the fit is "
            f"{module.plate!r}; pass data as they were passed to fit"
        )
    # A guide with a parameter for every row has none for other rows.
    evaluating = module.evaluating(held_out=source.rows != module.rows)
    with isolated(seed), result.scope(), evaluating, torch.no_grad():
        yield _Sampler(module, source, seed)


class _Sampler:
    """Draws guide and model, a batch of rows at a time.

    ``axes`` holds for each site the axis of its value that runs over rows, counted from the end; None if it is global.
    """

    def __init__(self, module: SVIModule, source: Source, seed: int) -> None:
        self.module, self.source, self.seed = module, source, seed
        self.first = next(source.epoch(0, seed))
        guide, model = module.traces(self.first)
        self.guide = {n["name"]: n for n in sample_sites(guide) if not n["is_observed"]}
        self.model = {n["name"]: n for n in sample_sites(model)}
        plate, nodes = source.plate or module.plate, {**self.guide, **self.model}
        self.axes = {k: _row_axis(n, plate, self.first.rows) for k, n in nodes.items()}

    def choose(self, sites: Sequence[str] | None, with_rows: bool) -> list[str]:
        """Return the sites to read, all latent ones if None; raise a ValueError for one without draws."""
        latent = [k for k in self.model if k in self.guide]
        enumerated = [k for k, n in self.model.items() if not n["is_observed"] and k not in self.guide]
        why = f"; {enumerated} are not in the guide: use pyro.infer.infer_discrete in result.scope()"
        # A deterministic site may follow from an enumerated one.
        seen = [k for k, n in self.model.items() if _holds_data(n) or (_is_deterministic(n) and not enumerated)]
        default = [k for k in latent if with_rows or self.axes[k] is None]
        names = _known(sites, default, [*latent, *seen], "the sites with draws", why if enumerated else "")
        local = [k for k in names if self.axes[k] is not None]
        loader = getattr(self.source, "iterable", None)
        if local and isinstance(getattr(loader, "sampler", None), torch.utils.data.RandomSampler):
            raise ValueError(
                f"sites {local} have a value for every row, but the stream shuffles its rows and does not number them; "
                "use Minibatches or a loader that does not shuffle, or name global sites in sites"
            )
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
                raise ValueError(
                    f"site {name!r} is masked, and a check of all its rows would count the masked ones; name other "
                    "observed sites in sites, if there are any"
                )
        return names

    def batches(self, names: list[str]) -> Iterator[tuple[int, Batch, list[str]]]:
        """Yield number, batch, and the sites to read in it: global ones in the first alone."""
        if names:
            yield 0, self.first, names
        local = [k for k in names if self.axes[k] is not None]
        if local:
            yield from ((i, batch, local) for i, batch in enumerate(self.source.epoch(0, self.seed, skip=1), 1))

    def draw(
        self,
        batch: Batch,
        block: int,
        draw: int,
        names: list[str],
        shared: Values | None = None,
        replicate: bool = False,
    ) -> Values:
        """Return a draw of some sites.

        ``shared`` gives it the values of the guide's global sites, auxiliary ones too, once a batch has put them there;
        ``replicate`` draws the observed sites too.
        """
        pyro.set_rng_seed(int(np.random.SeedSequence([self.seed, draw, block]).generate_state(1)[0]))
        given = poutine.Trace()
        for name, value in (shared or {}).items():
            given.add_node(name, name=name, type="sample", is_observed=False, value=value, infer={})
        model = replicate or not all(k in self.guide for k in names)
        traces = self.module.traces(batch, given, model, replicate)
        values = {n["name"]: n["value"] for trace in traces for n in sample_sites(trace)}
        if shared is not None:
            shared |= {k: values[k] for k in self.guide if self.axes[k] is None}
        return {k: values[k] for k in names}

    def join(self, name: str, parts: list[Tensor]) -> Tensor:
        """Join the batches of a site along its axis of rows."""
        axis = self.axes[name]
        return parts[0] if axis is None else torch.cat(parts, axis)


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


def _known(sites: Sequence[str] | None, default: list[str], known: list[str], what: str, why: str = "") -> list[str]:
    """Return the names of sites; raise a ValueError for one that is not known."""
    for name in sites or ():
        if name not in known:
            raise ValueError(f"sites holds {name!r}; {what} are {known}{why}")
    return default if sites is None else list(sites)


def _summarise(draw: Callable[[int], Values], draws: int, levels: Sequence[float], max_bytes: int) -> Values:
    """Return mean, sd and quantiles of sites, of as many elements at a time as fit in the memory, one after another."""
    first = draw(0)
    sizes, room = [value.numel() for value in first.values()], max(1, max_bytes // (8 * draws))
    found = []
    for start in range(0, sum(sizes), room):
        table = torch.empty(draws, min(room, sum(sizes) - start), dtype=torch.float64)
        for number in range(draws):
            values = [value.flatten().double().cpu() for value in draw(number).values()]
            table[number] = torch.cat(values)[start : start + room]
        found.append(_moments(table, levels, correction=1))
    summaries = {}
    for (name, value), part in zip(first.items(), torch.cat(found, 1).split(sizes, 1), strict=True):
        dtype = value.dtype if value.is_floating_point() else torch.get_default_dtype()
        summaries[name] = part.reshape(-1, *value.shape).to(value.device, dtype)
    return summaries


def _moments(table: Tensor, levels: Sequence[float], correction: int) -> Tensor:
    """Return mean, sd and quantiles of each column, of shape (2 + levels, columns)."""
    # torch.quantile takes 16 million elements at most.
    quantiles = torch.from_numpy(np.quantile(table.cpu().numpy(), levels, axis=0)).to(table.device)
    return torch.cat([table.mean(0)[None], table.std(0, correction=correction)[None], quantiles])


def _statistics(
    sampler: _Sampler, name: str, levels: Sequence[float], max_bytes: int, draw: int, replicate: bool = False
) -> Tensor:
    """Return statistics of the columns of an observed site, of the data or of one replicated data set."""
    axis = sampler.axes[name]
    width, room = _table(sampler.model[name]["value"], axis).shape[1], max(1, max_bytes // (8 * sampler.source.rows))
    found = []
    for start in range(0, width, room):
        parts: list[Tensor] = []
        shared: Values = {}
        for block, batch, here in sampler.batches([name]):
            value = sampler.draw(batch, block, draw, here, shared, replicate)[name]
            columns = _table(value, axis)[:, start : start + room]
            parts.append(columns.to(torch.float64, copy=True))  # a view would keep all columns
        table = torch.cat(parts)
        found.append(torch.cat([(table == 0).double().mean(0)[None], _moments(table, levels, correction=0)]))
    return torch.cat(found, 1)


def _table(value: Tensor, axis: int | None) -> Tensor:
    """Return a value as rows by columns; its rows are the first axis where no plate says otherwise."""
    value = torch.atleast_1d(value)
    return value.movedim(axis or 0, 0).reshape(value.shape[axis or 0], -1)
