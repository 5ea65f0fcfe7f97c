"""What a model or a guide holds beside its arguments: data, and numbers that a callback may change."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from pyro.poutine.messenger import unwrap
from torch import Tensor, nn

from pyro_zilognormal.svi.arrays import is_array

_PLAIN = bool | int | float | complex | str


def held_by(fn: Callable[..., Any], owner: nn.Module | None) -> dict[str, Any]:
    """Return the arrays, numbers and texts that a model reads but is not given, by name.

    They are those of its closure, of the global variables that it names, of the arguments of a partial, and the
    attributes of the object whose method it is; not those that functions which it calls read.

    Args:
        fn: a model or guide as it came.
        owner: the module that it is or is a method of, or None.
    """
    found = {} if owner is None else {f"{path}.{k}".strip("."): v for path, k, v in _attributes(owner)}
    return found | dict(_of_function(fn, set()))


def module_numbers(owner: nn.Module | None) -> dict[str, Any]:
    """Return the numbers among the attributes of a module and its parts, by name.

    Args:
        owner: the module, or None for none.
    """
    found = () if owner is None else _attributes(owner)
    return {f"{path}.{name}".strip("."): value for path, name, value in found if _is_number(value)}


def set_module_numbers(owner: nn.Module, numbers: dict[str, Any]) -> None:
    """Set attributes to what :func:`module_numbers` returned, and make those that have yet to come."""
    parts = dict(owner.named_modules())
    for name, value in numbers.items():
        path, _, short = name.rpartition(".")
        now = getattr(parts[path], short, None)
        setattr(parts[path], short, value.to(now.device) if isinstance(now, Tensor) else value)


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, Tensor) and value.numel() == 1)


def _attributes(owner: nn.Module) -> Iterator[tuple[str, str, Any]]:
    for path, part in owner.named_modules():
        yield from ((path, k, v) for k, v in vars(part).items() if not k.startswith("_") and _is_data(v))


def _of_function(fn: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    fn = unwrap(fn)
    if id(fn) in seen or isinstance(fn, type):
        return
    seen.add(id(fn))
    if isinstance(fn, functools.partial):
        given = {**{str(i): v for i, v in enumerate(fn.args)}, **fn.keywords}
        yield from ((f"argument {k}", v) for k, v in given.items() if _is_data(v))
        yield from _of_function(fn.func, seen)
        return
    itself = getattr(fn, "__self__", None)
    if itself is not None and not isinstance(itself, nn.Module) and not inspect.ismodule(itself):
        yield from ((k, v) for k, v in getattr(itself, "__dict__", {}).items() if _is_data(v))
    try:
        variables = inspect.getclosurevars(fn.forward if isinstance(fn, nn.Module) else fn)
    except (TypeError, ValueError):  # of no function written in Python, or of a variable that has yet to come
        return
    yield from ((k, v) for k, v in {**variables.globals, **variables.nonlocals}.items() if _is_data(v))
    for inner in variables.nonlocals.values():
        if inspect.isfunction(inner) or inspect.ismethod(inner) or isinstance(inner, functools.partial):
            yield from _of_function(inner, seen)


def _is_data(value: Any) -> bool:
    """Whether a value is data, and no state that the model itself keeps: a list of losses so far, or a cache."""
    return isinstance(value, _PLAIN) or _is_array(value) or (isinstance(value, dict | list | tuple) and _holds(value))


def _is_array(value: Any) -> bool:
    return is_array(value) and not (isinstance(value, Tensor) and value.requires_grad)


def _holds(value: Any) -> bool:
    inner = list(value.values()) if isinstance(value, dict) else list(value)
    return any(map(_is_array, inner)) and all(map(_is_data, inner))
