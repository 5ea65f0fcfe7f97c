"""Shuffled minibatches of the rows of arrays."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch

from pyro_zilognormal.svi.arrays import check_dtype, check_rows, pick_rows, placed
from pyro_zilognormal.svi.batch import Batch
from pyro_zilognormal.svi.checks import check_plate_name, check_whole


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
        dtype: what floating arrays become, ``torch.float32`` for one; None keeps that of the data, to the last digit.

    Raises:
        TypeError: for something that is not an array, or a dtype that is not floating.
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
        dtype: torch.dtype | None = None,
    ) -> None:
        check_dtype(dtype)
        check_plate_name(plate)
        check_whole("batch_size", batch_size, 1)
        self.arrays, self.plate, self.shuffle, self.device, self.dtype = arrays, plate, shuffle, device, dtype
        self.rows = _common_rows(arrays)
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
        if array is None:
            return None
        return placed(pick_rows(array, indices, f"array {position}"), self.device, self.dtype)


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


def _epoch_generator(seed: int, number: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
