"""Anderson acceleration (Walker and Ni 2011, "Anderson acceleration for fixed-point iterations").

From the last points x and their images g(x) comes the combination of images whose residuals, g(x) - x, cancel best.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Points that are combined.
_MEMORY = 4
# If the last residual is that many times as long as the one before it, the points before it are forgotten.
_WORSE = 2.0
# Relative to the squares of residuals.
_ROUNDING = 1e-10


class Anderson:
    """The points of an iteration, and their images."""

    def __init__(self) -> None:
        self._points: list[Tensor] = []
        self._images: list[Tensor] = []

    def next(self, point: Tensor, image: Tensor, unit: Tensor) -> Tensor:
        """Return the next point, given the image of the last, and the units in which their elements matter alike."""
        self._points, self._images = [*self._points[1 - _MEMORY :], point], [*self._images[1 - _MEMORY :], image]
        images = torch.stack(self._images)
        residuals = (images - torch.stack(self._points)) / unit
        if len(residuals) == 1:
            return image
        if residuals[-1].norm() > _WORSE * residuals[-2].norm():
            self._points, self._images = [point], [image]
            return image
        changes = residuals.diff(dim=0)
        inverse = torch.linalg.pinv(changes @ changes.mT, rtol=_ROUNDING, hermitian=True)
        return image - inverse @ (changes @ residuals[-1]) @ images.diff(dim=0)
