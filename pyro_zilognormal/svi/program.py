"""A model and its guide, run with parameters of their own and the plate over rows seen to."""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger, unwrap
from torch import Tensor, nn

from pyro_zilognormal.svi.autoplates import offer_plate
from pyro_zilognormal.svi.isolation import global_state_kept
from pyro_zilognormal.svi.modules import evaluating, owner
from pyro_zilognormal.svi.outside import check_outside, nodes_of
from pyro_zilognormal.svi.parameters import OwnParameters
from pyro_zilognormal.svi.plates import DataPlate, GivenRows, LatentScale, check_given_rows
from pyro_zilognormal.svi.sites import Site, check_guide_plate, check_joint_guide, check_plate, rows_of, sites_of


class Program(OwnParameters):
    """A model and its guide, as an nn.Module with their parameters.

    Args:
        model: a Pyro model: a function, a module, or a method of one.
        guide: its guide, with the same arguments.
        plate: the name of the plate over the rows of the data, if it is called with minibatches.
        rows: the number of rows in all.
    """

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any], plate: str | None, rows: int) -> None:
        super().__init__({"model": owner(model), "guide": owner(guide)})
        self.rows = rows
        self._data_plate = None if plate is None else DataPlate(plate, rows)
        self._latents = LatentScale()
        # Kept out of nn.Module's register: ``owners`` holds the modules already.
        self._callables = {"model": model, "guide": guide}
        self._handled = {k: self._handle(fn) for k, fn in self._callables.items()}
        self._row_plates: Callable[..., Any] | None = None

    @property
    def kl_weight(self) -> float:
        """What the log densities of latent sites are multiplied by in the loss; 1 unless you set it."""
        return self._latents.weight

    @kl_weight.setter
    def kl_weight(self, weight: float) -> None:
        if not (isinstance(weight, int | float) and 0 <= weight < math.inf):
            raise ValueError(f"kl_weight is {weight!r}; needed a finite number of at least 0")
        self._latents.weight = float(weight)

    def setup(self, *args: Any, indices: Tensor | None = None) -> list[Site]:
        """Run guide and model once, so that every parameter exists; return their sites.

        Args:
            args: the arguments of model and guide.
            indices: which rows these are.

        Raises:
            ValueError: if there is nothing to train, the plate over rows is not in the model, the guide has
                outside it what the model has inside, or either has values of rows outside it.
        """
        with self.running(args, indices):
            # The model goes first by itself: an AutoGuide needs its plate, and its errors read best so.
            with GivenRows() as given:
                prior = poutine.trace(self._handled["model"]).get_trace(*args)
            check_plate(prior, self.plate)
            self._row_plates = offer_plate(self._callables["guide"], self._data_plate, prior) or self._row_plates
            with torch.no_grad():  # an AutoGuide keeps what it sees now; a graph in it could not be copied
                guide_trace = self.guide_trace(*args)
            check_joint_guide(self._callables["guide"], self._data_plate)
            check_given_rows(guide_trace, given.rows)
            model_trace = poutine.trace(poutine.replay(self._handled["model"], trace=guide_trace)).get_trace(*args)
            check_guide_plate(guide_trace, model_trace, self._data_plate)
        check_outside(self, nodes_of(guide_trace, model_trace), args, indices)
        if not self.trainable():
            raise ValueError(
                "model and guide have no parameters; needed a pyro.param, PyroParam or nn.Parameter in them"
            )
        return sites_of(guide_trace, "guide") + sites_of(model_trace, "model", prior)

    @contextmanager
    def running(self, args: tuple[Any, ...], indices: Tensor | None = None) -> Iterator[None]:
        """Let model and guide run by themselves with the parameters of this object.

        Args:
            args: the arguments they will have.
            indices: which rows these are.
        """
        plate = self._data_plate
        with self.space.active():
            if plate is None:
                yield
                return
            if self._row_plates is not None:  # another fit of the same guide may have offered its own
                unwrap(self._callables["guide"]).create_plates = self._row_plates
            plate.batch_rows, plate.indices = _rows(args), indices
            try:
                yield
            finally:
                plate.batch_rows, plate.indices = plate.rows, None

    def guide_trace(self, *args: Any) -> Any:
        """Return the guide's trace, of its own sites alone; call it while :meth:`running`."""
        trace = poutine.trace(self._handled["guide"]).get_trace(*args)
        if isinstance(unwrap(self._callables["guide"]), Messenger):  # such a guide runs the model, and its data too
            for name in [k for k, n in trace.nodes.items() if n["type"] == "sample" and n["is_observed"]]:
                trace.remove_node(name)
        return trace

    def traces(self, *args: Any) -> tuple[Any, Any]:
        """Return the guide's trace and the model's with its values; call it while :meth:`running`."""
        guide = self.guide_trace(*args)
        return guide, poutine.trace(poutine.replay(self._handled["model"], trace=guide)).get_trace(*args)

    @property
    def data_plate(self) -> DataPlate | None:
        """The handler of the plate over rows, or None where none is known."""
        return self._data_plate

    @property
    def plate(self) -> str | None:
        """The name of the plate over rows, or None where none is known."""
        return None if self._data_plate is None else self._data_plate.name

    def check_plate_name(self, name: str | None, *args: Any) -> None:
        """Raise a ValueError if ``name`` is neither None nor the plate over rows, nor could become it.

        Args:
            name: of the plate, or None.
            args: of the model, to see whether it has that plate.
        """
        if name not in (None, self.plate):
            if self.plate is not None:
                raise ValueError(f"plate is {name!r}, but that of the fit is {self.plate!r}; name the same one")
            check_plate(self.looked_at(args), name)

    def use_plate(self, name: str | None, *args: Any) -> None:
        """Name the plate over rows, after :meth:`check_plate_name`, if none was named before."""
        self.check_plate_name(name, *args)
        if name is not None and self._data_plate is None:
            self._data_plate = DataPlate(name, self.rows)

    @contextmanager
    def plate_named(self, name: str | None, trace: Any = None) -> Iterator[None]:
        """Let the plate over rows have a name for the length of a block, if it has none.

        Args:
            name: of the plate, or None; :meth:`check_plate_name` checks it.
            trace: the model's, to let an AutoGuide have that plate; None to leave that to :meth:`setup`.
        """
        guide = unwrap(self._callables["guide"])
        before, made = (self._data_plate, self._row_plates), getattr(guide, "create_plates", None)
        if self._data_plate is None and name is not None:
            self._data_plate = DataPlate(name, self.rows)
        try:
            if trace is not None:
                self._row_plates = offer_plate(guide, self._data_plate, trace) or self._row_plates
            yield
        finally:
            if self._data_plate is not before[0]:
                self._data_plate, self._row_plates = before
                if isinstance(guide, AutoGuide):
                    guide.create_plates = made

    def count_rows(self, *args: Any) -> int:
        """Return how many rows data have that come all at once, by the plates of the model."""
        return rows_of(self.looked_at(args), args, self.plate)

    def handled(self, which: str) -> Callable[..., Any]:
        """Return "model" or "guide" with the plate over rows seen to; call it while :meth:`running`."""
        return self._handled[which]

    def owner(self, which: str) -> nn.Module | None:
        """Return the module that "model" or "guide" is or is a method of; None for a function."""
        return self.owners[which] if which in self.owners else None  # noqa: SIM401 - a ModuleDict has no get

    def callable(self, which: str) -> Callable[..., Any]:
        """Return "model" or "guide" as it came."""
        return self._callables[which]

    def _handle(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        # Pyro's ``unwrap`` takes the second argument of a partial for what is handled, so that its losses see a guide
        # that runs the model itself, a GuideMessenger, for what it is.
        return functools.partial(_call, self, fn)

    @torch.no_grad()
    def looked_at(self, args: tuple[Any, ...]) -> Any:
        """Return a trace of the model that leaves nothing behind."""
        with global_state_kept(), evaluating(self), self.buffers_apart(), self.running(args):
            return poutine.trace(self._handled["model"]).get_trace(*args)


def _call(program: Program, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    plate, latents = program._data_plate, program._latents
    if plate is None and latents.weight == 1.0:
        return fn(*args, **kwargs)
    with ExitStack() as stack:
        if plate is not None:
            stack.enter_context(plate)
        if latents.weight != 1.0:
            stack.enter_context(latents)
        return fn(*args, **kwargs)


def _rows(args: tuple[Any, ...]) -> int:
    return next((len(a) for a in args if isinstance(a, Tensor) and a.dim() > 0), 1)
