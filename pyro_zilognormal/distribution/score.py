"""The score of the zero part, without which gradients of a draw are biased.

A draw is 0 or exp(mu + scale eps). Whether it is 0 is discrete, so no pathwise gradient for the zero inflation is
right, and an estimator must add its score, as Pyro's Trace_ELBO and TraceEnum_ELBO do with `score_parts`. A loss that
does not (TraceGraph_ELBO, TraceMMD, EnergyDistance, one written by hand on `rsample`) would be silently biased.

Hence two things. Pyro's Independent and Masked wrappers drop `score_parts`; those of this module forward it. And each
draw, like each score, passes its gradient through a node of the graph (`require_score`, `provide_score`) that counts:
a backward pass that reaches the zero part of a draw but uses no score of its distribution raises an error.
"""

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import Independent, MaskedDistribution, TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import is_identically_zero, sum_rightmost
from torch import Tensor
from torch.autograd import forward_ad

from pyro_zilognormal.numerics.shapes import jit_tracing

ERROR = (
    "The zero inflation of a ZeroInflatedLogNormal draw has no pathwise gradient, and this loss differentiates such a "
    "draw with respect to {parameter} without the score of the zero inflation, so its gradient would be biased. Use "
    "Trace_ELBO or TraceEnum_ELBO, which add it; or draw without reparameterization, "
    "ZeroInflatedLogNormal(...).has_rsample_(False), where the loss (TraceGraph_ELBO, say) supports it; or detach "
    "{parameter}. If you do use one of these, a wrapper drops the score: write .to_event() and .mask() in place of "
    "pyro.distributions.Independent and the like."
)


class ScoreCount:
    """Of one distribution: the draws that the running backward pass differentiates, less the scores that it uses."""

    def __init__(self, parameter: str) -> None:
        self.parameter = parameter
        self.task = -1
        self.missing = 0

    def add_score(self) -> None:
        """Count a score in the running backward pass."""
        self._add(-1)

    def add_draw(self) -> None:
        """Count a draw; at the end of the running backward pass, raise an error if it used fewer scores than draws."""
        task = self._add(1)

        def check() -> None:
            if self.task == task and self.missing > 0:
                raise RuntimeError(ERROR.format(parameter=self.parameter))

        torch.autograd.Variable._execution_engine.queue_callback(check)

    def _add(self, change: int) -> int:
        task = torch._C._current_graph_task_id()
        self.missing = change + (self.missing if self.task == task else 0)
        self.task = task
        return task


class PathwiseUnlessTraced:
    """The attribute `has_rsample`: True, unless `has_rsample_(False)` said otherwise.

    While `torch.jit.trace` records, a distribution whose zero part requires a gradient answers False: a traced backward
    pass counts no scores, and with the score function of the whole log_prob all losses are unbiased.
    """

    def __get__(self, d: Any, owner: type) -> bool:
        if d is None:
            return True
        return d.__dict__.get("has_rsample", True) and not (jit_tracing() and d._zero_part.tensor.requires_grad)

    def __set__(self, d: Any, value: bool) -> None:
        d.__dict__["has_rsample"] = value


class _Tap(torch.autograd.Function):
    """The identity; its backward pass, which runs only if a gradient for the zero part is wanted, calls `act`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(zero: Tensor, act: Any) -> Tensor:
        return zero.view_as(zero)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any], output: Tensor) -> None:
        ctx.act = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.act()
        return grad, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        # No score can follow in forward mode. Without a tangent of its own the zero part is a constant here.
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


def require_score(draw: Tensor, zero: Tensor, count: ScoreCount) -> Tensor:
    """The draw, whose gradient in the zero part is an error unless the same backward pass uses the score."""
    return _mark(draw, zero, count.add_draw)


def provide_score(score: Tensor, zero: Tensor, count: ScoreCount) -> Tensor:
    """The score, whose use in a backward pass makes the gradient of the draws right."""
    return _mark(score, zero, count.add_score)


def _mark(x: Tensor, zero: Tensor, act: Callable[[], None]) -> Tensor:
    differentiable = zero.requires_grad or forward_ad.unpack_dual(zero).tangent is not None
    watched = differentiable and torch.is_grad_enabled() and not jit_tracing()
    return _Join.apply(x, _Tap.apply(zero, act)) if watched else x


class ForwardsScore:
    """Mixin for distributions whose wrappers must forward `score_parts`."""

    base_dist: Any
    batch_shape: torch.Size
    event_dim: int

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> TorchDistribution:
        """Reinterpret rightmost batch dimensions as event dimensions, as in Pyro; all by default."""
        ndims = len(self.batch_shape) if reinterpreted_batch_ndims is None else reinterpreted_batch_ndims
        if not -self.event_dim <= ndims <= len(self.batch_shape):
            raise ValueError(
                f"to_event({ndims}): a distribution with batch_shape {tuple(self.batch_shape)} and {self.event_dim} "
                f"event dimensions takes {-self.event_dim} to {len(self.batch_shape)}."
            )
        base: Any = self
        while isinstance(base, ScoredIndependent):
            ndims += base.reinterpreted_batch_ndims
            base = base.base_dist
        return ScoredIndependent(base, ndims) if ndims else base

    def mask(self, mask: bool | Tensor) -> TorchDistribution:
        """Score only the elements where the mask is true, as in Pyro; masked values may be NaN."""
        return ScoredMasked(self, mask)


class _Wrapper(ForwardsScore):
    @property
    def has_rsample(self) -> bool:
        """Whether draws carry pathwise gradients: the base's answer, also when set by `has_rsample_`."""
        return bool(self.base_dist.has_rsample)

    @has_rsample.setter
    def has_rsample(self, value: bool) -> None:
        self.base_dist.has_rsample = value


class ScoredIndependent(_Wrapper, Independent):
    """Pyro's Independent with `score_parts`."""

    def score_parts(self, value: Tensor) -> ScoreParts:
        """The parts of the base, each summed over the event dimensions."""
        return ScoreParts(*map(self._sum, self.base_dist.score_parts(value)))

    def _sum(self, part: Any) -> Any:
        return part if is_identically_zero(part) else sum_rightmost(part, self.reinterpreted_batch_ndims)


class ScoredMasked(_Wrapper, MaskedDistribution):
    """Pyro's MaskedDistribution with `score_parts`, and with masked values neither validated nor differentiated."""

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "ScoredMasked":
        """Expand the base and the mask to a batch shape."""
        return super().expand(batch_shape, self.__new__(type(self)) if _instance is None else _instance)

    def log_prob(self, value: Tensor) -> Tensor:
        """The base's log_prob, 0 where masked."""
        if isinstance(self._mask, bool):
            return super().log_prob(value)
        mask = self._mask.reshape(self._mask.shape + (1,) * self.event_dim)
        return super().log_prob(torch.where(mask, value, 1))

    def score_parts(self, value: Tensor) -> ScoreParts:
        """The base's parts, masked except for the score: a masked draw is still a draw."""
        if not isinstance(self._mask, bool):
            return super().score_parts(value)
        parts = self.base_dist.score_parts(value)
        return parts if self._mask else ScoreParts(self.log_prob(value), parts.score_function, 0)
