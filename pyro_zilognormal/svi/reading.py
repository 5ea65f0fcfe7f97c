"""Where a fit is in its data."""

from collections.abc import Iterator
from typing import Any

from pyro_zilognormal.svi.batch import Batch, Source
from pyro_zilognormal.svi.rng import rng_state, set_rng_state


class Reader:
    """The batches of a source, epoch after epoch, from any place in them.

    Attributes:
        epoch: number of the current epoch, from 0.
        position: how many of its batches have been read.
    """

    def __init__(self, source: Source, seed: int) -> None:
        self.source, self.seed = source, seed
        self.epoch = self.position = 0
        self._batches: Iterator[Batch] | None = None
        self._opened: dict[str, Any] | None = None

    def next(self) -> Batch:
        """Return the batch that comes next."""
        batch = None if self._batches is None else next(self._batches, None)
        if batch is None:
            self.epoch += self._batches is not None
            self.position = 0
            self._opened = rng_state() if getattr(self.source, "draws_order", False) else None
            self._batches = self.source.epoch(self.epoch, self.seed)
            batch = next(self._batches)
        self.position += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the place, and the generators as they were when the epoch was opened where it draws its order."""
        return {"epoch": self.epoch, "position": self.position, "opened": self._opened}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Open the epoch again at the batch that comes next; leaves the generators as reading left them."""
        self.epoch, self.position, self._opened = state["epoch"], state["position"], state["opened"]
        if self.position == self.source.batches:
            self._batches = iter(())
            return
        if self._opened is not None:
            set_rng_state(self._opened)
        # Reading starts only when a batch is asked for, and a loader draws its order when it starts.
        batches = self.source.epoch(self.epoch, self.seed, self.position)
        self._batches = _chain(next(batches), batches)


def _chain(first: Batch, rest: Iterator[Batch]) -> Iterator[Batch]:
    yield first
    yield from rest
