"""Whether what a file holds has the form that it must have, before anything is done with it."""

import math
from typing import Any

from torch import Tensor


def same_form(saved: Any, ours: Any, where: str) -> None:
    """Raise a ValueError unless a value is of the kind, shape and structure of another; numbers may differ.

    Args:
        saved: what came.
        ours: what it is to replace.
        where: what to call it in the error.
    """
    if isinstance(ours, Tensor):
        _need(isinstance(saved, Tensor) and (saved.shape, saved.dtype) == (ours.shape, ours.dtype), saved, where, ours)
    elif isinstance(ours, dict):
        _need(isinstance(saved, dict) and saved.keys() == ours.keys(), saved, where, ours)
        for key in ours:
            same_form(saved[key], ours[key], f"{where}[{key!r}]")
    elif isinstance(ours, list | tuple):
        _need(type(saved) is type(ours) and len(saved) == len(ours), saved, where, ours)
        for i, value in enumerate(ours):
            same_form(saved[i], value, f"{where}[{i}]")
    elif isinstance(ours, float) or (isinstance(ours, int) and not isinstance(ours, bool)):
        kinds = (int, float) if isinstance(ours, float) else (int,)
        _need(type(saved) in kinds, saved, where, ours)
    else:
        _need(type(saved) is type(ours) and (isinstance(ours, bool) or saved == ours), saved, where, ours)


def whole(value: Any, where: str, most: float = math.inf) -> None:
    """Raise a ValueError unless a value is a whole number from 0 to ``most``."""
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{where} is {_short(value)}; needed a whole number from 0 to {most}")


def finite(value: Any, where: str) -> None:
    """Raise a ValueError unless a value is a finite number."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{where} is {_short(value)}; needed a finite number")


def pairs(value: Any, where: str, most: int) -> None:
    """Raise a ValueError unless a value is a list of pairs of a step up to ``most`` and a loss."""
    _need(isinstance(value, list), value, where, [])
    for i, pair in enumerate(value):
        _need(isinstance(pair, list) and len(pair) == 2 and type(pair[1]) is float, pair, f"{where}[{i}]", [1, 0.0])
        whole(pair[0], f"{where}[{i}][0]", most)


def _need(holds: bool, saved: Any, where: str, ours: Any) -> None:
    if not holds:
        raise ValueError(f"{where} is {_short(saved)}; needed the like of {_short(ours)}")


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} {value.dtype}"
    if isinstance(value, dict):
        return f"a dict of {[*value][:8]}"
    text = repr(value)
    return text if len(text) < 60 else f"a {type(value).__name__} of {len(text)} characters"
