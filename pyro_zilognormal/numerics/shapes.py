"""Broadcasting of shapes."""

from collections.abc import Sequence

import torch
from pyro.distributions.util import broadcast_shape

from pyro_zilognormal.numerics.tracing import tracing


def broadcast(*shapes: Sequence[int]) -> torch.Size:
    """torch.broadcast_shapes, ten times as fast where sizes are plain numbers.

    Raises:
        ValueError, RuntimeError: the shapes do not broadcast.
    """
    if tracing():
        return torch.broadcast_shapes(*shapes)
    return torch.Size(broadcast_shape(*shapes))
