"""Data of a fit: all rows at once, shuffled minibatches of arrays, or a stream of batches."""

import copy
import hashlib
import math
import operator
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pyro_zilognormal.svi.elbo import isolated


@dataclass(frozen=True)
class Batch:
    """The arguments of one call of model and guide.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.
        rows: number of rows b in the batch.
        weight: factor of the batch's gradient; its mean over an epoch is 1.
        indices: which rows of the data these are, of shape (b,), or None where that is unknown.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    rows: int = 1
    weight: float = 1.0
    indices: Tensor | None = None


class FullData:
    """All data in one call of model and guide; numpy arrays and CSR matrices become dense tensors."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args = tuple(as_tensor(a, f"data argument {i}") if is_array(a) else a for i, a in enumerate(args))
        self.kwargs = {k: as_tensor(a, f"data argument {k!r}") if is_array(a) else a for k, a in kwargs.items()}
        values = [*self.args, *self.kwargs.values()]
        self.rows = next((len(a) for a in values if isinstance(a, Tensor) and a.dim() > 0), 1)
        self.batches = 1
        self.plate: str | None = None

    def epoch(self, number: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the one batch."""
        if skip == 0:
            yield Batch(self.args, self.kwargs, self.rows, indices=torch.arange(self.rows))

    def digest(self, seed: int) -> str:
        """Return a hash of the arguments."""
        return digest([self.args, self.kwargs])


class Minibatches:
    """Minibatches along the first axis of arrays, in an order shuffled anew each epoch from the fit's seed.

    Every row comes once an epoch; the last batch is short where ``batch_size`` does not divide the number of
    rows N. The sites in the plate are scaled by N / b for a batch of b rows, and the gradient is weighted by
    (batches an epoch) b / N, so that the mean of an epoch's gradients is the full gradient.

    Args:
        arrays: tensors, numpy arrays or scipy CSR matrices with the same number of rows, passed to model and
            guide in this order as dense tensors; None is passed on as None.
        batch_size: rows a batch.
        plate: the name of the model's plate over rows, written ``pyro.plate(name, len(x))`` or
            ``pyro.plate(name, N, subsample_size=len(x))``; None for a model that scales minibatches itself.
        shuffle: whether to shuffle the rows.
        device: where to put the batches; None leaves tensors where they are.
        dtype: what floating arrays become, such as ``torch.float32``; None keeps their dtype.

    Raises:
        TypeError: for something that is not an array, or a dtype that is not floating.
        ValueError: for arrays of different lengths, no array at all, or a batch_size below 1.

    Example:
        >>> x = torch.arange(10.0)
        >>> data = Minibatches(x, batch_size=4, plate="rows")
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
        _check_plate_and_dtype(plate, dtype)
        self.arrays, self.plate, self.shuffle, self.device, self.dtype = arrays, plate, shuffle, device, dtype
        self.rows = _common_rows(arrays)
        self.kwargs: dict[str, Any] = {}
        self.batch_size = min(whole("batch_size", batch_size, 1), self.rows)
        self.batches = -(-self.rows // self.batch_size)

    def epoch(self, number: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch ``number``, without the first ``skip``, in the order that ``seed`` gives."""
        order = torch.arange(self.rows)
        if self.shuffle and self.batches > 1:
            order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(_epoch_seed(seed, number)))
        for indices in order.split(self.batch_size)[skip:]:
            yield self.batch(indices)

    def batch(self, indices: Tensor) -> Batch:
        """Return the batch of the rows ``indices``, of shape (b,)."""
        args = tuple(self._rows(f"array {i}", array, indices) for i, array in enumerate(self.arrays))
        device = next(a.device for a in args if a is not None)
        weight = self.batches * len(indices) / self.rows
        return Batch(args, self.kwargs, len(indices), weight, indices.to(device))

    def digest(self, seed: int) -> str:
        """Return a hash of the arrays and how they are batched."""
        return digest([self.arrays, self.batch_size, self.shuffle, self.plate, str(self.dtype), self.kwargs])

    def _rows(self, name: str, array: Any, indices: Tensor) -> Tensor | None:
        if array is None:
            return None
        tensor = isinstance(array, Tensor)
        rows = array[indices.to(array.device)] if tensor else as_tensor(array[indices.numpy()], name)
        return _placed(rows, self.device, self.dtype)


class BatchStream:
    """Batches from any iterable that can be read again, such as a ``torch.utils.data.DataLoader``.

    It is read once when this object is made, to count its rows, and again for every epoch. A batch is an array, or
    a tuple or list of the arguments of model and guide; its rows are those of its first array. A loader that
    shuffles does so from the fit's seed, its own ``generator=`` included, so that a fit of it can be resumed.

    Args:
        iterable: gives the same rows each time it is read, in any order.
        plate: the name of the model's plate over rows, as in :class:`Minibatches`.
        device: where to put the batches; None leaves them where they are.
        dtype: what floating arrays become; None keeps their dtype.

    Raises:
        TypeError: for an iterator, which can be read only once, or a batch without an array.
        ValueError: for an empty iterable, or a batch without rows.

    Example:
        >>> stream = BatchStream([torch.zeros(4), torch.zeros(2)], plate="rows")
        >>> stream.rows, stream.batches
        (6, 2)
    """

    def __init__(
        self,
        iterable: Iterable[Any],
        plate: str | None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_plate_and_dtype(plate, dtype)
        if not isinstance(iterable, Iterable) or isinstance(iterable, Iterator):
            raise TypeError(
                f"iterable is a {type(iterable).__name__}; needed batches that can be read again each epoch, such as a "
                "list or a DataLoader"
            )
        self.iterable, self.plate, self.device, self.dtype = iterable, plate, device, dtype
        self.kwargs: dict[str, Any] = {}
        counts = [_rows_of(args) for args in self._read(seed=0)]
        self.rows, self.batches = sum(counts), len(counts)
        if self.rows == 0:
            raise ValueError("iterable holds no rows; needed at least one batch with one row")

    def epoch(self, number: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of one reading; raise a ValueError if it has not the rows of the first reading."""
        seen = 0
        for position, args in enumerate(self._read(_epoch_seed(seed, number))):
            rows = _rows_of(args)
            seen += rows
            if position >= skip:
                yield Batch(args, self.kwargs, rows, self.batches * rows / self.rows)
        if seen != self.rows:
            raise ValueError(
                f"iterable gave {self.rows} rows when first read and {seen} in epoch {number}; "
                "needed the same rows each time"
            )

    def digest(self, seed: int) -> str:
        """Return a hash of the batches of the first epoch."""
        return digest([self.plate, self.kwargs, *(batch.args for batch in self.epoch(0, seed))])

    def _read(self, seed: int) -> Iterator[tuple[Any, ...]]:
        # Opening the iterable and taking its first batch is where a loader draws its order.
        with isolated(seed):
            for generator in _generators(self.iterable):
                generator.manual_seed(seed)
            batches = iter(self.iterable)
            first = next(batches, None)
        if first is not None:
            yield self._arguments(first)
        for item in batches:
            yield self._arguments(item)

    def _arguments(self, item: Any) -> tuple[Any, ...]:
        args = item if isinstance(item, tuple | list) else (item,)
        return tuple(_placed(as_tensor(a, "batch"), self.device, self.dtype) if is_array(a) else a for a in args)


Source: TypeAlias = FullData | Minibatches | BatchStream


def as_source(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Source:
    """Return the source of batches that the arguments of a fit stand for.

    Args:
        args: the positional arguments of model and guide, or one :class:`Minibatches` or :class:`BatchStream`.
        kwargs: their keyword arguments, which every batch gets whole.

    Raises:
        TypeError: for a loader that is not wrapped in a :class:`BatchStream`, or minibatches beside other data.
    """
    for value in args:
        if isinstance(value, Iterator | torch.utils.data.DataLoader):
            raise TypeError(f"data holds a {type(value).__name__}; wrap it as BatchStream(loader, plate=...)")
        if isinstance(value, Minibatches | BatchStream) and len(args) > 1:
            raise TypeError(f"{type(value).__name__} came with other data; pass all arrays inside it")
    if len(args) == 1 and isinstance(args[0], Minibatches | BatchStream):
        source = copy.copy(args[0])
        source.kwargs = kwargs
        return source
    return FullData(args, kwargs)


class Reader:
    """The batches of a source, epoch after epoch, from any place in them.

    Attributes:
        epoch: number of the current epoch, from 0.
        position: how many of its batches have been read.
    """

    def __init__(self, source: Source, seed: int, epoch: int = 0, position: int = 0) -> None:
        self.source, self.seed, self.epoch, self.position = source, seed, epoch, position
        self._batches = source.epoch(epoch, seed, max(0, position - 1))
        if position:  # read up to here now: a stream may draw random numbers when it is read
            next(self._batches)

    def __next__(self) -> Batch:
        batch = next(self._batches, None)
        if batch is None:
            self.epoch, self.position = self.epoch + 1, 0
            self._batches = self.source.epoch(self.epoch, self.seed)
            batch = next(self._batches)
        self.position += 1
        return batch


def is_sparse(value: Any) -> bool:
    """Whether ``value`` is a scipy sparse matrix; does not import scipy."""
    scipy_sparse = sys.modules.get("scipy.sparse")
    return scipy_sparse is not None and scipy_sparse.issparse(value)


def is_array(value: Any) -> bool:
    """Whether ``value`` is a tensor, a numpy array or a scipy sparse matrix."""
    return isinstance(value, Tensor | np.ndarray) or is_sparse(value)


def as_tensor(value: Any, name: str = "data") -> Tensor:
    """Return a tensor, numpy array or scipy CSR matrix as a dense tensor of the same dtype.

    Raises:
        TypeError: for a sparse tensor, a masked array, or numbers that torch cannot hold.
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise TypeError(f"{name} is a {value.layout} tensor; needed a dense one: call .to_dense() on it")
        return value
    array = value.toarray() if is_sparse(value) else value
    if isinstance(array, np.ma.MaskedArray) or array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise TypeError(
            f"{name} is a {type(array).__name__} of dtype {array.dtype}; needed a plain array of numbers of at most "
            "64 bits, or booleans"
        )
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # torch computes with few of these
        array = array.astype(np.int64)
    # Torch needs memory that it may write to, in the byte order of the machine.
    array = np.require(array, dtype=array.dtype.newbyteorder("="), requirements=["C", "W"])
    return torch.from_numpy(array)


def digest(value: Any) -> str:
    """Return a SHA-256 hash of numbers, text, arrays, and lists, tuples and dicts of them; other objects by class.

    Example:
        >>> digest([torch.zeros(2)]) == digest([torch.ones(2)])
        False
    """
    found = hashlib.sha256()
    _add(found, value)
    return found.hexdigest()


def _add(found: Any, value: Any) -> None:
    if isinstance(value, dict):
        value = [type(value).__name__, *value.items()]
    if isinstance(value, list | tuple):
        found.update(f"{len(value)} values".encode())
        for item in value:
            _add(found, item)
    elif is_sparse(value):
        _add(found, [value.shape, value.indptr, value.indices, value.data])
    elif is_array(value):
        array = value.detach().cpu().contiguous() if isinstance(value, Tensor) else np.ascontiguousarray(value)
        found.update(f"{tuple(value.shape)} {value.dtype}".encode())
        if isinstance(array, Tensor):
            array = array.flatten().view(torch.uint8).numpy()
        found.update(array.data if array.size else b"")
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic):
        found.update(repr(value).encode())
    else:
        found.update(type(value).__qualname__.encode())


def _common_rows(arrays: tuple[Any, ...]) -> int:
    given = {i: array for i, array in enumerate(arrays) if array is not None}
    for i, array in given.items():
        if not is_array(array):
            raise TypeError(f"array {i} is a {type(array).__name__}; needed a tensor, numpy array or scipy CSR matrix")
        if is_sparse(array) and array.format != "csr":
            raise TypeError(f"array {i} is a scipy sparse matrix in {array.format} format; call .tocsr() on it")
        if len(array.shape) == 0:
            raise ValueError(f"array {i} is a single number; needed an axis of rows")
    rows = {i: array.shape[0] for i, array in given.items()}
    if len(set(rows.values())) != 1 or not min(rows.values()):
        raise ValueError(f"arrays have these numbers of rows: {rows}; needed one number, above 0, for all")
    return next(iter(rows.values()))


def _rows_of(args: tuple[Any, ...]) -> int:
    rows = next((len(a) for a in args if isinstance(a, Tensor) and a.dim() > 0), None)
    if rows is None:
        raise TypeError("a batch holds no array with rows; needed a tensor, numpy array or CSR matrix in it")
    if rows == 0:
        raise ValueError("iterable gave a batch of 0 rows; leave empty batches out")
    return rows


def _placed(tensor: Tensor, device: torch.device | str | None, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(device, dtype if tensor.is_floating_point() else None)


def _check_plate_and_dtype(plate: Any, dtype: Any) -> None:
    if plate is not None and not isinstance(plate, str):
        raise TypeError(f"plate is a {type(plate).__name__}; needed the name of the model's plate over rows, or None")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype is {dtype!r}; needed a floating dtype, such as torch.float32, or None")


def _epoch_seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")


def _generators(iterable: Any) -> list[torch.Generator]:
    """Return the generators that a DataLoader draws its order from, where it has its own."""
    batch_sampler = getattr(iterable, "batch_sampler", None)
    holders = (iterable, getattr(iterable, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found = (getattr(holder, "generator", None) for holder in holders)
    return [generator for generator in found if isinstance(generator, torch.Generator)]


def whole(name: str, value: Any, least: int, most: float = math.inf) -> int:
    """Return an argument as an int; raise a ValueError unless it is a whole number from ``least`` to ``most``.

    Numpy integers and tensors of one whole number count as whole numbers; booleans and floats do not.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        bound = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
        raise ValueError(f"{name} is {value!r}; needed a whole number {bound}")
    return number


def number(name: str, value: Any, least: float = 0.0, above: bool = False) -> float:
    """Return an argument as a float; raise a ValueError unless it is finite and of at least, or above, ``least``."""
    try:
        found = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not (found > least if above else found >= least) or found == math.inf:
        raise ValueError(f"{name} is {value!r}; needed a finite number {'above' if above else 'of at least'} {least:g}")
    return found
