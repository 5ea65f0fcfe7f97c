"""Quantiles: of draws, and exact ones from guides that know them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import ComposeTransform, IndependentTransform

from pyro_zilognormal.svi.sampling import Sampler


def check_quantiles(quantiles: Sequence[float]) -> list[float]:
    """Return the quantiles as a list; raise a ValueError for one outside [0, 1]."""
    levels = [float(q) for q in quantiles]
    if not all(0.0 <= q <= 1.0 for q in levels):
        raise ValueError(f"quantiles is {levels}; needed numbers from 0 to 1")
    return levels


def quantiles_of(values: Tensor, levels: Sequence[float]) -> Tensor:
    """Return quantiles along the first axis, linear between order statistics, for any number of elements; NaN of NaN.

    Args:
        values: of shape (n, ...).
        levels: from 0 to 1.

    Returns:
        A tensor of shape (number of levels, ...).

    Example:
        >>> quantiles_of(torch.tensor([3.0, 1.0, 2.0]), [0.5, 0.75])
        tensor([2.0000, 2.5000])
    """
    ordered = values.sort(0).values
    results = []
    for level in levels:
        place = level * (len(values) - 1)
        low = min(int(place), len(values) - 2) if len(values) > 1 else 0
        below, above = ordered[low], ordered[min(low + 1, len(values) - 1)]
        part = place - low
        finite = below.isfinite() & above.isfinite()
        # The difference of infinities is not a number, nor is 0 times one.
        between = torch.where(finite, torch.lerp(below, above, part), (1 - part) * below + part * above)
        found = {0.0: below, 1.0: above}.get(part, between)
        results.append(torch.where(values.isnan().any(0), math.nan, found))
    return torch.stack(results) if results else values.new_empty((0, *values.shape[1:]))


def exact_quantiles(sampler: Sampler, levels: list[float]) -> dict[str, Tensor]:
    """Return the quantiles that the guide knows exactly, of shape (number of levels, ...), by site.

    A guide that is normal on the unconstrained scale knows those of every site that is an increasing
    function, element by element, of its own unconstrained value. Other sites are left out: for a simplex, and
    for a decreasing transform, ``guide.quantiles`` of Pyro is not the quantile.

    Args:
        sampler: of the fit.
        levels: from 0 to 1.
    """
    guide: Any = sampler.objective.owner("guide")
    if not levels or not isinstance(guide, AutoGuide):
        return {}
    try:
        with sampler.opened():
            found = guide.quantiles(levels, *next(sampler.batches()).args)
    except (NotImplementedError, AttributeError):  # an AutoGuide whose family has no quantiles
        return {}
    return {k: v.detach() for k, v in found.items() if _usable(sampler, k, v)}


def _usable(sampler: Sampler, name: str, quantiles: Tensor) -> bool:
    if name not in sampler.latent:
        return False
    layout = sampler.layouts[name]
    shape = list(layout.shape)
    if layout.axis is not None:
        shape[layout.axis] = sampler.source.rows
    return list(quantiles.shape[1:]) == shape and _increasing(biject_to(sampler.model.nodes[name]["fn"].support))


def _increasing(transform: Any) -> bool:
    """Whether a transform acts element by element and rises."""
    if isinstance(transform, IndependentTransform):
        return _increasing(transform.base_transform)
    if isinstance(transform, ComposeTransform):
        return all(map(_increasing, transform.parts))
    try:
        return transform.domain.event_dim == 0 and bool(torch.as_tensor(transform.sign == 1).all())
    except NotImplementedError:  # not monotone
        return False
