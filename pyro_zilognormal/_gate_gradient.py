"""A draw's gradient in its gate: through the score, or not at all.

x = 0 or exp(mu + scale eps), and the gate that decides is discrete. No pathwise gradient for the gate is right, so
an estimator must add the score of the gate, as Pyro's Trace_ELBO and TraceEnum_ELBO do with `score_parts`. A loss that
does not (TraceGraph_ELBO, TraceMMD, EnergyDistance, one written by hand on `rsample`) would be biased without a word.
A Ledger sees to it that it stops instead: it marks a draw (`guard`) and the score of the law it came from (`credit`),
and whoever differentiates the first to the gate without the second gets an error.
"""

from typing import Any

import torch
from torch import Tensor

ERROR = (
    "The gate of a ZeroInflatedLogNormal draw has no pathwise gradient, and this loss differentiates such a draw with "
    "respect to {parameter} without the score of the gate, so its gradient would be biased. Use Trace_ELBO or "
    "TraceEnum_ELBO, which add it; or draw without reparameterization, ZeroInflatedLogNormal(...).has_rsample_(False), "
    "where the loss (TraceGraph_ELBO, say) supports it; or detach {parameter}."
)


class Ledger:
    """Remembers the last backward pass that went through a law's score."""

    def __init__(self, parameter: str) -> None:
        self.parameter = parameter
        self.credited: int | None = None

    def credit(self) -> None:
        """Note that the running backward pass uses the score."""
        self.credited = torch._C._current_graph_task_id()

    def settle(self) -> None:
        """At the end of the running backward pass, raise unless it used the score."""
        task = torch._C._current_graph_task_id()

        def check() -> None:
            if self.credited != task:
                raise RuntimeError(ERROR.format(parameter=self.parameter))

        torch.autograd.Variable._execution_engine.queue_callback(check)


class _Mark(torch.autograd.Function):
    """The identity in x; its backward pass calls `act` where a gradient for the gate is wanted."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, gate: Tensor, act: Any) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Any], output: Tensor) -> None:
        ctx.act = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        if ctx.needs_input_grad[1]:
            ctx.act()
        return grad, None, None


def guard(draw: Tensor, gate: Tensor, ledger: Ledger) -> Tensor:
    """The draw, whose gradient in the gate is an error unless the score is used in the same backward pass."""
    return _mark(draw, gate, ledger.settle)


def credit(score: Tensor, gate: Tensor, ledger: Ledger) -> Tensor:
    """The score, whose use in a backward pass makes the gradient of the draws right."""
    return _mark(score, gate, ledger.credit)


def _mark(x: Tensor, gate: Tensor, act: Any) -> Tensor:
    watched = gate.requires_grad and torch.is_grad_enabled() and not torch._C._get_tracing_state()
    return _Mark.apply(x, gate, act) if watched else x
