"""Posteriors of sparse effects: a Normal spike and a bent Normal slab."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_zilognormal.models._bend import bend, bent_log_density
from pyro_zilognormal.models._spike import SpikeAndSlab


@dataclass(frozen=True)
class SpikeAndBentSlab:
    """A mixture of Normal(means[0], 1 / precisions[0]) and a slab whose standardised noise is bent.

    Attributes:
        log_shares: of shape (..., width, 2).
        means: of the same shape.
        precisions: of the same shape.
        skewness: of the slab, of shape (..., width).
        log_tails: of the slab, likewise.
    """

    log_shares: Tensor
    means: Tensor
    precisions: Tensor
    skewness: Tensor
    log_tails: Tensor

    @classmethod
    def of(
        cls, prior: SpikeAndSlab, mean: Tensor, precision: Tensor, skewness: Tensor, log_tails: Tensor
    ) -> SpikeAndBentSlab:
        """Return the posterior of elements that are Normal(mean, 1 / precision) were the prior all slab."""
        return cls(*prior.posterior(mean, precision), skewness, log_tails)

    def rsample(self) -> Tensor:
        """Draw spike or slab, and within it by reparameterization.

        The path through the choice is left out: its gradient is 0 where the guide equals the posterior, and an implicit
        one has no useful variance where spike and slab lie apart.
        """
        noise = torch.randn_like(self.means)
        bent = torch.stack([noise[..., 0], bend(noise[..., 1], self.skewness, self.log_tails)], -1)
        spike, slab = (self.means + bent * self.precisions.rsqrt()).unbind(-1)
        return torch.where(torch.rand_like(spike) < self.log_shares[..., 1].exp(), slab, spike)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log density of each element."""
        spike, slab = self._standardise(x)
        zero = torch.zeros_like(spike)
        each = [bent_log_density(spike, zero, zero), bent_log_density(slab, self.skewness, self.log_tails)]
        return (self.log_shares + torch.stack(each, -1) + self.precisions.log() / 2).logsumexp(-1)

    def _standardise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spike, slab = ((x.unsqueeze(-1) - self.means) * self.precisions.sqrt()).unbind(-1)
        return spike, slab
