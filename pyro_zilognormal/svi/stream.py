"""Batches that come from an iterable."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pyro_zilognormal.svi.arrays import as_tensor, check_dtype, is_array, placed
from pyro_zilognormal.svi.batch import Batch
from pyro_zilognormal.svi.checks import check_plate_name
from pyro_zilognormal.svi.isolation import global_state_kept


class BatchStream:
    """Batches from any iterable that can be read again, a ``torch.utils.data.DataLoader`` for one.

    The iterable is read once before the fit, to count its rows, and again for every epoch. A batch is an
    array, or a tuple or list of the arguments of model and guide. Its rows are those of its first array.

    Args:
        iterable: gives the same rows each time it is read, in any order.
        plate: the name of the model's plate over rows, as in :class:`Minibatches`.
        device: where to put the batches; None leaves them where they are.
        dtype: what floating arrays become, as in :class:`Minibatches`.

    Raises:
        TypeError: for an iterator, which can be read only once.
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
        check_dtype(dtype)
        check_plate_name(plate)
        if not isinstance(iterable, Iterable):
            raise TypeError(f"iterable is a {type(iterable).__name__}; needed an iterable of batches")
        if isinstance(iterable, Iterator):
            raise TypeError(
                f"iterable is a {type(iterable).__name__}, which can be read only once; pass an object whose "
                "__iter__ starts anew, such as a list or a DataLoader"
            )
        self.iterable, self.plate, self.device, self.dtype = iterable, plate, device, dtype
        self.generators = _generators(iterable)  # a resumed fit sets them as they were before it opens an epoch again
        counts = [_batch_rows(args) for args in self._read_apart()]
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
                place = f"batch {position} of epoch {number}, both from 0"
                yield Batch(args, rows, self.batches * rows / self.rows, place=place)
        if seen != self.rows:
            raise ValueError(
                f"iterable gave {self.rows} rows when first read and {seen} in epoch {number}; "
                "needed the same rows each time"
            )

    def arguments(self) -> list[Any]:
        """Return the batches, read anew."""
        return [self._read_apart()]

    def shuffles(self) -> bool:
        """Whether its rows come in another order when it is read again."""
        # Two shuffles of few rows may agree by chance; a loader that draws its order says so.
        if isinstance(getattr(self.iterable, "sampler", None), torch.utils.data.RandomSampler):
            return True
        with global_state_kept():
            return self._order(self._read()) != self._order(self._read())

    def check_resumable(self) -> None:
        """Raise a ValueError if the order of its rows comes from where a checkpoint cannot set it again."""
        if self._order(self._read_apart()) != self._order(self._read_apart()):
            raise ValueError(
                "the stream gives its rows in another order each time it is read, and not by torch's, numpy's or "
                "Python's global generators nor by a loader's own generator, so that a fit of it cannot be resumed; "
                "draw the order from one of these, use Minibatches, or fit without a Checkpoint"
            )

    def _order(self, batches: Iterator[tuple[Any, ...]]) -> bytes:
        """Return a digest of the rows in the order in which they come."""
        digest = hashlib.sha256()
        for args in batches:
            for value in (a for a in args if isinstance(a, torch.Tensor)):
                flat = value.detach().cpu().contiguous().flatten()
                digest.update(flat.view(torch.uint8).numpy().data)
        return digest.digest()

    def _read_apart(self) -> Iterator[tuple[Any, ...]]:
        """Read all batches, and leave the generators, the loader's own too, as they were."""
        with global_state_kept(), generators_kept(self):
            yield from self._read()

    def _read(self) -> Iterator[tuple[Any, ...]]:
        for item in self.iterable:
            args = item if isinstance(item, tuple | list) else (item,)
            yield tuple(placed(as_tensor(a, "batch"), self.device, self.dtype) if is_array(a) else a for a in args)


def _batch_rows(args: tuple[Any, ...]) -> int:
    for value in args:
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            if len(value) == 0:
                raise ValueError("iterable gave a batch of 0 rows; needed at least one row in each, so leave it out")
            return len(value)
    raise TypeError("a batch holds no array with rows; needed a tensor, numpy array or CSR matrix first in it")


@contextmanager
def generators_kept(source: Any) -> Iterator[None]:
    """Leave the generators that a source draws its order from, where it has its own, as they were."""
    generators = getattr(source, "generators", [])
    states = [g.get_state() for g in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _generators(iterable: Any) -> list[torch.Generator]:
    """Return the generators that a loader of torch draws its order from, where it has its own."""
    samplers = (getattr(iterable, "sampler", None), getattr(iterable, "batch_sampler", None))
    holders = (iterable, *samplers, getattr(samplers[1], "sampler", None))
    found = {id(g): g for g in (getattr(h, "generator", None) for h in holders) if isinstance(g, torch.Generator)}
    return list(found.values())
