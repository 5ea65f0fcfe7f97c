"""The torch modules behind a model or guide."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyro.nn import PyroModule
from pyro.poutine.messenger import unwrap
from torch import nn
from torch.distributions import constraints


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


def module_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, Any]]:
    """Yield name, unconstrained value and constraint of each parameter; PyroParams by their own name."""
    for path, part in module.named_modules():
        prefix = f"{path}." if path else ""
        declared = part._pyro_params if isinstance(part, PyroModule) else {}
        for name, parameter in part.named_parameters(recurse=False):
            short = name.removesuffix("_unconstrained")
            if short != name and short in declared:
                yield prefix + short, parameter, declared[short][0]
            else:
                yield prefix + name, parameter, constraints.real
