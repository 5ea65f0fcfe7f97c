"""The log density on CPU, with derivatives that the kernel finds along with it.

Most densities in a model are summed, so that the gradient that comes back is one number for all entries, and the
derivatives only have to be multiplied by it. A gradient that differs between entries takes a pass over the data of its
own; a second backward pass takes the plain formula.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pyro_zilognormal.density import blockwise, reference
from pyro_zilognormal.numerics.shapes import tracing

Slopes = Sequence[Tensor | None]


def _keys(tensor: Tensor) -> int:
    return torch._C._dispatch_keys(tensor).raw_repr()


_ORDINARY = _keys(torch.empty(0, device="cpu"))
with torch.inference_mode():
    _INFERENCE = _keys(torch.empty(0, device="cpu"))  # cannot be saved for a backward pass


def suits(*tensors: Tensor) -> bool:
    """Whether these are ordinary CPU tensors of one dtype that hold data, outside of tracers and transforms."""
    if tracing() or torch._C._len_torch_dispatch_stack() > 0 or forward_ad._current_level >= 0:
        return False
    dtype = tensors[0].dtype
    return all(t.dtype == dtype and t.numel() > 0 and _ordinary(t) for t in tensors)


def _ordinary(tensor: Tensor) -> bool:
    keys = _keys(tensor)
    usable = keys == _ORDINARY or (keys == _INFERENCE and not torch.is_grad_enabled())
    return usable and type(tensor) in (Tensor, torch.nn.Parameter)


def log_density(*arguments: Tensor) -> Tensor:
    """The log density at values in [0, inf), as a function of value, loc, scale and zero part.

    The zero part is either the logits of P(X = 0); or log P(X = 0) and log P(X > 0), which is better where these are
    much smaller than the result.
    """
    wanted = [torch.is_grad_enabled() and a.requires_grad for a in arguments]
    with torch.no_grad():
        result, slopes = blockwise.evaluate(arguments, wanted)
    return _LogDensity.apply((result, slopes), *arguments) if any(wanted) else result


class _LogDensity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, found: tuple[Tensor, Slopes], *arguments: Tensor) -> Tensor:
        result, ctx.slopes = found
        ctx.save_for_backward(*arguments)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients; by the plain formula where they are to be differentiated again, or batched."""
        arguments, wanted = ctx.saved_tensors, ctx.needs_input_grad[1:]
        if torch.is_grad_enabled() or not suits(grad, *arguments):
            return None, *_gradients_of_formula(grad, arguments, wanted)
        slopes, factor = ctx.slopes, _only_value(grad)
        if slopes is None or (factor is None and any(s is not None and s.shape != grad.shape for s in slopes)):
            return None, *blockwise.evaluate(arguments, wanted, grad)[1]
        ctx.slopes = None  # a second backward pass computes them again: these are changed in place and handed over
        if factor != 1:
            for slope in slopes:
                if slope is not None:
                    slope.mul_(grad if factor is None else factor)
        return None, *slopes


def _only_value(grad: Tensor) -> float | None:
    """The value that all entries share, or None."""
    if any(grad.stride()):
        lowest, highest = torch.aminmax(grad)
        return lowest.item() if lowest == highest else None
    return grad.as_strided((), ()).item()


def _gradients_of_formula(
    grad: Tensor, arguments: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients, in steps that can be differentiated again."""
    with torch.enable_grad():
        # Of views: if one argument was computed from another, the gradients must not flow through that too.
        views = [a.view_as(a) for a in arguments]
        result = reference.log_density(*views)
    inputs = [v for v, w in zip(views, wanted, strict=True) if w]
    found = iter(torch.autograd.grad(result, inputs, grad, create_graph=torch.is_grad_enabled()))
    return tuple(next(found) if w else None for w in wanted)
