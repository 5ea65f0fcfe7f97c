"""The log density, with respect to a point mass at 0 plus Lebesgue measure above.

On CPU its derivatives are by hand, and computed along with it (`_fused`): in blocks (`_kernel`; `_values` if none is
wanted), or compiled (`_one_pass`). A user's torch.compile sees an operator that does the same (`_traced`). The plain
formula serves where entries are few, and is what other tracers, torch.func, forward mode, second derivatives and
accelerators see.
"""

import functools
import math

import torch
from torch import Tensor

from pyro_zilognormal.density import autograd as _fused
from pyro_zilognormal.density import reference as _formula
from pyro_zilognormal.density import traced as _traced
from pyro_zilognormal.density import values as _values
from pyro_zilognormal.density.compilation import quietly, run_compiled
from pyro_zilognormal.numerics.extremes import all_inside, inside
from pyro_zilognormal.numerics.shapes import broadcast
from pyro_zilognormal.numerics.zero_part import Gate, LogitGate

FEW = 2**14  # entries: below, the many short calls of the blocks cost more than they save
MUCH = 8  # the logarithms of a gate are worth keeping if it is so many times smaller than the result


def log_density(value: Tensor, loc: Tensor, scale: Tensor, gate: Gate) -> Tensor:
    """log P(X = 0) at 0, the log density above, -inf at negative and infinite values, NaN at NaN."""
    shape = broadcast(value.shape, loc.shape, scale.shape, gate.tensor.shape)
    size = math.prod(shape)
    arguments = (loc, scale, *_of_gate(gate, shape))
    if _traced.suits(size, value, *arguments):
        return _traced.log_density(value, *arguments)
    if not _fused.suits(value, *arguments):
        compiled = run_compiled(size, _formula.log_density, lambda function: quietly(function, value, *arguments))
        return _formula.log_density(value, *arguments) if compiled is None else compiled
    if size < FEW:
        return _formula.log_density(value, *arguments)
    result = _compiled(size, value, *arguments)
    if result is not None:
        return result
    if not any(_fused.wanted((value, *arguments))):
        return _values.evaluate((value, *arguments))
    if all_inside(value):
        return _fused.log_density(value, *arguments)
    where = inside(value)
    supported = (torch.where(where, value, 1), *arguments)
    result = _compiled(size, *supported)
    return torch.where(where, _fused.log_density(*supported) if result is None else result, _formula.outside(value))


def _compiled(size: int, *arguments: Tensor) -> Tensor | None:
    """In one pass; or None, if that is not switched on, does not work, or the arguments are not all ordinary."""
    needed = _fused.wanted(arguments)
    with torch.no_grad():
        found = _fused.evaluate(functools.partial(run_compiled, size), arguments, needed)
    if found is None:
        return None
    return _fused.with_slopes(found.result, found.slopes, arguments)


def _of_gate(gate: Gate, shape: torch.Size) -> tuple[Tensor, ...]:
    """Logits where each is used but once; else the two logarithms."""
    sizes_are_numbers = torch._C._get_tracing_state() is None
    if isinstance(gate, LogitGate) and sizes_are_numbers and MUCH * gate.tensor.numel() > math.prod(shape):
        return (gate.tensor,)
    return gate.log_zero, gate.log_positive
