"""Where a fit is in its data."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from pyro_zilognormal.svi.batch import Batch, Source
from pyro_zilognormal.svi.forms import same_form, whole
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
        # The generators as they were when the epoch was opened, where the source draws its order from them.
        self._opened: dict[str, Any] | None = None
        self._own: list[torch.Generator] = getattr(source, "generators", [])

    def next(self) -> Batch:
        """Return the batch that comes next."""
        batch = None if self._batches is None else next(self._batches, None)
        if batch is None:
            self.epoch += self._batches is not None
            self.position = 0
            if hasattr(self.source, "generators"):
                self._opened = {"global": rng_state(), "own": self._states()}
            self._batches = self.source.epoch(self.epoch, self.seed)
            batch = next(self._batches)
        self.position += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the place, and the generators that the order of an epoch comes from."""
        return {"epoch": self.epoch, "position": self.position, "opened": self._opened, "own": self._states()}

    def check_state(self, state: dict[str, Any], check_random: Callable[[Any], None]) -> None:
        """Raise an error unless ``state`` is one that this reader could come to.

        Args:
            state: what a file holds.
            check_random: raises an error for what is no state of the global generators.
        """
        same_form(dict.fromkeys(state), dict.fromkeys(self.state_dict()), "reader")
        whole(state["epoch"], "epoch")
        whole(state["position"], "position", self.source.batches)
        opened = state["opened"]
        if (opened is not None) != (hasattr(self.source, "generators") and state["position"] > 0):
            raise ValueError("the generators of the epoch are there where they must not be, or not where they must")
        for states in (state["own"], opened["own"] if opened else state["own"]):
            same_form(states, self._states(), "generators of the stream")
            for generator, saved in zip(self._own, states, strict=True):
                torch.Generator(generator.device).set_state(saved)
        if opened:
            check_random(opened["global"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Open the epoch again at the batch that comes next; leaves the generators as reading left them."""
        self.epoch, self.position, self._opened = state["epoch"], state["position"], state["opened"]
        if self.position == self.source.batches:
            self._batches = iter(())
            self._set_own(state["own"])
            return
        if self._opened is not None:
            set_rng_state(self._opened["global"])
            self._set_own(self._opened["own"])
        # Reading starts only when a batch is asked for, and a loader draws its order when it starts.
        batches = self.source.epoch(self.epoch, self.seed, self.position)
        self._batches = _chain(next(batches), batches)

    def _states(self) -> list[torch.Tensor]:
        return [g.get_state() for g in self._own]

    def _set_own(self, states: list[torch.Tensor]) -> None:
        for generator, state in zip(self._own, states, strict=True):
            generator.set_state(state)


def _chain(first: Batch, rest: Iterator[Batch]) -> Iterator[Batch]:
    yield first
    yield from rest
