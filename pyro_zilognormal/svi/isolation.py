"""The process's global state: what a fit changes of it is put back."""

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch


@contextmanager
def isolated(seed: int | None = None) -> Iterator[None]:
    """Run a block with a parameter store of its own, and put the process's global state back afterwards.

    That is Pyro's parameter store and settings, among them the validation flags, torch's default dtype, and the
    random number generators of torch (CPU and CUDA), numpy and Python. A seed seeds all of these inside the block.

    Example:
        >>> with isolated(seed=0):
        ...     _ = pyro.param("a", torch.tensor(1.0))
        >>> "a" in pyro.get_param_store()
        False
    """
    state, dtype = pyro.util.get_rng_state(), torch.get_default_dtype()
    with (
        torch.random.fork_rng(range(torch.cuda.device_count())),
        pyro.settings.context(**pyro.settings.get()),
        pyro.get_param_store().scope(),
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
    name, words, *rest = np.random.get_state()  # noqa: NPY002 - the one that models draw from
    numpy_state = (str(name), np.asarray(words).tolist(), *rest)
    return {**torch_rng_state(), "numpy": numpy_state, "random": random.getstate()}


def torch_rng_state() -> dict[str, Any]:
    """Return the states of torch's generators alone, which is cheap enough to do at every step."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: dict[str, Any]) -> None:
    """Set all generators to a state from :func:`rng_state`, or torch's to one from :func:`torch_rng_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    if "numpy" in state:
        pyro.util.set_rng_state(state)
