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
    random number generators of torch (CPU and CUDA), numpy and Python.

    Args:
        seed: seeds all generators inside the block; None leaves them running.

    Example:
        >>> with isolated(seed=0):
        ...     _ = pyro.param("a", torch.tensor(1.0))
        >>> "a" in pyro.get_param_store()
        False
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - the one that models draw from
    dtype = torch.get_default_dtype()
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
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
            torch.set_default_dtype(dtype)


def rng_state() -> dict[str, Any]:
    """Return the states of all generators as tensors, numbers and tuples, which can be saved without pickling objects.

    Example:
        >>> state = rng_state()
        >>> first = torch.rand(2)
        >>> set_rng_state(state)
        >>> bool((torch.rand(2) == first).all())
        True
    """
    name, words, *rest = np.random.get_state()  # noqa: NPY002
    numpy_state = (str(name), torch.from_numpy(np.asarray(words).astype(np.int64)), *rest)
    return {**torch_rng_state(), "numpy": numpy_state, "python": random.getstate()}


def set_rng_state(state: dict[str, Any]) -> None:
    """Set all generators to a state from :func:`rng_state`, or torch's to one from :func:`torch_rng_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    if "numpy" in state:
        name, words, *rest = state["numpy"]
        np.random.set_state((name, words.numpy().astype(np.uint32), *rest))  # noqa: NPY002
        random.setstate(state["python"])


def torch_rng_state() -> dict[str, Any]:
    """Return the states of torch's generators alone, which is cheap enough to do at every step."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda}
