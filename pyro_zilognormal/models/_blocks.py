"""The layout of a gene's coefficients: blocks of components, each with its hierarchical prior.

A component is a latent site of the model, of shape (genes, width), whose elements share a prior across genes:
theta_g ~ Normal(mean, exp(log_sd)), or Student's t of that location and scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor


@dataclass(frozen=True)
class Component:
    """One latent site of a gene.

    Attributes:
        name: of the site.
        width: how many elements it has a gene.
        log_sd: mean and sd of the Normal prior of log sd across genes, each of shape (width,) or (1,).
        mean: mean and sd of the Normal prior of the mean across genes, each of shape (1,); None: it is 0.
        df: degrees of freedom of Student's t, or None for a Normal.
    """

    name: str
    width: int
    log_sd: tuple[Tensor, Tensor]
    mean: tuple[Tensor, Tensor] | None = None
    df: float | None = None

    def hyperparameters(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the hyperparameters' names, with mean and standard deviation of their Normal priors."""
        own = {f"{self.name}_log_sd": self.log_sd}
        return own if self.mean is None else {f"{self.name}_mean": self.mean, **own}

    def prior(self, hyper: dict[str, Tensor]) -> dist.TorchDistribution:
        """Return the law of the site given the hyperparameters."""
        mean, sd = (v.expand(*v.shape[:-1], self.width) for v in self._mean_and_sd(hyper))
        law = dist.Normal(mean, sd) if self.df is None else dist.StudentT(self.df, mean, sd)
        return law.to_event(1)

    def moments(self, hyper: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the mean and 1 / sd^2 of the prior, each of shape (..., width)."""
        mean, sd = self._mean_and_sd(hyper)
        shape = (*sd.shape[:-1], self.width)
        return mean.expand(shape), sd.pow(-2).expand(shape)

    def _mean_and_sd(self, hyper: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        sd = hyper[f"{self.name}_log_sd"].exp()
        return hyper.get(f"{self.name}_mean", torch.zeros_like(sd[..., :1])), sd


@dataclass(frozen=True)
class Block:
    """Components that the likelihood ties together: those of the gate, or those of the positive part and log sigma.

    Attributes:
        components: in the order of their elements; donors, if any, come first.
        donors: how many donors.
    """

    components: tuple[Component, ...]
    donors: int

    def hyperparameters(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the hyperparameters' names, with mean and standard deviation of their Normal priors."""
        return {name: prior for c in self.components for name, prior in c.hyperparameters().items()}

    def moments(self, hyper: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the mean and 1 / sd^2 of the prior of all elements, each of shape (..., donors + core)."""
        means, precisions = zip(*(c.moments(hyper) for c in self.components), strict=True)
        return torch.cat(means, -1), torch.cat(precisions, -1)

    def split(self, theta: Tensor) -> dict[str, Tensor]:
        """Return the components' values from those of all elements."""
        parts = theta.split([c.width for c in self.components], -1)
        return {c.name: part for c, part in zip(self.components, parts, strict=True)}
