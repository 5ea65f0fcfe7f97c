"""Parameters that are checked once, as they are given, and that `expand` shares instead of copying."""

from typing import Any, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_zilognormal.distribution import validation
from pyro_zilognormal.numerics.shapes import broadcast


class SharesParameters(TorchDistribution):
    """A distribution that keeps its parameters in the shapes in which they are given."""

    _validate_args: bool

    def __init__(self, batch_shape: torch.Size, validate_args: bool | None, event_shape: tuple[int, ...] = ()) -> None:
        # torch would check views of the full size; later checks follow the global switch, unless this one says how.
        super().__init__(batch_shape, torch.Size(event_shape), validate_args=False)
        self.__dict__.pop("_validate_args")
        if validate_args is not None:
            self._validate_args = validate_args

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> Self:
        """The same distribution with a larger batch_shape; parameters are shared, not copied."""
        batch_shape = torch.Size(batch_shape)
        validation.check_expands("batch_shape", self.batch_shape, batch_shape)
        new = self.__new__(type(self)) if _instance is None else _instance
        new.__dict__.update(self.__dict__)
        new._batch_shape = batch_shape
        return new


def describe(parameter: Tensor, batch_shape: torch.Size) -> Any:
    """The number, or the size of a tensor of several and of one on the meta device."""
    if parameter.numel() == 1 and not parameter.is_meta:
        return parameter.item()
    return broadcast(parameter.shape, batch_shape)
