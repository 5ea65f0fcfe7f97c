"""Item 4, the file: whole or refused, and never run."""

import hashlib
import json
import os
import pickle
from collections import Counter

import pytest
import torch

from pyro_zilognormal.svi import storage
from pyro_zilognormal.svi.storage import CorruptFileError

CONTENT = {
    "text": "μ and σ",
    "numbers": [1, -2.5, 1e-300, float("inf"), True, None],
    "pair": (0.9, 0.999),
    3: {"int key": Counter({7: 2})},
    "tensors": [torch.randn(2, 3), torch.zeros(0, 4), torch.tensor(5), torch.tensor([True, False])],
    "half": torch.tensor([1.5], dtype=torch.bfloat16),
    "complex": torch.tensor([1 + 2j]),
    "column": torch.arange(6).reshape(2, 3).t(),
}


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return type(a) is type(b) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "file"
    storage.write(path, CONTENT)
    assert equal(storage.read(path), CONTENT)
    assert os.listdir(tmp_path) == ["file"]


def test_nan_survives():
    assert storage.decode(storage.encode([float("nan")]))[0] != 0


def test_tensors_read_may_be_written_to():
    found = storage.decode(storage.encode(torch.zeros(3)))
    found += 1
    assert found.tolist() == [1.0, 1.0, 1.0]


def test_every_single_bit_flip_is_refused():
    whole = storage.encode({"a": torch.arange(3.0), "b": [1, "x"]})
    for position in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(CorruptFileError):
            storage.decode(bytes(flipped))


def test_every_truncation_and_addition_is_refused():
    whole = storage.encode({"a": torch.arange(3.0)})
    for size in range(len(whole)):
        with pytest.raises(CorruptFileError):
            storage.decode(whole[:size])
    with pytest.raises(CorruptFileError):
        storage.decode(whole + b"\0")


def signed(header, payload=b""):
    """A file with a right checksum, as an attacker would write it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = len(text).to_bytes(8, "little") + text + payload
    return b"SVI-CHECKPOINT-1" + hashlib.sha256(body).digest() + body


def entry(**change):
    return {"tree": {"tensor": 0}, "tensors": [{"dtype": "float32", "shape": [2], **change}]}


HOSTILE = {
    "negative shape": signed(entry(shape=[-2]), bytes(8)),
    "huge shape": signed(entry(shape=[2**62, 2**62]), bytes(8)),
    "text in shape": signed(entry(shape=["2"]), bytes(8)),
    "boolean in shape": signed(entry(shape=[True, 2]), bytes(8)),
    "unknown dtype": signed(entry(dtype="object"), bytes(8)),
    "dtype by path": signed(entry(dtype="__class__"), bytes(8)),
    "too few bytes": signed(entry(), bytes(7)),
    "too many bytes": signed(entry(), bytes(9)),
    "no such tensor": signed({"tree": {"tensor": 4}, "tensors": []}),
    "unknown kind": signed({"tree": {"call": "os.system"}, "tensors": []}),
    "two kinds": signed({"tree": {"tensor": 0, "dict": []}, "tensors": []}),
    "unhashable key": signed({"tree": {"dict": [[[1], 2]]}, "tensors": []}),
    "no tree": signed({"tensors": []}),
    "not JSON": signed(b"\x80\x04."),
    "not text": signed(b"\xff\xfe"),
    "a list": signed([1, 2]),
    "deep": signed(b"[" * 200_000),
    "long header": b"SVI-CHECKPOINT-1" + hashlib.sha256(b"\xff" * 8).digest() + b"\xff" * 8,
    "empty": b"",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_with_a_right_checksum_is_refused(data):
    with pytest.raises(CorruptFileError):
        storage.decode(data)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("save", [pickle.dumps, lambda x: _torch_bytes(x)], ids=["pickle", "torch.save"])
def test_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch, save):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(save(Payload()))
    with pytest.raises(CorruptFileError, match="does not begin as a checkpoint"):
        storage.read(tmp_path / "file")
    assert not (tmp_path / "ran").exists()


def _torch_bytes(value):
    import io

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, fails):
    path = tmp_path / "file"
    storage.write(path, "old")

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(os, fails, fail)
    with pytest.raises(OSError, match="disk full"):
        storage.write(path, "new")
    assert storage.read(path) == "old"


def test_the_new_file_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("replace"), replace(*paths)))
    storage.write(tmp_path / "file", 1)
    assert order == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("value", [{"f": print}, [object()], {1, 2}, b"bytes", torch.eye(2).to_sparse()])
def test_what_cannot_be_held_is_named(value):
    with pytest.raises(TypeError, match=r"content.*which a checkpoint cannot hold"):
        storage.encode(value)
