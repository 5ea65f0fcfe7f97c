"""A draw's gradient in its gate: through the score, or not at all.

x = 0 or exp(mu + scale eps), and the gate that decides is discrete. No pathwise gradient for the gate is right, so
an estimator must add the score of the gate, as Pyro's Trace_ELBO and TraceEnum_ELBO do with `score_parts`. A loss that
does not (TraceGraph_ELBO, TraceMMD, EnergyDistance, one written by hand on `rsample`) would be biased without a word.
A Ledger sees to it that it stops instead: it marks a draw (`guard`) and the score of the law it came from (`credit`),
and whoever differentiates the first to the gate without the second gets an error.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

ERROR = (
    "The gate of a ZeroInflatedLogNormal draw has no pathwise gradient, and this loss differentiates such a draw with "
    "respect to {parameter} without the score of the gate, so its gradient would be biased. Use Trace_ELBO or "
    "TraceEnum_ELBO, which add it; or draw without reparameterization, ZeroInflatedLogNormal(...).has_rsample_(False), "
    "where the loss (TraceGraph_ELBO, say) supports it; or detach {parameter}. If you do use one of these, a wrapper "
    "drops the score: write .to_event() and .mask() in place of pyro.distributions.Independent and the like."
)


class Ledger:
    """Counts, in the running backward pass, the draws of a law differentiated to its gate and the scores used."""

    def __init__(self, parameter: str) -> None:
        self.parameter = parameter
        self.task = -1
        self.unpaid = 0

    def credit(self) -> None:
        """Note that the running backward pass uses a score."""
        self._count(-1)

    def settle(self) -> None:
        """Note a draw and, at the end of the running backward pass, raise if it used fewer scores than draws."""
        task = self._count(1)

        def check() -> None:
            if self.task == task and self.unpaid > 0:
                raise RuntimeError(ERROR.format(parameter=self.parameter))

        torch.autograd.Variable._execution_engine.queue_callback(check)

    def _count(self, change: int) -> int:
        task = torch._C._current_graph_task_id()
        self.unpaid = change + (self.unpaid if self.task == task else 0)
        self.task = task
        return task


class PathwiseUnlessTraced:
    """The attribute `has_rsample`: True, unless `has_rsample_(False)` said otherwise.

    While `torch.jit.trace` records, a law whose gate needs a gradient answers False: a traced backward pass has no
    Ledger to tell whether the loss (JitTraceGraph_ELBO, say) uses the score, and with the full score all are unbiased.
    """

    def __get__(self, law: Any, owner: type) -> bool:
        if law is None:
            return True
        return law.__dict__.get("has_rsample", True) and not (_tracing() and law._gate.tensor.requires_grad)

    def __set__(self, law: Any, value: bool) -> None:
        law.__dict__["has_rsample"] = value


class _Tap(torch.autograd.Function):
    """The identity; its backward pass, which runs only if a gradient for the gate is wanted, calls `act`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gate: Tensor, act: Any) -> Tensor:
        return gate.view_as(gate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any], output: Tensor) -> None:
        ctx.act = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.act()
        return grad, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        # Forward mode has no score to wait for. Without a tangent of its own the gate is a constant here.
        if tangent is not None:
            raise RuntimeError(ERROR.format(parameter="zi_logits or zi_probs"))
        return tangent


class _Join(torch.autograd.Function):
    """The identity in x, with a second path to the tap, along which the gradient is 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, tap: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, torch.zeros_like(ctx.saved_tensors[0])

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Tensor) -> Tensor:
        return tangent.view_as(tangent)


def guard(draw: Tensor, gate: Tensor, ledger: Ledger) -> Tensor:
    """The draw, whose gradient in the gate is an error unless the score is used in the same backward pass."""
    return _mark(draw, gate, ledger.settle)


def credit(score: Tensor, gate: Tensor, ledger: Ledger) -> Tensor:
    """The score, whose use in a backward pass makes the gradient of the draws right."""
    return _mark(score, gate, ledger.credit)


def _mark(x: Tensor, gate: Tensor, act: Callable[[], None]) -> Tensor:
    watched = gate.requires_grad or forward_ad.unpack_dual(gate).tangent is not None
    watched = watched and torch.is_grad_enabled() and not _tracing()
    return _Join.apply(x, _Tap.apply(gate, act)) if watched else x


def _tracing() -> bool:
    return torch._C._get_tracing_state() is not None
