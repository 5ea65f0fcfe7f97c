"""Values in short: shape, kind and a digest of the content."""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_zilognormal.svi.arrays import is_sparse

_CHUNK = 1 << 24


def describe(value: Any, within: tuple[int, ...] = ()) -> str:
    """Return what tells one value from another, down to every number in it.

    Containers, dataclasses and the attributes of other objects are looked into; of code, only the name is.

    Args:
        value: an argument of the model, or what is in one.
        within: the objects that it is in, to stop where one holds itself.

    Example:
        >>> describe({"sizes": (2, 3), "scale": 0.5})
        "{'sizes': (2, 3), 'scale': 0.5}"
        >>> describe([torch.zeros(2)]) == describe([torch.ones(2)])
        False
    """
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, Iterator):
        return f"stream {_stream_digest(value)}"
    return _array(value) or _container(value, (*within, id(value)))


def _array(value: Any) -> str:
    if isinstance(value, Tensor):
        dense = value.detach().to_dense() if value.layout != torch.strided else value
        return f"tensor {tuple(value.shape)} {value.dtype} {_digest(_tensor_chunks(dense))}"
    if is_sparse(value):
        rows = value.tocsr()
        parts = (c for a in (rows.indptr, rows.indices, rows.data) for c in _array_chunks(a))
        return f"{value.format.upper()} {value.shape} {value.dtype} {_digest(parts)}"
    if not isinstance(value, np.ndarray) and hasattr(value, "__array__") and not isinstance(value, type):
        return f"{type(value).__name__} of {_array(np.asarray(value))}"  # of pandas, for one
    if isinstance(value, np.ndarray):
        # An array of objects holds their addresses.
        content = _array_chunks(value) if value.dtype != object else [describe(value.tolist()).encode()]
        return f"numpy {value.shape} {value.dtype} {_digest(content)}"
    return ""


def _container(value: Any, within: tuple[int, ...]) -> str:
    if within[-1] in within[:-1]:
        return "itself"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{describe(k, within)}: {describe(v, within)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple | list):
        inner = ", ".join(describe(v, within) for v in value)
        return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(describe(v, within) for v in value)) + "}"
    name = getattr(value, "__qualname__", type(value).__qualname__)
    if callable(value) or isinstance(value, nn.Module) or not hasattr(value, "__dict__"):
        return name
    fields = {f.name for f in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()
    held = {k: getattr(value, k) for k in (*sorted(fields), *(k for k in vars(value) if k not in fields))}
    return f"{name}({describe(held, within)})"


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
