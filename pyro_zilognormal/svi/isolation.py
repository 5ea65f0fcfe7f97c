"""What keeps a fit to itself: its own parameters, and the process's global state put back when it ends."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.params.param_store import ParamStoreDict
from pyro.poutine.runtime import am_i_wrapped, get_plates

from pyro_zilognormal.svi.rng import rng_state, seed_all, set_rng_state, unseed_cuda

# Pyro has one handler stack and one parameter store a process, so fits in several threads take turns.
_TURN = threading.RLock()


class ParamSpace:
    """A parameter store of its own, put in the place of Pyro's global one while it is active.

    Example:
        >>> space = ParamSpace()
        >>> with space.active():
        ...     _ = pyro.param("a", torch.tensor(1.0))
        >>> "a" in pyro.get_param_store()
        False
        >>> with space.active() as store:
        ...     "a" in store
        True
    """

    def __init__(self) -> None:
        self._contents: dict[str, Any] = vars(ParamStoreDict())

    @contextmanager
    def active(self) -> Iterator[ParamStoreDict]:
        """Make ``pyro.param``, ``pyro.module`` and PyroModules read and write this store alone."""
        store = pyro.get_param_store()
        with _TURN:
            outer = dict(vars(store))
            vars(store).update(self._contents)
            try:
                yield store
            finally:
                self._contents = dict(vars(store))
                vars(store).clear()
                vars(store).update(outer)


@contextmanager
def handlers_hidden() -> Iterator[None]:
    """Hide what happens inside from Pyro's handlers outside: those of a model that calls a fit itself, for one.

    Raises:
        ValueError: inside a plate, which would move the axes of all plates inside.
    """
    around = [frame.name for frame in get_plates() if frame.vectorized]
    if around:
        raise ValueError(f"this is inside plates {around}, whose axes would be taken; fit, and draw, outside of them")
    with poutine.block() if am_i_wrapped() else nullcontext():
        yield


@contextmanager
def global_state_kept(seed: int | None = None) -> Iterator[None]:
    """Put seeds, default dtype, and validation flags back as they were at the end, also after an error.

    Args:
        seed: what to seed torch, numpy and Python with inside the block; None leaves the generators alone.
    """
    with _TURN, warnings.catch_warnings():
        # A NaN loss is reported with its cause as a DivergenceError, so Pyro's bare warning says less.
        warnings.filterwarnings("ignore", message="Encountered (NaN|.?inf)")
        random, dtype = rng_state(), torch.get_default_dtype()
        settings, checks = pyro.settings.get(), torch.distributions.Distribution._validate_args
        try:
            if seed is not None:
                seed_all(seed)
            yield
        finally:
            set_rng_state(random)
            unseed_cuda(random)
            torch.set_default_dtype(dtype)
            pyro.settings.set(**settings)
            torch.distributions.Distribution.set_default_validate_args(checks)
