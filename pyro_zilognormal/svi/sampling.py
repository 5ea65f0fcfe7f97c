"""Runs of guide and model with a fit's parameters, a block of rows at a time."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoLaplaceApproximation
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_zilognormal.svi.batch import Batch
from pyro_zilognormal.svi.checks import check_whole
from pyro_zilognormal.svi.data import as_source, count_rows
from pyro_zilognormal.svi.isolation import global_state_kept, handlers_hidden
from pyro_zilognormal.svi.minibatches import Minibatches
from pyro_zilognormal.svi.modules import evaluating
from pyro_zilognormal.svi.outside import rows_outside
from pyro_zilognormal.svi.plates import NoRowParameters
from pyro_zilognormal.svi.result import FitResult
from pyro_zilognormal.svi.rng import seed_all
from pyro_zilognormal.svi.rowaxes import RowAxes, row_axes
from pyro_zilognormal.svi.sites import check_held_out, is_sample
from pyro_zilognormal.svi.stream import BatchStream, generators_kept


class Fixed(Messenger):
    """Give sample sites the values they had in another run."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True


class Unobserved(Messenger):
    """Draw anew what the model observes at the given sites."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names and msg["is_observed"]:
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


@dataclass(frozen=True)
class Layout:
    """Where the rows of a site are.

    Args:
        shape: the shape of its value in the first block.
        axis: the axis that runs over rows, counted from the end, or None for a global site.
        subsampled: the plate around it that draws its own rows at random, or None.
    """

    shape: tuple[int, ...]
    axis: int | None
    subsampled: str | None = None


class Sampler:
    """Draws from a fit, block after block of rows, with the same global draw for all blocks of a draw.

    Args:
        result: the fit.
        data: like the fit's.
        seed: of the draws.
    """

    def __init__(self, result: FitResult, data: tuple[Any, ...], seed: int) -> None:
        self.result, self.seed = result, seed
        self.source, self.objective = as_source(data), result.objective
        self.model: Any = None
        _check_spread(self.objective.owner("guide"))
        with global_state_kept(), handlers_hidden(), generators_kept(self.source), result.scope():
            self.objective.check_plate_name(self.source.plate, *next(self.batches()).args)
            with self.objective.plate_named(self.source.plate):
                count_rows(self.source, self.objective)
        if self.source.rows != self.objective.rows:
            check_held_out(self.objective.callable("guide"), self.objective.rows)
        with self.opened():
            first = next(self.batches())
            self.objective.setup(*first.args, indices=first.indices)
            guide, model = self.traces(first, 0, 0, {})
            where = row_axes(self.objective, first.args, first.rows)
            nodes = {**guide.nodes, **{k: n for k, n in model.nodes.items() if is_sample(n)}}
            self.layouts = {k: self._layout(n, first, where) for k, n in nodes.items() if is_sample(n)}
        self.guide_sites = [k for k, n in guide.nodes.items() if is_sample(n)]
        latent = [k for k, n in model.nodes.items() if is_sample(n) and not n["is_observed"]]
        self.latent = [k for k in latent if k in guide.nodes]
        # What the guide draws to compute others from: it is kept with these from block to block, and never shown.
        self.auxiliary = [k for k in self.guide_sites if k not in model.nodes]
        # What the loss summed out has no law in the guide: the model would draw it from its prior.
        self.absent = [k for k in latent if k not in guide.nodes]
        self.observed = [k for k, n in model.nodes.items() if is_sample(n) and _holds_data(n)]
        self.derived = [k for k, n in model.nodes.items() if n.get("infer", {}).get("_deterministic")]
        self.model = model

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Use the fit's parameters, in eval mode, with the process's state put back at the end."""
        # Rows that the fit did not have must not be given the parameters of those it had.
        same_rows = self.source.rows == self.objective.rows
        guard = nullcontext() if same_rows else NoRowParameters(self.objective.rows)
        plate = self.objective.plate_named(self.source.plate, self.model)
        kept = global_state_kept(), generators_kept(self.source), handlers_hidden()
        with kept[0], kept[1], kept[2], torch.no_grad(), self.result.scope(), evaluating(self.objective), plate, guard:
            yield

    def batches(self) -> Iterator[Batch]:
        """Yield the blocks, rows in order."""
        if not isinstance(self.source, Minibatches):
            yield from self.source.epoch(0, 0)
            return
        for indices in torch.arange(self.source.rows).split(self.source.batch_size):
            yield self.source.batch(indices)

    def check_rows(self, names: list[str]) -> None:
        """Raise a ValueError for a site of which each draw, or each block, would be of other rows."""
        self._check_blocks([k for k in names if k in self.derived and self.layouts[k].axis is None])
        for name in names:
            if (plate := self.layouts[name].subsampled) is not None:
                raise ValueError(
                    f"site {name!r} is inside plate {plate!r}, which draws its rows at random, others for each draw; "
                    f"pass Minibatches(..., plate={plate!r}) of all rows, with subsample_size=len(x) in the plate, or "
                    "name other sites in sites"
                )

    def _check_blocks(self, names: list[str]) -> None:
        """Raise a ValueError for a site that has a value for every row and no plate that says so."""
        if not names or self.source.batches == 1:
            return
        with self.opened():
            first = next(self.batches())
            nodes = {k: ("model", self.model.nodes[k]) for k in names}
            for name in rows_outside(self.objective, nodes, first.args, first.indices):
                raise ValueError(
                    f"site {name!r} has a value for every row, but is outside the plate over rows, so that the batches "
                    "cannot be put together; put it inside that plate, or pass all data at once"
                )

    def check_order(self, names: list[str]) -> None:
        """Raise a ValueError if rows of the named sites would be put together in an order that changes."""
        local = [k for k in names if self.layouts[k].axis is not None]
        if local and isinstance(self.source, BatchStream) and self.source.shuffles():
            raise ValueError(
                f"sites {local} have a value for every row, but the stream gave its rows in another order when read "
                "again, so that nothing says which row is which; use Minibatches or a loader that does not shuffle, "
                "or name the global sites alone in sites"
            )

    def traces(self, batch: Batch, draw: int, block: int, fixed: dict[str, Tensor], renew: tuple[str, ...] = ()) -> Any:
        """Return the guide's trace and the model's for one draw of one block.

        Args:
            batch: the block.
            draw: number of the draw.
            block: number of the block.
            fixed: values of the guide's global sites, or {} to draw them.
            renew: observed sites to draw anew.
        """
        self._seed(draw, block)
        with self.objective.running(batch.args, batch.indices):
            with Fixed(fixed):
                guide = self.objective.guide_trace(*batch.args)
            with poutine.trace() as model, poutine.replay(trace=guide), Unobserved(list(renew)):
                self.objective.handled("model")(*batch.args)
        return guide, model.trace

    def guide_trace(self, batch: Batch, draw: int, block: int, fixed: dict[str, Tensor]) -> Any:
        """Return the guide's trace alone, as :meth:`traces` does."""
        self._seed(draw, block)
        with self.objective.running(batch.args, batch.indices), Fixed(fixed):
            return self.objective.guide_trace(*batch.args)

    def globals_of(self, guide: Any) -> dict[str, Tensor]:
        """Return the values of the guide's sites that all blocks share."""
        return {k: guide.nodes[k]["value"] for k in self.guide_sites if self.layouts[k].axis is None}

    def _seed(self, draw: int, block: int) -> None:
        digest = hashlib.sha256(f"{self.seed}/{draw}/{block}".encode()).digest()
        seed_all(int.from_bytes(digest[:8], "big") >> 1)

    def _layout(self, node: Any, batch: Batch, where: RowAxes) -> Layout:
        value, event = node["value"], node["fn"].event_dim
        frame = where.frame(node, batch.rows)
        axis = where.axes.get(node["name"]) if frame is None else frame.dim - event
        local = axis is not None and value.dim() >= -axis
        random = (f.name for f in node["cond_indep_stack"] if f is not frame and f.size != f.full_size)
        return Layout(tuple(value.shape), axis if local else None, next(random, None))


def _check_spread(guide: Any) -> None:
    """Raise a ValueError for a guide that draws nothing but its mode, though it stands for a Gaussian."""
    if guide is not None and any(isinstance(part, AutoLaplaceApproximation) for part in guide.modules()):
        raise ValueError(
            "the guide is an AutoLaplaceApproximation, which by itself draws nothing but the mode; inside "
            "result.scope(), take gaussian = guide.laplace_approximation(*data) and draw from gaussian"
        )


def check_draws(draws: Any, least: int = 1) -> None:
    """Raise a ValueError unless ``draws`` is a whole number of at least ``least``."""
    check_whole("draws", draws, least)


def _holds_data(node: Any) -> bool:
    return bool(node["is_observed"]) and not node["infer"].get("_deterministic") and type(node["fn"]).__name__ != "Unit"
