"""One file of numbers, text and tensors that can be trusted or is refused.

Layout: 16 bytes of magic; the SHA-256 of all that follows; the length of the header, 8 bytes, little-endian;
the header, JSON; the tensors' bytes, one after the other. Nothing in it is ever unpickled or run.
"""

import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_MAGIC = b"SVI-CHECKPOINT-1"
_DTYPES = {
    str(d).removeprefix("torch."): d
    for d in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


class CorruptFileError(ValueError):
    """A file that is not whole, or not what this package wrote."""


def write(path: Path, content: Any) -> None:
    """Write ``content`` to ``path`` so that a crash leaves either the old file or the new one, whole.

    Args:
        path: where to; its folder must exist.
        content: None, booleans, numbers, text, tensors, and lists, tuples and dicts of them.
    """
    data = encode(content)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)  # of a full disk it would take what is left
        raise
    sync_folder(path.parent)


def read(path: Path) -> Any:
    """Return the content of a file written by :func:`write`, with tensors on the CPU.

    Raises:
        CorruptFileError: if a single bit of it is not as it was written, or it was not written by
        :func:`write`.
    """
    return decode(path.read_bytes())


def encode(content: Any) -> bytes:
    """Return the bytes of a file that holds ``content``."""
    tensors: list[Tensor] = []
    tree = _pack(content, tensors, "content")
    table = [{"dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape)} for t in tensors]
    header = json.dumps({"tree": tree, "tensors": table}).encode()
    body = b"".join([len(header).to_bytes(8, "little"), header, *map(_bytes, tensors)])
    return _MAGIC + hashlib.sha256(body).digest() + body


def decode(data: bytes) -> Any:
    """Return what :func:`encode` was given; raise a CorruptFileError for any other bytes."""
    if data[:16] != _MAGIC:
        raise CorruptFileError("it does not begin as a checkpoint does")
    body = data[48:]
    if hashlib.sha256(body).digest() != data[16:48]:
        raise CorruptFileError("its checksum does not match its content")
    try:
        size = int.from_bytes(body[:8], "little")
        header = json.loads(body[8 : 8 + size])
        return _unpack(header["tree"], _tensors(header["tensors"], body[8 + size :]))
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, RecursionError) as error:
        raise CorruptFileError(f"its content is not laid out as a checkpoint's is ({error})") from error


def sync_folder(folder: Path) -> None:
    """Make sure that a rename in ``folder`` outlives a power cut, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _pack(value: Any, tensors: list[Tensor], where: str) -> Any:
    if isinstance(value, Tensor):
        if str(value.dtype).removeprefix("torch.") not in _DTYPES or value.layout != torch.strided:
            raise TypeError(f"{where} is a {value.dtype} {value.layout} tensor, which a checkpoint cannot hold")
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, dict):
        pairs = [[_pack(k, tensors, where), _pack(v, tensors, f"{where}[{k!r}]")] for k, v in value.items()]
        return {"counter" if isinstance(value, Counter) else "dict": pairs}
    if isinstance(value, list | tuple):
        items = [_pack(v, tensors, f"{where}[{i}]") for i, v in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if value is None or type(value) in (bool, int, float, str):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a numpy scalar
        return _pack(value.item(), tensors, where)
    raise TypeError(
        f"{where} is a {type(value).__name__}, which a checkpoint cannot hold; needed numbers, text or tensors"
    )


def _unpack(tree: Any, tensors: list[Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unpack(v, tensors) for v in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, inner),) = tree.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "tuple":
        return tuple(_unpack(v, tensors) for v in inner)
    if kind not in ("dict", "counter"):
        raise ValueError(f"unknown kind {kind!r}")
    pairs = {_unpack(k, tensors): _unpack(v, tensors) for k, v in inner}
    return Counter(pairs) if kind == "counter" else pairs


def _tensors(table: list[dict[str, Any]], data: bytes) -> list[Tensor]:
    tensors, at = [], 0
    for entry in table:
        dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"shape {shape}")
        count = 1
        for n in shape:
            count *= n
        end = at + count * dtype.itemsize
        if end > len(data):
            raise ValueError("tensors longer than the file")
        # bytearray, since a tensor must be able to write to its memory
        flat = torch.frombuffer(bytearray(data[at:end]), dtype=dtype) if count else torch.empty(0, dtype=dtype)
        tensors.append(flat.reshape(shape))
        at = end
    if at != len(data):
        raise ValueError("bytes beyond the last tensor")
    return tensors
