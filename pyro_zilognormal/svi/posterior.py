"""Draws from a fitted guide, and their summaries in bounded memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_zilognormal.svi.quantiles import check_quantiles, exact_quantiles
from pyro_zilognormal.svi.result import FitResult
from pyro_zilognormal.svi.sampling import Sampler, check_draws
from pyro_zilognormal.svi.streaming import Block, Streamed, values_of


@dataclass(frozen=True)
class SiteSummary:
    """What draws of a site are like.

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
) -> dict[str, Tensor]:
    """Draw from the fitted guide, and hold the draws.

    Args:
        result: a fit.
        data: like the fit's; :class:`Minibatches` are read a batch at a time, rows in order.
        draws: how many.
        sites: latent or deterministic sites to hold; None for all latent ones of the guide, without the local ones if
            ``data`` are minibatches and ``joint`` is False. Observed sites are held only if named.
        joint: hold local sites too, for all rows; each draw has one global value for all its rows.
        seed: of the draws.

    Returns:
        A dict of tensors of shape (draws,) + that of the site.

    Raises:
        ValueError: for a site that there is not, one that the guide lacks (an enumerated one), or a local one
            without ``joint``, or of a stream that shuffles.

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
    check_draws(draws)
    sampler = Sampler(result, data, seed)
    names = _chosen(sampler, sites, joint)
    sampler.check_rows(names)
    sampler.check_order(names)
    held: dict[str, list[Tensor]] = {k: [] for k in names}
    with sampler.opened():
        for draw in range(draws):
            for name, value in _one_draw(sampler, draw, names, joint).items():
                held[name].append(value)
    return {k: torch.stack(v) for k, v in held.items()}


def posterior_summary(
    result: FitResult,
    *data: Any,
    draws: int = 1000,
    quantiles: Sequence[float] = (0.05, 0.5, 0.95),
    sites: Sequence[str] | None = None,
    seed: int = 0,
    max_bytes: int = 2**28,
) -> dict[str, SiteSummary]:
    """Summarise draws from the fitted guide without holding them.

    Mean and sd are updated draw by draw. Quantiles are the guide's own where it knows them exactly; else
    those of the draws, for as many elements at a time as fit in ``max_bytes``, drawing again with the same
    seed for the others.

    Args:
        result: a fit.
        data: like the fit's; :class:`Minibatches` are summarised a batch of rows at a time.
        draws: how many; at least 2.
        quantiles: from 0 to 1.
        sites: latent, deterministic or observed sites; None for all latent ones of the guide, local ones too.
        seed: of the draws.
        max_bytes: memory for held draws.

    Returns:
        A dict of summaries by site, local sites over all rows.

    Raises:
        ValueError: for a site that there is not, or that the guide lacks (an enumerated one), quantiles out of
            range, rows that a guide with parameters of rows was not fitted to, or local sites of a stream that
            shuffles.

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
    check_draws(draws, least=2)
    levels = check_quantiles(quantiles)
    sampler = Sampler(result, data, seed)
    names = _chosen(sampler, sites, joint=True)
    sampler.check_rows(names)
    sampler.check_order(names)
    exact = {k: q for k, q in exact_quantiles(sampler, levels).items() if k in names}
    sampled = [k for k in names if k not in exact and levels]
    parts: dict[str, list[Streamed]] = {k: [] for k in names}
    with sampler.opened():
        for block, batch in enumerate(sampler.batches()):
            here = [k for k in names if block == 0 or sampler.layouts[k].axis is not None]
            one = Block(sampler, batch, block, here)
            for name, part in one.summarise(draws, levels, [k for k in here if k in sampled], max_bytes).items():
                parts[name].append(part)
    return {k: _joined(sampler, k, found, exact.get(k)) for k, found in parts.items()}


def _joined(sampler: Sampler, name: str, parts: list[Streamed], exact: Tensor | None) -> SiteSummary:
    """Join the blocks of a site along its rows."""
    axis = sampler.layouts[name].axis
    dtype = sampler.model.nodes[name]["value"].dtype
    dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()

    def join(tensors: list[Tensor]) -> Tensor:
        return (tensors[0] if axis is None else torch.cat(tensors, axis)).to(dtype)

    mean = join([p.mean for p in parts])
    sd = join([(p.squares / (p.count - 1)).sqrt() for p in parts])
    if exact is not None:
        return SiteSummary(mean, sd, exact, True)
    shaped = [p.quantiles.to(p.mean.device).reshape(-1, *p.mean.shape) for p in parts]
    return SiteSummary(mean, sd, join(shaped), False)


def _one_draw(sampler: Sampler, draw: int, names: list[str], joint: bool) -> dict[str, Tensor]:
    """Return the values of one draw, over all rows where ``joint``."""
    parts: dict[str, list[Tensor]] = {k: [] for k in names}
    fixed: dict[str, Tensor] = {}
    for block, batch in enumerate(sampler.batches()):
        values, guide = values_of(sampler, batch, draw, block, names, fixed)
        for name, value in values.items():
            if block == 0 or sampler.layouts[name].axis is not None:
                parts[name].append(value)
        if not joint:
            break
        fixed = fixed or sampler.globals_of(guide)
    axes = {k: sampler.layouts[k].axis for k in names}
    return {k: v[0] if axes[k] is None else torch.cat(v, axes[k] or 0) for k, v in parts.items()}


def _chosen(sampler: Sampler, sites: Sequence[str] | None, joint: bool) -> list[str]:
    local = sampler.source.plate is not None and not joint
    if sites is None:
        return [k for k in sampler.latent if not (local and sampler.layouts[k].axis is not None)]
    if isinstance(sites, str):
        raise TypeError(f"sites is the text {sites!r}; needed a list of names, [{sites!r}]")
    known = [*sampler.latent, *sampler.derived, *sampler.observed]
    for name in sites:
        _check_not_summed_out(sampler, name)
        if name in sampler.auxiliary:
            raise ValueError(
                f"sites holds {name!r}, an auxiliary site of the guide, which the model does not have; name sites "
                f"of the model, {known}"
            )
        if name not in known:
            raise ValueError(f"sites holds {name!r}; the model's sites are {known}")
        if local and sampler.layouts[name].axis is not None:
            raise ValueError(f"sites holds {name!r}, which has a value for every row; pass joint=True to hold it")
    return list(sites)


def _check_not_summed_out(sampler: Sampler, name: str) -> None:
    """Raise a ValueError for a site that the guide lacks, and for a deterministic one that may depend on it."""
    order = list(sampler.model.nodes)
    earlier = order[: order.index(name)] if name in sampler.derived else [name]
    causes = [k for k in sampler.absent if k in earlier]
    if causes:
        raise ValueError(
            f"sites holds {name!r}, but {causes} of the model is not in the guide, so the fit has no posterior of it; "
            "draw it with pyro.infer.infer_discrete inside result.scope()"
        )
