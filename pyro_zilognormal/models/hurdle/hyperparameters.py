"""Steps of the hyperparameters of a component, given each gene's mean and variance of its elements.

An EM step divides the score by the information that known elements would have, and is short where data say little of
them. A Newton step divides it by the information of the data (Louis 1982), which these means and variances give only
nearly. Steps here lie between both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_zilognormal.models.hurdle.components import Component, Normal, SparseEffects

# The longest step of hyperparameters that genes follow at once, in those of EM.
LONGEST = 10.0
# Newton steps of the logits of a scale mixture.
_LOGITS_STEPS = 20
# The grid of hyperparameters that are log sds: four nodes a sd, and sds on both sides of the mode.
_NODES_A_SD, _SDS = 4, 8
# In sds: further away, where a gene may separate, quadratic likelihoods say too little.
_LARGEST_SHIFT, _SDS_RANGE = 1.0, (0.25, 1.5)


def normal_step(
    c: Component, theta: Tensor, variance: Tensor, values: dict[str, Tensor], longest: float = 1.9
) -> dict[str, Normal]:
    """Return mean and log sd across genes of a component's elements, given their means and variances.

    Steps are at most ``longest`` times those of EM: twice as long would not converge where elements follow slowly.
    """
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
        complete, observed = precision.sum(0), (resolved * precision).sum(0)
        step = step / (between(complete, observed, longest) + before)
        found[name] = values[name] + step, (observed + before).rsqrt()
        theta = theta - step
    if "log_sd" in c.kinds:
        name = f"{c.name}_log_sd"
        middle, sd = hyperpriors[name]
        squares = ((theta - mean).square() * precision + variance * precision).mean(0)
        # Each element known for sure has information 2 on log sd.
        complete, observed, before = 2 * torch.ones_like(resolved).sum(0), 2 * resolved.square().sum(0), sd.pow(-2)
        step = complete * squares.log() / 2 + (middle - values[name]) * before
        step = step / (between(complete, observed, longest) + before)
        found[name] = values[name] + step, (observed + before).rsqrt()
    return found


def between(complete: Tensor, observed: Tensor, longest: float) -> Tensor:
    """Return the geometric mean of two informations, but at least that of known elements divided by ``longest``."""
    return (complete * observed).sqrt().maximum(complete / longest)


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
    return {name: (mode + shift * spread, spread * (log_sd / spread).clamp(*_SDS_RANGE))}


def find_logits(c: SparseEffects, log_evidences: Tensor) -> dict[str, Normal]:
    """Return the posterior's mode of the logits of a scale mixture, and sds.

    Components of neighbouring sds explain nearly the same, and the posterior has more than one mode. This one is found
    from the prior's mean, whatever has been found before.

    Args:
        c: the site of the effects.
        log_evidences: of the components, of shape (genes, width, components).
    """
    name = f"{c.name}_logits"
    shape = c.width, c.sds.shape[-1] - 1
    middle, sd = (v.reshape(shape) for v in c.hyperpriors()[name])
    logits, prior = middle, torch.diag_embed(sd.pow(-2))
    for _ in range(_LOGITS_STEPS):
        log_weights = c.mixture({name: logits.flatten()}).log_weights
        weights, posterior = log_weights.exp()[:, 1:], (log_weights + log_evidences).softmax(-1)
        rest = posterior[..., 1:] - weights
        slope = rest.sum(0) - (logits - middle) * sd.pow(-2)
        complete = len(rest) * (torch.diag_embed(weights) - weights.unsqueeze(-1) * weights.unsqueeze(-2))
        observed = torch.einsum("gpk,gpl->pkl", rest, rest)
        curvature = (complete + observed) / 2 + prior
        logits = logits + torch.linalg.solve(curvature, slope.unsqueeze(-1)).squeeze(-1).clamp(-1, 1)
    sds = torch.linalg.inv(observed + prior).diagonal(dim1=-2, dim2=-1).sqrt()
    return {name: (logits.flatten(), sds.flatten())}
