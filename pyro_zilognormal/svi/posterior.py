"""Draws from a fitted guide, and their summaries in bounded memory."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide, AutoLaplaceApproximation
from pyro.poutine.messenger import unwrap
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import IndependentTransform

from pyro_zilognormal.svi.data import Batch, Minibatches, as_source, whole
from pyro_zilognormal.svi.diagnose import data_frames, holds_data, known_sites, row_axis, sample_sites
from pyro_zilognormal.svi.elbo import isolated
from pyro_zilognormal.svi.fit import FitResult

Values = dict[str, Tensor]


@dataclass(frozen=True)
class SiteSummary:
    """Moments and quantiles of the draws of a site.

    Attributes:
        mean, sd: of the shape of the site over all rows.
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
        sites: latent, deterministic or observed sites; None for all latent ones, of minibatches without ``joint`` the
            global ones alone.
        joint: hold sites that have a value for every row too; the minibatches of a draw share its global values.
        seed: the random seed.
        kwargs: keyword arguments of model and guide.

    Returns:
        A dict of tensors of shape (draws,) + that of the site.

    Raises:
        ValueError: for an unknown site, one that the guide lacks (an enumerated one), or one of every row without
            ``joint`` or of a stream that shuffles.

    Example:
        >>> from pyro_zilognormal.svi import fit
        >>> import pyro
        >>> def model():
        ...     pyro.sample("m", pyro.distributions.Normal(0.0, 1.0))
        >>> result = fit(model, pyro.infer.autoguide.AutoNormal(model), steps=5)
        >>> posterior_draws(result, draws=3)["m"].shape
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

    Quantiles are the guide's own where its ``quantiles`` are exact; else those of the draws, of as many elements at a
    time as fit in ``max_bytes``, drawing again with the same seed for the others. Batches are summarised in turn.

    Args:
        result: a fit.
        data: positional arguments of model and guide, or one ``Minibatches`` or ``BatchStream`` of them.
        draws: how many; at least 2.
        quantiles: probabilities from 0 to 1.
        sites: latent, deterministic or observed sites; None for all latent ones.
        seed: the random seed.
        max_bytes: memory for held draws.
        kwargs: keyword arguments of model and guide.

    Returns:
        A dict of summaries by site, over all rows.

    Raises:
        ValueError: for quantiles out of range, and for sites as :func:`posterior_draws` with ``joint``.

    Example:
        >>> from pyro_zilognormal.svi import fit
        >>> import pyro
        >>> def model():
        ...     pyro.sample("m", pyro.distributions.Normal(0.0, 1.0))
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
            draw = partial(sampler.draw, batch, block, names=here, shared={})
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
    """Return mean, sd and quantiles of sites; quantiles of those ``held`` alone, from the same draws again."""
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
        dtype = first[name].dtype if first[name].is_floating_point() else torch.get_default_dtype()
        shaped = part.reshape(-1, *first[name].shape).to(first[name].device, dtype)
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


def _exact_quantiles(sampler: "Sampler", levels: list[float]) -> Values:
    """Return quantiles that the guide knows exactly, of shape (number of levels, ...), by site.

    For a simplex, and for a decreasing transform, ``guide.quantiles`` of Pyro is not the quantile.
    """
    guide: Any = unwrap(sampler.module.guide)
    if not levels or not isinstance(guide, AutoGuide):
        return {}
    batch = next(sampler.source.epoch(0, sampler.seed))
    try:
        with sampler.module.running(batch):
            found = guide.quantiles(levels, *batch.args, **batch.kwargs)
    except (NotImplementedError, AttributeError):  # an AutoGuide whose distribution has no known quantiles
        return {}
    return {k: v for k, v in found.items() if k in sampler.model and _is_exact(sampler, k, v)}


def _is_exact(sampler: "Sampler", name: str, quantiles: Tensor) -> bool:
    """Whether the site has this shape, and its transform acts element by element and increases."""
    shape, axis = list(sampler.model[name]["value"].shape), sampler.axes[name]
    if axis is not None:
        shape[axis] = sampler.source.rows
    transform = biject_to(sampler.model[name]["fn"].support)
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    try:
        increases = transform.domain.event_dim == 0 and bool(torch.as_tensor(transform.sign == 1).all())
    except NotImplementedError:  # not monotone
        return False
    return increases and list(quantiles.shape[1:]) == shape


def check_levels(quantiles: Sequence[float]) -> list[float]:
    """Return probabilities as a list of floats; raise a ValueError for one outside [0, 1]."""
    levels = [float(q) for q in quantiles]
    if not all(0.0 <= q <= 1.0 for q in levels):
        raise ValueError(f"quantiles is {levels}; needed probabilities from 0 to 1")
    return levels


class Sampler:
    """Draws guide and model with a fit's parameters, a batch of rows at a time.

    ``axes`` holds for each site the axis of its value that runs over rows, counted from the end; None if it is global.
    """

    def __init__(self, result: FitResult, data: tuple[Any, ...], kwargs: dict[str, Any], seed: int) -> None:
        self.result, self.module = result, result.module
        self.seed = whole("seed", seed, 0, 2**32 - 1)
        self.source = as_source(data, kwargs)
        if isinstance(self.source, Minibatches):
            self.source = copy.copy(self.source)
            self.source.shuffle = False  # so that joined batches are in the order of the data
        self.plate = self.source.plate or self.module.plate
        if self.plate != self.module.plate and self.source.batches > 1:
            raise ValueError(
                f"data are minibatches along plate {self.plate!r}, but the plate over rows of the fit is "
                f"{self.module.plate!r}; pass data as they were passed to fit"
            )
        if any(isinstance(part, AutoLaplaceApproximation) for part in self.module.modules()):
            raise ValueError(
                "the guide is an AutoLaplaceApproximation, which draws the mode alone; draw from "
                "guide.laplace_approximation(*data) inside result.scope()"
            )

    @contextmanager
    def opened(self) -> Iterator["Sampler"]:
        """Run a block with the fit's parameters in eval mode; put parameters, modes and seeds back after it."""
        # A guide with a parameter for every row has none for other rows.
        evaluating = self.module.evaluating(held_out=self.source.rows != self.module.rows)
        with isolated(self.seed), self.result.scope(), evaluating, torch.no_grad():
            batch = next(self.source.epoch(0, self.seed))
            guide, model = self._traces(batch, {}, (), with_model=True)
            self.guide = {n["name"]: n for n in sample_sites(guide) if not n["is_observed"]}
            self.model = {n["name"]: n for n in sample_sites(model)}
            nodes = {**self.guide, **self.model}
            self.axes = {k: row_axis(n, self.plate, batch.rows) for k, n in nodes.items()}
            yield self

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """Yield the batches that hold a value of the named sites: the first one alone where all are global."""
        local = any(self.axes[k] is not None for k in names)
        return islice(self.source.epoch(0, self.seed), None if local else int(bool(names)))

    def here(self, names: Sequence[str], block: int) -> list[str]:
        """Return the sites to read in a batch: global ones in the first alone."""
        return [k for k in names if block == 0 or self.axes[k] is not None]

    def draw(
        self, batch: Batch, block: int, draw: int, names: Sequence[str], shared: Values, redraw: Sequence[str] = ()
    ) -> Values:
        """Return a draw of all sites of the guide, and of the model's where ``names`` holds one.

        ``shared`` holds values of the guide's global sites; the observed sites in ``redraw`` are drawn.
        """
        pyro.set_rng_seed(int(np.random.SeedSequence([self.seed, draw, block]).generate_state(1)[0]))
        with_model = bool(redraw) or not all(k in self.guide for k in names)
        guide, model = self._traces(batch, shared, redraw, with_model)
        return {n["name"]: n["value"] for n in (*sample_sites(guide), *sample_sites(model))}

    def shared(self, values: Values) -> Values:
        """Return the values of the guide's global sites, auxiliary ones too, which all batches of a draw share."""
        return {k: values[k] for k in self.guide if self.axes[k] is None}

    def join(self, name: str, parts: Sequence[Tensor]) -> Tensor:
        """Join the batches of a site along its axis of rows."""
        axis = self.axes[name]
        return parts[0] if axis is None else torch.cat(list(parts), axis)

    def choose(self, sites: Sequence[str] | None, joint: bool = True) -> list[str]:
        """Return the sites to read, all latent ones if ``sites`` is None; raise a ValueError for one without draws."""
        batched = self.source.plate is not None and not joint
        known = [k for k, n in self.model.items() if not isinstance(n["fn"], dist.Unit)]
        names = known_sites(sites or [], known, "sites")
        if sites is None:
            names = [k for k, n in self.model.items() if k in self.guide and not n["is_observed"]]
            names = [k for k in names if not (batched and self.axes[k] is not None)]
        local = [k for k in names if self.axes[k] is not None]
        if batched and local:
            raise ValueError(f"sites holds {local[0]!r}, which has a value for every row; pass joint=True to hold it")
        sampler = getattr(getattr(self.source, "iterable", None), "sampler", None)
        if local and isinstance(sampler, torch.utils.data.RandomSampler):
            raise ValueError(
                f"sites {local} have a value for every row, but the stream shuffles its rows and does not number them; "
                "use Minibatches or a loader that does not shuffle, or name global sites in sites"
            )
        for name in names:
            self._check_in_guide(name)
        self.check_rows(names)
        return names

    def check_rows(self, names: list[str]) -> None:
        """Raise a ValueError for a site whose batches, or whose draws, cannot be put together row by row."""
        for name in names:
            node = {**self.guide, **self.model}[name]
            over_rows = data_frames(node, self.plate, self.source.rows)
            chance = [f.name for f in node["cond_indep_stack"] if f.size != f.full_size and f not in over_rows]
            if chance:
                raise ValueError(
                    f"site {name!r} is inside plate {chance[0]!r}, which draws other rows at random for each draw; "
                    f"fit with Minibatches(..., plate={chance[0]!r}), or name other sites in sites"
                )
        derived = [k for k in names if self.axes[k] is None and k not in self.guide]
        if not derived or self.source.batches == 1:
            return
        first, second = islice(self.source.epoch(0, self.seed), 2)
        here = self.draw(first, 0, 0, derived, {})
        there = self.draw(second, 1, 0, derived, self.shared(here))
        for name in derived:
            if here[name].shape != there[name].shape or not torch.allclose(here[name], there[name], equal_nan=True):
                raise ValueError(
                    f"site {name!r} differs between batches but is outside plate {self.plate!r}; put it inside that "
                    "plate, or pass all data at once"
                )

    def _traces(self, batch: Batch, shared: Values, redraw: Sequence[str], with_model: bool) -> tuple[Any, Any]:
        """Return the guide's trace and the model's, or an empty one without the model."""
        given, model = poutine.Trace(), poutine.Trace()
        for name, value in shared.items():
            given.add_node(name, name=name, type="sample", is_observed=False, value=value, infer={})
        with self.module.running(batch):
            guide = poutine.trace(poutine.replay(self.module.guide, given)).get_trace(*batch.args, **batch.kwargs)
            if with_model:
                replayed = _Redraw(redraw)(poutine.replay(self.module.model, guide))
                model = poutine.trace(replayed).get_trace(*batch.args, **batch.kwargs)
        return guide, model

    def _check_in_guide(self, name: str) -> None:
        """Raise a ValueError for a latent site that the guide lacks, and a deterministic one that may depend on it."""
        order, node = list(self.model), self.model[name]
        if holds_data(node):
            return
        earlier = order[: order.index(name)] if node["is_observed"] else [name]
        missing = [k for k in earlier if not self.model[k]["is_observed"] and k not in self.guide]
        if missing:
            raise ValueError(
                f"sites holds {name!r}, but {missing} of the model is not in the guide, so the fit has no posterior of "
                "it; draw it with pyro.infer.infer_discrete inside result.scope()"
            )


class _Redraw(UnconditionMessenger):
    """Draw observed sites of the given names from their distributions."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            super()._pyro_sample(msg)
