"""Where the guide starts: nested Laplace approximations of all genes, with hyperparameters by empirical Bayes.

Given the sds of a gene's random effects the posterior of its coefficients is nearly Normal at their mode; given the
modes, the posterior of each sd is found on a grid (Rue, Martino and Chopin 2009, "Approximate Bayesian inference for
latent Gaussian models by using integrated nested Laplace approximations"). The hyperparameters take EM steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_zilognormal.models.hurdle.arrowhead import Arrowhead, Factor, Layout
from pyro_zilognormal.models.hurdle.components import (
    Block,
    Hierarchy,
    Normal,
    SparseEffects,
)
from pyro_zilognormal.models.hurdle.data import HurdleData
from pyro_zilognormal.models.hurdle.hyperparameters import integrate_log_sd, logits_step, normal_step
from pyro_zilognormal.models.hurdle.predictors import GroupLikelihood, Predictors, Quadratic
from pyro_zilognormal.models.hurdle.third_order import Correction, find_correction, observed_information

# Stages, each of some rounds of one scoring step and one EM step, after which the sds are found on the grid.
_STAGES = 20, 12, 12, 12
# Rounds before the hyperparameters are estimated: the modes must be near.
_WARM_UP = 4
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
# The grid of the log sd of random effects, the points between two nodes for which the log evidence is interpolated, and
# EM steps of the hyperparameters on the grid.
_NODES = torch.linspace(math.log(0.01), math.log(3.0), 13, dtype=torch.float64)
_FINER = 8
_GRID_ROUNDS = 20


# Elements of the log mean that have a counterpart in the zero part, and these.
Pairs = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Site:
    """A likelihood exp(linear' theta - theta' information theta / 2) of some elements of a gene."""

    information: Arrowhead
    linear: Tensor  # of shape (genes, width)
    power: Tensor  # of the likelihood between the mode and 0 of each sparse effect, of shape (genes, effects)

    def sheared(self, slope: Tensor, pairs: Pairs) -> Site:
        """Return the likelihood of theta with ``slope`` times the first element of each pair added to the second."""
        information = self.information.sheared(slope, self.information.shears(*pairs))
        return Site(information, shear(self.linear, slope, pairs), self.power)


def shear(linear: Tensor, slope: Tensor, pairs: Pairs) -> Tensor:
    """Return the linear term as `Site.sheared`; ``slope`` has the shape of a batch, and one dimension."""
    own, other = (torch.tensor(p, dtype=torch.int64, device=linear.device) for p in pairs)
    change = slope * linear[..., other]
    return linear.expand(*change.shape[:-1], -1).index_add(-1, own, -change)


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
    log_sds = climb(ascent)
    ascent.integrate()
    slope = ascent.hyper["zero_slope"][0]
    for _ in range(_LAST_ROUNDS):
        ascent.step()
    site, correction = ascent.correct(ascent.site())
    return Start(site.sheared(-slope, ascent.pairs), ascent.pairs, correction, log_sds, ascent.hyper)


def climb(ascent: Ascent, stages: int = len(_STAGES)) -> Site:
    """Take the steps of some stages, and return the site of the log sds."""
    for stage, rounds in enumerate(_STAGES[:stages]):
        for round_ in range(rounds):
            if stage or round_ >= _WARM_UP:
                ascent.estimate()
            ascent.step()
        site = ascent.site()
        ascent.temper(site.information, ascent.theta)
        log_sds = _grid_site(ascent, site)
    return log_sds


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
        """Move to the modes under a site at a slope of 0, with EM steps in between; return the site of the log sds."""
        for _ in range(_ROUNDS_AT_A_SITE):
            given = site.sheared(self.hyper["zero_slope"][0], self.pairs)
            mean, precision = self._moments()
            factor = given.information.plus_diagonal(precision).factor()
            self.theta = factor.solve(given.linear + precision * mean)
            self._spread(factor)
            self.estimate()
        return _grid_site(self, site.sheared(self.hyper["zero_slope"][0], self.pairs))

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
        rounding = _ROUNDING * (matrix.diagonal().abs() / precision).sum(-1, keepdim=True).clamp(min=1)
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
        """Take an EM step of all hyperparameters but those of log sds, whose modes would collapse to 0."""
        values = self.values
        theta, variance = self.block.split(self.theta), self.block.split(self.variance)
        for c in self.block:
            if isinstance(c, SparseEffects):
                mixture = c.mixture(values).tempered(self.power)
                posterior = mixture.posterior(theta[c.name], variance[c.name].reciprocal())[0].exp()
                self.hyper |= logits_step(c, posterior, values)
            else:
                self.hyper |= normal_step(c, theta[c.name], variance[c.name], values)
        self._step_slope()

    def integrate(self) -> None:
        """Replace the modes of hyperparameters that are log sds by their posterior means."""
        for c, theta, variance in zip(self.block, *map(self._split, (self.theta, self.variance)), strict=True):
            self.hyper |= integrate_log_sd(c, theta, variance, self.values)

    def _split(self, values: Tensor) -> list[Tensor]:
        return list(self.block.split(values).values())

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
        step = (product + (before - middle) * sd.pow(-2)) / (square + sd.pow(-2))
        slope = (before - step).clamp(min=0)
        self.theta[:, other] += (slope - before) * self.theta[:, own]
        self.hyper["zero_slope"] = slope, (resolved + sd.pow(-2)).rsqrt()

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


def _grid_site(ascent: Ascent, site: Site) -> Site:
    """Return the log sds' likelihood as a quadratic, from their posteriors on a grid, the hyperparameters estimated."""
    information, linear = [], []
    for component in ascent.hierarchy.log_sds:
        evidence = torch.stack([_log_evidence(ascent, site, component.name, k) for k in range(component.width)], 1)
        evidence = _interpolate(evidence)
        nodes = torch.linspace(float(_NODES[0]), float(_NODES[-1]), evidence.shape[-1]).to(evidence)
        for _ in range(_GRID_ROUNDS):
            mean, precision = component.moments(ascent.values)
            prior = -precision.unsqueeze(-1) * (nodes - mean.unsqueeze(-1)).square() / 2
            weights = (evidence + prior).softmax(-1)
            at = weights @ nodes
            # At least 0.03^2: all genes may have all of their weight on one node.
            variance = (weights @ nodes.square() - at.square()).clamp(min=1e-3)
            ascent.hyper |= normal_step(component, at, variance, ascent.values)
        ascent.log_sds[component.name] = at
        if component.name == "zero_log_sd":
            ascent.unknown = variance
        variance = torch.minimum(variance, 0.99 / precision)
        information.append(1 / variance - precision)
        linear.append(at / variance - precision * mean)
    diagonal, vector = torch.cat(information, 1), torch.cat(linear, 1)
    layout = Layout(vector.shape[1], device=vector.device)
    return Site(Arrowhead.take(layout, torch.diag_embed(diagonal)), vector, vector[:, :0])


def _log_evidence(ascent: Ascent, site: Site, name: str, element: int) -> Tensor:
    """Return the log marginal likelihood of an sd at each node, (genes, nodes), the other sds as they are."""
    sparse, block = ascent.block.sparse, ascent.block
    found = []
    for node in _NODES.tolist():
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
