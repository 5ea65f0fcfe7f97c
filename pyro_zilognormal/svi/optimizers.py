"""The optimiser of a fit."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.optim import PyroOptim


def build(optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer], parameters: list[Any]) -> Any:
    """Return the torch optimiser that a function of the parameters makes.

    Args:
        optimizer: the function.
        parameters: all that are to be trained.

    Raises:
        TypeError: for anything but such a function, or an optimiser that calls the loss itself.
        ValueError: for an optimiser of other or fewer parameters.
    """
    called = callable(optimizer) and not isinstance(optimizer, PyroOptim)  # Pyro's own would take a step if called
    built = optimizer(parameters) if called else optimizer
    if not called or not isinstance(built, torch.optim.Optimizer) or isinstance(built, torch.optim.LBFGS):
        raise TypeError(
            f"optimizer is or gave a {type(built).__name__}; needed a function of the parameters that returns a "
            "first-order torch optimiser, such as functools.partial(torch.optim.Adam, lr=0.01)"
        )
    held = {id(p) for group in built.param_groups for p in group["params"]}
    if held != {id(p) for p in parameters}:
        raise ValueError(
            f"optimizer holds {len(held)} tensors, not exactly the {len(parameters)} parameters it was given; "
            "needed a function that passes all of them on"
        )
    return built
