"""Spike and slab: the prior of sparse effects, and its exact posterior under a Gaussian likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid


class _OnTheLine(dist.MixtureSameFamily):
    """A mixture that says where it lives in a way that AutoGuides and NUTS understand."""

    support = constraints.real


@dataclass(frozen=True)
class SpikeAndSlab:
    """The prior (1 - share) Normal(0, spike_sd) + share Normal(0, slab_sd) of the elements of a component.

    Attributes:
        logit_share: of shape (..., width).
        log_slab_sd: of shape (..., width).
        spike_sd: a number.
    """

    logit_share: Tensor
    log_slab_sd: Tensor
    spike_sd: float

    @property
    def width(self) -> int:
        """How many elements."""
        return self.log_slab_sd.shape[-1]

    def law(self) -> dist.TorchDistribution:
        """Return the prior as a distribution."""
        log_slab_sd, logit_share = torch.broadcast_tensors(self.log_slab_sd, self.logit_share)
        scales = torch.stack([torch.full_like(log_slab_sd, self.spike_sd), log_slab_sd.exp()], -1)
        which = dist.Categorical(logits=_log_shares(logit_share))
        return _OnTheLine(which, dist.Normal(torch.zeros_like(scales), scales))

    def shifted(self, evidence: Tensor) -> SpikeAndSlab:
        """Return the prior after evidence, a log ratio of slab to spike."""
        return SpikeAndSlab(self.logit_share + evidence, self.log_slab_sd, self.spike_sd)

    def column(self, index: int) -> SpikeAndSlab:
        """Return the prior of one element, of width 1."""
        at = slice(index, index + 1)
        return SpikeAndSlab(self.logit_share[..., at], self.log_slab_sd[..., at], self.spike_sd)

    def told_by(self, elements: Tensor) -> Tensor:
        """Return the evidence of the elements themselves: the log ratio of their densities."""
        slab, spike = self.log_slab_sd, math.log(self.spike_sd)
        return spike - slab + elements.square() * (math.exp(-2 * spike) - (-2 * slab).exp()) / 2

    def posterior(self, mean: Tensor, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the posterior of elements that are Normal(mean, 1 / precision) were the prior all slab.

        Args:
            mean: of shape (..., width).
            precision: of the same shape.

        Returns:
            Log probabilities, means and precisions of spike and slab, each of shape (..., width, 2).
        """
        precisions, linear, evidence = self._updated(mean, precision)
        log_odds = self.logit_share + evidence[..., 1] - evidence[..., 0]
        return _log_shares(log_odds), linear / precisions, precisions

    def evidence(self, mean: Tensor, precision: Tensor) -> Tensor:
        """Return the log ratio of slab to spike that the data of such elements tell."""
        spike, slab = self._updated(mean, precision)[2].unbind(-1)
        return slab - spike

    def _updated(self, mean: Tensor, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        slab = (-2 * self.log_slab_sd).exp()
        prior = torch.stack([torch.full_like(slab, self.spike_sd**-2), slab], -1)
        # The likelihood's own precision may round to less than nothing where there are no cells.
        precisions = (precision - slab).clamp(min=0).unsqueeze(-1) + prior
        linear = (mean * precision).unsqueeze(-1)
        return precisions, linear, (prior.log() - precisions.log() + linear.square() / precisions) / 2


def _log_shares(logit: Tensor) -> Tensor:
    """Return the logarithms of the shares of spike and slab, of shape (..., 2)."""
    return torch.stack([logsigmoid(-logit), logsigmoid(logit)], -1)
