"""What a fit reads: all data at once, shuffled minibatches of arrays, or a stream of batches."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pyro_zilognormal.svi.arrays import as_tensor, check_rows, is_array, pick_rows
from pyro_zilognormal.svi.isolation import global_state_kept


@dataclass(frozen=True)
class Batch:
    """One call of model and guide: their arguments, and where these stand among all rows.

    Args:
        args: positional arguments of model and guide.
        rows: number of rows in the batch.
        weight: what the batch counts for in the gradient; the mean over an epoch is 1.
        indices: which rows of the data these are, of shape (rows,), or None where that is unknown.
    """

    args: tuple[Any, ...]
    rows: int
    weight: float = 1.0
    indices: torch.Tensor | None = None


class Source(Protocol):
    """Data that a fit can read: ``rows`` in all, in ``batches`` an epoch, over the plate named ``plate``."""

    rows: int
    batches: int
    plate: str | None

    def epoch(self, number: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch but for the first ``skip``."""
        ...

    def arguments(self) -> list[Any]:
        """Return what identifies the data: its arrays, or a digest."""
        ...


class FullData:
    """All data in one call of model and guide; numpy arrays and CSR matrices become dense tensors."""

    def __init__(self, *data: Any) -> None:
        self.args = tuple(
            as_tensor(value, f"data argument {i}") if is_array(value) else value for i, value in enumerate(data)
        )
        lengths = [len(a) for a in self.args if isinstance(a, torch.Tensor) and a.dim() > 0]
        self.rows = lengths[0] if lengths else 1
        self.batches = 1
        self.plate: str | None = None

    def epoch(self, number: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the one batch."""
        if skip == 0:
            yield Batch(self.args, self.rows)

    def arguments(self) -> list[Any]:
        """Return the arguments of model and guide."""
        return list(self.args)


class Minibatches:
    """Minibatches along the first axis of arrays, in an order shuffled anew each epoch from the fit's seed.

    Every row comes once an epoch; the last batch is short where ``batch_size`` does not divide the number of
    rows N. A batch of b rows has its data plate scaled by N / b, which makes its loss an estimate of the loss
    of all data, and its gradient weighted by (batches an epoch) b / N. So the mean of an epoch's gradients is
    the full gradient.

    Args:
        arrays: tensors, numpy arrays or scipy CSR matrices with the same number of rows, passed to model and
            guide in this order as dense tensors; None is passed on as None. A batch of a CSR matrix is made
            dense when its turn comes.
        batch_size: rows a batch.
        plate: the name of the model's plate over rows, written ``pyro.plate(name, len(x))`` or
            ``pyro.plate(name, N, subsample_size=len(x))``; None for a model that scales by itself.
        shuffle: whether to shuffle; without it rows come in their order.
        device: where to put the batches; None leaves tensors where they are.

    Raises:
        TypeError: for something that is not an array.
        ValueError: for arrays of different lengths, no array at all, or a batch_size out of range.

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
    ) -> None:
        self.arrays, self.plate, self.shuffle, self.device = arrays, plate, shuffle, device
        self.rows = _common_rows(arrays)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r}; needed a whole number of at least 1")
        self.batch_size = min(batch_size, self.rows)
        self.batches = -(-self.rows // self.batch_size)

    def epoch(self, number: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch ``number`` in the order that ``seed`` gives.

        Args:
            number: the epoch, from 0.
            seed: the fit's seed.
            skip: how many batches to leave out at the start.
        """
        order = torch.arange(self.rows)
        if self.shuffle and self.batches > 1:  # rows of one batch have no order to learn from
            order = torch.randperm(self.rows, generator=_epoch_generator(seed, number))
        for indices in order.split(self.batch_size)[skip:]:
            yield self.batch(indices)

    def batch(self, indices: torch.Tensor) -> Batch:
        """Return the batch of the rows ``indices``, of shape (b,)."""
        args = tuple(self._rows_of(i, indices) for i in range(len(self.arrays)))
        on = next(a.device for a in args if a is not None)
        return Batch(args, len(indices), self.batches * len(indices) / self.rows, indices.to(on))

    def arguments(self) -> list[Any]:
        """Return the arrays."""
        return list(self.arrays)

    def _rows_of(self, position: int, indices: torch.Tensor) -> torch.Tensor | None:
        array = self.arrays[position]
        return None if array is None else pick_rows(array, indices, f"array {position}").to(self.device)


class BatchStream:
    """Batches from any iterable that can be read again, a ``torch.utils.data.DataLoader`` for one.

    The iterable is read once before the fit, to count its rows, and again for every epoch. A batch is an
    array, or a tuple or list of the arguments of model and guide. Its rows are those of its first array.

    Args:
        iterable: gives the same rows each time it is read, in any order.
        plate: the name of the model's plate over rows, as in :class:`Minibatches`.
        device: where to put the batches; None leaves them where they are.

    Raises:
        TypeError: for an iterator, which can be read only once.
        ValueError: for an empty iterable.

    Example:
        >>> stream = BatchStream([torch.zeros(4), torch.zeros(2)], plate="rows")
        >>> stream.rows, stream.batches
        (6, 2)
    """

    draws_order = True  # a resumed fit sets the generators as they were before it opens the epoch again

    def __init__(self, iterable: Iterable[Any], plate: str | None, device: torch.device | str | None = None) -> None:
        if not isinstance(iterable, Iterable):
            raise TypeError(f"iterable is a {type(iterable).__name__}; needed an iterable of batches")
        if isinstance(iterable, Iterator):
            raise TypeError(
                f"iterable is a {type(iterable).__name__}, which can be read only once; pass an object whose "
                "__iter__ starts anew, such as a list or a DataLoader"
            )
        self.iterable, self.plate, self.device = iterable, plate, device
        with global_state_kept():  # a shuffling loader draws from torch's global generator
            counts = [_batch_rows(args) for args in self._read()]
        self.batches, self.rows = len(counts), sum(counts)
        if self.rows == 0:
            raise ValueError("iterable holds no rows; needed at least one batch with one row")

    def epoch(self, number: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of one reading; raise a ValueError if its rows are not as many as at first."""
        seen = 0
        for position, args in enumerate(self._read()):
            rows = _batch_rows(args)
            seen += rows
            if position >= skip:
                yield Batch(args, rows, self.batches * rows / self.rows)
        if seen != self.rows:
            raise ValueError(
                f"iterable gave {self.rows} rows when first read and {seen} in epoch {number}; "
                "needed the same rows each time"
            )

    def arguments(self) -> list[Any]:
        """Return the batches, read anew."""
        return [self._read()]

    def shuffles(self) -> bool:
        """Whether its rows come in another order when it is read again."""
        # Two shuffles of few rows may agree by chance; a loader that draws its order says so.
        if isinstance(getattr(self.iterable, "sampler", None), torch.utils.data.RandomSampler):
            return True
        with global_state_kept():
            return self._order() != self._order()

    def _order(self) -> bytes:
        """Return a digest of the rows in the order in which they come."""
        digest = hashlib.sha256()
        for args in self._read():
            for value in (a for a in args if isinstance(a, torch.Tensor)):
                flat = value.detach().cpu().contiguous().flatten()
                digest.update(flat.view(torch.uint8).numpy().data)
        return digest.digest()

    def _read(self) -> Iterator[tuple[Any, ...]]:
        for item in self.iterable:
            args = item if isinstance(item, tuple | list) else (item,)
            yield tuple(as_tensor(a, "batch").to(self.device) if is_array(a) else a for a in args)


def as_source(data: tuple[Any, ...]) -> Source:
    """Return the source of batches that ``data``, the positional arguments of a fit, stand for."""
    if len(data) == 1 and isinstance(data[0], Minibatches | BatchStream):
        return data[0]
    for value in data:
        if isinstance(value, Minibatches | BatchStream):
            raise TypeError(
                f"{type(value).__name__} came with other data; pass all arrays inside it, nothing beside it"
            )
        if isinstance(value, Iterator | torch.utils.data.DataLoader):
            raise TypeError(f"data holds a {type(value).__name__}; wrap it as BatchStream(loader, plate=...)")
    return FullData(*data)


def _common_rows(arrays: tuple[Any, ...]) -> int:
    for i, array in enumerate(arrays):
        if array is not None:
            check_rows(array, f"array {i}")
    rows = {i: array.shape[0] for i, array in enumerate(arrays) if array is not None}
    if not rows:
        raise ValueError("Minibatches got no array; needed at least one")
    if len(set(rows.values())) > 1:
        raise ValueError(f"arrays have different numbers of rows: {rows}; needed the same for all")
    if min(rows.values()) == 0:
        raise ValueError("arrays have 0 rows; needed at least one")
    return next(iter(rows.values()))


def _batch_rows(args: tuple[Any, ...]) -> int:
    for value in args:
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            return len(value)
    raise TypeError("a batch holds no array with rows; needed a tensor, numpy array or CSR matrix first in it")


def _epoch_generator(seed: int, number: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
