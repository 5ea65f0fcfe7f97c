"""The log density of a group's statistics, with its slopes written by hand, for speed and for infinite logits.

It is the hot path of a fit on the reduction, and bound by memory: hence few passes, in place where no broadcast or vmap
can come between. torch.where costs as much here as ten additions, so counts of 0 meet infinities by other ways: the
root of n_pos multiplies before the scale divides, and 0 * inf is told to be 0.
"""

import math
from typing import Any

import torch
from torch import Tensor

from pyro_zilognormal.numerics.normal import HALF_LOG_2PI

Tensors = tuple[Tensor, ...]


class GroupDensity(torch.autograd.Function):
    """log p of (n_zero, n_pos, mean, m2, offset_sum), all of one dtype, as a function of loc, scale and logits.

    It also gives the standardised residual and squares, for the backward pass alone.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(statistics: Tensor, loc: Tensor, scale: Tensor, logits: Tensor) -> Tensors:
        n_zero, n_pos, mean, _, offset_sum = statistics.unbind(-1)
        # log pi = min(l, 0) - log(1 + exp(-|l|)), and so for 1 - pi and -l: no digits are lost at either end.
        result = torch.addcmul(n_zero * logits.clamp(max=0), n_pos, logits.clamp(min=0), value=-1)
        result.nan_to_num_(nan=0.0, neginf=-math.inf)  # 0 * inf = 0; a NaN of its own comes back with the next term
        result = torch.addcmul(result, n_zero + n_pos, logits.abs().neg_().exp_().log1p_(), value=-1).sub_(offset_sum)
        residual, squares = _standardised(statistics, loc, scale)
        positive = (mean + (scale.log() + HALF_LOG_2PI)).mul_(n_pos)
        return result - torch.add(positive, squares, alpha=0.5), residual, squares

    @staticmethod
    def setup_context(ctx: Any, inputs: Tensors, output: Tensors) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *output[1:])
        ctx.save_for_forward(*inputs, *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        statistics, loc, scale, logits, *standardised = ctx.saved_tensors
        if grad is None:
            return None, None, None, None
        if torch.is_grad_enabled():  # to be differentiated again
            standardised = _standardised(statistics, loc, scale)
        _, in_loc, in_scale, in_logits = ctx.needs_input_grad
        return (
            None,
            (grad * _in_loc(statistics, scale, *standardised)).sum_to_size(loc.shape) if in_loc else None,
            (grad * _in_log_scale(statistics, *standardised)).sum_to_size(scale.shape) / scale if in_scale else None,
            (grad * _in_logits(statistics, logits)).sum_to_size(logits.shape) if in_logits else None,
        )

    @staticmethod
    def jvp(ctx: Any, _: None, loc: Tensor | None, scale: Tensor | None, logits: Tensor | None) -> Tensors:
        statistics, at_loc, at_scale, at_logits, residual, _squares = ctx.saved_tensors
        standardised = _standardised(statistics, at_loc, at_scale)
        terms = []
        if loc is not None:
            terms.append(loc * _in_loc(statistics, at_scale, *standardised))
        if scale is not None:
            terms.append(scale * _in_log_scale(statistics, *standardised) / at_scale)
        if logits is not None:
            terms.append(logits * _in_logits(statistics, at_logits))
        shape = torch.broadcast_shapes(residual.shape, at_logits.shape)
        return sum(terms[1:], terms[0]).expand(shape), None, None  # type: ignore[return-value]


def _standardised(statistics: Tensor, loc: Tensor, scale: Tensor) -> Tensors:
    """sqrt(n_pos) (mean - loc) / scale and sum((log x - offset - loc)^2) / scale^2, divided before squared."""
    residual = statistics[..., 1].sqrt() * (statistics[..., 2] - loc) / scale
    spread = statistics[..., 3].sqrt() / scale
    return residual, torch.addcmul(spread * spread, residual, residual)


def _in_loc(statistics: Tensor, scale: Tensor, residual: Tensor, squares: Tensor) -> Tensor:
    """The slope in loc."""
    return statistics[..., 1].sqrt() * residual / scale


def _in_log_scale(statistics: Tensor, residual: Tensor, squares: Tensor) -> Tensor:
    """The slope in log(scale)."""
    return squares - statistics[..., 1]


def _in_logits(statistics: Tensor, logits: Tensor) -> Tensor:
    """The slope in the logits."""
    n_zero, n_pos = statistics[..., 0], statistics[..., 1]
    return torch.addcmul(n_zero * torch.sigmoid(-logits), n_pos, torch.sigmoid(logits), value=-1)
