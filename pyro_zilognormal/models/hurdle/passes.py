"""Where the guide of single cells starts: the modes of some cells, moved to those of all by passes of scoring steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_zilognormal.models.hurdle.arrowhead import Arrowhead
from pyro_zilognormal.models.hurdle.cells import CellLikelihood
from pyro_zilognormal.models.hurdle.components import Hierarchy
from pyro_zilognormal.models.hurdle.data import HurdleData
from pyro_zilognormal.models.hurdle.initialize import Ascent, Start, ascend, climb
from pyro_zilognormal.models.hurdle.site import Pairs, Site
from pyro_zilognormal.models.hurdle.third_order import no_correction

# The most passes over the cells, and the length of a step that needs none, in sds of a gene's likelihood.
MOST_PASSES = 15
NEAR = 0.3
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
    and by twice as much after each that climbs; genes whose posterior does not climb go back, and take a quarter. A
    pass takes the genes whose step is long in units of their likelihood, as the quadratics hold for short ones, however
    far hyperparameters pull all genes in units of a narrow posterior.

    Args:
        cells: the data.
        hierarchy: the sites.
        passes: the most passes over the cells.
        near: the length of a step that needs no pass, in sds of a gene's likelihood.
    """
    some = cells.some()
    ascent = CellAscent(some, hierarchy)
    if len(some.design) == len(cells.design):
        return ascend(ascent)
    climb(ascent, _STAGES)
    ascent.look_at(cells)
    del ascent.likelihood, some  # of many genes they are large
    trust = torch.ones_like(ascent.theta[:, :1])
    best = ascent.expand(torch.arange(cells.genes, device=trust.device))
    for left in range(passes - 1, -1, -1):
        log_sds = ascent.move_to_modes(best.site)
        start = best.coefficients(ascent)
        step = ascent.theta - start
        far = (step * best.site.information.times(step)).sum(-1, keepdim=True) >= near**2
        if not left or not far.any():
            break
        reach = ascent.reach(step)
        taken = far * (trust * reach).clamp(max=1)
        ascent.theta = start + taken * step
        genes = far.nonzero()[:, 0]
        new, prior = ascent.expand(genes), ascent.log_prior(ascent.theta) - ascent.log_prior(start)
        climbs = new.log_density - best.log_density[genes] + prior[genes] >= -_ROUNDING * new.log_density.abs()
        trust[genes] = torch.where(climbs.unsqueeze(-1), 2 * trust[genes], (taken / reach / 4)[genes])
        best = best.replace(genes[climbs], new, climbs)
    return _start_at(best, log_sds, ascent)


class CellAscent(Ascent):
    """An ascent on the likelihood of single cells, which costs less than that of as many groups."""

    def __init__(self, cells: HurdleData, hierarchy: Hierarchy) -> None:
        super().__init__(cells.as_groups(), hierarchy)
        self.look_at(cells)

    def look_at(self, cells: HurdleData) -> None:
        """Take the likelihood of these cells from now on."""
        self._cells = CellLikelihood(cells, self.block)
        self._last: tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]] | None = None

    def expand(self, genes: Tensor, observed: bool = False) -> _Expansion:
        """Return the likelihoods of some genes about where they are, of expected or observed information."""
        theta, slope = self.theta[genes], self.hyper["zero_slope"][0]
        log_density, score, dense = self._cells.derivatives(theta, slope, observed, genes)
        information = Arrowhead.take(self.layout, dense)
        if observed:
            information = self.project(information, self._moments()[1][genes])
        linear = score + information.times(theta)
        site = Site(information, linear, self.power[genes]).sheared(-slope, self.pairs)
        return _Expansion(_add_slope(theta, -slope, self.pairs), log_density, site)

    def derivatives(self, theta: Tensor) -> tuple[Tensor, Arrowhead]:
        """Return score and information of the coefficients."""
        _, score, information = self._evaluate(theta)
        return score, Arrowhead.take(self.layout, information)

    def log_density(self, theta: Tensor) -> Tensor:
        """Return the log density of each gene given its coefficients, but for a constant."""
        return self._evaluate(theta)[0]

    def _curvature(self, theta: Tensor, precision: Tensor) -> Arrowhead:
        information = self._cells.derivatives(theta, self.hyper["zero_slope"][0], observed=True)[2]
        return self.project(Arrowhead.take(self.layout, information), precision)

    def _evaluate(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log density, score and information, in one pass if they are asked for one after another."""
        slope = self.hyper["zero_slope"][0]
        if self._last is None or self._last[0] is not theta or self._last[1] is not slope:
            self._last = theta, slope, self._cells.derivatives(theta, slope)
        return self._last[2]


@dataclass(frozen=True)
class _Expansion:
    """The likelihoods of genes about some coefficients, to the second order, at a slope of 0."""

    theta: Tensor
    log_density: Tensor
    site: Site

    def coefficients(self, ascent: Ascent) -> Tensor:
        """Return the coefficients at the slope of the ascent."""
        return _add_slope(self.theta, ascent.hyper["zero_slope"][0], ascent.pairs)

    def replace(self, genes: Tensor, other: _Expansion, chosen: Tensor) -> _Expansion:
        """Return the expansion with that of some genes replaced by the chosen ones of another."""

        def put(own: Tensor, new: Tensor) -> Tensor:
            return own.index_copy(0, genes, new[chosen])

        old, new = self.site, other.site
        information = Arrowhead(old.information.layout, put(old.information.values, new.information.values))
        site = Site(information, put(old.linear, new.linear), old.power)
        return _Expansion(put(self.theta, other.theta), put(self.log_density, other.log_density), site)


def _start_at(best: _Expansion, log_sds: Site, ascent: CellAscent) -> Start:
    """Return where the guide starts, after the ascent: a last pass takes the observed information."""
    # At the modes: a step that is short in sds of the likelihood may be long in those of a narrow prior.
    ascent.integrate()
    ascent.theta = best.coefficients(ascent)
    site = ascent.expand(torch.arange(len(ascent.theta), device=ascent.theta.device), observed=True).site
    # Of more cells than the few of the first ascent, the likelihood of a gene is nearly Normal.
    correction = no_correction(ascent.theta, ascent.block.core)
    return Start(site, ascent.pairs, correction, log_sds, ascent.hyper)


def _add_slope(theta: Tensor, slope: Tensor, pairs: Pairs) -> Tensor:
    """Return coefficients with ``slope`` times the first element of each pair added to the second."""
    own, other = pairs
    found = theta.clone()
    found[:, other] += slope * theta[:, own]
    return found
