"""Compilation of the log density for a block of code."""

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch.distributions import Distribution

from pyro_zilognormal.numerics.tracing import tracing

T = TypeVar("T")

LARGE = 2**16  # entries: below, calling what was compiled costs more than it saves


class _Switch:
    """What a block has found out: whether compilation has failed."""

    failed = False


_SWITCH: ContextVar[_Switch | None] = ContextVar("pyro_zilognormal_compiled", default=None)


@contextmanager
def compiled() -> Iterator[None]:
    """Compile the log density of every ZeroInflatedLogNormal that is evaluated inside, with `torch.compile`.

    One switch, in this thread, for a whole `svi.fit`, an MCMC run or a loop of your own: the forward and the backward
    pass become a few loops over the data, on CPU one for both. Evaluations of fewer than 65,536 entries are
    left as they are. The first step compiles, for some ten seconds or more; later ones, and later runs on the same
    machine, gain.

    Where torch.compile does not work, for want of a C++ compiler say, a single warning says so and all goes on
    without. torch's switch for validation, which torch.compile turns off for the whole process, stays as it was.
    On accelerators what is compiled cannot be differentiated twice; torch says so in an error if you try.

    Example:
        >>> import torch
        >>> from pyro_zilognormal import ZeroInflatedLogNormal, compiled
        >>> with compiled():
        ...     ZeroInflatedLogNormal(0.0, 1.0, 0.0).log_prob(torch.tensor(0.0))
        tensor(-0.6931)
    """
    token = _SWITCH.set(_Switch())
    try:
        yield
    finally:
        _SWITCH.reset(token)


def run_compiled(size: int, function: Callable[..., T], run: Callable[[Callable[..., T]], T]) -> T | None:
    """What `run` makes of the function, compiled, if that is switched on, works and is worth it; else None."""
    if tracing():  # before the switch is looked at, which torch.compile cannot follow
        return None
    switch = _SWITCH.get()
    if switch is None or switch.failed or size < LARGE:
        return None
    try:
        return _run(function, run)
    except torch._dynamo.exc.TorchDynamoException as error:
        switch.failed = True
        _warn(error)
        return None


_UNASKED = _Switch()


def attempt(function: Callable[..., T], run: Callable[[Callable[..., T]], T]) -> T | None:
    """What `run` makes of the function, compiled; or None, without a word, if that does not work."""
    if _UNASKED.failed:
        return None
    try:
        return _run(function, run)
    except torch._dynamo.exc.TorchDynamoException:
        _UNASKED.failed = True
        return None
    except RuntimeError:  # torch.compiler.set_stance("fail_on_recompile"), which is for what the user compiles
        return None


def _run(function: Callable[..., T], run: Callable[[Callable[..., T]], T]) -> T | None:
    """None if there are more kinds of arguments than torch.compile compiles one function for."""
    validate = Distribution._validate_args
    try:
        return run(_compiled(function))
    except torch._dynamo.exc.FailOnRecompileLimitHit:
        return None
    finally:
        if Distribution._validate_args != validate:  # torch.compile turns it off
            Distribution.set_default_validate_args(validate)


@functools.cache
def _compiled(function: Callable[..., T]) -> Callable[..., T]:
    return torch.compile(function, fullgraph=True)


def quietly(function: Callable[..., T], *arguments: torch.Tensor) -> T:
    """What it returns, without a warning of the .grad of what is not a leaf, at which torch.compile itself looks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
        return function(*arguments)


def _warn(error: Exception) -> None:
    reason = str(error.__cause__ or error).strip().splitlines()[0]
    warnings.warn(
        f"compiled(): torch.compile failed, so the log density is not compiled in this block: {reason} "
        "Install a C++ compiler (g++ or clang; for a GPU also triton), or leave compiled() out.",
        RuntimeWarning,
        stacklevel=2,
    )
