"""The log density in blocks, where no derivative is wanted: what only derivatives need is left out.

Written as `_kernel` is. A block of the result serves as a buffer, so that one more is enough, and what is worked on
stays in the cache.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_zilognormal._blocks import Block, blocks, lift
from pyro_zilognormal._formula import outside
from pyro_zilognormal._inside import all_inside, inside
from pyro_zilognormal._kernel import MUCH, where_positive
from pyro_zilognormal._normal import HALF_LOG_2PI
from pyro_zilognormal._shapes import broadcast

LINEAR = 40.0  # from where on log(1 + exp(t)) is t in every dtype, and up to where exp(t) is finite

where_positive_or_times = torch.ops.aten.leaky_relu_backward.grad_input
softplus = torch.ops.aten.softplus.out


def evaluate(arguments: Sequence[Tensor]) -> Tensor:
    """The log density at value, loc, scale and gate: either logits, or log P(X = 0) and log P(X > 0)."""
    with torch.no_grad():
        shape = broadcast(*(a.shape for a in arguments)) or (1,)
        lifted = [lift(a, len(shape)) for a in arguments]
        result = lifted[0].new_empty(shape)
        fixed = _fixed_loss(*lifted[2:]) if MUCH * max(a.numel() for a in lifted[2:]) < result.numel() else None
        constant = result.new_full((), -HALF_LOG_2PI)
        for block in blocks(shape, result, buffers=1):
            part = None if fixed is None else block.of(fixed)
            _evaluate_block(block, constant, part, *map(block.of, (result, *lifted)))
        return result if any(a.dim() for a in arguments) else result[0]


def _fixed_loss(scale: Tensor, *gate: Tensor, spare: Tensor | None = None) -> Tensor:
    """What does not depend on x in minus the log density of a positive x, but for logits and a constant."""
    room = None if spare is None else spare.view(-1)[: scale.numel()].view(scale.shape)
    loss = torch.log(scale, out=room)
    return loss - gate[1] if len(gate) == 2 else loss


def _evaluate_block(
    block: Block, constant: Tensor, fixed: Tensor | None, result: Tensor, value: Tensor, *law: Tensor
) -> None:
    """Over the whole support; values are looked at here, and not before, to read them from memory once."""
    if all_inside(value):
        _evaluate_supported(block, constant, fixed, result, value, *law)
    else:
        where = inside(value)
        _evaluate_supported(block, constant, fixed, result, torch.where(where, value, 1), *law)
        result.copy_(torch.where(where, result, outside(value)))


def _evaluate_supported(
    block: Block,
    constant: Tensor,
    fixed: Tensor | None,
    result: Tensor,
    x: Tensor,
    loc: Tensor,
    scale: Tensor,
    *gate: Tensor,
) -> None:
    loss = block.buffers[0]
    x = x.expand(block.shape)
    torch.threshold(x, 0, 1, out=loss).log_()
    # Standardise before squaring: scale**2 underflows long before scale does.
    z = torch.sub(loss, loc, out=result).div_(scale)
    loss.addcmul_(z, z, value=0.5)
    loss.add_(_fixed_loss(scale, *gate, spare=result) if fixed is None else fixed)
    found = torch.sub(constant, loss, out=loss)
    where_positive(found, x, 0, grad_input=found)
    (_subtract_loss_of_logits if len(gate) == 1 else _add_log_zero)(found, x, result, gate[0].expand(block.shape))


def _subtract_loss_of_logits(found: Tensor, x: Tensor, result: Tensor, logits: Tensor) -> None:
    """log sigmoid(-t) = -log(1 + exp(t)), with the logits as t for positive x, and minus the logits where x = 0."""
    where_positive_or_times(logits, x, -1, False, grad_input=result)
    torch.sub(found, softplus(result, 1, LINEAR, out=result), out=result)


def _add_log_zero(found: Tensor, x: Tensor, result: Tensor, log_zero: Tensor) -> None:
    where_zero = torch.sub(x.new_ones(()), torch.sign(x, out=result), out=result)
    where_positive(log_zero, where_zero, 0, grad_input=result).add_(found)
