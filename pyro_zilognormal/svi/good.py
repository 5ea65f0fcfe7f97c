"""The last good state of a fit, to go back to."""

import torch
from torch import Tensor

from pyro_zilognormal.svi.objective import Objective

_SMALL = 2**16


class GoodState:
    """The last parameters whose loss and gradient were finite, and the buffers as the step in progress met them.

    Args:
        objective: of the fit, after its first run.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.parameters: list[Tensor] = list(objective.trainable().values())
        self.copies: list[Tensor] = [p.detach().clone() for p in self.parameters]
        self._buffers: dict[str, Tensor] = {}
        self._seen: dict[str, tuple[int, int]] = {}
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
        for name, buffer in self.objective.buffers_by_name().items():
            # A large one, such as data held as a buffer, is copied when torch has counted a change. Batch norm
            # writes its running means without counting, so that small ones are always copied.
            seen = (id(buffer), -1 if buffer.is_inference() else buffer._version)
            if buffer.numel() <= _SMALL or self._seen.get(name) != seen or buffer.is_inference():
                self._seen[name], self._buffers[name] = seen, buffer.detach().clone()

    @torch.no_grad()
    def restore_buffers(self) -> None:
        """Set the buffers to what they were before the step in progress."""
        for name, buffer in self.objective.buffers_by_name().items():
            if name in self._buffers:
                buffer.copy_(self._buffers[name])
                self._seen.pop(name, None)
