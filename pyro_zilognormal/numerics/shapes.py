"""Shapes, whose sizes may be symbols while a compiler records."""

from collections.abc import Sequence

import torch
from pyro.distributions.util import broadcast_shape


def jit_tracing() -> bool:
    """Whether torch.jit.trace records."""
    return torch._C._get_tracing_state() is not None


def tracing() -> bool:
    """Whether torch.compile or torch.jit.trace records: tensors may hold no data, and sizes may be symbols."""
    return torch.compiler.is_compiling() or jit_tracing()


def broadcast(*shapes: Sequence[int]) -> torch.Size:
    """torch.broadcast_shapes, ten times as fast where sizes are plain numbers.

    Raises:
        ValueError, RuntimeError: the shapes do not broadcast.
    """
    if tracing():
        return torch.broadcast_shapes(*shapes)
    return torch.Size(broadcast_shape(*shapes))
