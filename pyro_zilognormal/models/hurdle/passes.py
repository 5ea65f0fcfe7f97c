"""Where the guide of single cells starts: the modes of some cells, moved to those of all by passes of scoring steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_zilognormal.models.hurdle.arrowhead import Arrowhead
from pyro_zilognormal.models.hurdle.cells import CellLikelihood
from pyro_zilognormal.models.hurdle.components import Hierarchy
from pyro_zilognormal.models.hurdle.data import HurdleData
from pyro_zilognormal.models.hurdle.initialize import Ascent, Pairs, Site, Start, ascend, climb
from pyro_zilognormal.models.hurdle.third_order import no_correction

# Passes over the cells, of which no more are taken once the posterior means move by less than this, in posterior sds.
MOST_PASSES = 15
NEAR = 0.1
# Stages of the ascent on some of the cells.
_STAGES = 2
# Of a sum over cells, relative to it.
_ROUNDING = 1e-12


@torch.no_grad()
def find_start_of_cells(
    cells: HurdleData, hierarchy: Hierarchy, passes: int = MOST_PASSES, near: float = NEAR
) -> Start:
    """Return what :func:`find_start` does, for single cells: of many, from the modes of some of them.

    Given the likelihoods as quadratics at the last modes, modes, hyperparameters and log sds move together, without a
    look at the cells; a pass then has the likelihoods at the new modes. A step changes no predictor by much, at first,
    and by twice as much after each that climbs; genes whose posterior does not climb go back, and take a quarter.

    Args:
        cells: the data.
        hierarchy: the sites.
        passes: the most passes over the cells.
        near: no more of them once no coefficient has to move by more than this, in posterior sds.
    """
    some = cells.some()
    ascent = CellAscent(some, hierarchy)
    if len(some.design) == len(cells.design):
        return ascend(ascent)
    climb(ascent, _STAGES)
    ascent.look_at(cells)
    trust = torch.ones_like(ascent.theta[:, :1])
    best = _Expansion.of(ascent)
    for left in range(passes - 1, -1, -1):
        log_sds = ascent.move_to_modes(best.site)
        start = best.coefficients(ascent)
        step = ascent.theta - start
        if not left or (step.abs() / ascent.variance.sqrt()).max() < near:
            break
        reach = ascent.reach(step)
        taken = (trust * reach).clamp(max=1)
        ascent.theta = start + taken * step
        new = _Expansion.of(ascent)
        climbs = new.log_joint(ascent) >= best.log_joint(ascent) - _ROUNDING * new.log_density.abs()
        trust = torch.where(climbs.unsqueeze(-1), 2 * trust, taken / reach / 4)
        best = new.where(climbs, best)
    ascent.theta = best.coefficients(ascent)
    site = _site(ascent, *ascent.observed(ascent.theta))
    ascent.integrate()
    # Of more cells than these few, the likelihood of a gene is nearly Normal.
    correction = no_correction(ascent.theta, ascent.block.core)
    return Start(site, ascent.pairs, correction, log_sds, ascent.hyper)


class CellAscent(Ascent):
    """An ascent on the likelihood of single cells, which costs less than that of as many groups."""

    def __init__(self, cells: HurdleData, hierarchy: Hierarchy) -> None:
        super().__init__(cells.as_groups(), hierarchy)
        self.look_at(cells)

    def look_at(self, cells: HurdleData) -> None:
        """Take the likelihood of these cells from now on."""
        self._cells = CellLikelihood(cells, self.block)
        self._last: tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]] | None = None

    def derivatives(self, theta: Tensor) -> tuple[Tensor, Arrowhead]:
        """Return score and information of the coefficients."""
        _, score, information = self._evaluate(theta)
        return score, Arrowhead.take(self.layout, information)

    def observed(self, theta: Tensor) -> tuple[Tensor, Arrowhead]:
        """Return score and observed information of the coefficients."""
        score, information = self._cells.derivatives(theta, self.hyper["zero_slope"][0], observed=True)[1:]
        return score, self.project(Arrowhead.take(self.layout, information), self._moments()[1])

    def log_density(self, theta: Tensor) -> Tensor:
        """Return the log density of each gene given its coefficients, but for a constant."""
        return self._evaluate(theta)[0]

    def _evaluate(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log density, score and information, in one pass if they are asked for one after another."""
        slope = self.hyper["zero_slope"][0]
        if self._last is None or self._last[0] is not theta or self._last[1] is not slope:
            self._last = theta, slope, self._cells.derivatives(theta, slope)
        return self._last[2]


@dataclass(frozen=True)
class _Expansion:
    """The likelihoods of all genes about some coefficients, to the second order, at a slope of 0."""

    theta: Tensor
    log_density: Tensor
    site: Site

    @classmethod
    def of(cls, ascent: CellAscent) -> _Expansion:
        """Return the expansion about where the ascent is, with the expected information."""
        log_density = ascent.log_density(ascent.theta)
        site = _site(ascent, *ascent.derivatives(ascent.theta))
        return cls(_add_slope(ascent.theta, -ascent.hyper["zero_slope"][0], ascent.pairs), log_density, site)

    def coefficients(self, ascent: Ascent) -> Tensor:
        """Return the coefficients at the slope of the ascent."""
        return _add_slope(self.theta, ascent.hyper["zero_slope"][0], ascent.pairs)

    def log_joint(self, ascent: Ascent) -> Tensor:
        """Return the log density of coefficients and cells, gene by gene, under the ascent's hyperparameters."""
        return self.log_density + ascent.log_prior(self.coefficients(ascent))

    def where(self, chosen: Tensor, other: _Expansion) -> _Expansion:
        """Return the chosen genes' own, and the others' of the other expansion."""
        site = Site(
            self.site.information.where(chosen, other.site.information),
            torch.where(chosen[:, None], self.site.linear, other.site.linear),
            self.site.power,
        )
        theta = torch.where(chosen[:, None], self.theta, other.theta)
        return _Expansion(theta, torch.where(chosen, self.log_density, other.log_density), site)


def _site(ascent: CellAscent, score: Tensor, information: Arrowhead) -> Site:
    """Return the quadratic of that score and information where the ascent is, at a slope of 0."""
    linear = score + information.times(ascent.theta)
    return Site(information, linear, ascent.power).sheared(-ascent.hyper["zero_slope"][0], ascent.pairs)


def _add_slope(theta: Tensor, slope: Tensor, pairs: Pairs) -> Tensor:
    """Return coefficients with ``slope`` times the first element of each pair added to the second."""
    own, other = pairs
    found = theta.clone()
    found[:, other] += slope * theta[:, own]
    return found
