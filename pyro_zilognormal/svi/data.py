"""Data of a fit: all rows at once, shuffled minibatches of arrays, or a stream of batches."""

import copy
import hashlib
import math
import operator
from collections.abc import Iterable, Iterator
from itertools import chain, count, islice
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyro_zilognormal.svi.elbo import Batch, isolated


class Minibatches:
    """Minibatches along the first axis of arrays, in an order shuffled anew each epoch from the fit's seed.

    Sites in the plate are scaled by N / b for a batch of b of all N rows, and the gradient by (batches an epoch) b / N:
    the mean of an epoch's gradients is the full gradient, also where the last batch is short.

    Args:
        arrays: tensors, numpy arrays or scipy CSR matrices of as many rows, which become the dense arguments of model
            and guide; None stays None.
        batch_size: rows a batch.
        plate: the name of the model's plate over rows, written ``pyro.plate(name, len(x))`` or
            ``pyro.plate(name, N, subsample_size=len(x))``; None for a model that scales minibatches itself.
        shuffle: whether to shuffle the rows.
        device: where to put the batches; None leaves tensors where they are.
        dtype: what floating arrays become; None keeps their dtype.

    Raises:
        ValueError: for arrays of different lengths, no row at all, or a batch_size below 1.

    Example:
        >>> data = Minibatches(torch.arange(10.0), batch_size=4, plate="rows")
        >>> [batch.rows for batch in data.epoch(0, seed=0)]
        [4, 4, 2]
    """

    def __init__(
        self,
        *arrays: Any,
        batch_size: int,
        plate: str | None,
        shuffle: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.arrays, self.plate, self.shuffle, self.device, self.dtype = arrays, plate, shuffle, device, dtype
        rows = {i: array.shape[0] for i, array in enumerate(arrays) if array is not None}
        if len(set(rows.values())) != 1 or 0 in rows.values():
            raise ValueError(f"arrays have these numbers of rows: {rows}; needed one number, above 0, for all")
        self.rows = rows.popitem()[1]
        self.batch_size = min(whole("batch_size", batch_size, 1), self.rows)
        self.batches = -(-self.rows // self.batch_size)

    def epoch(self, number: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch ``number``, without the first ``skip``, in the order that ``seed`` gives."""
        order = torch.arange(self.rows)
        if self.shuffle and self.batches > 1:
            order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(_epoch_seed(seed, number)))
        yield from map(self.batch, order.split(self.batch_size)[skip:])

    def batch(self, indices: Tensor) -> Batch:
        """Return the batch of the rows ``indices``, of shape (b,)."""
        args = tuple(None if array is None else self._read(array, indices) for array in self.arrays)
        device = next(a.device for a in args if a is not None)
        return Batch(args, len(indices), indices.to(device))

    def digest(self, seed: int) -> str:
        """Return a hash of the arrays and how they are batched."""
        return digest([self.arrays, self.batch_size, self.shuffle, self.plate, str(self.dtype)])

    def _read(self, array: Any, indices: Tensor) -> Tensor:
        rows = array[indices.to(array.device) if isinstance(array, Tensor) else indices.numpy()]
        tensor: Tensor = as_tensor(rows)
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)


class BatchStream:
    """Batches from any iterable that can be read again, such as a ``torch.utils.data.DataLoader``.

    It is read once when this object is made, to count its rows, and again for every epoch. A loader, its own
    ``generator=`` included, shuffles from the fit's seed.

    Args:
        iterable: gives the same rows each time it is read, in any order. A batch is an array, or a tuple or list of
            the arguments of model and guide; its rows are those of its first array.
        plate: the name of the model's plate over rows, as in :class:`Minibatches`.

    Raises:
        TypeError: for an iterator, which can be read only once.
        ValueError: for an empty iterable.

    Example:
        >>> stream = BatchStream([torch.zeros(4), torch.zeros(2)], plate="rows")
        >>> stream.rows, stream.batches
        (6, 2)
    """

    def __init__(self, iterable: Iterable[Any], plate: str | None) -> None:
        if isinstance(iterable, Iterator):
            raise TypeError("iterable can be read only once; needed batches for every epoch: a list or a DataLoader")
        self.iterable, self.plate = iterable, plate
        rows = [batch.rows for batch in self._read(seed=0)]
        self.rows, self.batches = sum(rows), len(rows)
        if not rows:
            raise ValueError("iterable holds no rows; needed at least one batch")

    def epoch(self, number: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of one reading, without the first ``skip``."""
        read = 0
        for read, batch in enumerate(self._read(_epoch_seed(seed, number)), 1):
            if read > skip:
                yield batch
        if read != self.batches:
            raise ValueError(f"iterable gave {read} batches in epoch {number}, but {self.batches} when first read")

    def digest(self, seed: int) -> str:
        """Return a hash of the batches of the first epoch."""
        return digest([self.plate, *(batch.args for batch in self.epoch(0, seed))])

    def _read(self, seed: int) -> Iterator[Batch]:
        # Opening the iterable and taking its first batch is where a loader draws its order.
        with isolated(seed):
            if isinstance(self.iterable, DataLoader) and self.iterable.generator is not None:
                self.iterable.generator.manual_seed(seed)
            items = iter(self.iterable)
            first = list(islice(items, 1))
        yield from map(as_batch, chain(first, items))


class FullData(BatchStream):
    """All data in one call of model and guide: a stream of one batch, whose rows are numbered."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args, self.plate, self.batches = tuple(map(as_tensor, args)), None, 1
        self.rows = rows_of([*self.args, *kwargs.values()])

    def _read(self, seed: int) -> Iterator[Batch]:
        yield Batch(self.args, self.rows, torch.arange(self.rows))


Source: TypeAlias = Minibatches | BatchStream


def as_source(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Source:
    """Return the source of batches that the arguments of a fit stand for, a copy."""
    for value in args:
        if isinstance(value, DataLoader):
            raise TypeError("data hold a DataLoader; wrap it as BatchStream(loader, plate=...)")
        if isinstance(value, Minibatches | BatchStream):
            if len(args) > 1:
                raise TypeError(f"{type(value).__name__} came with other data; pass all arrays inside it")
            return copy.copy(value)
    return FullData(args, kwargs)


def batches(source: Source, seed: int, step: int = 0) -> Iterator[Batch]:
    """Yield the batches of a fit without end, from that of the given step on, counted from 0."""
    epoch, skip = divmod(step, source.batches)
    for number in count(epoch):
        yield from source.epoch(number, seed, skip)
        skip = 0


def as_batch(item: Any) -> Batch:
    """Return the batch of an array, or of a tuple or list of the arguments of model and guide."""
    args = tuple(map(as_tensor, item if isinstance(item, tuple | list) else (item,)))
    return Batch(args, rows_of(args))


def as_tensor(value: Any) -> Any:
    """Return a numpy array or scipy sparse matrix as a dense tensor of the same dtype, and anything else as it is."""
    array = value.toarray() if hasattr(value, "toarray") else value
    # Torch needs memory that it may write to.
    return torch.from_numpy(np.require(array, requirements=["C", "W"])) if isinstance(array, np.ndarray) else value


def rows_of(values: Iterable[Any]) -> int:
    """Return the length of the first tensor; 1 without any."""
    return next((len(a) for a in values if isinstance(a, Tensor) and a.dim() > 0), 1)


def digest(value: Any) -> str:
    """Return a SHA-256 hash of numbers, text, arrays, and lists, tuples and dicts of them; other objects by class."""
    found = hashlib.sha256()
    for piece in _pieces(value):
        found.update(piece)
    return found.hexdigest()


def _pieces(value: Any) -> Iterator[Any]:
    """Yield the bytes that tell a value from others."""
    if hasattr(value, "tocsr"):
        csr = value.tocsr()
        value = [csr.shape, csr.indptr, csr.indices, csr.data]
    elif isinstance(value, dict):
        value = ["dict", *value.items()]
    elif isinstance(value, Tensor):  # numpy lacks some dtypes
        flat = value.detach().cpu().flatten().contiguous()
        value = [str(value.dtype), *value.shape, flat.view(torch.uint8).numpy()]
    if isinstance(value, list | tuple):
        yield f"{len(value)} values".encode()
        for item in value:
            yield from _pieces(item)
    elif isinstance(value, np.ndarray):
        yield f"{value.shape} {value.dtype}".encode()
        yield np.ascontiguousarray(value).data if value.size else b""
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic):
        yield repr(value).encode()
    else:
        yield type(value).__qualname__.encode()


def whole(name: str, value: Any, least: int, most: float = math.inf) -> int:
    """Return an argument, numpy's or torch's too, as an int; raise a ValueError unless it is whole and in range."""
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        bound = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
        raise ValueError(f"{name} is {value!r}; needed a whole number {bound}")
    return number


def _epoch_seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")
