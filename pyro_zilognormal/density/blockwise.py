"""The log density and its derivatives in blocks, one pass over the data.

A chain of tensor operations spends most of its time on memory: every temporary is as large as the data, and is new,
so it has to be mapped in page by page. Here temporaries are a block in size and used again, and nothing is as large as
the data but what is returned.

Positive values are told from zeros without comparisons and torch.where, which torch does not vectorise on CPU: by
`threshold` (x where x > 0, else 1), its derivative (y where x > 0, else 0, even if y is infinite), that of `leaky_relu`
(y where x > 0, else a multiple of y), `sign`, and `lerp` (y where a weight is 0, z where it is 1, if both are finite).
Products of three are taken two by two: `addcmul` is not vectorised where one of its arguments is a single number.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_zilognormal.density.blocks import Block, Gradient, blocks, lift
from pyro_zilognormal.numerics.normal import HALF_LOG_2PI
from pyro_zilognormal.numerics.shapes import broadcast

LINEAR = {torch.float16: 10.0}
LINEAR_IN_OTHERS = 40.0
MUCH = 8  # what is so many times smaller than the data is not computed block by block

where_positive = torch.ops.aten.threshold_backward.grad_input
where_positive_or_times = torch.ops.aten.leaky_relu_backward.grad_input


def evaluate(arguments: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor, list[Tensor | None]]:
    """The log density and those of its derivatives that are wanted, summed to the shapes of their arguments.

    Args:
        arguments: value, loc, scale and gate, which is either logits, or log P(X = 0) and log P(X > 0).
        wanted: for each, whether its derivative is.
    """
    shape = broadcast(*(a.shape for a in arguments)) or (1,)
    lifted = [lift(a, len(shape)) for a in arguments]
    result = lifted[0].new_empty(shape)
    fixed = fixed_part(result, *lifted[2:])
    gradients = _gradients(lifted, shape, wanted if fixed is None else (*wanted[:4], any(wanted[3:])))
    for block in blocks(shape, result, buffers=4):
        part = None if fixed is None else block.of(fixed)
        _evaluate_block(block, gradients, part, *map(block.of, (result, *lifted)))
    if fixed is not None:
        gradients[3].count_others(gradients[4], result.numel())
    found = [g.total(a.shape) if w else None for g, a, w in zip(gradients, arguments, wanted, strict=True)]
    return result if any(a.dim() for a in arguments) else result[0], found


def differentiate(
    arguments: Sequence[Tensor], wanted: Sequence[bool], weight: Tensor, by_loc: Tensor | None = None
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


def fixed_part(result: Tensor, scale: Tensor, *gate: Tensor) -> Tensor | None:
    """What does not depend on x in the log density of a positive x; None if it is not small and finite."""
    shape = broadcast(scale.shape, gate[0].shape)
    if len(gate) == 1 or MUCH * math.prod(shape) >= result.numel():
        return None
    fixed = less_constant(loss_without_x(scale, *gate))
    return fixed if torch.isfinite(fixed + gate[0]).all() else None


def loss_without_x(scale: Tensor, *gate: Tensor, spare: Tensor | None = None) -> Tensor:
    """What does not depend on x in minus the log density of a positive x, but for logits and a constant."""
    room = None if spare is None else spare.view(-1)[: scale.numel()].view(scale.shape)
    loss = torch.log(scale, out=room)
    return loss - gate[1] if len(gate) == 2 else loss


def less_constant(loss: Tensor) -> Tensor:
    """The log density of which this is minus all but the constant, in place."""
    return torch.sub(loss.new_full((), -HALF_LOG_2PI), loss, out=loss)


def join(fixed: Tensor, log_zero: Tensor, log_x: Tensor, z: Tensor, sign: Tensor, out: Tensor) -> None:
    """log P(X = 0) where the sign of x is 0, the log density where it is 1; log x is overwritten."""
    positive = torch.sub(fixed, log_x, out=log_x)
    # The square may be infinite, so it comes last; it is 0 where x = 0.
    torch.addcmul(torch.lerp(log_zero, positive, sign, out=log_x), z, z, value=-0.5, out=out)


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
    torch.sign(x, out=sign)
    if fixed is not None:
        join(fixed, gate[0], log_x, z, sign, out=result)
        to[4].add(block, sign)
        _differentiate_positive(block, to, None, spare, z, sign, x, scale)
        return
    loss = log_x.addcmul_(z, z, value=0.5).add_(loss_without_x(scale, *gate, spare=spare))
    _differentiate_positive(block, to, None, spare, z, sign, x, scale)
    found = less_constant(loss)
    where_positive(found, sign, 0, grad_input=found)
    if len(gate) == 1:
        _evaluate_logits(block, to[3:], found, result, z, spare, x, *gate)
    else:
        _evaluate_logs(block, to[3:], result, *gate)
        result += found


def _standardise(x: Tensor, loc: Tensor, scale: Tensor, log_x: Tensor, z: Tensor) -> None:
    """log x and z = (log x - loc) / scale where x is positive, 0 elsewhere."""
    torch.threshold(x, 0, 1, out=log_x).log_()
    # Standardise before squaring: scale**2 underflows long before scale does.
    torch.sub(log_x, loc, out=z).div_(scale)
    where_positive(z, x, 0, grad_input=z)


def _evaluate_logits(
    block: Block, to: list[Gradient], found: Tensor, result: Tensor, t: Tensor, spare: Tensor, x: Tensor, logits: Tensor
) -> None:
    """Add log sigmoid(-t) = -log(1 + exp(t)), with the logits as t where x > 0 and minus the logits where x = 0."""
    excess = _differentiate_logits(block, to, None, t, spare, x, logits)
    torch.sub(found, softplus_of_exp_(t, excess), out=result)


def _differentiate_logits(
    block: Block, to: list[Gradient], weight: Tensor | None, t: Tensor, spare: Tensor, x: Tensor, logits: Tensor
) -> Tensor | None:
    """The derivative in the logits, by way of exp(t), which is left in the room for t. What was cut off from t."""
    where_positive_or_times(logits.expand(block.shape), x, -1, False, grad_input=t)
    excess = exp_(t)
    to[0].take(block, spare, weight, _slope_of_logits, t, x)
    return excess


def _slope_of_logits(exp_t: Tensor, x: Tensor, out: Tensor) -> Tensor:
    """-sigmoid(t) where x > 0, sigmoid(t) where x = 0."""
    minus_one_plus_exp = torch.sub(exp_t.new_full((), -1), exp_t, out=out)
    minus_sigmoid = torch.div(exp_t, minus_one_plus_exp, out=out)
    return where_positive_or_times(minus_sigmoid, x, -1, False, grad_input=out)


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
        _differentiate_logits(block, to[3:], weight, log_x, spare, x, *gate)
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


def exp_(t: Tensor) -> Tensor | None:
    """exp(t), in place, of t cut where that might overflow; what was cut off, or None if nothing was."""
    limit, excess = LINEAR.get(t.dtype, LINEAR_IN_OTHERS), None
    if not t.amax().item() <= limit:  # NaN is not
        excess = torch.sub(t, limit).clamp_(min=0)
        t.clamp_(max=limit)
    t.exp_()
    return excess


def softplus_of_exp_(exp_t: Tensor, excess: Tensor | None) -> Tensor:
    """log(1 + exp(t)) in place of exp(t), given what was cut off from t."""
    softplus = exp_t.log1p_()
    return softplus if excess is None else softplus.add_(excess)
