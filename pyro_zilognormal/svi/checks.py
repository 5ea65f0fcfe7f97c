"""Checks of arguments that several modules share."""

import math
import operator
from typing import Any


def whole(name: str, value: Any, least: int, most: float = math.inf) -> int:
    """Return an argument as an int; raise a ValueError unless it is a whole number from ``least`` to ``most``.

    Numpy integers and tensors of one whole number count as whole numbers; booleans and floats do not.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        bound = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
        raise ValueError(f"{name} is {value!r}; needed a whole number {bound}")
    return number


def number(name: str, value: Any, least: float = 0.0, above: bool = False) -> float:
    """Return an argument as a float; raise a ValueError unless it is finite and of at least, or above, ``least``."""
    try:
        found = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not (found > least if above else found >= least) or found == math.inf:
        raise ValueError(f"{name} is {value!r}; needed a finite number {'above' if above else 'of at least'} {least:g}")
    return found
