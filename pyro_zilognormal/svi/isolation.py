"""What a process has once, and a fit gives back: Pyro's parameters and handlers, random seeds, flags."""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK

_turn = threading.RLock()


@contextmanager
def isolated(seed: int | None = None) -> Iterator[None]:
    """Run a block with a copy of Pyro's parameter store, and put the process's global state back afterwards.

    That is Pyro's store and settings, torch's default dtype, and the random number generators of torch, numpy and
    Python, which a seed seeds inside the block. Threads run such blocks one after another.
    """
    with _turn, _OneThread() as outside:
        state, dtype = pyro.util.get_rng_state(), torch.get_default_dtype()
        with (
            torch.random.fork_rng(range(torch.cuda.device_count())),
            pyro.settings.context(**pyro.settings.get()),
            pyro.get_param_store().scope(dict(outside.store)),
            warnings.catch_warnings(),
        ):
            # A loss that is not finite is reported with its cause, so Pyro's own warning says less.
            warnings.filterwarnings("ignore", message="Encountered (NaN|.?inf)")
            try:
                if seed is not None:
                    pyro.set_rng_seed(seed)
                yield
            finally:
                pyro.util.set_rng_state(state)
                torch.set_default_dtype(dtype)


def rng_state() -> dict[str, Any]:
    """Return the states of all generators, in types that ``torch.load(weights_only=True)`` reads."""
    state = pyro.util.get_rng_state()
    name, words, *rest = state["numpy"]
    return {**state, **torch_rng_state(), "numpy": (str(name), words.tolist(), *rest)}


def torch_rng_state() -> dict[str, Any]:
    """Return the states of torch's generators alone: a microsecond, where numpy's takes a hundred."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: dict[str, Any]) -> None:
    """Set the generators to a state from :func:`rng_state` or :func:`torch_rng_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    if "numpy" in state:
        pyro.util.set_rng_state(state)


class _OneThread(Messenger):
    """Refuse statements of Pyro in other threads than that of the block: they would land in its fit."""

    def __init__(self) -> None:
        super().__init__()
        self.thread, self.store = threading.get_ident(), pyro.get_param_store().get_state()

    def _process_message(self, msg: Any) -> None:
        if threading.get_ident() != self.thread:
            raise RuntimeError(
                f"pyro.{msg['type']} {msg['name']!r} was called while another thread fits or draws; Pyro has one "
                "parameter store and one stack of handlers in a process: call it before or after, or in another process"
            )


def _forget() -> None:
    """In a forked child, forget the blocks of a thread that the child does not have."""
    global _turn
    outermost = next((handler for handler in _PYRO_STACK if isinstance(handler, _OneThread)), None)
    if outermost is not None and outermost.thread != threading.get_ident():
        store = pyro.get_param_store()
        store.clear()
        store.set_state(outermost.store)
        _PYRO_STACK.clear()
        _turn = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
