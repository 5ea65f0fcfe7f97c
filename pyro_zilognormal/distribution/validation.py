"""Checks of arguments, with errors that name the argument, what came, what was needed and the fix."""

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_zilognormal.numerics.extremes import extremes
from pyro_zilognormal.numerics.shapes import broadcast
from pyro_zilognormal.numerics.tracing import tracing

LAW = "ZeroInflatedLogNormal"


def check_floating(name: str, argument: Any) -> None:
    """Raise TypeError unless the argument is a real number or a real floating-point tensor."""
    if isinstance(argument, Tensor):
        if not argument.is_floating_point():
            raise TypeError(
                f"{LAW}: {name} must be a floating-point tensor, got one of dtype {argument.dtype}. "
                f"Convert it first, for example with {name}.to(torch.get_default_dtype())."
            )
    elif isinstance(argument, bool) or not isinstance(argument, Real):
        raise TypeError(
            f"{LAW}: {name} must be a number or a floating-point torch.Tensor, got {type(argument).__name__}. "
            f"Convert it first, for example with torch.as_tensor({name})."
        )


def as_tensors(**arguments: Any) -> list[Tensor]:
    """The arguments as tensors of one dtype and device; numbers take those of the tensors among them."""
    for name, argument in arguments.items():
        check_floating(name, argument)
    tensors = {name: a for name, a in arguments.items() if isinstance(a, Tensor)}
    _check_alike("dtype", tensors, TypeError)
    _check_alike("device", tensors, ValueError)
    if len(tensors) == len(arguments):
        return list(tensors.values())
    like = next(iter(tensors.values()), torch.empty(()))
    return [a if isinstance(a, Tensor) else like.new_tensor(a) for a in arguments.values()]


def _check_alike(trait: str, tensors: dict[str, Tensor], error: type[Exception]) -> None:
    traits = {name: getattr(tensor, trait) for name, tensor in tensors.items()}
    if len(set(traits.values())) > 1:
        raise error(f"{LAW}: parameters must share one {trait}, got {traits}. Move them with .to(...) first.")


def broadcast_shapes(**shapes: torch.Size) -> torch.Size:
    """The shape to which all broadcast, or an error that names the arguments."""
    try:
        return broadcast(*shapes.values())
    except (ValueError, RuntimeError) as error:
        named = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"{LAW}: shapes do not broadcast: {named}.") from error


def check_expands(name: str, shape: torch.Size, target: torch.Size) -> None:
    """Raise ValueError unless a tensor of the shape can be expanded to the target."""
    if broadcast_shapes(**{name: shape, "target": target}) != target:
        raise ValueError(f"{LAW}: cannot expand {name} from {tuple(shape)} to {tuple(target)}: it would shrink.")


def as_value(name: str, value: Any, like: Tensor, batch_shape: torch.Size) -> Tensor:
    """The argument of log_prob, cdf or icdf as a floating-point tensor that broadcasts with batch_shape."""
    check_floating(name, value)
    if not isinstance(value, Tensor):
        return like.new_tensor(value)
    if value.device != like.device:
        raise ValueError(f"{LAW}: {name} is on {value.device}, the parameters on {like.device}. Move it with .to(...).")
    broadcast_shapes(**{name: value.shape, "batch_shape": batch_shape})
    return value


def check_parameter(name: str, parameter: Tensor, constraint: Constraint, *, finite: bool) -> None:
    """Raise ValueError unless every entry satisfies the constraint, and is finite where that is asked."""
    low, high = getattr(constraint, "lower_bound", -math.inf), getattr(constraint, "upper_bound", math.inf)
    if surely_between(low, parameter, high, closed=not finite):
        return
    valid = constraint.check(parameter)
    if finite:
        valid = valid & parameter.isfinite()
    if known_false(valid.all()):
        raise ValueError(
            f"Expected parameter {name} (Tensor of shape {tuple(parameter.shape)}) of distribution {LAW} to satisfy "
            f"the constraint {constraint!r}{' and be finite' if finite else ''}, but found invalid values: "
            f"{_describe(parameter, ~valid)}"
        )


def check_values(name: str, value: Tensor, low: float, high: float, needed: str) -> None:
    """Raise ValueError unless every entry is in [low, high]."""
    if surely_between(low, value, high, closed=True):
        return
    valid = (value >= low) & (value <= high)
    if known_false(valid.all()):
        raise ValueError(
            f"Expected value argument {name} (Tensor of shape {tuple(value.shape)}) of distribution {LAW} to be "
            f"{needed}, but found invalid values: {_describe(value, ~valid)} Clean them, hide them with .mask(...), or "
            "pass validate_args=False."
        )


def surely_between(low: float, tensor: Tensor, high: float, *, closed: bool) -> bool:
    """Whether all entries are known to lie in the interval. Their extremes take one pass; NaN is its own extreme."""
    if tracing() or tensor.numel() == 0:
        return False
    try:
        least, greatest = extremes(tensor) if low >= 0 else (e.item() for e in tensor.detach().aminmax())
    except RuntimeError:
        return False
    return low <= least and greatest <= high if closed else low < least and greatest < high


def known_false(condition: Tensor) -> bool:
    """Whether the condition fails, as far as can be told: tracers, vmap and meta tensors hold no data to look at."""
    if tracing():
        return False
    try:
        return not bool(condition)
    except RuntimeError:
        return False


def _describe(value: Tensor, bad: Tensor) -> str:
    index = tuple(bad.nonzero()[0].tolist())
    at = f" at index {index}" if index else ""
    return f"{value[index].item()}{at} ({int(bad.sum())} of {bad.numel()} values are invalid)."
