"""The layout of a gene's coefficients: blocks of components, each with its hierarchical prior.

A component is a latent site of the model, of shape (genes, width), whose elements share a prior across genes:
theta_g ~ Normal(mean, exp(log_sd)). Sparse ones are that only for a share of the genes, and nearly 0 for the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_zilognormal.models._spike import SpikeAndSlab

# Mean and standard deviation of a Normal, each of shape (k,).
Normal = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Component:
    """One latent site of a gene.

    Attributes:
        name: of the site.
        width: how many elements it has a gene.
        log_sd: the prior of log sd across genes, of width or 1 elements.
        mean: the prior of the mean across genes, of 1 element; None: it is 0.
        logit_share: the prior of the log odds that a gene's element is not nearly 0, of width elements.
        share: the name of that hyperparameter, which another component may own; None: no element is nearly 0.
        spike_sd: what nearly 0 is.
    """

    name: str
    width: int
    log_sd: Normal
    mean: Normal | None = None
    logit_share: Normal | None = None
    share: str | None = None
    spike_sd: float = 0.0

    def hyperparameters(self) -> dict[str, Normal]:
        """Return the hyperparameters' names and priors."""
        each = {"mean": self.mean, "log_sd": self.log_sd, "logit_share": self.logit_share}
        return {f"{self.name}_{k}": prior for k, prior in each.items() if prior is not None}

    def spike_and_slab(self, values: dict[str, Tensor]) -> SpikeAndSlab | None:
        """Return the sparse prior given the hyperparameters and what is told by others, or None if it is Normal."""
        if self.share is None:
            return None
        prior = SpikeAndSlab(values[self.share], values[f"{self.name}_log_sd"], self.spike_sd)
        evidence = values.get(f"{self.name}_evidence")
        return prior if evidence is None else prior.shifted(evidence)

    def prior(self, values: dict[str, Tensor]) -> dist.TorchDistribution:
        """Return the law of the site given the hyperparameters."""
        sparse = self.spike_and_slab(values)
        mean, precision = self.moments(values)
        law = dist.Normal(mean, precision.rsqrt()) if sparse is None else sparse.law()
        return law.to_event(1)

    def moments(self, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the mean and 1 / sd^2 of the prior (its slab), each of shape (..., width)."""
        precision = (-2 * values[f"{self.name}_log_sd"]).exp()
        shape = (*precision.shape[:-1], self.width)
        mean = values.get(f"{self.name}_mean", torch.zeros_like(precision[..., :1]))
        return mean.expand(shape), precision.expand(shape)


@dataclass(frozen=True)
class Block:
    """Components that the likelihood ties together: those of the gate, or those of the positive part and log sigma.

    Attributes:
        components: in the order of their elements; donors, if any, come first, and sparse effects last.
        donors: how many donors.
    """

    components: tuple[Component, ...]
    donors: int

    def hyperparameters(self) -> dict[str, Normal]:
        """Return the hyperparameters' names and priors."""
        return {name: prior for c in self.components for name, prior in c.hyperparameters().items()}

    def spike_and_slab(self, values: dict[str, Tensor]) -> SpikeAndSlab | None:
        """Return the sparse prior of the last component, the only one that may be so."""
        return self.components[-1].spike_and_slab(values)

    def moments(self, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the mean and 1 / sd^2 of the prior of all elements, each of shape (..., donors + core)."""
        means, precisions = zip(*(c.moments(values) for c in self.components), strict=True)
        return torch.cat(means, -1), torch.cat(precisions, -1)

    def split(self, theta: Tensor) -> dict[str, Tensor]:
        """Return the components' values from those of all elements."""
        parts = theta.split([c.width for c in self.components], -1)
        return {c.name: part for c, part in zip(self.components, parts, strict=True)}
