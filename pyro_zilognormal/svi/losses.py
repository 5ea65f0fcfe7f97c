"""The losses of ``pyro.infer``, as one objective's own."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from pyro.infer import (
    ELBO,
    EnergyDistance,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    TraceEnum_ELBO,
    TraceTMC_ELBO,
)
from torch import Tensor, nn

# Where the Jit losses of Pyro keep what they compiled.
_COMPILED = ("_loss_and_surrogate_loss", "_differentiable_loss", "_jit_loss_and_surrogate_loss")


def own(loss: Any) -> Any:
    """Return a copy of an ELBO that has compiled nothing: a Jit loss trains the first model that it saw."""
    if not isinstance(loss, ELBO | EnergyDistance):
        return loss
    loss = copy.copy(loss)
    for name in _COMPILED:
        loss.__dict__.pop(name, None)
    return loss


def compiles(loss: Any) -> bool:
    """Whether a loss turns its first call into code, as the Jit losses of Pyro do."""
    return isinstance(loss, JitTrace_ELBO | JitTraceEnum_ELBO | JitTraceGraph_ELBO | JitTraceMeanField_ELBO)


def guesses_plates(loss: Any) -> bool:
    """Whether a loss runs model and guide an additional time at its first call, to count nested plates."""
    unknown = getattr(loss, "max_plate_nesting", 0) == math.inf
    vectorized = getattr(loss, "vectorize_particles", False)
    return unknown and (vectorized or isinstance(loss, TraceEnum_ELBO | TraceTMC_ELBO | EnergyDistance))


def runs_backward(loss: Any) -> bool:
    """Whether a loss knows no differentiable value and runs backward itself: TraceGraph_ELBO and RenyiELBO."""
    return isinstance(loss, ELBO) and not hasattr(loss, "differentiable_loss")


def scalar(loss: Any) -> Tensor:
    """Return a loss as a tensor; raise a TypeError for one of several parts."""
    if isinstance(loss, tuple):
        raise TypeError("loss has several parts, as ReweightedWakeSleep's has; needed a loss that is one number")
    return torch.as_tensor(loss)


@contextmanager
def gradients_added(parameters: Callable[[], dict[str, nn.Parameter]], weight: float) -> Iterator[None]:
    """Add ``weight`` times the gradients of a block to those of before; nothing of them at 0, nor of NaN.

    Args:
        parameters: returns the parameters by name, those that the block makes too.
        weight: the factor.
    """
    earlier = {p: p.grad for p in parameters().values()}
    for parameter in earlier:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter in parameters().values():
            before = earlier.get(parameter)
            if weight == 0.0 or parameter.grad is None:
                parameter.grad = before
            else:
                parameter.grad.mul_(weight).add_(0 if before is None else before)


@dataclass(frozen=True)
class CompiledCall:
    """What a Jit loss has made constants of, so that another call would silently get the loss of the first.

    Args:
        shapes: shape, dtype and device of every argument.
        rows: which rows of all data these are, or None.
        kl_weight: the weight of the latent sites.
    """

    shapes: tuple[Any, ...]
    rows: Tensor | None
    kl_weight: float

    def check(self, other: "CompiledCall") -> None:
        """Raise a ValueError if another call needs other constants."""
        for item in fields(self):
            ours, theirs = getattr(self, item.name), getattr(other, item.name)
            if not (torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours is theirs or ours == theirs):
                raise ValueError(
                    f"loss is compiled from its first call, and the {item.name} of this call are not those of the "
                    "first, which are constants in the compiled code; use Trace_ELBO() or another loss without Jit "
                    "for minibatches and for a KL weight that changes"
                )


def call_of(args: tuple[Any, ...], rows: Tensor | None, kl_weight: float) -> CompiledCall:
    """Return what a Jit loss would make constants of."""
    shapes = tuple((tuple(a.shape), a.dtype, a.device) if isinstance(a, Tensor) else repr(a) for a in args)
    return CompiledCall(shapes, rows, kl_weight)
