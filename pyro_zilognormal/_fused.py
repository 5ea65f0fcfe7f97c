"""The log density on CPU, in blocks and with derivatives by hand.

A chain of tensor operations spends most of its time on memory: every temporary is as large as the data, and is new,
so it has to be mapped in page by page. Here temporaries are a block in size and used again. Besides the arguments only
z = (log x - mu) / scale is kept for the backward pass: a logarithm takes longer than to write and read what it gives.

Positive values are told from zeros without comparisons and torch.where, which torch does not vectorise on CPU: by
`threshold` (x where x > 0, else 1), its derivative (y where x > 0, else 0, even if y is infinite) and `sign`. Products
of three are taken two by two: `addcmul` is not vectorised where one of its arguments is a single number.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pyro_zilognormal import _formula
from pyro_zilognormal._blocks import Block, Gradient, blocks, lift
from pyro_zilognormal._normal import HALF_LOG_2PI
from pyro_zilognormal._shapes import broadcast
from pyro_zilognormal._tracing import tracing

where_positive = torch.ops.aten.threshold_backward.grad_input


def _keys(tensor: Tensor) -> int:
    return torch._C._dispatch_keys(tensor).raw_repr()


with torch.inference_mode():
    _ORDINARY = {_keys(torch.empty(0, device="cpu"))}
_ORDINARY.add(_keys(torch.empty(0, device="cpu")))


def suits(*tensors: Tensor) -> bool:
    """Whether these are ordinary CPU tensors of one dtype that hold data, outside of tracers and transforms."""
    if tracing() or torch._C._len_torch_dispatch_stack() > 0 or forward_ad._current_level >= 0:
        return False
    dtype = tensors[0].dtype
    return all(t.dtype == dtype and t.numel() > 0 and _ordinary(t) for t in tensors)


def _ordinary(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, torch.nn.Parameter) and _keys(tensor) in _ORDINARY


def log_density(*arguments: Tensor) -> Tensor:
    """The log density at values in [0, inf), as a function of value, loc, scale and gate.

    The gate is either the logits of P(X = 0); or log P(X = 0) and log P(X > 0), which is better where these are much
    smaller than the result.
    """
    if torch.is_grad_enabled() and any(a.requires_grad for a in arguments):
        return _LogDensity.apply(*arguments)
    return _evaluate(arguments, keep=False)[0]


class _LogDensity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Tensor) -> Tensor:
        """The log density, of the shape to which the arguments broadcast."""
        result, z = _evaluate(arguments, keep=any(ctx.needs_input_grad[:3]))
        ctx.save_for_backward(*arguments, z)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients; by the plain formula where they are to be differentiated again, or batched."""
        *arguments, z = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled() or not suits(grad, *arguments):
            return _gradients_of_formula(grad, arguments, needed)
        lifted = [lift(a, max(grad.dim(), 1)) for a in arguments]
        shape = grad.shape or (1,)
        gradients = [Gradient(a, shape, n) for a, n in zip(lifted, needed, strict=True)]
        for block in blocks(shape, grad, buffers=4):
            _differentiate(block, gradients, *map(block.of, (lift(grad, len(shape)), z, *lifted)))
        if gradients[2].wanted:
            gradients[2].total.div_(lifted[2])
        return tuple(g.total.reshape(a.shape) if g.wanted else None for g, a in zip(gradients, arguments, strict=True))


def _evaluate(arguments: Sequence[Tensor], keep: bool) -> tuple[Tensor, Tensor]:
    """The log density, and z if that is to be kept."""
    shape = broadcast(*(a.shape for a in arguments)) or (1,)
    lifted = [lift(a, len(shape)) for a in arguments]
    result = lifted[0].new_empty(shape)
    z = result.new_empty(shape if keep else (1,) * len(shape))
    for block in blocks(shape, result, buffers=3):
        _evaluate_block(block, block.of(z) if keep else block.buffers[1], *map(block.of, (result, *lifted)))
    return result if any(a.dim() for a in arguments) else result[0], z


def _evaluate_block(
    block: Block, z: Tensor, result: Tensor, x: Tensor, loc: Tensor, scale: Tensor, *gate: Tensor
) -> None:
    a, b, c = block.buffers
    x = x.expand(block.shape)
    log_x = torch.threshold(x, 0, 1, out=a).log_()
    # Standardise before squaring: scale**2 underflows long before scale does.
    z = torch.sub(log_x, loc, out=z).div_(scale)
    loss = log_x.addcmul_(z, z, value=0.5).add_(_loss_of_all(scale, gate, c))
    where_positive(loss, x, 0, grad_input=loss)
    _evaluate_gate(result, torch.sign(x, out=c), gate, b)
    result -= loss


def _loss_of_all(scale: Tensor, gate: tuple[Tensor, ...], c: Tensor) -> Tensor:
    """What does not depend on x in minus the log density of a positive x, but for logits."""
    loss = torch.log(scale, out=c.view(-1)[: scale.numel()].view(scale.shape)).add_(HALF_LOG_2PI)
    return loss - gate[1] if len(gate) == 2 else loss


def _evaluate_gate(result: Tensor, sign: Tensor, gate: tuple[Tensor, ...], spare: Tensor) -> None:
    """log P(X = 0) where x = 0. Above, log P(X > 0), or 0 if the gate is given as logarithms."""
    where_zero = torch.sub(sign.new_ones(()), sign, alpha=2 if len(gate) == 1 else 1, out=sign)
    if len(gate) == 1:
        _log_sigmoid(where_zero.mul_(gate[0]), result, spare)
    else:
        where_positive(gate[0].expand(sign.shape), where_zero, 0, grad_input=result)


def _log_sigmoid(t: Tensor, result: Tensor, spare: Tensor) -> None:
    """min(t, 0) + log(1 - sigmoid(-abs(t))): faster than logsigmoid on CPU, and as accurate."""
    rest = torch.abs(t, out=spare).neg_().sigmoid_().neg_().log1p_()
    torch.clamp(t, max=0, out=result).add_(rest)


def _differentiate(
    block: Block, to: list[Gradient], grad: Tensor, z: Tensor, x: Tensor, loc: Tensor, scale: Tensor, *gate: Tensor
) -> None:
    a, b, c, d = block.buffers
    x = x.expand(block.shape)
    sign = torch.sign(x, out=c)
    grad_positive = torch.mul(grad, sign, out=d)
    if to[0].wanted or to[1].wanted or to[2].wanted:
        z = where_positive(z, x, 0, grad_input=a)
        grad_z = torch.mul(grad, z, out=b)
        to[2].take(block, a, torch.sub, z.mul_(grad_z), grad_positive)  # to be divided by scale when it is complete
        to[1].take(block, a, torch.div, grad_z, scale)
    if to[0].wanted:
        slope = grad_z.div_(scale).add_(grad_positive).div_(torch.threshold(x, 0, 1, out=a))
        to[0].take(block, a, torch.neg, slope)
    if to[3].wanted:
        (_differentiate_logits if len(gate) == 1 else _differentiate_logs)(block, to[3:], grad, *gate)


def _differentiate_logits(block: Block, to: list[Gradient], grad: Tensor, logits: Tensor) -> None:
    a, b, sign, grad_positive = block.buffers
    sign = torch.add(sign.new_full((), -1), sign, alpha=2, out=sign)
    slope = torch.mul(sign, logits, out=a).sigmoid_()
    to[0].take(block, a, torch.mul, slope, torch.sub(grad, grad_positive, alpha=2, out=b))


def _differentiate_logs(block: Block, to: list[Gradient], grad: Tensor, *_logs: Tensor) -> None:
    a, _, sign, grad_positive = block.buffers
    to[1].take(block, a, torch.mul, grad, sign)
    to[0].take(block, a, torch.sub, grad, grad_positive)


def _gradients_of_formula(
    grad: Tensor, arguments: Sequence[Tensor], needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    with torch.enable_grad():
        # Of views: if one argument was computed from another, the gradients must not flow through that too.
        views = [a.view_as(a) for a in arguments]
        result = _formula.log_density(*views)
    wanted = [v for v, n in zip(views, needed, strict=True) if n]
    found = iter(torch.autograd.grad(result, wanted, grad, create_graph=torch.is_grad_enabled()))
    return tuple(next(found) if n else None for n in needed)
