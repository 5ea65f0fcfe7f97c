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

from pyro_zilognormal import _formula, _fused, _kernel, _one_pass, _values
from pyro_zilognormal._shapes import broadcast
from pyro_zilognormal.compilation import LARGE, attempt


def suits(size: int, *tensors: Tensor) -> bool:
    """Whether torch.compile records, for large ordinary CPU tensors of one dtype, outside of transforms."""
    if not torch.compiler.is_dynamo_compiling() or torch.compiler.is_exporting() or size < LARGE:
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
    found = attempt(_one_pass.evaluate, lambda evaluate: evaluate(arguments, wanted))
    if found is not None and found.ordinary:
        return [found.result, *(s for s in found.slopes if s is not None)]
    inside = (value >= 0) & (value < torch.inf)
    if inside.all():
        result, slopes = _kernel.evaluate(arguments, wanted)
        return [result, *(s for s in slopes if s is not None)]
    supported = (torch.where(inside, value, 1), *arguments[1:])
    result = torch.where(inside, _values.evaluate(supported), _formula.outside(value))
    slopes = _kernel.differentiate(supported, wanted, inside.to(value.dtype).expand(result.shape), None)
    return [result, *(s for s in slopes if s is not None)]


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
    by_loc = slopes[wanted[0]] if wanted[1] and arguments[1].shape == grad.shape else None
    inside = (arguments[0] >= 0) & (arguments[0] < torch.inf)
    if not inside.all():
        arguments = [torch.where(inside, arguments[0], 1), *arguments[1:]]
        grad = torch.where(inside, grad, 0)
    found = _fused.differentiate(attempt, arguments, wanted, grad, by_loc)
    return [s for s in found if s is not None]


@_differentiate.register_fake
def _(grad: Tensor, arguments: list[Tensor], slopes: list[Tensor], wanted: list[bool]) -> list[Tensor]:
    return [s.new_empty(s.shape) for s in slopes]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
    *arguments, gate, ctx.wanted = inputs
    ctx.save_for_backward(*arguments, *gate, *output[1:])


def _backward(ctx: Any, grads: Sequence[Tensor]) -> tuple[Any, ...]:
    """The gradients; by the plain formula where they are to be differentiated again, or batched."""
    count = len(ctx.wanted)
    arguments, slopes, grad = ctx.saved_tensors[:count], ctx.saved_tensors[count:], grads[0]
    if torch.is_grad_enabled() or _batched(grad):
        found = [g for g in _fused.gradients_of_formula(grad, arguments, ctx.wanted) if g is not None]
    elif all(s.shape == grad.shape for s in slopes):
        found = [s * grad for s in slopes]
    elif not any(grad.stride()):  # as the gradient of a sum is
        found = [s * grad.as_strided((), ()) for s in slopes]
    else:
        found = torch.ops.pyro_zilognormal.log_density_gradients(grad, arguments, slopes, ctx.wanted)
    left = iter(found)
    value, loc, scale, *gate = [next(left) if w else None for w in ctx.wanted]
    return value, loc, scale, gate, None


def _batched(tensor: Tensor) -> bool:
    """By torch.func, or by torch.autograd.grad with is_grads_batched."""
    return torch._C._are_functorch_transforms_active() or torch._C._functorch.is_legacy_batchedtensor(tensor)


_evaluate.register_autograd(_backward, setup_context=_keep)
