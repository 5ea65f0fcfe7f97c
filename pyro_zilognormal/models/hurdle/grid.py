"""The posterior of the log sds of a gene, on a grid, given the likelihood of its coefficients as a quadratic."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_zilognormal.models.hurdle.arrowhead import Arrowhead, Layout
from pyro_zilognormal.models.hurdle.components import Component
from pyro_zilognormal.models.hurdle.hyperparameters import LONGEST, normal_step
from pyro_zilognormal.models.hurdle.site import Site

if TYPE_CHECKING:
    from pyro_zilognormal.models.hurdle.initialize import Ascent

# Nodes on each side of a log sd's last mean, those of the last grid, and the range in sds; between two nodes the log
# evidence is interpolated for some points.
NODES, _LAST_NODES, _RANGE, _FINER = 4, 6, 4.5, 8
# Of random effects. Where a gene is silent in one donor, a larger sd of the mean explains as much as one of the zero
# part, and leaves the fold change open.
_BOUNDS = math.log(1e-4), math.log(3.0)
# Steps of the hyperparameters on the grid.
_GRID_ROUNDS = 20


def grid_site(ascent: Ascent, site: Site, sides: int = _LAST_NODES) -> Site:
    """Return the log sds' likelihood as a quadratic, from their posteriors on a grid, the hyperparameters estimated."""
    information, linear = [], []
    for component in ascent.hierarchy.log_sds:
        grids = [_grid(ascent, site, component, k, sides) for k in range(component.width)]
        evidence, nodes = (torch.stack(each, 1) for each in zip(*grids, strict=True))
        for _ in range(_GRID_ROUNDS):
            mean, precision = component.moments(ascent.values)
            at, variance = _grid_moments(evidence, nodes, mean, precision)
            ascent.hyper |= normal_step(component, at, variance, ascent.values, LONGEST)
        ascent.log_sds[component.name], ascent.reach_of_grid[component.name] = at, _RANGE * variance.sqrt()
        if component.name == "zero_log_sd":
            ascent.unknown = variance
        variance = torch.minimum(variance, 0.99 / precision)
        information.append(1 / variance - precision)
        linear.append(at / variance - precision * mean)
    diagonal, vector = torch.cat(information, 1), torch.cat(linear, 1)
    layout = Layout(vector.shape[1], device=vector.device)
    return Site(Arrowhead.take(layout, torch.diag_embed(diagonal)), vector, vector[:, :0])


def _grid(ascent: Ascent, site: Site, component: Component, element: int, sides: int) -> tuple[Tensor, Tensor]:
    """Return the log evidence of an sd and the nodes, each of shape (genes, points); move the sd to its mean."""
    log_sds, reach = ascent.log_sds[component.name], ascent.reach_of_grid[component.name][:, element, None]
    mean, precision = (v[element] for v in component.moments(ascent.values))
    # Not far from the prior, nor wider, or a narrow one would be between two nodes.
    most = _RANGE * precision.rsqrt()
    centre, reach = log_sds[:, element, None].clamp(mean - most, mean + most), reach.clamp(max=most)
    low, high = centre - reach, centre + reach
    if component.name != "zero_log_sd":
        high = high.clamp(max=_BOUNDS[1])
        low = torch.minimum(low.clamp(min=_BOUNDS[0]), high - reach)
    steps = torch.linspace(0, 1, 2 * sides + 1).to(centre)
    evidence = _interpolate(_log_evidence(ascent, site, component.name, element, low + (high - low) * steps))
    nodes = low + (high - low) * torch.linspace(0, 1, evidence.shape[-1]).to(centre)
    # The next sds are found given this one, or both explain the same.
    log_sds[:, element] = _grid_moments(evidence, nodes, mean, precision)[0]
    return evidence, nodes


def _grid_moments(evidence: Tensor, nodes: Tensor, mean: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of the posterior on a grid under a Normal prior."""
    prior = -precision.unsqueeze(-1) * (nodes - mean.unsqueeze(-1)).square() / 2
    weights = (evidence + prior).softmax(-1)
    at = (weights * nodes).sum(-1)
    # One node may have all of the weight.
    least = (nodes[..., 1] - nodes[..., 0]).square()
    return at, (weights * (nodes - at.unsqueeze(-1)).square()).sum(-1).maximum(least)


def _log_evidence(ascent: Ascent, site: Site, name: str, element: int, nodes: Tensor) -> Tensor:
    """Return the log marginal likelihood of an sd at each node, (genes, nodes), the other sds as they are."""
    sparse, block = ascent.block.sparse, ascent.block
    found = []
    for node in nodes.unbind(-1):
        log_sds = ascent.log_sds[name].clone()
        log_sds[:, element] = node
        values = ascent.values | {name: log_sds}
        mean, precision = block.moments(values)
        factor = site.information.plus_diagonal(precision).factor()
        white = factor.whiten(site.linear + precision * mean)
        log_det = factor.diagonal().log().sum(-1)
        prior = precision.log() - precision * mean.square()
        log_evidence = white.square().sum(-1) / 2 - log_det + prior.sum(-1) / 2
        if sparse is not None:
            # The last elements' marginal has the last rows of the factor.
            last = slice(-sparse.width, None)
            tail = factor.core[:, last, last]
            at = torch.linalg.solve_triangular(tail.mT, white[:, last, None], upper=True).squeeze(-1)
            marginal = torch.cholesky_inverse(tail).diagonal(dim1=-2, dim2=-1).reciprocal()
            mixture = sparse.mixture(values).tempered(ascent.power)
            log_evidence = log_evidence + mixture.log_evidence(at, marginal).sum(-1)
        found.append(log_evidence)
    return torch.stack(found, -1)


def _interpolate(values: Tensor) -> Tensor:
    """Return values at `_FINER` times as many points, by cubic Hermite polynomials: a parabola is kept."""
    slopes = torch.gradient(values, dim=-1)[0]
    u = torch.arange(_FINER).to(values) / _FINER
    left, right = (v.unsqueeze(-1) for v in (values[..., :-1], values[..., 1:]))
    falling, rising = (v.unsqueeze(-1) for v in (slopes[..., :-1], slopes[..., 1:]))
    between = (1 - u).square() * ((1 + 2 * u) * left + u * falling)
    between = between + u.square() * ((3 - 2 * u) * right - (1 - u) * rising)
    return torch.cat([between.flatten(-2), values[..., -1:]], -1)
