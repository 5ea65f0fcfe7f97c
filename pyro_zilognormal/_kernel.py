"""The log density and its derivatives in blocks, one pass over the data.

A chain of tensor operations spends most of its time on memory: every temporary is as large as the data, and is new,
so it has to be mapped in page by page. Here temporaries are a block in size and used again, and nothing is as large as
the data but what is returned.

Positive values are told from zeros without comparisons and torch.where, which torch does not vectorise on CPU: by
`threshold` (x where x > 0, else 1), its derivative (y where x > 0, else 0, even if y is infinite) and `sign`. Products
of three are taken two by two: `addcmul` is not vectorised where one of its arguments is a single number.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_zilognormal._blocks import Block, Gradient, blocks, lift
from pyro_zilognormal._normal import HALF_LOG_2PI
from pyro_zilognormal._shapes import broadcast

MUCH = 8  # what is so many times smaller than the data is not computed block by block

where_positive = torch.ops.aten.threshold_backward.grad_input
log_sigmoid = torch.ops.aten.log_sigmoid_forward.output
log_sigmoid_backward = torch.ops.aten.log_sigmoid_backward.grad_input


def evaluate(arguments: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor, list[Tensor | None]]:
    """The log density and those of its derivatives that are wanted, summed to the shapes of their arguments.

    Args:
        arguments: value, loc, scale and gate, which is either logits, or log P(X = 0) and log P(X > 0).
        wanted: for each, whether its derivative is.
    """
    shape = broadcast(*(a.shape for a in arguments)) or (1,)
    lifted = [lift(a, len(shape)) for a in arguments]
    result = lifted[0].new_empty(shape)
    gradients = _gradients(lifted, shape, wanted)
    fixed = _fixed_loss(*lifted[2:]) if MUCH * max(a.numel() for a in lifted[2:]) < result.numel() else None
    for block in blocks(shape, result, buffers=4):
        part = None if fixed is None else block.of(fixed)
        _evaluate_block(block, gradients, part, *map(block.of, (result, *lifted)))
    found = [g.total(a.shape) for g, a in zip(gradients, arguments, strict=True)]
    return result if any(a.dim() for a in arguments) else result[0], found


def differentiate(
    arguments: Sequence[Tensor], wanted: Sequence[bool], weight: Tensor, by_loc: Tensor | None
) -> list[Tensor | None]:
    """The derivatives of a sum of the log densities with weights, of the shape to which the arguments broadcast.

    The derivatives in loc, entry by entry and without weights, save the logarithm of the values, if they are known.
    """
    shape = weight.shape or (1,)
    lifted = [lift(a, len(shape)) for a in arguments]
    gradients = _gradients(lifted, shape, wanted)
    for block in blocks(shape, weight, buffers=4):
        known = None if by_loc is None else block.of(by_loc.view(shape))
        _differentiate_block(block, gradients, known, *map(block.of, (lift(weight, len(shape)), *lifted)))
    return [g.total(a.shape) for g, a in zip(gradients, arguments, strict=True)]


def _gradients(lifted: Sequence[Tensor], shape: Sequence[int], wanted: Sequence[bool]) -> list[Gradient]:
    gradients = [Gradient(a, shape, w) for a, w in zip(lifted, wanted, strict=True)]
    for gradient in gradients[1:3]:
        gradient.divided_by(lifted[2])
    return gradients


def _evaluate_block(
    block: Block,
    to: list[Gradient],
    fixed: Tensor | None,
    result: Tensor,
    x: Tensor,
    loc: Tensor,
    scale: Tensor,
    *gate: Tensor,
) -> None:
    log_x, z, sign, spare = block.buffers
    x = x.expand(block.shape)
    _standardise(x, loc, scale, log_x, z)
    loss = log_x.addcmul_(z, z, value=0.5)
    torch.sign(x, out=sign)
    _differentiate_positive(block, to, None, result, z, sign, x, scale)
    loss.add_(_fixed_loss(scale, *gate, spare=z) if fixed is None else fixed)
    where_positive(loss, sign, 0, grad_input=loss)
    if len(gate) == 1:
        _evaluate_logits(block, to[3:], None, result, z, spare, *gate)
    else:
        _evaluate_logs(block, to[3:], result, *gate)
    result -= loss


def _standardise(x: Tensor, loc: Tensor, scale: Tensor, log_x: Tensor, z: Tensor) -> None:
    """log x and z = (log x - loc) / scale where x is positive, 0 elsewhere."""
    torch.threshold(x, 0, 1, out=log_x).log_()
    # Standardise before squaring: scale**2 underflows long before scale does.
    torch.sub(log_x, loc, out=z).div_(scale)
    where_positive(z, x, 0, grad_input=z)


def _fixed_loss(scale: Tensor, *gate: Tensor, spare: Tensor | None = None) -> Tensor:
    """What does not depend on x in minus the log density of a positive x, but for logits."""
    room = None if spare is None else spare.view(-1)[: scale.numel()].view(scale.shape)
    loss = torch.log(scale, out=room).add_(HALF_LOG_2PI)
    return loss - gate[1] if len(gate) == 2 else loss


def _evaluate_logits(
    block: Block, to: list[Gradient], weight: Tensor | None, result: Tensor, t: Tensor, spare: Tensor, logits: Tensor
) -> None:
    """log sigmoid(t), with the logits as t where x = 0 and minus the logits above; and its derivative in the logits."""
    sign = block.buffers[2]
    side = torch.sub(sign.new_ones(()), sign, alpha=2, out=sign)
    log_sigmoid(torch.mul(side, logits, out=t), output=result, buffer=spare)
    to[0].take(block, spare, weight, _slope_of_log_sigmoid, side, t, spare)


def _slope_of_log_sigmoid(weight: Tensor, t: Tensor, buffer: Tensor, out: Tensor) -> Tensor:
    return log_sigmoid_backward(weight, t, buffer, grad_input=out)


def _evaluate_logs(block: Block, to: list[Gradient], result: Tensor, log_zero: Tensor, _log_positive: Tensor) -> None:
    """log P(X = 0) where x = 0; log P(X > 0) is part of the loss."""
    sign = block.buffers[2]
    to[1].add(block, sign)
    where_zero = torch.sub(sign.new_ones(()), sign, out=sign)
    to[0].add(block, where_zero)
    where_positive(log_zero.expand(sign.shape), where_zero, 0, grad_input=result)


def _differentiate_block(
    block: Block,
    to: list[Gradient],
    by_loc: Tensor | None,
    weight: Tensor,
    x: Tensor,
    loc: Tensor,
    scale: Tensor,
    *gate: Tensor,
) -> None:
    log_x, z, sign, spare = block.buffers
    x = x.expand(block.shape)
    if by_loc is None:
        _standardise(x, loc, scale, log_x, z)
    else:
        torch.mul(by_loc, scale, out=z)
    torch.sign(x, out=sign)
    _differentiate_positive(block, to, weight, spare, z, sign, x, scale)
    if len(gate) == 1:
        _evaluate_logits(block, to[3:], weight, log_x, z, spare, *gate)
    else:
        _differentiate_logs(block, to[3:], weight, spare, sign)


def _differentiate_positive(
    block: Block,
    to: list[Gradient],
    weight: Tensor | None,
    spare: Tensor,
    z: Tensor,
    sign: Tensor,
    x: Tensor,
    scale: Tensor,
) -> None:
    """The derivatives in x, loc and scale, from z, which is overwritten, and the sign of x."""
    to[1].take_quotient(block, spare, weight, z, scale)
    if to[0].wanted:
        slope = torch.div(z, scale, out=spare).add_(sign).div_(torch.threshold(x, 0, 1))
        to[0].take(block, spare, weight, torch.neg, slope)
    if to[2].wanted:
        to[2].take_quotient(block, spare, weight, z.mul_(z).sub_(sign), scale)


def _differentiate_logs(block: Block, to: list[Gradient], weight: Tensor, spare: Tensor, sign: Tensor) -> None:
    """The derivatives in log P(X = 0) and log P(X > 0)."""
    to[1].add(block, torch.mul(weight, sign, out=spare))
    to[0].add(block, torch.sub(weight, spare, out=spare))
