"""Checks of arguments that several parts share."""

import math
from typing import Any


def check_whole(name: str, value: Any, least: int, most: float = math.inf) -> None:
    """Raise a ValueError unless an argument is a whole number from ``least`` to ``most``."""
    if type(value) is not int or not least <= value <= most:
        bound = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
        raise ValueError(f"{name} is {value!r}; needed a whole number {bound}")


def check_number(name: str, value: Any, least: float) -> None:
    """Raise a ValueError unless an argument is a number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
        raise ValueError(f"{name} is {value!r}; needed a number of at least {least:g}")


def check_seconds(name: str, value: Any) -> None:
    """Raise a ValueError unless an argument is a positive number, or None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
        raise ValueError(f"{name} is {value!r}; needed a positive number of seconds, or None")


def check_plate_name(plate: Any) -> None:
    """Raise a TypeError unless an argument can be the name of a plate, or is None."""
    if plate is not None and not isinstance(plate, str):
        raise TypeError(f"plate is a {type(plate).__name__}; needed the name of the model's plate over rows, or None")
