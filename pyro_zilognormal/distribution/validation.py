"""Checks of arguments, with errors that name the argument, what came, what was needed and the fix."""

import math
from functools import reduce
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_zilognormal.density.sparse import Entries
from pyro_zilognormal.numerics.shapes import broadcast, tracing

NAME = "ZeroInflatedLogNormal"


def check_real(name: str, argument: Any) -> None:
    """Raise TypeError unless the argument is a real number or a tensor of real numbers, floating point or whole."""
    if isinstance(argument, Tensor):
        if argument.dtype == torch.bool or argument.is_complex():
            raise TypeError(
                f"{NAME}: {name} must be a tensor of real numbers, got one of dtype {argument.dtype}. "
                f"Convert it first, for example with {name}.to(torch.get_default_dtype())."
            )
    elif isinstance(argument, bool) or not isinstance(argument, Real):
        raise TypeError(
            f"{NAME}: {name} must be a number or a torch.Tensor of real numbers, got {type(argument).__name__}. "
            f"Convert it first, for example with torch.as_tensor({name})."
        )


def only_one(**arguments: Any) -> tuple[str, Any]:
    """The one argument that was given, with its name."""
    given = [name for name, argument in arguments.items() if argument is not None]
    if len(given) != 1:
        *others, last = arguments
        raise ValueError(
            f"{NAME}: give exactly one of {', '.join(others)} and {last}, got {' and '.join(given) or 'none of them'}."
        )
    return given[0], arguments[given[0]]


def as_tensors(**arguments: Any) -> list[Tensor]:
    """The arguments as tensors that broadcast, of one device and one floating dtype, the widest among the tensors."""
    for name, argument in arguments.items():
        check_real(name, argument)
    tensors = {name: a for name, a in arguments.items() if isinstance(a, Tensor)}
    devices = {name: a.device for name, a in tensors.items()}
    if len(set(devices.values())) > 1:
        raise ValueError(f"{NAME}: parameters must share one device, got {devices}. Move them with .to(...) first.")
    floating = [a.dtype for a in tensors.values() if a.is_floating_point()] or [torch.get_default_dtype()]
    like, dtype = next(iter(tensors.values()), torch.empty(())), reduce(torch.promote_types, floating)
    broadcast_shapes(**{name: a.shape for name, a in tensors.items()})
    return [a.to(dtype) if isinstance(a, Tensor) else like.new_tensor(a, dtype=dtype) for a in arguments.values()]


def broadcast_shapes(**shapes: torch.Size) -> torch.Size:
    """The shape to which all broadcast, or an error that names the arguments."""
    try:
        return broadcast(*shapes.values())
    except (ValueError, RuntimeError) as error:
        named = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"{NAME}: shapes do not broadcast: {named}.") from error


def check_expands(name: str, shape: torch.Size, target: torch.Size) -> None:
    """Raise ValueError unless a tensor of the shape can be expanded to the target."""
    if broadcast_shapes(**{name: shape, "target": target}) != target:
        raise ValueError(f"{NAME}: cannot expand {name} from {tuple(shape)} to {tuple(target)}: it would shrink.")


def as_value(name: str, value: Any, like: Tensor, batch_shape: torch.Size) -> Tensor:
    """The argument of log_prob, cdf or icdf as a tensor of real numbers that broadcasts with batch_shape."""
    check_real(name, value)
    if not isinstance(value, Tensor):
        return like.new_tensor(value)
    _check_device(name, value, like.device)
    broadcast_shapes(**{name: value.shape, "batch_shape": batch_shape})
    return value


def _check_device(name: str, value: Tensor, device: torch.device) -> None:
    if value.device != device:
        raise ValueError(f"{NAME}: {name} is on {value.device}, the parameters on {device}. Move it with .to(...).")


def check_parameter(name: str, parameter: Tensor, constraint: Constraint, *, finite: bool) -> None:
    """Raise ValueError unless every entry satisfies the constraint, and is finite where that is required."""
    low, high = getattr(constraint, "lower_bound", -math.inf), getattr(constraint, "upper_bound", math.inf)
    if _surely_between(low, parameter, high, closed=not finite):
        return
    valid = constraint.check(parameter)
    if finite:
        valid = valid & parameter.isfinite()
    if known_false(valid.all()):
        raise ValueError(
            f"Expected parameter {name} (Tensor of shape {tuple(parameter.shape)}) of distribution {NAME} to satisfy "
            f"the constraint {constraint!r}{' and be finite' if finite else ''}, but found invalid values: "
            f"{_describe(parameter, ~valid)}"
        )


def check_moments(stddev: Tensor, scale: Tensor) -> None:
    """Raise ValueError unless a standard deviation gave a scale, which it does if it is that of a distribution."""
    valid = stddev.isfinite() & (scale > 0)
    if known_false(valid.all()):
        raise ValueError(
            f"{NAME}.from_moments: stddev must be finite and above mean * sqrt(zi_probs / (1 - zi_probs)), with "
            f"zi_probs in [0, 1), but found {_describe(stddev.expand(valid.shape), ~valid)}"
        )


def check_values(name: str, value: Tensor, low: float, high: float, needed: str) -> None:
    """Raise ValueError unless every entry is in [low, high]."""
    if _surely_between(low, value, high, closed=True):
        return
    valid = (value >= low) & (value <= high)
    if known_false(valid.all()):
        raise ValueError(
            f"Expected value argument {name} (Tensor of shape {tuple(value.shape)}) of distribution {NAME} to be "
            f"{needed}, but found invalid values: {_describe(value, ~valid)} Clean them, hide them with .mask(...), or "
            "pass validate_args=False."
        )


def _surely_between(low: float, tensor: Tensor, high: float, *, closed: bool) -> bool:
    """Whether all entries are known to be in the interval. One pass finds their extremes, NaN if any entry is."""
    if tracing() or tensor.numel() == 0:
        return False
    try:
        least, greatest = (extreme.item() for extreme in tensor.detach().aminmax())
    except RuntimeError:  # vmap and meta tensors
        return False
    return low <= least and greatest <= high if closed else low < least and greatest < high


def known_false(condition: Tensor) -> bool:
    """Whether the condition is known to fail: tracers, vmap and meta tensors hold no data."""
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


def as_entries(value: Any, device: torch.device, batch_shape: torch.Size) -> Entries:
    """The stored entries of a sparse matrix in CSR format to which batch_shape broadcasts."""
    if isinstance(value, Tensor) and value.layout == torch.sparse_csr:
        _check_device("value", value, device)
        pointers, columns, values = value.crow_indices(), value.col_indices(), value.values()
    elif getattr(value, "format", None) == "csr":
        native = (np.require(a, None, ["C", "W"]) for a in (value.indptr, value.indices, value.data))
        pointers, columns, values = (torch.from_numpy(a).to(device) for a in native)
    else:
        kind = f"a tensor of layout {value.layout}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"{NAME}.log_prob_sum: value must be a scipy CSR matrix or a tensor of layout sparse_csr, got {kind}. "
            "Convert it with .tocsr() or .to_sparse_csr(); for dense data use log_prob."
        )
    if len(value.shape) != 2:
        raise ValueError(f"{NAME}.log_prob_sum: value must be a matrix, got shape {tuple(value.shape)}.")
    check_real("value", values)
    check_expands("batch_shape", batch_shape, torch.Size(value.shape))
    entries = Entries(pointers.diff().long(), columns, values, tuple(value.shape))
    _check_indices(entries)
    return entries


def _check_indices(entries: Entries) -> None:
    """Raise ValueError for columns outside of the matrix, and for entries that are stored twice."""
    columns, width = entries.columns, entries.shape[1]
    if len(columns) and not _surely_between(0, columns, width - 1, closed=True):
        first, last = (int(extreme) for extreme in columns.aminmax())
        raise ValueError(f"{NAME}.log_prob_sum: value has entries in columns {first} to {last}, but {width} columns.")
    ordered = bool((entries.flat.diff() > 0).all())
    if not ordered and len(entries.flat.unique()) < len(entries.flat):
        raise ValueError(
            f"{NAME}.log_prob_sum: value stores some entries more than once. Add them up with .sum_duplicates()."
        )
