"""The log density in functions that the user compiles, on CPU: one operator, opaque to torch.compile.

torch.compile makes one loop of the plain formula for the forward pass, and another for the backward pass, with the same
logarithms and exponentials again. The operator finds the derivatives along with the result, as outside of such
functions, in the compiled loop of `_one_pass`. A backward pass of a sum is then but products.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pyro_zilognormal.density import autograd as _fused
from pyro_zilognormal.density import blockwise as _kernel
from pyro_zilognormal.density import values as _values
from pyro_zilognormal.density.compilation import LARGE, attempt
from pyro_zilognormal.numerics.extremes import all_inside, inside
from pyro_zilognormal.numerics.shapes import broadcast


def suits(size: int, *tensors: Tensor) -> bool:
    """Whether torch.compile records, for large ordinary CPU tensors of one dtype, outside of transforms."""
    if not torch.compiler.is_dynamo_compiling() or torch.compiler.is_exporting():
        return False
    from torch.fx.experimental.symbolic_shapes import guard_or_false  # slow to import, and in use by now

    if not guard_or_false(size >= LARGE):
        return False
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    dtype = tensors[0].dtype
    return all(type(t) in (Tensor, torch.nn.Parameter) and t.is_cpu and t.dtype == dtype for t in tensors)


def log_density(value: Tensor, loc: Tensor, scale: Tensor, *gate: Tensor) -> Tensor:
    """As `_formula.log_density`."""
    result, *_ = torch.ops.pyro_zilognormal.log_density(
        value, loc, scale, gate, _fused.wanted((value, loc, scale, *gate))
    )
    return result


@torch.library.custom_op(
    "pyro_zilognormal::log_density",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor value, Tensor loc, Tensor scale, Tensor[] gate, bool[] wanted) -> Tensor[]",
)
def _evaluate(value: Tensor, loc: Tensor, scale: Tensor, gate: list[Tensor], wanted: list[bool]) -> list[Tensor]:
    """The log density, then those of its derivatives that are wanted, summed to the shapes of their arguments."""
    arguments = (value, loc, scale, *gate)
    found = _fused.evaluate(attempt, arguments, wanted)
    if found is not None:
        return _returned(found.result, *found.slopes)
    if any(wanted) and all_inside(value):
        result, slopes = _kernel.evaluate(arguments, wanted)
        return _returned(result, *slopes)
    result, where = _values.evaluate(arguments), inside(value)
    supported = (torch.where(where, value, 1), *arguments[1:])
    slopes = _kernel.differentiate(supported, wanted, where.to(value.dtype).expand(result.shape), None)
    return _returned(result, *slopes)


def _returned(*tensors: Tensor | None) -> list[Tensor]:
    """Those that there are, laid out as torch.compile is told they would be."""
    return [t.contiguous() for t in tensors if t is not None]


@_evaluate.register_fake
def _(value: Tensor, loc: Tensor, scale: Tensor, gate: list[Tensor], wanted: list[bool]) -> list[Tensor]:
    arguments = (value, loc, scale, *gate)
    result = value.new_empty(broadcast(*(a.shape for a in arguments)))
    return [result, *(a.new_empty(a.shape) for a, w in zip(arguments, wanted, strict=True) if w)]


@torch.library.custom_op(
    "pyro_zilognormal::log_density_gradients",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor grad, Tensor[] arguments, Tensor[] slopes, bool[] wanted) -> Tensor[]",
)
def _differentiate(grad: Tensor, arguments: list[Tensor], slopes: list[Tensor], wanted: list[bool]) -> list[Tensor]:
    """The gradients, from one of the log density that may differ between entries, and the derivatives in its sum."""
    factor = _fused.only_value(grad)
    if factor is not None:
        return [s * factor for s in slopes]
    value, loc, *_ = arguments
    by_value = int(wanted[0])
    by_loc = slopes[by_value] if wanted[1] and loc.shape == grad.shape else None
    if not all_inside(value):
        arguments = [torch.where(inside(value), value, 1), *arguments[1:]]
        grad = torch.where(inside(value), grad, 0)
    return _returned(*_fused.differentiate(attempt, arguments, wanted, grad, by_loc))


@_differentiate.register_fake
def _(grad: Tensor, arguments: list[Tensor], slopes: list[Tensor], wanted: list[bool]) -> list[Tensor]:
    return [s.new_empty(s.shape) for s in slopes]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
    *arguments, gate, ctx.wanted = inputs
    ctx.save_for_backward(*arguments, *gate, *output[1:])


def _backward(ctx: Any, grads: Sequence[Tensor]) -> tuple[Any, ...]:
    """The gradients; by the plain formula where they are to be differentiated again, or batched."""
    *first, gate, _ = ctx.needs_input_grad
    needed, saved, grad = (*first, *gate), ctx.saved_tensors, grads[0]
    arguments, slopes = saved[: len(needed)], saved[len(needed) :]
    if torch.is_grad_enabled() or _batched(grad) or any(n and not w for n, w in zip(needed, ctx.wanted, strict=True)):
        # The last where torch.compile has not seen, when it recorded, that an argument depends on a parameter.
        found = _fused.gradients_of_formula(grad, arguments, needed)
        return (*found[:3], list(found[3:]), None)
    by_argument = iter(_gradients(grad, arguments, slopes, ctx.wanted))
    value, loc, scale, *gate = [next(by_argument) if w else None for w in ctx.wanted]
    return value, loc, scale, gate, None


def _gradients(
    grad: Tensor, arguments: Sequence[Tensor], slopes: Sequence[Tensor], wanted: Sequence[bool]
) -> Sequence[Tensor]:
    if not any(grad.stride()):  # as the gradient of a sum is
        return [s * grad.as_strided((), ()) for s in slopes]
    if all(s.shape == grad.shape for s in slopes):
        where = inside(arguments[0])
        return [torch.where(where, s * grad, 0) for s in slopes]
    return torch.ops.pyro_zilognormal.log_density_gradients(grad, arguments, slopes, wanted)


def _batched(tensor: Tensor) -> bool:
    """By torch.func, or by torch.autograd.grad with is_grads_batched."""
    return torch._C._are_functorch_transforms_active() or torch._C._functorch.is_legacy_batchedtensor(tensor)


_evaluate.register_autograd(_backward, setup_context=_keep)
