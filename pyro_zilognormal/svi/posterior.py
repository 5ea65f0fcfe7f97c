"""Draws from a fitted guide, and their summaries in bounded memory."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import unwrap
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import ComposeTransform, IndependentTransform

from pyro_zilognormal.svi.checks import whole
from pyro_zilognormal.svi.fit import FitResult
from pyro_zilognormal.svi.sampling import Sampler, Values


@dataclass(frozen=True)
class SiteSummary:
    """Moments and quantiles of the draws of a site.

    Attributes:
        mean: of the shape of the site over all rows.
        sd: of the same shape.
        quantiles: of shape (number of quantiles,) + that of the site.
        exact: whether the quantiles are the guide's own and not those of draws.
    """

    mean: Tensor
    sd: Tensor
    quantiles: Tensor
    exact: bool


def posterior_draws(
    result: FitResult,
    *data: Any,
    draws: int = 1000,
    sites: Sequence[str] | None = None,
    joint: bool = False,
    seed: int = 0,
    **kwargs: Any,
) -> Values:
    """Draw from the fitted guide, and hold the draws.

    Args:
        result: a fit.
        data: positional arguments of model and guide, or one ``Minibatches`` or ``BatchStream`` of them.
        draws: how many.
        sites: latent, deterministic or observed sites; None for all latent ones, without those that have a value for
            every row if ``data`` are minibatches and ``joint`` is False.
        joint: hold sites that have a value for every row too, over all rows; the minibatches of a draw share its global
            values.
        seed: the random seed.
        kwargs: keyword arguments of model and guide.

    Returns:
        A dict of tensors of shape (draws,) + that of the site.

    Raises:
        ValueError: for an unknown site, one that the guide lacks (an enumerated one), one of every row without
            ``joint``, or one of every row of a stream that shuffles.

    Example:
        >>> from pyro_zilognormal.svi import fit
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     m = pyro.sample("m", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("rows", len(x)):
        ...         pyro.sample("x", dist.Normal(m, 1.0), obs=x)
        >>> x = torch.ones(8)
        >>> result = fit(model, pyro.infer.autoguide.AutoNormal(model), x, steps=5)
        >>> posterior_draws(result, x, draws=3)["m"].shape
        torch.Size([3])
    """
    draws = whole("draws", draws, 1)
    with Sampler(result, data, kwargs, seed).opened() as sampler:
        names = sampler.choose(sites, joint)
        parts: dict[str, list[Tensor]] = {k: [] for k in names}
        shared: list[Values] = [{}] * draws
        for block, batch in enumerate(sampler.batches(names)):
            held: dict[str, list[Tensor]] = {k: [] for k in sampler.here(names, block)}
            for draw in range(draws):
                values = sampler.draw(batch, block, draw, names, shared[draw])
                shared[draw] = sampler.shared(values)
                for name in held:
                    held[name].append(values[name])
            for name in held:
                parts[name].append(torch.stack(held[name]))
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
    """Summarise draws from the fitted guide without holding them.

    Welford's update takes each draw into mean and sd. Quantiles are the guide's own where its ``quantiles`` are exact;
    else those of the draws, of as many elements at a time as fit in ``max_bytes``, drawing again with the same seed
    for the others.

    Args:
        result: a fit.
        data: positional arguments of model and guide, or one ``Minibatches`` or ``BatchStream`` of them, which is
            summarised a batch at a time.
        draws: how many; at least 2.
        quantiles: probabilities from 0 to 1.
        sites: latent, deterministic or observed sites; None for all latent ones, with those that have a value for
            every row.
        seed: the random seed.
        max_bytes: memory for held draws.
        kwargs: keyword arguments of model and guide.

    Returns:
        A dict of summaries by site, over all rows.

    Raises:
        ValueError: for an unknown site, one that the guide lacks (an enumerated one), quantiles out of range, or
            a site with a value for every row of a stream that shuffles.

    Example:
        >>> from pyro_zilognormal.svi import fit
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("m", dist.Normal(0.0, 1.0))
        >>> result = fit(model, pyro.infer.autoguide.AutoNormal(model), steps=5)
        >>> summary = posterior_summary(result, draws=10)["m"]
        >>> summary.quantiles.shape, summary.exact
        (torch.Size([3]), True)
    """
    draws, levels = whole("draws", draws, 2), check_levels(quantiles)
    with Sampler(result, data, kwargs, seed).opened() as sampler:
        names = sampler.choose(sites, joint=True)
        exact = {k: v for k, v in _exact_quantiles(sampler, levels).items() if k in names}
        parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {k: [] for k in names}
        for block, batch in enumerate(sampler.batches(names)):
            here = sampler.here(names, block)
            held = [k for k in here if levels and k not in exact]
            rest = [k for k in here if k not in held]
            draw = partial(sampler.draw, batch, block, names=here)
            for name, part in _summarise(draw, draws, levels, held, rest, max_bytes).items():
                parts[name].append(part)
        summaries = {}
        for name, found in parts.items():
            mean, sd, sampled = (sampler.join(name, each) for each in zip(*found, strict=True))
            summaries[name] = SiteSummary(mean, sd, exact.get(name, sampled), name in exact)
        return summaries


def _summarise(
    draw: Callable[..., Values], draws: int, levels: list[float], held: list[str], rest: list[str], max_bytes: int
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Return mean, sd and quantiles of sites, quantiles of those ``held`` alone.

    Args:
        draw: a function of the number of a draw that returns values by site, the same each time.
        draws: how many.
        levels: probabilities of the quantiles.
        held: sites whose draws are held for quantiles, some elements at a time.
        rest: the other sites.
        max_bytes: memory for held draws.
    """
    first = draw(0)
    sizes = {k: first[k].numel() for k in (*held, *rest)}
    stop, room = sum(sizes[k] for k in held), max(1, max_bytes // (8 * draws))
    mean, squares = torch.zeros(2, sum(sizes.values()), dtype=torch.float64)
    quantiles = torch.full((len(levels), len(mean)), math.nan, dtype=torch.float64)
    for start in range(0, max(1, stop), room):
        columns = torch.empty(draws, min(room, stop - start), dtype=torch.float64)
        for number in range(draws):
            values = draw(number)
            flat = torch.cat([values[k].flatten().double().cpu() for k in sizes])
            columns[number] = flat[start : start + columns.shape[1]]
            if start == 0:
                delta = flat - mean
                mean += delta / (number + 1)
                squares += delta * (flat - mean)
        quantiles[:, start : start + columns.shape[1]] = quantiles_of(columns, levels)
    rows = torch.cat([mean[None], (squares / (draws - 1)).sqrt()[None], quantiles])
    found = {}
    for name, part in zip(sizes, rows.split(list(sizes.values()), 1), strict=True):
        value = first[name]
        dtype = value.dtype if value.is_floating_point() else torch.get_default_dtype()
        shaped = part.reshape(-1, *value.shape).to(value.device, dtype)
        found[name] = shaped[0], shaped[1], shaped[2:]
    return found


def quantiles_of(values: Tensor, levels: Sequence[float]) -> Tensor:
    """Return quantiles along the first axis, linear between order statistics; NaN where a value is NaN.

    Unlike ``torch.quantile`` it takes more than 2**24 elements and infinite ones.

    Example:
        >>> quantiles_of(torch.tensor([3.0, 1.0, 2.0]), [0.5, 0.75])
        tensor([2.0000, 2.5000])
    """
    ordered = values.sort(0).values  # NaN last
    place = torch.tensor(levels, dtype=torch.float64, device=values.device) * (len(values) - 1)
    low, high = ordered[place.floor().long()], ordered[place.ceil().long()]
    part = (place - place.floor()).to(values.dtype).reshape(-1, *[1] * (values.dim() - 1))
    # Equal neighbours may be infinite, whose difference is not a number.
    found = torch.where(low == high, low, (1 - part) * low + part * high)
    return torch.where(ordered[-1].isnan(), math.nan, found)


def _exact_quantiles(sampler: Sampler, levels: list[float]) -> Values:
    """Return quantiles that the guide knows exactly, of shape (number of levels, ...), by site.

    An AutoGuide that is normal on the unconstrained scale knows those of a site that is an increasing function,
    element by element, of its own unconstrained value. For a simplex, and for a decreasing transform,
    ``guide.quantiles`` of Pyro is not the quantile.
    """
    guide: Any = unwrap(sampler.module.callable("guide"))
    if not levels or not isinstance(guide, AutoGuide):
        return {}
    batch = next(sampler.source.epoch(0, sampler.seed))
    try:
        with sampler.module.running(batch):
            found = guide.quantiles(levels, *batch.args, **batch.kwargs)
    except (NotImplementedError, AttributeError):  # an AutoGuide whose distribution has no known quantiles
        return {}
    return {k: v for k, v in found.items() if _is_exact(sampler, k, v)}


def _is_exact(sampler: Sampler, name: str, quantiles: Tensor) -> bool:
    if name not in sampler.model:
        return False
    shape, axis = list(sampler.model[name]["value"].shape), sampler.axes[name]
    if axis is not None:
        shape[axis] = sampler.source.rows
    return list(quantiles.shape[1:]) == shape and _increases(biject_to(sampler.model[name]["fn"].support))


def _increases(transform: Any) -> bool:
    """Whether a transform acts element by element and increases."""
    if isinstance(transform, IndependentTransform):
        return _increases(transform.base_transform)
    if isinstance(transform, ComposeTransform):
        return all(map(_increases, transform.parts))
    try:
        return transform.domain.event_dim == 0 and bool(torch.as_tensor(transform.sign == 1).all())
    except NotImplementedError:  # not monotone
        return False


def check_levels(quantiles: Sequence[float]) -> list[float]:
    """Return probabilities as a list of floats; raise a ValueError for one outside [0, 1]."""
    levels = [float(q) for q in quantiles]
    if not all(0.0 <= q <= 1.0 for q in levels):
        raise ValueError(f"quantiles is {levels}; needed probabilities from 0 to 1")
    return levels
