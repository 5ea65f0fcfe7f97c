"""The random number generators a model may draw from: torch (CPU and CUDA), numpy and Python."""

import random
from typing import Any

import numpy as np
import torch


def rng_state() -> dict[str, Any]:
    """Return the state of every global generator as tensors and plain numbers.

    Returns:
        A nested dict of tensors, numbers and strings, so that it can be written to a file as data.

    Example:
        >>> state = rng_state()
        >>> first = torch.rand(2)
        >>> set_rng_state(state)
        >>> bool((torch.rand(2) == first).all())
        True
    """
    return {"torch": torch.get_rng_state(), "cuda": _cuda_states(), "numpy": _numpy(), "python": _python()}


def set_rng_state(state: dict[str, Any]) -> None:
    """Set every global generator to a state from :func:`rng_state`.

    CUDA states are set on the devices that this machine has; the others are left out.

    Args:
        state: what :func:`rng_state` returned.
    """
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for device, saved in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(saved, device)
    _set_numpy(state["numpy"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))


def seed_all(seed: int) -> None:
    """Seed every generator that :func:`rng_state` knows, those of CUDA also where it has yet to start."""
    seed_torch(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global generator is what models draw from


def seed_torch(seed: int) -> None:
    """Seed torch's generators on the CPU and for CUDA; ``torch.manual_seed`` would seed other devices for good."""
    torch.default_generator.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)


def unseed_cuda(state: dict[str, Any]) -> None:
    """Undo what seeding did to CUDA since ``state``, after :func:`set_rng_state`, if it had yet to start then.

    A seed for CUDA waits until it starts. The one that was waiting is that of the CPU, unless it was set apart, or
    none at all, and then both are drawn at random.

    Args:
        state: what :func:`rng_state` returned.
    """
    if not state["cuda"] and torch.cuda.is_available():
        torch.cuda.manual_seed_all(torch.default_generator.initial_seed())


def torch_rng_state() -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the states of torch's generators alone, which is cheap enough to do at every step."""
    return torch.get_rng_state(), _cuda_states()


def set_torch_rng_state(state: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    """Set torch's generators to a state from :func:`torch_rng_state`."""
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])


def _cuda_states() -> list[torch.Tensor]:
    # Asking for the states would start CUDA where nobody uses it.
    return list(torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else []


def _numpy() -> dict[str, Any]:
    state = np.random.get_state(legacy=False)  # noqa: NPY002 - the global generator is what models draw from
    key = torch.from_numpy(state["state"]["key"].astype(np.int64))
    inner = {"key": key, "pos": int(state["state"]["pos"])}
    return {
        "bit_generator": str(state["bit_generator"]),
        "state": inner,
        "has_gauss": int(state["has_gauss"]),
        "gauss": float(state["gauss"]),
    }


def _set_numpy(state: dict[str, Any]) -> None:
    key, place = state["state"]["key"].numpy(), state["state"]["pos"]
    if key.shape != (624,) or not 0 <= place <= 624:  # numpy would read beyond the end of its memory
        raise ValueError(f"numpy's generator has {key.shape} words and place {place}; needed 624 and at most 624")
    key = key.astype(np.uint32)
    np.random.set_state({**state, "state": {"key": key, "pos": place}})  # noqa: NPY002


def _python() -> list[Any]:
    version, words, gauss = random.getstate()
    return [version, torch.tensor(words, dtype=torch.int64), gauss]
