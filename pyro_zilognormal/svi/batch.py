"""One call of model and guide, and what gives a fit one after the other."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Batch:
    """One call of model and guide: their arguments, and where these stand among all rows.

    Args:
        args: positional arguments of model and guide.
        rows: number of rows in the batch.
        weight: what the batch counts for in the gradient; the mean over an epoch is 1.
        indices: which rows of the data these are, of shape (rows,), or None where that is unknown.
        place: what rows are counted in where ``indices`` is None.
    """

    args: tuple[Any, ...]
    rows: int
    weight: float = 1.0
    indices: torch.Tensor | None = None
    place: str = "all data"


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
