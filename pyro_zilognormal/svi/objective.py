"""The loss of a model and a guide as one nn.Module with parameters of its own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_zilognormal.svi.checks import check_plate_name, check_whole
from pyro_zilognormal.svi.copying import deep_copies
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
from pyro_zilognormal.svi.modules import evaluating
from pyro_zilognormal.svi.plates import NoRowParameters
from pyro_zilognormal.svi.program import Program
from pyro_zilognormal.svi.sites import check_held_out


class Objective(Program):
    """The loss of a model and a guide, as an nn.Module whose ``forward`` is the loss.

    Parameters made by ``pyro.param`` and ``pyro.module`` live in this object, not in Pyro's global store, and
    are read back with :meth:`trainable`. Parameters of modules stay in the modules and are trained in place,
    as in torch. Many are made when model and guide first run, so call :meth:`setup` before you build an
    optimiser. Any training loop can then drive it: it is what :func:`fit` drives.

    Args:
        model: a Pyro model: a function, a module, or a method of one.
        guide: its guide, with the same arguments.
        loss: a loss of ``pyro.infer``, such as ``Trace_ELBO()``, of which this object takes a copy without what
            it compiled or learnt from other models; or a function of ``(model, guide, *data)`` that returns a
            differentiable scalar.
        plate: the name of the plate over the rows of the data, if it is called with minibatches.
        rows: the number of rows in all; needed where ``plate`` is given, or :meth:`evaluate` called.

    Raises:
        TypeError: for a plate that is not a name.
        ValueError: for a plate without the number of rows, by which its sites are scaled.

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
        check_plate_name(plate)
        if plate is not None:
            check_whole("rows", rows, 1)
        super().__init__(model, guide, plate, rows)
        self.loss = own(loss)
        self._first_call: CompiledCall | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Objective":
        """Return an objective of its own model and guide: copies of the modules, with copies of the parameters."""
        self.check_copy()
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        kept = {k: v for k, v in vars(self).items() if k not in ("loss", "_handled", "_first_call")}
        vars(twin).update(deep_copies(kept, self.owners, memo))
        twin.loss, twin._first_call = own(self.loss), None
        twin._handled = {k: twin._handle(fn) for k, fn in twin._callables.items()}
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a fit cannot be pickled: it holds model and guide, which are code. Save result.params, or the objective's "
            "state_dict(), or fit with a Checkpoint and run the same call again to open it"
        )

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

    @contextmanager
    def _held_out(self) -> Iterator[None]:
        weight, self._latents.weight = self._latents.weight, 1.0
        try:
            check_held_out(self._callables["guide"], self.rows)
            with NoRowParameters(self.rows):
                yield
        finally:
            self._latents.weight = weight
