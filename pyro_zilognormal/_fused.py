"""The log density on CPU, in blocks and with derivatives by hand.

A chain of tensor operations spends most of its time on memory: every temporary is as large as the data, and is new,
so it has to be mapped in page by page. Here temporaries are a block in size and used again. Nothing but the arguments
is kept for the backward pass, which computes z anew: that is cheaper than writing it to memory and reading it back.

Positive values are told from zeros without comparisons and torch.where, which torch does not vectorise on CPU: by
`threshold` (x where x > 0, else 1), its derivative (y where x > 0, else 0, even if y is infinite) and `sign`.
"""

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
_logsigmoid = torch.ops.aten.log_sigmoid_forward.output


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


class LogDensity(torch.autograd.Function):
    """The log density at values in [0, inf), as a function of value, loc, scale and gate.

    The gate is either the logits of P(X = 0); or log P(X = 0) and log P(X > 0), which is better where these are much
    smaller than the result.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Tensor) -> Tensor:
        """The log density, of the shape to which the arguments broadcast."""
        ctx.save_for_backward(*arguments)
        shape = broadcast(*(a.shape for a in arguments)) or (1,)
        lifted = [lift(a, len(shape)) for a in arguments]
        result = lifted[0].new_empty(shape)
        for block in blocks(shape, result, buffers=3):
            _evaluate(block, *map(block.of, (result, *lifted)))
        return result if any(a.dim() for a in arguments) else result[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients; by the plain formula where they are to be differentiated again, or batched."""
        arguments, needed = ctx.saved_tensors, ctx.needs_input_grad
        if torch.is_grad_enabled() or not suits(grad, *arguments):
            return _gradients_of_formula(grad, arguments, needed)
        lifted = [lift(a, max(grad.dim(), 1)) for a in arguments]
        shape = grad.shape or (1,)
        gradients = [Gradient(a, shape, n) for a, n in zip(lifted, needed, strict=True)]
        grad = lift(grad, len(shape))
        for block in blocks(shape, grad, buffers=3):
            _differentiate(block, gradients, *map(block.of, (grad, *lifted)))
        if gradients[2].wanted:
            gradients[2].total.div_(lifted[2])
        return tuple(g.total.reshape(a.shape) if g.wanted else None for g, a in zip(gradients, arguments, strict=True))


def _evaluate(block: Block, result: Tensor, x: Tensor, loc: Tensor, scale: Tensor, *gate: Tensor) -> None:
    a, b, c = block.buffers
    x = x.expand(block.shape)
    log_x, z = _standardise(x, loc, scale, a, b)
    loss = log_x.addcmul_(z, z, value=0.5).add_(_loss_of_all(scale, gate, c))
    where_positive(loss, x, 0, grad_input=loss)
    _evaluate_gate(result, torch.sign(x, out=c), gate, b)
    result -= loss


def _standardise(x: Tensor, loc: Tensor, scale: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """log x and z, in buffers; at 0 as if x were 1."""
    log_x = torch.threshold(x, 0, 1, out=a).log_()
    # Standardise before squaring: scale**2 underflows long before scale does.
    return log_x, torch.sub(log_x, loc, out=b).div_(scale)


def _loss_of_all(scale: Tensor, gate: tuple[Tensor, ...], c: Tensor) -> Tensor:
    """What does not depend on x in minus the log density of a positive x, but for logits."""
    loss = torch.log(scale, out=c.view(-1)[: scale.numel()].view(scale.shape)).add_(HALF_LOG_2PI)
    return loss - gate[1] if len(gate) == 2 else loss


def _evaluate_gate(result: Tensor, sign: Tensor, gate: tuple[Tensor, ...], spare: Tensor) -> None:
    """log P(X = 0) where x = 0. Above, log P(X > 0), or 0 if the gate is given as logarithms."""
    one = sign.new_ones(())
    if len(gate) == 1:
        _logsigmoid(torch.sub(one, sign, alpha=2, out=sign).mul_(gate[0]), output=result, buffer=spare)
    else:
        where_positive(gate[0].expand(sign.shape), torch.sub(one, sign, out=sign), 0, grad_input=result)


def _differentiate(
    block: Block, to: list[Gradient], grad: Tensor, x: Tensor, loc: Tensor, scale: Tensor, *gate: Tensor
) -> None:
    a, b, c = block.buffers
    x = x.expand(block.shape)
    z = _standardise(x, loc, scale, a, b)[1]
    where_positive(z, x, 0, grad_input=z)
    sign, grad_z = torch.sign(x, out=c), torch.mul(grad, z, out=a)
    z *= grad_z
    to[2].take(block, b, torch.addcmul, z, grad, sign, value=-1)  # to be divided by scale when it is complete
    to[1].take(block, b, torch.div, grad_z, scale)
    if to[0].wanted:
        slope = grad_z.div_(scale).addcmul_(grad, sign).div_(torch.threshold(x, 0, 1, out=b))
        to[0].take(block, b, torch.neg, slope)
    if to[3].wanted:
        (_differentiate_logits if len(gate) == 1 else _differentiate_logs)(block, to[3:], grad, sign, *gate)


def _differentiate_logits(block: Block, to: list[Gradient], grad: Tensor, sign: Tensor, logits: Tensor) -> None:
    a, b, _ = block.buffers
    sign = torch.add(sign.new_full((), -1), sign, alpha=2, out=sign)
    slope = torch.mul(sign, logits, out=a).sigmoid_().mul_(sign)
    to[0].take(block, b, torch.addcmul, sign.new_zeros(()), slope, grad, value=-1)


def _differentiate_logs(block: Block, to: list[Gradient], grad: Tensor, sign: Tensor, *logs: Tensor) -> None:
    a, b, _ = block.buffers
    to[1].take(block, a, torch.mul, grad, sign)
    to[0].take(block, b, torch.sub, grad, torch.mul(grad, sign, out=a))


def _gradients_of_formula(
    grad: Tensor, arguments: tuple[Tensor, ...], needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    with torch.enable_grad():
        # Of views: if one argument was computed from another, the gradients must not flow through that too.
        views = [a.view_as(a) for a in arguments]
        result = _formula.log_density(*views)
    wanted = [v for v, n in zip(views, needed, strict=True) if n]
    found = iter(torch.autograd.grad(result, wanted, grad, create_graph=torch.is_grad_enabled()))
    return tuple(next(found) if n else None for n in needed)
