"""Where the guide starts: nested Laplace approximations of all genes, with hyperparameters by empirical Bayes.

Given the sds of a gene's random effects the posterior of its coefficients is nearly Normal at their mode; given the
modes, the posterior of each sd is found on a grid (Rue, Martino and Chopin 2009, "Approximate Bayesian inference for
latent Gaussian models by using integrated nested Laplace approximations"). The hyperparameters take steps like those of
EM, in stages that are accelerated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_zilognormal.models.hurdle.anderson import Anderson
from pyro_zilognormal.models.hurdle.arrowhead import Arrowhead, Factor
from pyro_zilognormal.models.hurdle.components import Block, Hierarchy, Normal, SparseEffects
from pyro_zilognormal.models.hurdle.data import HurdleData
from pyro_zilognormal.models.hurdle.grid import NODES, grid_site
from pyro_zilognormal.models.hurdle.hyperparameters import (
    LONGEST,
    between,
    find_logits,
    integrate_log_sd,
    normal_step,
)
from pyro_zilognormal.models.hurdle.predictors import GroupLikelihood, Predictors, Quadratic
from pyro_zilognormal.models.hurdle.site import Pairs, Site
from pyro_zilognormal.models.hurdle.third_order import Correction, find_correction, observed_information

# Rounds of scoring steps before the hyperparameters are estimated: the modes must be near.
_FIRST_ROUNDS = 8
# Stages at most, each of some rounds of one step of the hyperparameters and one scoring step, after which the sds are
# found on the grid. The last changes no hyperparameter by more than this, in sds.
STAGES, _ROUNDS, _SMALL_CHANGE = 10, 3, 0.3
# The powers of the likelihood are found after every third stage.
_STAGES_A_POWER = 3
# Rounds of scoring steps to the mode given the last sds.
_LAST_ROUNDS = 6
# Rounds at a given site of the coefficients.
_ROUNDS_AT_A_SITE = 12
# Rounds of scoring steps to the mode without an effect.
_SPIKE_ROUNDS = 8
# Curvature upwards that is rounding, relative to the largest downwards.
_ROUNDING = 1e-12
# The bounds of the power of the likelihood, and a fall of the log likelihood that says little of it, in nats.
_POWERS = 0.1, 3.0
_SMALL_FALL = 0.05
# The largest change of a predictor in one step: log odds saturate, and the scale is exponential.
_LARGEST_STEP = 1.5


# Hyperparameters, and log sds of genes.
State = tuple[dict[str, Normal], dict[str, Tensor]]


@dataclass(frozen=True)
class Start:
    """Where the guide starts.

    Attributes:
        coefficients: their likelihood, in the coordinates of ``pairs`` at a slope of 0: data inform the log odds of
            zeros themselves.
        pairs: elements of the log mean, and their counterparts in the zero part.
        correction: of the coefficients' Normal posterior.
        log_sds: their likelihood.
        hyper: mean and sd of each hyperparameter.
    """

    coefficients: Site
    pairs: Pairs
    correction: Correction
    log_sds: Site
    hyper: dict[str, Normal]


@torch.no_grad()
def find_start(groups: HurdleData, hierarchy: Hierarchy) -> Start:
    """Return the approximate posterior of all genes."""
    return ascend(Ascent(groups, hierarchy))


def ascend(ascent: Ascent) -> Start:
    """Bring all genes to their modes, and return their approximate posterior."""
    log_sds = grid_site(ascent, climb(ascent))
    ascent.integrate()
    slope = ascent.hyper["zero_slope"][0]
    for _ in range(_LAST_ROUNDS):
        ascent.step()
    site, correction = ascent.correct(ascent.site())
    return Start(site.sheared(-slope, ascent.pairs), ascent.pairs, correction, log_sds, ascent.hyper)


def climb(ascent: Ascent, stages: int = STAGES) -> Site:
    """Take the steps of some stages, and return the site of the coefficients."""
    for _ in range(_FIRST_ROUNDS):
        ascent.step()
    anderson = Anderson()
    for stage in range(stages):
        before = dict(ascent.hyper), {name: value.clone() for name, value in ascent.log_sds.items()}
        for _ in range(_ROUNDS):
            ascent.estimate()
            ascent.step()
        site = ascent.site()
        if stage % _STAGES_A_POWER == 0:
            ascent.temper(site.information, ascent.theta)
        grid_site(ascent, site, NODES)
        if stage:
            if ascent.change(before) < _SMALL_CHANGE:
                break
            ascent.accelerate(anderson, before)
        ascent.step()
    return site


class Ascent:
    """All genes on their way to the modes of their coefficients given the log sds."""

    def __init__(self, groups: HurdleData, hierarchy: Hierarchy) -> None:
        self.hierarchy, self.block = hierarchy, hierarchy.coefficients
        self.likelihood, self.predictors = GroupLikelihood(groups), Predictors(groups, self.block)
        self.layout, self.hyper = hierarchy.layout, hierarchy.hyperpriors()
        self.pairs = find_pairs(groups, self.block)
        genes, likelihood = groups.genes, self.likelihood
        self.damping = groups.design.new_ones(genes, 1)
        self.log_sds = {c.name: self.hyper[f"{c.name}_mean"][0].expand(genes, -1).clone() for c in hierarchy.log_sds}
        self.reach_of_grid = {name: torch.full_like(value, math.inf) for name, value in self.log_sds.items()}
        # Pooled moments of each gene.
        positives = likelihood.positives.sum(1)
        mean = (likelihood.positives * likelihood.mean).sum(1) / positives.clamp(min=1)
        spread = (likelihood.squares + likelihood.positives * (likelihood.mean - mean[:, None]).square()).sum(1)
        variance = ((spread + 0.3) / (positives + 1)).clamp(min=0.02)
        zero = ((likelihood.zeros.sum(1) + 0.5) / (positives + 0.5)).log()
        self.centre = self.hyper["intercept_mean"][0]
        first = {
            "intercept": torch.where(positives > 0, mean, self.centre) - (1 + zero.exp()).log() + variance / 2,
            "zero_intercept": zero,
            "log_sigma": variance.log() / 2,
        }
        parts = {c.name: groups.design.new_zeros(genes, c.width) for c in self.block}
        for name, values in first.items():
            parts[name][:, 0] = values
        parts["zero_intercept"] += self.hyper["zero_slope"][0] * parts["intercept"]
        self.theta = torch.cat([parts[c.name] for c in self.block], -1)
        self.quadratic = Quadratic(self.predictors.matrices(self.hyper["zero_slope"][0]), self.layout)
        # Posterior variance of a gene's zero_log_sd, and which of these each counterpart in the zero part has.
        self.unknown = groups.design.new_zeros(genes, 2)
        effects = self.block.slices.get("zero_effects", slice(0, 0))
        self.kind = [int(effects.start <= k < effects.stop) for k in self.pairs[1]]
        self.power = torch.ones_like(parts["effects"] if "effects" in parts else self.theta[:, :0])

    @property
    def values(self) -> dict[str, Tensor]:
        """The hyperparameters and log sds, by name."""
        return {name: mean for name, (mean, _) in self.hyper.items()} | self.log_sds

    def derivatives(self, theta: Tensor) -> tuple[Tensor, Arrowhead]:
        """Return score, of shape (genes, width), and information of the coefficients."""
        score, information = self.likelihood.derivatives(*self.quadratic.predict(theta))
        return self.quadratic.score(score), self.quadratic.information(information)

    def log_density(self, theta: Tensor) -> Tensor:
        """Return the log density of each gene given its coefficients, but for a constant."""
        return self.likelihood.log_density(*self.quadratic.predict(theta))

    def step(self) -> None:
        """Take a scoring step of the coefficients."""
        self.quadratic = Quadratic(self.predictors.matrices(self.hyper["zero_slope"][0]), self.layout)
        mean, precision = self._moments()
        self.theta, self.damping, factor = self._climb(self.theta, self.damping, mean, precision)
        self._spread(factor)

    def _spread(self, factor: Factor) -> None:
        self.covariance = factor.covariance()
        self.variance = self.covariance.diagonal()

    def _moments(self) -> tuple[Tensor, Tensor]:
        mean, precision = (v.expand_as(self.theta) for v in self.block.moments(self.values))
        return mean, precision

    def _climb(self, theta: Tensor, damping: Tensor, mean: Tensor, precision: Tensor) -> tuple[Tensor, Tensor, Factor]:
        """Return theta after a scoring step, cut back in genes where it does not climb, and the factor before it."""
        score, information = self.derivatives(theta)
        factor = information.plus_diagonal(precision).factor()
        step = factor.solve(score - precision * (theta - mean))
        new = theta + step * self.reach(step).clamp(max=1) * damping
        before = self._log_joint(theta, mean, precision)
        climbs = (self._log_joint(new, mean, precision) >= before - 1e-9)[:, None]
        damping = torch.where(climbs, 2 * damping, damping / 4).clamp(max=1)
        return new if climbs.all() else torch.where(climbs, new, theta), damping, factor

    def log_prior(self, theta: Tensor) -> Tensor:
        """Return the log prior of each gene's coefficients but for its constant, as `_moments` has it."""
        mean, precision = self._moments()
        return -(precision * (theta - mean).square()).sum(-1) / 2

    def _log_joint(self, theta: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
        prior = (precision * (theta - mean).square()).sum(-1)
        return self.log_density(theta) - prior / 2

    def move_to_modes(self, site: Site) -> Site:
        """Move to the modes under a site at a slope of 0, hyperparameters with them; return the site of the log sds."""
        for _ in range(_ROUNDS_AT_A_SITE):
            given = site.sheared(self.hyper["zero_slope"][0], self.pairs)
            mean, precision = self._moments()
            factor = given.information.plus_diagonal(precision).factor()
            self.theta = factor.solve(given.linear + precision * mean)
            self._spread(factor)
            self.estimate()
        return grid_site(self, site.sheared(self.hyper["zero_slope"][0], self.pairs))

    def reach(self, step: Tensor) -> Tensor:
        """Return how many times a step can be taken before a predictor changes by too much, of shape (genes, 1)."""
        return _LARGEST_STEP / torch.stack(self.quadratic.predict(step)).abs().amax((0, 2)).unsqueeze(-1)

    def site(self) -> Site:
        """Return the likelihood as the quadratic that has the curvature and, with the prior, the mode found here."""
        mean, precision = self._moments()
        matrix = self._curvature(self.theta, precision)
        # The score at a mode, which a gene of equal values reaches slowly.
        score = precision * (self.theta - mean)
        return Site(matrix, score + matrix.times(self.theta), self.power)

    def _curvature(self, theta: Tensor, precision: Tensor) -> Arrowhead:
        """Return the observed information, flat where the log likelihood curves upwards, in units of the prior."""
        observed = observed_information(self.likelihood, self.quadratic.predict(theta))
        return self.project(self.quadratic.information(observed), precision)

    def project(self, matrix: Arrowhead, precision: Tensor) -> Arrowhead:
        """Return an information without the directions in which the log likelihood curves upwards.

        What it lacks there may connect all blocks, and a bound of that is added.
        """
        # Less than the prior, which must make what is left positive.
        rounding = (_ROUNDING * (matrix.diagonal().abs() / precision).sum(-1, keepdim=True)).clamp(_ROUNDING, 0.5)
        upwards = ~matrix.plus_diagonal(rounding * precision).is_positive()
        if not upwards.any():
            return matrix
        root = precision[upwards].sqrt()
        values, vectors = torch.linalg.eigh(matrix[upwards].dense() / root.unsqueeze(-1) / root.unsqueeze(-2))
        vectors = vectors * root.unsqueeze(-1)
        lack = (vectors * values.clamp(max=0).neg().unsqueeze(-2)) @ vectors.mT
        found = matrix.values.clone()
        found[upwards] += Arrowhead.bound(self.layout, lack).values
        return Arrowhead(self.layout, found)

    def temper(self, matrix: Arrowhead, location: Tensor) -> None:
        """Find how far the likelihood falls from the mode to the one without an effect, relative to the quadratic.

        By Laplace's approximation at both; the quadratic is that of a Normal at ``location``, with this information.
        Where a condition has few values, the two are far from the same.
        """
        sparse = self.block.sparse
        if sparse is None:
            return
        mean, precision = self._moments()
        widest = self._laplace(self.theta, matrix, mean, precision)
        variance = matrix.plus_diagonal(precision).factor().covariance().diagonal()
        for k in range(sparse.width):
            at = self.theta.shape[-1] - sparse.width + k
            narrow, theta, damping = precision.clone(), self.theta.clone(), torch.ones_like(self.damping)
            narrow[:, at], theta[:, at] = sparse.sds[k, 0].pow(-2), 0.0
            for _ in range(_SPIKE_ROUNDS):
                theta, damping, _ = self._climb(theta, damping, mean, narrow)
            exact = self._laplace(theta, self._curvature(theta, narrow), mean, narrow) - widest
            element, mixture = slice(at, at + 1), sparse.mixture(self.values).column(k)
            own_precision = variance[:, element].reciprocal()
            evidences = mixture.log_evidences(location[:, element], own_precision)[:, 0]
            beyond = exact - (evidences[:, 0] - evidences[:, -1])
            fall = (own_precision * location[:, element].square())[:, 0] / 2
            # A small fall says little of the ratio.
            self.power[:, k] = (1 - beyond / (fall + _SMALL_FALL)).clamp(*_POWERS)

    def _laplace(self, theta: Tensor, matrix: Arrowhead, mean: Tensor, precision: Tensor) -> Tensor:
        """Return the log marginal likelihood by Laplace's approximation at a mode, of shape (genes,)."""
        log_det = matrix.plus_diagonal(precision).factor().diagonal().log().sum(-1)
        return self._log_joint(theta, mean, precision) + precision.log().sum(-1) / 2 - log_det

    def estimate(self) -> None:
        """Take a step of all hyperparameters but those of log sds, whose modes would collapse to 0."""
        values = self.values
        theta, variance = self.block.split(self.theta), self.block.split(self.variance)
        for c in self.block:
            if isinstance(c, SparseEffects):
                mixture = c.mixture(values).tempered(self.power)
                self.hyper |= find_logits(c, mixture.log_evidences(theta[c.name], variance[c.name].reciprocal()))
            else:
                self.hyper |= normal_step(c, theta[c.name], variance[c.name], values)
        self._step_slope()

    def integrate(self) -> None:
        """Replace the modes of hyperparameters that are log sds by their posterior means."""
        for c, theta, variance in zip(self.block, *map(self._split, (self.theta, self.variance)), strict=True):
            self.hyper |= integrate_log_sd(c, theta, variance, self.values)

    def _split(self, values: Tensor) -> list[Tensor]:
        return list(self.block.split(values).values())

    def change(self, before: State) -> float:
        """Return the largest change of a hyperparameter, in its sds."""
        return max(float(((mean - before[0][name][0]) / sd).abs().max()) for name, (mean, sd) in self.hyper.items())

    def accelerate(self, anderson: Anderson, before: State) -> None:
        """Move from where a stage has brought all hyperparameters and log sds to where further stages would."""
        sds = [sd for _, sd in self.hyper.values()]
        slope = self.hyper["zero_slope"][0]
        # The log sds of genes follow the hyperparameters.
        unit = torch.cat([*sds, *(torch.full_like(v, math.inf).flatten() for v in self.log_sds.values())])
        point, image = (
            torch.cat([*(m for m, _ in h.values()), *(v.flatten() for v in s.values())])
            for h, s in (before, (self.hyper, self.log_sds))
        )
        found = anderson.next(point, image, unit).split([*map(len, sds), *(v.numel() for v in self.log_sds.values())])
        self.hyper = {name: (m, sd) for m, (name, (_, sd)) in zip(found, self.hyper.items(), strict=False)}
        rest = zip(found[len(sds) :], self.log_sds.items(), strict=True)
        self.log_sds = {name: value.reshape(old.shape) for value, (name, old) in rest}
        self._move_slope(slope)

    def _move_slope(self, before: Tensor) -> None:
        """Hold the log odds of zeros after a change of the slope."""
        slope, sd = self.hyper["zero_slope"]
        self.hyper["zero_slope"] = slope.clamp(min=0), sd
        own, other = self.pairs
        self.theta[:, other] += (slope.clamp(min=0) - before) * self.theta[:, own]

    def _step_slope(self) -> None:
        """Regress the zero part's deviations on those of the log mean, the log odds of zeros held."""
        mean, precision = self._moments()
        middle, sd = self.hierarchy.hyperpriors()["zero_slope"]
        before = self.hyper["zero_slope"][0]
        own, other = self.pairs
        deviation, weight = (self.theta - mean)[:, other], precision[:, other]
        theta = self.theta[:, own].clone()
        theta[:, -1] -= self.centre  # of the intercepts
        product = (weight * (theta * deviation + self.covariance.at(own, other))).sum()
        square = (weight * (theta.square() + self.variance[:, own])).sum()
        share = (1 - weight * self.variance[:, other]).clamp(min=0)
        # Less what is unknown as the sd of a gene's deviations is (Louis 1982), by the delta method.
        known = (1 - 4 * weight * deviation.square() * share * self.unknown[:, self.kind]).clamp(min=0)
        resolved = (weight * theta.square() * share * known).sum()
        observed = between(square, (weight * theta.square() * share).sum(), LONGEST)
        step = (product + (before - middle) * sd.pow(-2)) / (observed + sd.pow(-2))
        self.hyper["zero_slope"] = before - step, (resolved + sd.pow(-2)).rsqrt()
        self._move_slope(before)

    def correct(self, site: Site) -> tuple[Site, Correction]:
        """Return the site, and the correction of its posterior by third derivatives, in all but random effects."""
        mean, precision = self._moments()
        factor = site.information.plus_diagonal(precision).factor()
        theta = factor.solve(site.linear + precision * mean)
        found = find_correction(self.likelihood, self.quadratic, theta, factor, self.block.core)
        self.temper(site.information, theta + factor.colour(found.shift))
        return replace(site, power=self.power), found


def find_pairs(groups: HurdleData, block: Block) -> Pairs:
    """Return the elements of the log mean that have a counterpart in the zero part, and these; the intercepts last."""
    slices = block.slices
    pairs = []
    if "random" in slices:
        own, zero = (range(s.start, s.stop) for s in (slices["random"], slices["zero_random"]))
        pairs += list(zip(own, zero, strict=True))
    for j, column in enumerate(groups.design.mT[1:]):
        for k, other in enumerate(groups.zero_design.mT[1:]):
            if torch.equal(column, other):
                pairs.append((slices["effects"].start + j, slices["zero_effects"].start + k))
    pairs.append((slices["intercept"].start, slices["zero_intercept"].start))
    return [j for j, _ in pairs], [k for _, k in pairs]
