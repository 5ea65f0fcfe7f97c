"""The loss of a model and a guide as one nn.Module with parameters of its own."""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import unwrap
from torch import Tensor, nn

from pyro_zilognormal.svi.isolation import global_state_kept
from pyro_zilognormal.svi.losses import (
    CompiledCall,
    call_of,
    compiles,
    gradients_added,
    guesses_plates,
    own,
    runs_backward,
    scalar,
)
from pyro_zilognormal.svi.modules import evaluating, owner
from pyro_zilognormal.svi.parameters import OwnParameters
from pyro_zilognormal.svi.plates import DataPlate, LatentScale, NoRowParameters
from pyro_zilognormal.svi.sites import (
    Site,
    check_guide_plate,
    check_held_out,
    check_joint_guide,
    check_plate,
    sites_of,
)


class Objective(OwnParameters):
    """The loss of a model and a guide, as an nn.Module whose ``forward`` is the loss.

    Parameters made by ``pyro.param`` and ``pyro.module`` live in this object, not in Pyro's global store, and
    are read back with :meth:`trainable`. Parameters of modules stay in the modules and are trained in place,
    as in torch. Many are made when model and guide first run, so call :meth:`setup` before you build an
    optimiser. Any training loop can then drive it: it is what :func:`fit` drives.

    Args:
        model: a Pyro model: a function, a module, or a method of one.
        guide: its guide, with the same arguments.
        loss: a loss of ``pyro.infer``, such as ``Trace_ELBO()``, of which this object takes a copy without what
            it compiled or learnt from other models; or a function of (model, guide, *data) that returns a
            differentiable scalar.
        plate: the name of the plate over the rows of the data, if it is called with minibatches.
        rows: the number of rows in all; needed where ``plate`` is given, or :meth:`evaluate` called.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     m = pyro.sample("m", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("rows", len(x)):
        ...         pyro.sample("x", dist.Normal(m, 1.0), obs=x)
        >>> objective = Objective(model, pyro.infer.autoguide.AutoDelta(model), pyro.infer.Trace_ELBO())
        >>> _ = objective.setup(torch.zeros(3))
        >>> sorted(objective.trainable())
        ['AutoDelta.m']
        >>> objective(torch.zeros(3)).requires_grad
        True
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        loss: ELBO | Callable[..., Tensor],
        plate: str | None = None,
        rows: int = 0,
    ) -> None:
        super().__init__({"model": owner(model), "guide": owner(guide)})
        self.loss, self.rows = own(loss), rows
        self._first_call: CompiledCall | None = None
        self._data_plate = None if plate is None else DataPlate(plate, rows)
        self._latents = LatentScale()
        # Kept out of nn.Module's register: ``owners`` holds the modules already.
        self._callables = {"model": model, "guide": guide}
        self._handled = {k: self._handle(fn) for k, fn in self._callables.items()}
        self._row_plates: Callable[..., Any] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Objective":
        """Return an objective of its own model and guide: copies of the modules, with copies of the parameters."""
        self.check_copy()
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        kept = {k: v for k, v in vars(self).items() if k not in ("loss", "_handled", "_first_call")}
        vars(twin).update(copy.deepcopy(kept, memo))
        twin.loss, twin._first_call = own(self.loss), None
        twin._handled = {k: twin._handle(fn) for k, fn in twin._callables.items()}
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a fit cannot be pickled: it holds model and guide, which are code. Save result.params, or the objective's "
            "state_dict(), or fit with a Checkpoint and run the same call again to open it"
        )

    @property
    def kl_weight(self) -> float:
        """What the log densities of latent sites are multiplied by in the loss; 1 unless you set it."""
        return self._latents.weight

    @kl_weight.setter
    def kl_weight(self, weight: float) -> None:
        self._latents.weight = float(weight)

    def setup(self, *args: Any, indices: Tensor | None = None) -> list[Site]:
        """Run guide and model once, so that every parameter exists; return their sites.

        Args:
            args: the arguments of model and guide.
            indices: which rows these are.

        Raises:
            ValueError: if there is nothing to train, the plate over rows is not in the model, or the guide has
                outside it what the model has inside.
        """
        with self.running(args, indices):
            # The model goes first by itself: an AutoGuide needs its plate, and its errors read best so.
            prior = poutine.trace(self._handled["model"]).get_trace(*args)
            check_plate(prior, self._data_plate)
            self._offer_plate(prior)
            with torch.no_grad():  # an AutoGuide keeps what it sees now; a graph in it could not be copied
                guide_trace = poutine.trace(self._handled["guide"]).get_trace(*args)
            check_joint_guide(self._callables["guide"], self._data_plate)
            model_trace = poutine.trace(poutine.replay(self._handled["model"], trace=guide_trace)).get_trace(*args)
            check_guide_plate(guide_trace, model_trace, self._data_plate)
        if not self.trainable():
            raise ValueError(
                "model and guide have no parameters; needed a pyro.param, PyroParam or nn.Parameter in them"
            )
        return sites_of(guide_trace, "guide") + sites_of(model_trace, "model", prior)

    def forward(self, *args: Any, indices: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar whose gradient estimates that of minus the ELBO.

        Args:
            args: the arguments of model and guide.
            indices: which rows of all data these are, of shape (rows of the batch,).
        """
        self._prepare(args, indices)
        return self._value(args, indices)

    def backward(self, *args: Any, indices: Tensor | None = None, weight: float = 1.0) -> Tensor:
        """Add ``weight`` times the gradient to the parameters' ``.grad``; return the loss."""
        self._prepare(args, indices)
        if runs_backward(self.loss):
            return self._backward_inside(args, indices, weight)
        loss = self._value(args, indices)
        (scalar(loss) if weight == 1.0 else loss * weight).backward()
        return loss.detach()

    @torch.no_grad()
    def evaluate(self, *args: Any, indices: Tensor | None = None) -> float:
        """Return the loss on held-out rows, in eval mode, with a KL weight of 1 and no graph."""
        function = getattr(self.loss, "loss", self.loss)
        with evaluating(self), self._held_out(), self.running(args, indices):
            return float(function(self._handled["model"], self._handled["guide"], *args))

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

    @property
    def plate(self) -> str | None:
        """The name of the plate over rows, or None where none is known."""
        return None if self._data_plate is None else self._data_plate.name

    def use_plate(self, name: str | None) -> None:
        """Name the plate over rows, if none was named before, so that data can be read in minibatches."""
        if name is not None and self._data_plate is None:
            self._data_plate = DataPlate(name, self.rows)

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
        def handled(*args: Any, **kwargs: Any) -> Any:
            if self._data_plate is None and self._latents.weight == 1.0:
                return fn(*args, **kwargs)
            with ExitStack() as stack:
                if self._data_plate is not None:
                    stack.enter_context(self._data_plate)
                if self._latents.weight != 1.0:
                    stack.enter_context(self._latents)
                return fn(*args, **kwargs)

        return handled

    def _value(self, args: tuple[Any, ...], indices: Tensor | None) -> Tensor:
        with self.running(args, indices):
            function = getattr(self.loss, "differentiable_loss", self.loss)
            return function(self._handled["model"], self._handled["guide"], *args)

    def _backward_inside(self, args: tuple[Any, ...], indices: Tensor | None, weight: float) -> Tensor:
        """Do as :meth:`backward` for TraceGraph_ELBO and RenyiELBO, which run backward themselves."""
        elbo: Any = self.loss
        with self.running(args, indices), gradients_added(self.trainable, weight):
            return scalar(elbo.loss_and_grads(self._handled["model"], self._handled["guide"], *args))

    def _prepare(self, args: tuple[Any, ...], indices: Tensor | None) -> None:
        """Let a loss learn from its first call, or compile it, where the draws do not count for the run."""
        if self._first_call is not None:
            if compiles(self.loss):
                self._first_call.check(call_of(args, indices, self.kl_weight))
        elif compiles(self.loss) or guesses_plates(self.loss):
            with global_state_kept(), gradients_added(self.trainable, 0.0):
                self._backward_inside(args, indices, 1.0) if runs_backward(self.loss) else self._value(args, indices)
            self._first_call = call_of(args, indices, self.kl_weight)

    def _offer_plate(self, trace: Any) -> None:
        """Give an AutoGuide a plate over rows that follows the size of the batch, unless it makes its own."""
        guide, plate = unwrap(self._callables["guide"]), self._data_plate
        if plate is None or not isinstance(guide, AutoGuide):
            return
        if getattr(guide.create_plates, "func", None) is not _row_plate and guide.create_plates is not None:
            return
        frames = [f for s in trace.nodes.values() for f in s.get("cond_indep_stack", ()) if f.name == plate.name]
        if frames and frames[0].full_size == plate.rows:
            self._row_plates = guide.create_plates = functools.partial(_row_plate, plate, frames[0].dim)

    @contextmanager
    def _held_out(self) -> Iterator[None]:
        weight, self._latents.weight = self._latents.weight, 1.0
        try:
            check_held_out(self._callables["guide"], self.rows)
            with NoRowParameters(self.rows):
                yield
        finally:
            self._latents.weight = weight


def _row_plate(plate: DataPlate, dim: int, *args: Any, **kwargs: Any) -> Any:
    return pyro.plate(plate.name, plate.rows, dim=dim, subsample_size=plate.batch_rows)


def _rows(args: tuple[Any, ...]) -> int:
    return next((len(a) for a in args if isinstance(a, Tensor) and a.dim() > 0), 1)
