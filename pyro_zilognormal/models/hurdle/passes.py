"""Where the guide of single cells starts: the modes of some cells, moved to those of all by passes of scoring steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_zilognormal.models.hurdle.cells import CellLikelihood
from pyro_zilognormal.models.hurdle.components import Hierarchy, Normal
from pyro_zilognormal.models.hurdle.data import HurdleData
from pyro_zilognormal.models.hurdle.initialize import Ascent, Pairs, Site, ascend

# Passes over the cells, of which no more are taken once the posterior means move by less than this, in posterior sds.
MOST_PASSES = 12
_NEAR = 0.01
# Of a sum over cells, relative to it.
_ROUNDING = 1e-12


@torch.no_grad()
def find_start_of_cells(
    cells: HurdleData, groups: HurdleData, hierarchy: Hierarchy, passes: int = MOST_PASSES, near: float = _NEAR
) -> tuple[Site, Site, dict[str, Normal]]:
    """Return what :func:`find_start` does, for all cells, from the modes of some of them.

    Given the likelihoods as quadratics at the last modes, modes, hyperparameters and log sds move together, without a
    look at the cells; a pass then has the likelihoods at the new modes. Genes whose posterior does not climb go back,
    and take a smaller step.

    Args:
        cells: all cells.
        groups: some of the cells, which no step may change much.
        hierarchy: the sites.
        passes: the most passes over the cells.
        near: no more of them once no posterior mean moves by more than this, in posterior sds.
    """
    ascent, _, log_sds = ascend(groups, hierarchy)
    likelihood = CellLikelihood(cells, hierarchy.coefficients)
    damping = torch.ones_like(ascent.theta[:, :1])
    best = _Expansion.of(likelihood, ascent)
    for left in range(passes - 1, -1, -1):
        log_sds = ascent.settle(best.site)
        start = best.coefficients(ascent)
        step = ascent.theta - start
        if not left or (step.abs() / ascent.variance.sqrt()).max() < near:
            break
        ascent.theta = start + step * damping * ascent.share(step)
        found = _Expansion.of(likelihood, ascent)
        climbs = found.log_joint(ascent) >= best.log_joint(ascent) - _ROUNDING * found.log_density.abs()
        damping = torch.where(climbs.unsqueeze(-1), 2 * damping, damping / 4).clamp(max=1)
        best = found.where(climbs, best)
    return best.site, log_sds, ascent.hyper


@dataclass(frozen=True)
class _Expansion:
    """The likelihoods of all genes about some coefficients, to the second order, at a slope of 0."""

    theta: Tensor
    log_density: Tensor
    site: Site

    @classmethod
    def of(cls, likelihood: CellLikelihood, ascent: Ascent) -> _Expansion:
        """Return the expansion about where the ascent is."""
        slope = ascent.hyper["zero_slope"][0]
        log_density, score, information = likelihood.derivatives(ascent.theta, slope)
        linear = score + (information @ ascent.theta.unsqueeze(-1)).squeeze(-1)
        site = Site(information, linear, ascent.power).sheared(-slope, ascent.pairs)
        return cls(_add_slope(ascent.theta, -slope, ascent.pairs), log_density, site)

    def coefficients(self, ascent: Ascent) -> Tensor:
        """Return the coefficients at the slope of the ascent."""
        return _add_slope(self.theta, ascent.hyper["zero_slope"][0], ascent.pairs)

    def log_joint(self, ascent: Ascent) -> Tensor:
        """Return the log density of coefficients and cells, gene by gene, under the ascent's hyperparameters."""
        return self.log_density + ascent.log_prior(self.coefficients(ascent))

    def where(self, chosen: Tensor, other: _Expansion) -> _Expansion:
        """Return the chosen genes' own, and the others' of the other expansion."""
        site = Site(
            torch.where(chosen[:, None, None], self.site.information, other.site.information),
            torch.where(chosen[:, None], self.site.linear, other.site.linear),
            self.site.power,
        )
        theta = torch.where(chosen[:, None], self.theta, other.theta)
        return _Expansion(theta, torch.where(chosen, self.log_density, other.log_density), site)


def _add_slope(theta: Tensor, slope: Tensor, pairs: Pairs) -> Tensor:
    """Return coefficients with ``slope`` times the first element of each pair added to the second."""
    own, other = pairs
    found = theta.clone()
    found[:, other] += slope * theta[:, own]
    return found
