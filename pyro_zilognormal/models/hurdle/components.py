"""The hierarchical priors of a gene's coefficients: sites, and blocks of sites that share a likelihood."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pyro_zilognormal.models.hurdle.data import HurdleData
from pyro_zilognormal.models.hurdle.priors import HurdlePriors, column_units

# Mean and standard deviation of a Normal, each of shape (k,).
Normal = tuple[Tensor, Tensor]

# Positive values that differ by a thousandth are the same: a gene of equal values has no posterior at sigma = 0.
LEAST_SIGMA = 1e-3


def log_scale(log_sigma: Tensor) -> Tensor:
    """Return log sqrt(exp(log_sigma)^2 + LEAST_SIGMA^2), the log scale of the likelihood."""
    return torch.logaddexp(2 * log_sigma, log_sigma.new_tensor(2 * math.log(LEAST_SIGMA))) / 2


class RealMixture(dist.MixtureSameFamily):
    """A mixture of Normals whose support is the constraint that AutoGuides and NUTS know."""

    support = constraints.real


@dataclass(frozen=True)
class SpikeAndSlab:
    """The prior (1 - share) Normal(0, spike_sd) + share Normal(0, slab_sd) of the elements of a site."""

    logit_share: Tensor  # of shape (..., width), as log_slab_sd
    log_slab_sd: Tensor
    spike_sd: Tensor  # of shape (width,)

    @property
    def width(self) -> int:
        """Number of elements."""
        return self.log_slab_sd.shape[-1]

    def distribution(self) -> dist.TorchDistribution:
        """Return the prior as a distribution, of batch shape (..., width)."""
        logit, slab, spike = torch.broadcast_tensors(self.logit_share, self.log_slab_sd.exp(), self.spike_sd)
        scales = torch.stack([spike, slab], -1)
        return RealMixture(dist.Categorical(logits=_log_shares(logit)), dist.Normal(torch.zeros_like(scales), scales))

    def updated(self, log_bayes_factor: Tensor) -> SpikeAndSlab:
        """Return the prior after evidence for the slab against the spike."""
        return replace(self, logit_share=self.logit_share + log_bayes_factor)

    def column(self, index: int) -> SpikeAndSlab:
        """Return the prior of one element, of width 1."""
        at = slice(index, index + 1)
        return SpikeAndSlab(self.logit_share[..., at], self.log_slab_sd[..., at], self.spike_sd[at])

    def log_density_ratio(self, elements: Tensor) -> Tensor:
        """Return log Normal(element; 0, slab_sd) - log Normal(element; 0, spike_sd)."""
        slab, spike = self.log_slab_sd, self.spike_sd.log()
        return spike - slab + elements.square() * ((-2 * spike).exp() - (-2 * slab).exp()) / 2

    def posterior(self, mean: Tensor, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log probabilities, means and precisions of spike and slab, each of shape (..., width, 2).

        Of elements whose posterior under the slab alone is Normal(mean, 1 / precision).
        """
        means, precisions, log_bayes_factor = self._update(mean, precision)
        return _log_shares(self.logit_share + log_bayes_factor), means, precisions

    def log_bayes_factor(self, mean: Tensor, precision: Tensor) -> Tensor:
        """Return the log marginal likelihood of the slab minus that of the spike; arguments as in `posterior`."""
        return self._update(mean, precision)[2]

    def _update(self, mean: Tensor, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return means and precisions of spike and slab, and the log Bayes factor."""
        slab = (-2 * self.log_slab_sd).exp()
        prior = torch.stack([self.spike_sd.pow(-2).expand_as(slab), slab], -1)
        # Rounding may take the likelihood's own precision below 0 where there are no cells.
        precisions = (precision - slab).clamp(min=0).unsqueeze(-1) + prior
        linear = (mean * precision).unsqueeze(-1)
        log_marginal = (prior.log() - precisions.log() + linear.square() / precisions) / 2
        return linear / precisions, precisions, log_marginal[..., 1] - log_marginal[..., 0]


def _log_shares(logit: Tensor) -> Tensor:
    """Return the log probabilities of spike and slab, of shape (..., 2)."""
    return torch.stack([logsigmoid(-logit), logsigmoid(logit)], -1)


class Component(nn.Module):
    """A latent site of shape (genes, width), whose elements share a prior across genes.

    theta_g ~ Normal(mean, exp(log_sd)), where mean is 0 unless it has a hyperprior. A sparse one has that prior in a
    share of the genes, and an sd of ``spike_sd`` in the others; ``share`` names the hyperparameter with the log odds
    of the slab, which another component may own.
    """

    spike_sd: Tensor

    def __init__(
        self,
        name: str,
        width: int,
        hyperpriors: dict[str, Normal],
        share: str | None = None,
        spike_sd: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.name, self.width, self.share, self.kinds = name, width, share, list(hyperpriors)
        for kind, prior in hyperpriors.items():
            self.register_buffer(kind, torch.stack(prior))
        self.register_buffer("spike_sd", spike_sd)

    def hyperpriors(self) -> dict[str, Normal]:
        """Return mean and sd of the Normal prior of each hyperparameter, by its name."""
        return {f"{self.name}_{kind}": cast(Normal, getattr(self, kind).unbind()) for kind in self.kinds}

    def spike_and_slab(self, values: dict[str, Tensor]) -> SpikeAndSlab | None:
        """Return the sparse prior given the hyperparameters; None for a Normal prior."""
        if self.share is None:
            return None
        return SpikeAndSlab(values[self.share], values[f"{self.name}_log_sd"], self.spike_sd)

    def update_share(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the log odds of the slab given the site, gene by gene, by the name of the share."""
        sparse = self.spike_and_slab(values)
        if sparse is None or self.share is None:
            return {}
        return {self.share: sparse.logit_share + sparse.log_density_ratio(values[self.name])}

    def prior(self, values: dict[str, Tensor]) -> dist.TorchDistribution:
        """Return the distribution of the site given the hyperparameters."""
        sparse = self.spike_and_slab(values)
        mean, precision = self.moments(values)
        return (dist.Normal(mean, precision.rsqrt()) if sparse is None else sparse.distribution()).to_event(1)

    def moments(self, values: dict[str, Tensor]) -> Normal:
        """Return the mean and 1 / sd^2 of the prior (of its slab), each of shape (..., width)."""
        precision = (-2 * values[f"{self.name}_log_sd"]).exp()
        shape = (*precision.shape[:-1], self.width)
        mean = values.get(f"{self.name}_mean", torch.zeros_like(precision[..., :1]))
        return mean.expand(shape), precision.expand(shape)


class Block(nn.ModuleList):
    """The components of one likelihood in the order of their elements: donors first, sparse effects last."""

    def __iter__(self) -> Iterator[Component]:
        return cast(Iterator[Component], super().__iter__())

    @property
    def last(self) -> Component:
        """The only component that can be sparse."""
        return cast(Component, self[-1])

    def hyperpriors(self) -> dict[str, Normal]:
        """Return mean and sd of the Normal prior of each hyperparameter, by its name."""
        return {name: prior for c in self for name, prior in c.hyperpriors().items()}

    def moments(self, values: dict[str, Tensor]) -> Normal:
        """Return the mean and 1 / sd^2 of the prior of all elements, each of shape (..., donors + core)."""
        means, precisions = zip(*(c.moments(values) for c in self), strict=True)
        return torch.cat(means, -1), torch.cat(precisions, -1)

    def split(self, theta: Tensor) -> dict[str, Tensor]:
        """Return the values of each component from those of all elements."""
        return dict(zip((c.name for c in self), theta.split([c.width for c in self], -1), strict=True))


def make_blocks(data: HurdleData, priors: HurdlePriors) -> Mapping[str, Block]:
    """Return the blocks "log_sigma", "positive" (given sigma) and "zero", in the order in which they are drawn."""
    hyperpriors = {"mean": _pair(priors.log_sigma_mean, 1), "log_sd": _log(priors.log_sigma_sd, 1)}
    owner = "effects" if torch.equal(data.design, data.zero_design) else "zero_effects"
    blocks = {
        "log_sigma": Block([Component("log_sigma", 1, hyperpriors)]),
        "positive": _regression("", data.design, data.donors, priors, "effects"),
        "zero": _regression("zero_", data.zero_design, data.donors, priors, owner),
    }
    return cast(Mapping[str, Block], nn.ModuleDict(blocks).to(data.design.device))


def _regression(part: str, design: Tensor, donors: int, priors: HurdlePriors, owner: str) -> Block:
    """Return donors, intercept and effects of a part; ``owner`` is the site that has the share of its effects."""
    intercept_mean, intercept_sd, donors_sd, effects_sd = (
        getattr(priors, f"{part}{name}") for name in ("intercept_mean", "intercept_sd", "donors_sd", "effects_sd")
    )
    width = design.shape[1] - 1
    intercept = {"mean": _pair(intercept_mean, 1), "log_sd": _log(intercept_sd, 1)}
    effects = {"log_sd": _log(effects_sd, width)}
    share = spike_sd = None
    if priors.effects_share is not None:
        share, spike_sd = f"{owner}_logit_share", priors.spike_sd / column_units(design)
        if owner == f"{part}effects":
            median, spread = _pair(priors.effects_share, width)
            effects["logit_share"] = median.logit(), spread
    components = [
        Component(f"{part}donors", donors, {"log_sd": _log(donors_sd, 1)}),
        Component(f"{part}intercept", 1, intercept),
        Component(f"{part}effects", width, effects, share, spike_sd),
    ]
    return Block([c for c in components if c.width])


def _pair(pair: tuple[float | Tensor, float | Tensor], width: int) -> Normal:
    first, second = (torch.as_tensor(v, dtype=torch.float64).reshape(-1) for v in pair)
    if not {len(first), len(second)} <= {1, width}:
        raise ValueError(f"a prior of HurdlePriors is {pair}; needed numbers, or {width} elements of an effects' prior")
    return first.expand(width), second.expand(width)


def _log(pair: tuple[float | Tensor, float | Tensor], width: int) -> Normal:
    """Return mean and sd of the logarithm of a LogNormal from its median and spread."""
    median, spread = _pair(pair, width)
    return median.log(), spread
