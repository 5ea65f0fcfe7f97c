"""Whether what runs is being recorded rather than computed."""

import torch


def tracing() -> bool:
    """Whether torch.compile or torch.jit.trace records: tensors may hold no data, and sizes may be symbols."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
