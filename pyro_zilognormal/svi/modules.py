"""The torch modules behind a model or guide."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyro.poutine.messenger import unwrap
from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put every submodule in eval mode, and back as it was afterwards."""
    training = [m for m in module.modules() if m.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def owner(fn: Callable[..., Any]) -> nn.Module | None:
    """Return the module that ``fn`` is or is a method of, through partials and handlers; None for neither."""
    fn = unwrap(fn)
    while isinstance(fn, functools.partial):
        fn = unwrap(fn.func)
    fn = fn if isinstance(fn, nn.Module) else getattr(fn, "__self__", None)  # type: ignore[assignment]
    return fn if isinstance(fn, nn.Module) else None
