"""Steps of the hyperparameters of a component, given each gene's mean and variance of its elements."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_zilognormal.models.hurdle.components import Component, Normal, SparseEffects

# The grid of hyperparameters that are log sds: four nodes a sd, and sds on both sides of the mode.
_NODES_A_SD, _SDS = 4, 8
# In sds: further away, where a gene may separate, quadratic likelihoods say too little.
_LARGEST_SHIFT, _LARGEST_SD = 1.0, 1.5


def normal_step(c: Component, theta: Tensor, variance: Tensor, values: dict[str, Tensor]) -> dict[str, Normal]:
    """Return mean and log sd across genes of a component's elements, given their means and variances."""
    found, hyperpriors = {}, c.hyperpriors()
    mean, precision = (v.expand_as(theta) for v in c.moments(values))
    # The share of each element's variance that its data resolve.
    resolved = (1 - variance * precision).clamp(min=0)
    if "mean" in c.kinds:
        name = f"{c.name}_mean"
        middle, sd = hyperpriors[name]
        before = sd.pow(-2)
        deviation = theta - mean
        step = (deviation * precision).sum(0) + (middle - values[name]) * before
        step = step / (precision.sum(0) + before)
        found[name] = values[name] + step, ((resolved * precision).sum(0) + before).rsqrt()
        theta = theta - step
    if "log_sd" in c.kinds:
        name = f"{c.name}_log_sd"
        middle, sd = hyperpriors[name]
        squares = ((theta - mean).square() + variance).mean(0)
        # Each element known for sure has information 2 on log sd.
        complete, before = 2 * len(theta), sd.pow(-2)
        log_sd = (complete * squares.log() / 2 + before * middle) / (complete + before)
        found[name] = log_sd, (2 * resolved.square().sum(0) + before).rsqrt()
    return found


def integrate_log_sd(c: Component, theta: Tensor, variance: Tensor, values: dict[str, Tensor]) -> dict[str, Normal]:
    """Return the posterior's mean and sd of a component's log sd, on a grid, the elements integrated out.

    Its mode, at which ``values`` are, is larger than its mean where genes are few or have little information on it.
    """
    if "log_sd" not in c.kinds:
        return {}
    name = f"{c.name}_log_sd"
    middle, sd = c.hyperpriors()[name]
    mode, spread = normal_step(c, theta, variance, values)[name]
    centre, precision = (v.expand_as(theta) for v in c.moments(values))
    information = (1 / variance - precision).clamp(min=0)
    score = (theta - centre) / variance  # of the data, at the prior's mean
    nodes = mode + spread * torch.linspace(-_SDS, _SDS, 2 * _SDS * _NODES_A_SD + 1).to(sd).unsqueeze(-1)
    evidence = -(nodes - middle).square() / sd.square() / 2
    for k, variances in enumerate((2 * nodes).exp()):
        gain = 1 + information * variances
        evidence[k] += ((score.square() * variances / gain - gain.log()) / 2).sum(0)
    weights = evidence.softmax(0)
    mean = (weights * nodes).sum(0)
    log_sd = (weights * (nodes - mean).square()).sum(0).sqrt()
    shift = ((mean - mode) / spread).clamp(-_LARGEST_SHIFT, _LARGEST_SHIFT)
    return {name: (mode + shift * spread, torch.minimum(log_sd, _LARGEST_SD * spread))}


def logits_step(c: SparseEffects, posterior: Tensor, values: dict[str, Tensor]) -> dict[str, Normal]:
    """Return the logits of the components after a Newton step, given each gene's probabilities of them."""
    name = f"{c.name}_logits"
    shape = c.width, c.sds.shape[-1] - 1
    middle, sd = (v.reshape(shape) for v in c.hyperpriors()[name])
    logits = values[name].reshape(shape)
    weights = c.mixture(values).log_weights.exp()[:, 1:]
    rest = posterior[..., 1:] - weights
    slope = rest.sum(0) - (logits - middle) * sd.pow(-2)
    prior = torch.diag_embed(sd.pow(-2))
    curvature = len(posterior) * (torch.diag_embed(weights) - weights.unsqueeze(-1) * weights.unsqueeze(-2)) + prior
    step = torch.linalg.solve(curvature, slope.unsqueeze(-1)).squeeze(-1).clamp(-1, 1)
    observed = torch.einsum("gpk,gpl->pkl", rest, rest) + prior
    uncertainty = torch.linalg.inv(observed).diagonal(dim1=-2, dim2=-1).sqrt()
    return {name: ((logits + step).flatten(), uncertainty.flatten())}
