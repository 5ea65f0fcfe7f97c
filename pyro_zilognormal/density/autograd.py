"""The log density on CPU, with derivatives by hand that are computed along with it.

Nearly every density in a model is summed, so that the gradient that comes back is one number for all entries. Then the
derivatives, found while all that they need is at hand, are but to be multiplied by it; summed over what a parameter is
shared by, if it is. A gradient that differs between entries, or a second backward pass, takes a pass of its own.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pyro_zilognormal.density import blockwise as _kernel
from pyro_zilognormal.density import one_pass as _one_pass
from pyro_zilognormal.density import reference as _formula
from pyro_zilognormal.density.compilation import run_compiled
from pyro_zilognormal.numerics.tracing import tracing

Slopes = Sequence[Tensor | None]


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
    needed = wanted(arguments)
    with torch.no_grad():
        result, slopes = _kernel.evaluate(arguments, needed)
    return with_slopes(result, slopes, arguments)


def wanted(arguments: Sequence[Tensor]) -> list[bool]:
    """Whether the derivatives in each are."""
    return [torch.is_grad_enabled() and a.requires_grad for a in arguments]


def with_slopes(result: Tensor, slopes: Slopes, arguments: Sequence[Tensor]) -> Tensor:
    """The log density that was found at the arguments, as a function of them with these derivatives."""
    return _LogDensity.apply((result, slopes), *arguments) if any(s is not None for s in slopes) else result


def evaluate(
    run: Callable[..., _one_pass.Found | None], arguments: Sequence[Tensor], wanted: Sequence[bool]
) -> _one_pass.Found | None:
    """In one pass, if what runs compiled functions does and the arguments are ordinary."""
    with torch._C._AutoDispatchBelowADInplaceOrView():  # always: torch.compile compiles anew where it changes
        found = run(_one_pass.evaluate, lambda function: function(_plain(arguments), wanted))
    return found if found is not None and found.ordinary else None


def differentiate(
    run: Callable[..., _one_pass.FoundSlopes | None],
    arguments: Sequence[Tensor],
    wanted: Sequence[bool],
    weight: Tensor,
    by_loc: Tensor | None,
) -> Slopes:
    """As `_kernel.differentiate`; in one pass if possible."""
    with torch._C._AutoDispatchBelowADInplaceOrView():
        found = run(
            _one_pass.differentiate,
            lambda function: function(_plain(arguments), wanted, *_plain([weight]), by_loc),
        )
    if found is not None and found.ordinary:
        return found.slopes
    return _kernel.differentiate(arguments, wanted, weight, by_loc)


def _plain(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Detached and stored row by row: where layouts differ, torch.compile has made loops that write out of bounds."""
    return [t.detach() if _by_rows(t) else t.detach().contiguous() for t in tensors]


def _by_rows(tensor: Tensor) -> bool:
    strides = [stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True) if length > 1 and stride]
    return strides == sorted(strides, reverse=True)


class _LogDensity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, found: tuple[Tensor, Slopes], *arguments: Tensor) -> Tensor:
        result, ctx.slopes = found
        ctx.save_for_backward(*arguments)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients; by the plain formula where they are to be differentiated again, or batched."""
        arguments, needed = ctx.saved_tensors, ctx.needs_input_grad[1:]
        if torch.is_grad_enabled() or not suits(grad, *arguments):
            return None, *gradients_of_formula(grad, arguments, needed)
        slopes, factor = ctx.slopes, only_value(grad)
        if slopes is None or (factor is None and any(s is not None and s.shape != grad.shape for s in slopes)):
            by_loc = slopes[1] if slopes is not None and arguments[1].shape == grad.shape else None
            run = functools.partial(run_compiled, grad.numel())
            return None, *differentiate(run, arguments, needed, grad, by_loc)
        ctx.slopes = None  # for they are handed over, and changed in place
        if factor != 1:
            for slope in slopes:
                if slope is not None:
                    slope.mul_(grad if factor is None else factor)
        return None, *slopes


def only_value(grad: Tensor) -> float | None:
    """The one value of all entries, if there is but one."""
    if any(grad.stride()):
        lowest, highest = torch.aminmax(grad)
        return lowest.item() if lowest == highest else None
    return grad.as_strided((), ()).item()


def gradients_of_formula(
    grad: Tensor, arguments: Sequence[Tensor], needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients, in steps that can be differentiated again."""
    with torch.enable_grad():
        # Of views: if one argument was computed from another, the gradients must not flow through that too.
        views = [a.view_as(a) for a in arguments]
        result = _formula.log_density(*views)
    wanted = [v for v, n in zip(views, needed, strict=True) if n]
    found = iter(torch.autograd.grad(result, wanted, grad, create_graph=torch.is_grad_enabled()))
    return tuple(next(found) if n else None for n in needed)
