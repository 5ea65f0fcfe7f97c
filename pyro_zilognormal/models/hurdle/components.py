"""The hierarchical priors of a gene's coefficients: sites, and blocks of sites that the guide draws together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_zilognormal.models.hurdle.arrowhead import Layout
from pyro_zilognormal.models.hurdle.data import HurdleData
from pyro_zilognormal.models.hurdle.priors import HurdlePriors, Pair, column_units

# Mean and standard deviation of a Normal, each of shape (k,).
Normal = tuple[Tensor, Tensor]

# Positive values that differ by a thousandth are the same: a gene of equal values has no posterior at sigma = 0.
LEAST_SIGMA = 1e-3

# Sds of an effect in the genes that have one, in natural log units per unit of the column: from 10 % to 25-fold.
EFFECT_SDS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)


def log_scale(log_sigma: Tensor) -> Tensor:
    """Return log sqrt(exp(log_sigma)^2 + LEAST_SIGMA^2), the log scale of the likelihood."""
    return torch.logaddexp(2 * log_sigma, log_sigma.new_tensor(2 * math.log(LEAST_SIGMA))) / 2


class RealMixture(dist.MixtureSameFamily):
    """A mixture of Normals whose support is the constraint that AutoGuides and NUTS know."""

    support = constraints.real


@dataclass(frozen=True)
class ScaleMixture:
    """A mixture of Normals of mean 0, the prior of each element of a site."""

    log_weights: Tensor  # of shape (..., width, components), as sds
    sds: Tensor
    power: Tensor | None = None  # of the likelihood between its mode and 0, of shape (..., width)

    @property
    def width(self) -> int:
        """Number of elements."""
        return self.sds.shape[-2]

    def tempered(self, power: Tensor) -> ScaleMixture:
        """Return the mixture for a likelihood that falls from its mode to 0 by ``power`` times what a Normal one does.

        Where values are few, or far from 0 in an effect, the likelihood of the effect is not Normal.
        """
        return replace(self, power=power)

    def distribution(self) -> dist.TorchDistribution:
        """Return the prior as a distribution, of batch shape (..., width)."""
        logits, sds = torch.broadcast_tensors(self.log_weights, self.sds)
        return RealMixture(dist.Categorical(logits=logits), dist.Normal(torch.zeros_like(sds), sds))

    def column(self, index: int) -> ScaleMixture:
        """Return the prior of one element, of width 1."""
        at = slice(index, index + 1)
        power = None if self.power is None else self.power[..., at]
        return ScaleMixture(self.log_weights[..., at, :], self.sds[..., at, :], power)

    def posterior(self, mean: Tensor, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log probabilities, means and precisions of the components, each of shape (..., width, components).

        Of elements whose posterior under the widest component alone is Normal(mean, 1 / precision).
        """
        log_evidences, means, precisions = self._update(mean, precision)
        return (self.log_weights + log_evidences).log_softmax(-1), means, precisions

    def log_evidence(self, mean: Tensor, precision: Tensor) -> Tensor:
        """Return the log marginal likelihood of the mixture against its widest component; arguments as `posterior`."""
        log_evidences = self.log_evidences(mean, precision)
        return (self.log_weights + log_evidences).logsumexp(-1) - log_evidences[..., -1]

    def log_evidences(self, mean: Tensor, precision: Tensor) -> Tensor:
        """Return the log marginal likelihoods of the components, but for a constant; arguments as `posterior`."""
        return self._update(mean, precision)[0]

    def _update(self, mean: Tensor, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        prior = self.sds.pow(-2)
        # Rounding may take the likelihood's own precision below 0 where there are no cells.
        precisions = (precision - prior[..., -1]).clamp(min=0).unsqueeze(-1) + prior
        linear = (mean * precision).unsqueeze(-1)
        means = linear / precisions
        fall = linear * (means[..., -1:] - means)
        if self.power is not None:
            fall = fall * self.power.unsqueeze(-1)
        log_evidences = (prior.log() - precisions.log() + linear * means[..., -1:] - fall) / 2
        return log_evidences, means, precisions


class Component(nn.Module):
    """A latent site of shape (genes, width): theta_g ~ Normal(mean, exp(log_sd)), element by element.

    ``mean`` and ``log_sd`` are hyperparameters, shared by all genes.
    """

    def __init__(self, name: str, width: int, hyperpriors: Mapping[str, Normal]) -> None:
        super().__init__()
        self.name, self.width, self.kinds = name, width, list(hyperpriors)
        for kind, prior in hyperpriors.items():
            self.register_buffer(kind, torch.stack(prior))

    def hyperpriors(self) -> dict[str, Normal]:
        """Return mean and sd of the Normal prior of each hyperparameter, by its name."""
        return {f"{self.name}_{kind}": cast(Normal, getattr(self, kind).unbind()) for kind in self.kinds}

    def prior(self, values: dict[str, Tensor]) -> dist.TorchDistribution:
        """Return the distribution of the site given what has been drawn before."""
        mean, precision = self.moments(values)
        return dist.Normal(mean, precision.rsqrt()).to_event(1)

    def moments(self, values: dict[str, Tensor]) -> Normal:
        """Return the mean and 1 / sd^2 of the prior, each of shape (..., width)."""
        return values[f"{self.name}_mean"], (-2 * values[f"{self.name}_log_sd"]).exp()


class GeneScaled(Component):
    """A site whose sds are a gene's own: theta_gk ~ Normal(mean_k, exp(log_sd_g) / unit_k), log_sd_g a site itself.

    Args:
        name: of the site.
        log_sd: name of the site of the log sds.
        owner: which of them an element has.
        unit: of the columns that the elements belong to.
        hyperpriors: of the mean; 0 without.
    """

    owner: Tensor
    unit: Tensor

    def __init__(
        self, name: str, log_sd: str, owner: Tensor, unit: Tensor, hyperpriors: Mapping[str, Normal] | None = None
    ) -> None:
        super().__init__(name, len(owner), hyperpriors or {})
        self.log_sd = log_sd
        self.register_buffer("owner", owner)
        self.register_buffer("unit", unit)

    def moments(self, values: dict[str, Tensor]) -> Normal:
        """Return the mean and 1 / sd^2 of the prior, each of shape (..., genes, width)."""
        precision = (-2 * values[self.log_sd][..., self.owner]).exp() * self.unit.square()
        mean = values[f"{self.name}_mean"] if self.kinds else torch.zeros_like(self.unit)
        return mean + torch.zeros_like(precision), precision


class ZeroIntercept(GeneScaled):
    """The log odds of a zero beyond those that follow from the log mean, -slope times it.

    ``mean`` is that of the log odds of genes whose log mean is ``centre``, amid the data, so that the posteriors of
    ``mean`` and slope are hardly correlated: theta_g ~ Normal(mean + slope centre, exp(log_sd_g)).
    """

    centre: Tensor

    def __init__(self, hyperpriors: Mapping[str, Normal], centre: Tensor) -> None:
        first = torch.zeros(1, dtype=torch.int64)
        super().__init__("zero_intercept", "zero_log_sd", first, torch.ones_like(centre), hyperpriors)
        self.register_buffer("centre", centre)

    def moments(self, values: dict[str, Tensor]) -> Normal:
        """Return the mean and 1 / sd^2 of the prior, each of shape (..., genes, 1)."""
        mean, precision = super().moments(values)
        return mean + values["zero_slope"] * self.centre, precision


class SparseEffects(Component):
    """Effects that few genes have: a scale mixture whose weights are learned for each column of the design."""

    sds: Tensor

    def __init__(self, name: str, sds: Tensor, logit: Normal) -> None:
        super().__init__(name, len(sds), {"logits": logit})
        self.register_buffer("sds", sds)

    def mixture(self, values: dict[str, Tensor]) -> ScaleMixture:
        """Return the prior given the log odds of the components against the narrowest."""
        logits = values[f"{self.name}_logits"].unflatten(-1, (self.width, -1))
        return ScaleMixture(torch.nn.functional.pad(logits, (1, 0)).log_softmax(-1), self.sds)

    def prior(self, values: dict[str, Tensor]) -> dist.TorchDistribution:
        """Return the mixture."""
        return self.mixture(values).distribution().to_event(1)

    def moments(self, values: dict[str, Tensor]) -> Normal:
        """Return 0 and 1 / sd^2 of the widest component."""
        precision = self.sds[:, -1].pow(-2)
        return torch.zeros_like(precision), precision


class Block(nn.ModuleList):
    """Components that the guide draws together, in the order of their elements; sparse effects stand last."""

    def __iter__(self) -> Iterator[Component]:
        return cast(Iterator[Component], super().__iter__())

    @property
    def width(self) -> int:
        """Number of elements."""
        return sum(c.width for c in self)

    @property
    def slices(self) -> dict[str, slice]:
        """The elements of each component, by its name."""
        ends = torch.tensor([0, *(c.width for c in self)]).cumsum(0).tolist()
        return {c.name: slice(*ends[k : k + 2]) for k, c in enumerate(self)}

    @property
    def fixed(self) -> Block:
        """All components but the random effects, which stand first."""
        return Block([c for c in self if c.name not in ("random", "zero_random")])

    @property
    def core(self) -> int:
        """Number of elements but random effects."""
        return self.fixed.width

    @property
    def sparse(self) -> SparseEffects | None:
        """The sparse effects; None without any."""
        last = self[-1] if len(self) else None
        return last if isinstance(last, SparseEffects) else None

    def hyperpriors(self) -> dict[str, Normal]:
        """Return mean and sd of the Normal prior of each hyperparameter, by its name."""
        return {name: prior for c in self for name, prior in c.hyperpriors().items()}

    def moments(self, values: dict[str, Tensor]) -> Normal:
        """Return mean and 1 / sd^2 of the prior of all elements, each of shape (..., width)."""
        means, precisions = zip(*(c.moments(values) for c in self), strict=True)
        return _join(means), _join(precisions)

    def split(self, theta: Tensor) -> dict[str, Tensor]:
        """Return the elements of each component, by its name."""
        return dict(zip((c.name for c in self), theta.split([c.width for c in self], -1), strict=True))


class Hierarchy(nn.Module):
    """All sites of the regression: ``log_sds`` of random effects, and ``coefficients`` given these.

    ``layout`` is that of the information on the coefficients.
    """

    slope: Tensor

    def __init__(self, log_sds: Block, coefficients: Block, slope: Normal, layout: Layout) -> None:
        super().__init__()
        self.log_sds, self.coefficients, self.layout = log_sds, coefficients, layout
        self.register_buffer("slope", torch.stack(slope))

    def hyperpriors(self) -> dict[str, Normal]:
        """Return mean and sd of the Normal prior of each hyperparameter, by its name."""
        slope = cast(Normal, self.slope.unbind())
        return self.log_sds.hyperpriors() | self.coefficients.hyperpriors() | {"zero_slope": slope}


def make_hierarchy(data: HurdleData, priors: HurdlePriors) -> Hierarchy:
    """Return the sites for the designs and factors of the data."""
    # Of the zero part's intercept, and of its effects.
    log_sds, random = [_log_sds("zero", min(data.zero_design.shape[1], 2), priors)], []
    for part in ("", "zero_") if data.levels else ():
        log_sds.append(_log_sds(f"{part}random", len(data.levels), priors))
        owner = torch.arange(len(data.levels)).repeat_interleave(torch.tensor(data.levels))
        unit = torch.ones(len(owner), dtype=torch.float64)
        random.append(GeneScaled(f"{part}random", f"{part}random_log_sd", owner, unit))
    fixed = [
        _log_sigma(priors, data.scale_design.shape[1]),
        Component("intercept", 1, _across_genes(priors.intercept_mean, priors.intercept_sd, 1)),
        ZeroIntercept({"mean": _pair(priors.zero_intercept_mean, 1)}, _pair(priors.intercept_mean, 1)[0]),
        _zero_effects(data, priors),
        _sparse(data, priors),
    ]
    coefficients = Block([c for c in [*random, *fixed] if c.width])
    layout = Layout.of_levels(data.random_elements, data.levels, coefficients.width)
    return Hierarchy(Block(log_sds), coefficients, _pair(priors.zero_slope, 1), layout).to(data.design.device)


def _log_sds(name: str, width: int, priors: HurdlePriors) -> Component:
    mean, spread = (_log(getattr(priors, f"{name}_{kind}"), width) for kind in ("sd", "spread"))
    return Component(f"{name}_log_sd", width, {"mean": mean, "log_sd": spread})


def _log_sigma(priors: HurdlePriors, width: int) -> Component:
    first = _across_genes(priors.log_sigma_mean, priors.log_sigma_sd, 1)
    rest = _across_genes(priors.log_sigma_effects_mean, priors.log_sigma_effects_sd, width - 1)
    joined = {kind: tuple(map(torch.cat, zip(first[kind], rest[kind], strict=True))) for kind in first}
    return Component("log_sigma", width, cast(dict[str, Normal], joined))


def _zero_effects(data: HurdleData, priors: HurdlePriors) -> GeneScaled:
    unit = column_units(data.zero_design).cpu()
    second = torch.ones(len(unit), dtype=torch.int64)
    mean = _pair(priors.zero_effects_mean, len(unit))
    return GeneScaled("zero_effects", "zero_log_sd", second, unit, {"mean": mean})


def _across_genes(mean: Pair, sd: Pair, width: int) -> dict[str, Normal]:
    return {"mean": _pair(mean, width), "log_sd": _log(sd, width)}


def _sparse(data: HurdleData, priors: HurdlePriors) -> SparseEffects:
    unit = column_units(data.design).cpu()
    sds = torch.tensor((priors.spike_sd, *EFFECT_SDS), dtype=torch.float64)
    share, spread = (v.repeat_interleave(len(EFFECT_SDS)) for v in _pair(priors.effects_share, len(unit)))
    logit = (share / (1 - share) / len(EFFECT_SDS)).log(), spread
    return SparseEffects("effects", sds / unit.unsqueeze(-1), logit)


def _join(tensors: tuple[Tensor, ...]) -> Tensor:
    shape = torch.broadcast_shapes(*(t.shape[:-1] for t in tensors))
    return torch.cat([t.expand(*shape, t.shape[-1]) for t in tensors], -1)


def _pair(pair: tuple[float | Tensor, float | Tensor], width: int) -> Normal:
    first, second = (torch.as_tensor(v, dtype=torch.float64).reshape(-1) for v in pair)
    if not {len(first), len(second)} <= {1, width}:
        raise ValueError(f"a prior of HurdlePriors is {pair}; needed numbers, or {width} elements of an effects' prior")
    return first.expand(width), second.expand(width)


def _log(pair: tuple[float | Tensor, float | Tensor], width: int) -> Normal:
    """Return mean and sd of the logarithm of a LogNormal from its median and spread."""
    median, spread = _pair(pair, width)
    return median.log(), spread
