"""Curved dependence between the last elements of white noise, which keeps volume.

A gate that is shut in two conditions has a posterior like a banana: what is likely of the one depends on the other, and
not along a line. v_i = w_i + sum_{j > i} C_ij asinh(w_j)^2 bends that way; its Jacobian has determinant 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def couple(bent: Tensor, coupling: Tensor) -> Tensor:
    """Return v of bent noise w, of shape (..., others + core), and C, strictly upper, of shape (..., core, core)."""
    others, core = _split(bent, coupling)
    return torch.cat([others, core + curve(core, coupling)], -1)


def curve(later: Tensor, coupling: Tensor) -> Tensor:
    """Return what the noise of later elements, of shape (..., k), adds to those of the rows of C (..., rows, k)."""
    return (coupling * later.asinh().square().unsqueeze(-2)).sum(-1)


def uncouple(coupled: Tensor, coupling: Tensor) -> Tensor:
    """Return the bent noise w of v, from its last element on backwards."""
    others, core = _split(coupled, coupling)
    noise = core[..., -1:]
    for k in range(core.shape[-1] - 2, -1, -1):
        own = core[..., k : k + 1] - curve(noise, coupling[..., k : k + 1, k + 1 :])
        noise = torch.cat([own, noise], -1)
    return torch.cat([others, noise], -1)


def _split(noise: Tensor, coupling: Tensor) -> tuple[Tensor, ...]:
    return noise.tensor_split([noise.shape[-1] - coupling.shape[-1]], -1)
