"""The last good state of a fit, to go back to."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyro_zilognormal.svi.objective import Objective

_SMALL = 2**16
_Version = tuple[weakref.ref[Tensor], int]


class GoodState:
    """The last parameters whose loss and gradient were finite, and the buffers as the step in progress met them.

    Args:
        objective: of the fit, after its first run.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.parameters: list[Tensor] = list(objective.trainable().values())
        self.copies: list[Tensor] = [p.detach().clone() for p in self.parameters]
        # Where the buffers are: a module may put another tensor in the place of one.
        self._places = [(part._buffers, name) for part in objective.owners.modules() for name in part._buffers]
        self._kept: list[Tensor | None] = [None] * len(self._places)
        self._seen: list[_Version | None] = [None] * len(self._places)
        self.keep_buffers()

    def adopt_late(self) -> list[Tensor]:
        """Take up parameters that have only now come to be, and return them."""
        late = [*self.objective.trainable().values()][len(self.parameters) :]
        self.parameters.extend(late)
        self.copies.extend(p.detach().clone() for p in late)
        return list(late)

    @torch.no_grad()
    def keep_parameters(self) -> None:
        """Take the parameters as they are for good."""
        torch._foreach_copy_(self.copies, self.parameters)

    @torch.no_grad()
    def load(self, copies: list[Tensor]) -> None:
        """Take other copies for the good ones, of a run that was saved."""
        torch._foreach_copy_(self.copies, [c.to(p) for c, p in zip(copies, self.copies, strict=True)])
        self.keep_buffers()

    @torch.no_grad()
    def restore(self) -> None:
        """Set parameters and buffers to the good ones."""
        torch._foreach_copy_(self.parameters, self.copies)
        self.restore_buffers()

    @torch.no_grad()
    def keep_buffers(self) -> None:
        """Remember the modules' buffers, which a forward pass may change: running means for one."""
        copies: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
        for i, (held, name) in enumerate(self._places):
            buffer, kept = held[name], self._kept[i]
            if buffer is None:
                continue
            if kept is None or kept.shape != buffer.shape or kept.dtype != buffer.dtype:
                self._kept[i] = buffer.detach().clone()
            elif not _unchanged(buffer, self._seen[i]):
                pairs = copies.setdefault((buffer.dtype, buffer.device), ([], []))
                pairs[0].append(kept)
                pairs[1].append(buffer)
            self._seen[i] = _version(buffer)
        for to, of in copies.values():
            torch._foreach_copy_(to, of)

    @contextmanager
    def buffers_apart(self) -> Iterator[None]:
        """Leave the buffers as they are, whatever a block does to them."""
        self.keep_buffers()
        try:
            yield
        finally:
            self.restore_buffers()

    @torch.no_grad()
    def restore_buffers(self) -> None:
        """Set the buffers to what they were when they were last kept."""
        for i, (held, name) in enumerate(self._places):
            buffer, kept = held[name], self._kept[i]
            if buffer is not None and kept is not None and not _unchanged(buffer, self._seen[i]):
                buffer.copy_(kept)
                self._seen[i] = _version(buffer)


def _version(buffer: Tensor) -> _Version | None:
    """Return what tells later whether a large buffer, such as data held as one, has changed.

    Batch norm writes its running means without counting a version, so that small ones are always taken to have.
    """
    counted = buffer.numel() > _SMALL and not buffer.is_inference()
    return (weakref.ref(buffer), buffer._version) if counted else None


def _unchanged(buffer: Tensor, seen: _Version | None) -> bool:
    return seen is not None and seen[0]() is buffer and seen[1] == buffer._version
