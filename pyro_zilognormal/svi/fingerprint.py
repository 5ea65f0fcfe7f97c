"""What data, model and settings a run is of, so that a checkpoint of another can be refused."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_zilognormal.svi.arrays import is_sparse
from pyro_zilognormal.svi.isolation import global_state_kept
from pyro_zilognormal.svi.run import Run

_CHUNK = 1 << 24


def fingerprint(run: Run) -> dict[str, str]:
    """Return what identifies a run, each under a name that can be read in an error.

    Args:
        run: the run, before its first step.
    """
    with global_state_kept():  # a shuffling loader draws from torch's global generator
        found = {f"data argument {i}": describe(value) for i, value in enumerate(run.source.arguments())}
    found["data"] = f"{type(run.source).__name__} of {run.rows} rows in {run.source.batches} batches{_reading(run)}"
    for site in run.sites:
        seen = "observed" if site.observed else "latent"
        found[f"{site.part} site {site.name!r}"] = (
            f"{seen} {site.law}({site.constants}) {site.event_shape} in plates {site.plates}"
        )
    constraints = run.objective.constraints()
    for name, parameter in run.objective.trainable().items():
        found[f"parameter {name!r}"] = f"{tuple(parameter.shape)} {parameter.dtype} {constraints[name]}"
    with global_state_kept():
        return found | _settings(run)


def difference(saved: dict[str, str], now: dict[str, str]) -> str:
    """Return in words how two fingerprints differ, or "" where they do not."""
    lines = []
    for name in [*saved, *(k for k in now if k not in saved)]:
        if saved.get(name) != now.get(name):
            lines.append(f"{name}: {saved.get(name, 'absent')} in the checkpoint, {now.get(name, 'absent')} now")
    return "; ".join(lines)


def describe(value: Any) -> str:
    """Return shape, dtype and a digest of the content of one argument of the model."""
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {value.dtype} {_digest(_tensor_chunks(value))}"
    if isinstance(value, np.ndarray):
        return f"numpy {value.shape} {value.dtype} {_digest(_array_chunks(value))}"
    if is_sparse(value):
        parts = (c for a in (value.indptr, value.indices, value.data) for c in _array_chunks(a))
        return f"CSR {value.shape} {value.dtype} {_digest(parts)}"
    if isinstance(value, Iterator):
        return f"stream {_stream_digest(value)}"
    plain = value is None or isinstance(value, bool | int | float | str)
    return repr(value) if plain else type(value).__name__


def _reading(run: Run) -> str:
    """How the rows are read, as far as the source says."""
    named = {k: getattr(run.source, k, None) for k in ("batch_size", "shuffle", "plate")}
    said = {k: v for k, v in named.items() if v is not None}
    return f" {said}" if said else ""


def _settings(run: Run) -> dict[str, str]:
    loss, optimizer = run.objective.loss, run.optimizer
    simple = (
        {k: v for k, v in vars(loss).items() if isinstance(v, bool | int | float | str)}
        if hasattr(loss, "loss")
        else {}
    )
    found = {
        "seed": str(run.seed),
        "loss": f"{getattr(loss, '__name__', type(loss).__name__)} {simple}",
        "optimizer": f"{type(optimizer).__name__} {optimizer.defaults}",
        "optimizer groups": str([{**g, "params": len(g["params"])} for g in optimizer.param_groups]),
    }
    for i, callback in enumerate(c for c in run.callbacks if hasattr(c, "state_dict")):
        inner = callback.settings() if hasattr(callback, "settings") else ""
        found[f"callback {i} with a state"] = f"{type(callback).__name__} {inner}".strip()
    return found


def _digest(chunks: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _tensor_chunks(tensor: Tensor) -> Iterator[bytes]:
    rows = max(1, _CHUNK // max(1, tensor[:1].numel() * tensor.element_size())) if tensor.dim() else 1
    for part in tensor.detach().split(rows) if tensor.dim() and len(tensor) else [tensor.detach()]:
        flat = part.cpu().contiguous().flatten()
        yield flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _array_chunks(array: np.ndarray) -> Iterator[bytes]:
    if array.ndim == 0 or not array.size:
        yield array.tobytes()
        return
    rows = max(1, _CHUNK // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        yield np.ascontiguousarray(array[start : start + rows]).tobytes()


def _stream_digest(batches: Iterator[tuple[Any, ...]]) -> str:
    """Return a digest of the rows of a stream that is the same whatever their order and batches."""
    total = 0
    for args in batches:
        tensors = [a.detach().cpu().contiguous() for a in args if isinstance(a, Tensor) and a.dim() > 0]
        for row in range(len(tensors[0])):
            pieces = (
                t[row].contiguous().flatten().view(torch.uint8).numpy().tobytes() for t in tensors if len(t) > row
            )
            total += int(_digest(pieces), 16)
    return f"{total % (1 << 96):024x}"
