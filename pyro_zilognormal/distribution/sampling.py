"""Draws: 0 where a uniform is at most pi, else exp(loc + scale eps)."""

import math

import torch
from torch import Tensor

from pyro_zilognormal.density.autograd import suits
from pyro_zilognormal.density.blocks import blocks, lift
from pyro_zilognormal.density.blockwise import where_positive
from pyro_zilognormal.numerics.zero_part import Gate, LogitGate


def draw(shape: torch.Size, loc: Tensor, scale: Tensor, gate: Gate, dtype: torch.dtype) -> Tensor:
    """Draws, differentiable in loc and scale; the positive ones are normal, finite numbers of the dtype.

    Where no gradient is wanted, on CPU, they are made in blocks: from the same random numbers, and the same.
    """
    noise, (lowest, highest) = torch.randn(shape, dtype=loc.dtype, device=loc.device), _log_range(dtype)
    differentiable = torch.is_grad_enabled() and (loc.requires_grad or scale.requires_grad)
    with torch.no_grad():
        if suits(noise, loc, scale, gate.tensor) and not differentiable:
            return _draw_in_blocks(noise, loc, scale, gate, lowest, highest)
        zero = _uniforms(noise) <= _pi(gate, gate.tensor)
    return torch.where(zero, 0, (loc + scale * noise).clamp(lowest, highest).exp())


def _draw_in_blocks(noise: Tensor, loc: Tensor, scale: Tensor, gate: Gate, lowest: float, highest: float) -> Tensor:
    result = noise.view(noise.shape or (1,))
    lifted = [lift(t, result.dim()) for t in (result, loc, scale, gate.tensor)]
    for block in blocks(result.shape, result, buffers=1):
        x, mu, s, g = map(block.of, lifted)
        x.mul_(s).add_(mu).clamp_(lowest, highest).exp_()
        # Uniforms are in (0, 1], so that pi = 0 never gives a zero, and pi = 1 always does.
        above = _fill(block.buffers[0]).sub_(_pi(gate, g))
        where_positive(x, above, 0, grad_input=x)
    return noise


def _uniforms(like: Tensor) -> Tensor:
    """Uniform numbers in (0, 1]; on CPU those that the blocks use."""
    if not suits(like):
        return 1 - torch.rand(like.shape, dtype=like.dtype, device=like.device)
    result = torch.empty_like(like).view(like.shape or (1,))
    for block in blocks(result.shape, result, buffers=0):
        _fill(block.of(result))
    return result.view(like.shape)


def _fill(out: Tensor) -> Tensor:
    """Fill with 1 - u, u as of uniform_(): for float32 multiples of 2**-24, here two at a time, which is faster."""
    if out.dtype != torch.float32:
        return out.uniform_().neg_().add_(1)
    pairs = torch.empty((out.numel() + 1) // 2, dtype=torch.int64).random_(-(2**63), None)
    signed = pairs.view(torch.int32)[: out.numel()].bitwise_right_shift_(8)
    return out.copy_(signed.view(out.shape)).add_(2**23 + 1).mul_(2**-24)


def _pi(gate: Gate, tensor: Tensor) -> Tensor:
    """pi to the accuracy of a uniform, from (a part of) the tensor of the gate."""
    return tensor.sigmoid() if isinstance(gate, LogitGate) else tensor


def _log_range(dtype: torch.dtype) -> tuple[float, float]:
    """Bounds of log x inside which exp(log x) is a normal, finite number of the dtype."""
    info = torch.finfo(dtype)
    return math.log(info.tiny) * (1 - 2 * info.eps), math.log(info.max) * (1 - 2 * info.eps)
