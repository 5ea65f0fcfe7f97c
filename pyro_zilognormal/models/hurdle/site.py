"""The likelihood of some elements of a gene as a quadratic, by which a guide multiplies their prior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_zilognormal.models.hurdle.arrowhead import Arrowhead

# Elements of the log mean that have a counterpart in the zero part, and these.
Pairs = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Site:
    """A likelihood exp(linear' theta - theta' information theta / 2) of some elements of a gene."""

    information: Arrowhead
    linear: Tensor  # of shape (genes, width)
    power: Tensor  # of the likelihood between the mode and 0 of each sparse effect, of shape (genes, effects)

    def sheared(self, slope: Tensor, pairs: Pairs) -> Site:
        """Return the likelihood of theta with ``slope`` times the first element of each pair added to the second."""
        information = self.information.sheared(slope, self.information.shears(*pairs))
        return Site(information, shear(self.linear, slope, pairs), self.power)


def shear(linear: Tensor, slope: Tensor, pairs: Pairs) -> Tensor:
    """Return the linear term as `Site.sheared`; ``slope`` has the shape of a batch, and one dimension."""
    own, other = (torch.tensor(p, dtype=torch.int64, device=linear.device) for p in pairs)
    change = slope * linear[..., other]
    return linear.expand(*change.shape[:-1], -1).index_add(-1, own, -change)
