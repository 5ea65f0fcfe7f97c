"""Runs of guide and model with a fit's parameters, a batch of rows at a time."""

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoLaplaceApproximation
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor

from pyro_zilognormal.svi.checks import whole
from pyro_zilognormal.svi.data import Batch, Minibatches, as_source
from pyro_zilognormal.svi.diagnose import data_frames, sample_sites
from pyro_zilognormal.svi.fit import FitResult
from pyro_zilognormal.svi.isolation import isolated

Values = dict[str, Tensor]


class Sampler:
    """Draws guide and model with a fit's parameters, a batch of rows at a time.

    Attributes:
        guide: the sample sites of the guide.
        model: those of the model.
        axes: by site, the axis of its value that runs over rows, counted from the end; None for a global site.
    """

    def __init__(self, result: FitResult, data: tuple[Any, ...], kwargs: dict[str, Any], seed: int) -> None:
        self.result, self.module = result, result.module
        self.seed = whole("seed", seed, 0, 2**32 - 1)
        ordered = tuple(_in_order(d) if isinstance(d, Minibatches) else d for d in data)
        self.source = as_source(ordered, kwargs)
        self.plate = self.source.plate or self.module.plate
        if self.plate != self.module.plate and self.source.batches > 1:
            raise ValueError(
                f"data are minibatches along plate {self.plate!r}, but the plate over rows of the fit is "
                f"{self.module.plate!r}; pass data as they were passed to fit"
            )
        if any(isinstance(part, AutoLaplaceApproximation) for part in self.module.modules()):
            raise ValueError(
                "the guide is an AutoLaplaceApproximation, which draws nothing but the mode; inside result.scope(), "
                "draw from guide.laplace_approximation(*data) instead"
            )

    @contextmanager
    def opened(self) -> Iterator["Sampler"]:
        """Run a block with the fit's parameters in eval mode; put parameters, modes and seeds back after it."""
        with isolated(self.seed), self.result.scope(), _evaluating(self.module), torch.no_grad():
            # A guide with a parameter for every row has none for other rows.
            self.module.held_out = self.source.rows != self.module.rows
            try:
                batch = next(self.source.epoch(0, self.seed))
                guide, model = self._traces(batch, {}, (), with_model=True)
                self.guide = {n["name"]: n for n in sample_sites(guide) if not n["is_observed"]}
                self.model = {n["name"]: n for n in sample_sites(model)}
                nodes = {**self.guide, **self.model}
                self.axes = {k: _row_axis(n, self.plate, batch.rows) for k, n in nodes.items()}
                yield self
            finally:
                self.module.held_out = False

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """Yield the batches that hold a value of the named sites: the first one alone where all are global."""
        local = any(self.axes[k] is not None for k in names)
        return islice(self.source.epoch(0, self.seed), None if local else int(bool(names)))

    def here(self, names: Sequence[str], block: int) -> list[str]:
        """Return the sites to read in a batch: global ones in the first alone."""
        return [k for k in names if block == 0 or self.axes[k] is not None]

    def draw(
        self,
        batch: Batch,
        block: int,
        draw: int,
        names: Sequence[str],
        shared: Values | None = None,
        redraw: Sequence[str] = (),
    ) -> Values:
        """Return the values of all sites of the guide, and of those of the model where ``names`` holds one.

        Args:
            batch: the rows.
            block: number of the batch.
            draw: number of the draw; the same number gives the same values.
            names: the sites wanted.
            shared: values of the guide's global sites; None to draw them.
            redraw: observed sites to draw from their distributions.
        """
        _seed_all(int(np.random.SeedSequence([self.seed, draw, block]).generate_state(1)[0]))
        with_model = bool(redraw) or not all(k in self.guide for k in names)
        guide, model = self._traces(batch, shared or {}, redraw, with_model)
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
        if sites is None:
            names = [k for k, n in self.model.items() if k in self.guide and not n["is_observed"]]
            names = [k for k in names if not (batched and self.axes[k] is not None)]
        else:
            known = [k for k, n in self.model.items() if not isinstance(n["fn"], dist.Unit)]
            names = check_sites(sites, known, "sites")
        for name in names:
            self._check_in_guide(name)
            if batched and self.axes[name] is not None:
                raise ValueError(f"sites holds {name!r}, which has a value for every row; pass joint=True to hold it")
        self.check_rows(names)
        self._check_order([k for k in names if self.axes[k] is not None])
        return names

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
        order = list(self.model)
        node = self.model[name]
        if holds_data(node):
            return
        earlier = order[: order.index(name)] if node["is_observed"] else [name]
        missing = [k for k in earlier if not self.model[k]["is_observed"] and k not in self.guide]
        if missing:
            raise ValueError(
                f"sites holds {name!r}, but {missing} of the model is not in the guide, so the fit has no posterior of "
                "it; draw it with pyro.infer.infer_discrete inside result.scope()"
            )

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
        self._check_shared([k for k in names if self.axes[k] is None and k not in self.guide])

    def _check_order(self, local: list[str]) -> None:
        first = next(self.source.epoch(0, self.seed))
        if local and first.indices is None and len({self.source.digest(seed) for seed in range(3)}) > 1:
            raise ValueError(
                f"sites {local} have a value for every row, but the stream shuffles its rows and does not number them; "
                "use Minibatches or a loader that does not shuffle, or name global sites in sites"
            )

    def _check_shared(self, derived: list[str]) -> None:
        """Raise a ValueError for a deterministic site outside the plate over rows that differs between batches."""
        if not derived or self.source.batches == 1:
            return
        first, second = islice(self.source.epoch(0, self.seed), 2)
        here = self.draw(first, 0, 0, derived)
        there = self.draw(second, 1, 0, derived, self.shared(here))
        for name in derived:
            if here[name].shape != there[name].shape or not torch.allclose(here[name], there[name], equal_nan=True):
                raise ValueError(
                    f"site {name!r} differs between batches but is outside plate {self.plate!r}; put it inside that "
                    "plate, or pass all data at once"
                )


class _Redraw(UnconditionMessenger):
    """Draw observed sites of the given names from their distributions."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            super()._pyro_sample(msg)


def _row_axis(node: Any, plate: str | None, rows: int) -> int | None:
    """Return the axis of a site's value that runs over rows, counted from the end, or None."""
    frames, value, event = data_frames(node, plate, rows), node["value"], node["fn"].event_dim
    if len(frames) != 1:
        return None
    if node["infer"].get("_deterministic") and event == value.dim():
        # Pyro's default takes all axes of a deterministic value for event axes, inside plates too.
        event -= max(-f.dim for f in node["cond_indep_stack"] if f.vectorized)
    axis = frames[0].dim - event
    return axis if -value.dim() <= axis < 0 and value.shape[axis] == rows else None


def holds_data(node: Any) -> bool:
    """Whether a site is observed, and neither deterministic nor a ``pyro.factor``."""
    return node["is_observed"] and not node["infer"].get("_deterministic") and not isinstance(node["fn"], dist.Unit)


def check_sites(sites: Sequence[str], known: list[str], what: str) -> list[str]:
    """Return the named sites as a list; raise an error for text, or a name that is not known."""
    if isinstance(sites, str):
        raise TypeError(f"sites is the text {sites!r}; needed a list of names, [{sites!r}]")
    for name in sites:
        if name not in known:
            raise ValueError(f"sites holds {name!r}; the model's {what} are {known}")
    return list(sites)


def _seed_all(seed: int) -> None:
    """Seed all generators as ``pyro.set_rng_seed`` does, but without torch's record of each call for a later CUDA."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the one that models draw from


def _in_order(data: Minibatches) -> Minibatches:
    """Return the same minibatches with their rows in the order of the data."""
    ordered = copy.copy(data)
    ordered.shuffle = False
    return ordered


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Run a block with a module and all its parts in eval mode."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
