"""The log density in blocks, where no derivative is wanted: what only derivatives need is left out.

Written as `_kernel` is. A block of the result serves as a buffer, so that one or two more are enough, and what is
worked on stays in the cache.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_zilognormal.density.blocks import Block, blocks, lift
from pyro_zilognormal.density.blockwise import (
    fixed_part,
    join,
    less_constant,
    loss_without_x,
    where_positive,
    where_positive_or_times,
)
from pyro_zilognormal.density.reference import outside
from pyro_zilognormal.numerics.extremes import all_inside, inside
from pyro_zilognormal.numerics.shapes import broadcast
from pyro_zilognormal.numerics.softplus import exp_, softplus_of_exp_


def evaluate(arguments: Sequence[Tensor]) -> Tensor:
    """The log density at value, loc, scale and gate: either logits, or log P(X = 0) and log P(X > 0)."""
    with torch.no_grad():
        shape = broadcast(*(a.shape for a in arguments)) or (1,)
        lifted = [lift(a, len(shape)) for a in arguments]
        result = lifted[0].new_empty(shape)
        fixed = fixed_part(result, *lifted[2:])
        for block in blocks(shape, result, buffers=1 if fixed is None else 2):
            part = None if fixed is None else block.of(fixed)
            _evaluate_block(block, part, *map(block.of, (result, *lifted)))
        return result if any(a.dim() for a in arguments) else result[0]


def _evaluate_block(block: Block, fixed: Tensor | None, result: Tensor, value: Tensor, *law: Tensor) -> None:
    """Over the whole support; values are looked at here, and not before, to read them from memory once."""
    if all_inside(value):
        _evaluate_supported(block, fixed, result, value, *law)
    else:
        where = inside(value)
        _evaluate_supported(block, fixed, result, torch.where(where, value, 1), *law)
        result.copy_(torch.where(where, result, outside(value)))


def _evaluate_supported(
    block: Block, fixed: Tensor | None, result: Tensor, x: Tensor, loc: Tensor, scale: Tensor, *gate: Tensor
) -> None:
    x = x.expand(block.shape)
    log_x = torch.threshold(x, 0, 1, out=block.buffers[0]).log_()
    # Standardise before squaring: scale**2 underflows long before scale does.
    z = torch.sub(log_x, loc, out=result).div_(scale)
    if fixed is not None:
        where_positive(z, x, 0, grad_input=z)
        join(fixed, gate[0], log_x, z, torch.sign(x, out=block.buffers[1]), out=result)
        return
    loss = log_x.addcmul_(z, z, value=0.5).add_(loss_without_x(scale, *gate, spare=result))
    found = less_constant(loss)
    where_positive(found, x, 0, grad_input=found)
    (_subtract_loss_of_logits if len(gate) == 1 else _add_log_zero)(found, x, result, gate[0].expand(block.shape))


def _subtract_loss_of_logits(found: Tensor, x: Tensor, result: Tensor, logits: Tensor) -> None:
    """log sigmoid(-t) = -log(1 + exp(t)), with the logits as t for positive x, and minus the logits where x = 0."""
    t = where_positive_or_times(logits, x, -1, False, grad_input=result)
    excess = exp_(t)
    torch.sub(found, softplus_of_exp_(t, excess), out=result)


def _add_log_zero(found: Tensor, x: Tensor, result: Tensor, log_zero: Tensor) -> None:
    where_zero = torch.sub(x.new_ones(()), torch.sign(x, out=result), out=result)
    where_positive(log_zero, where_zero, 0, grad_input=result).add_(found)
