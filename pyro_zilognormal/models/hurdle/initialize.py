"""Where the guide starts: the posterior mode of both parts and its curvature, with hyperparameters by empirical Bayes.

All genes take one Newton step together, then the hyperparameters one step of EM, and so on. Given these, the zero
part's log posterior is concave; the positive part's is a ridge regression given sigma, and concave in log sigma.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pyro_zilognormal.models.hurdle.arrowhead import Arrowhead, DonorDesign
from pyro_zilognormal.models.hurdle.components import Block, Component, Normal, log_scale
from pyro_zilognormal.models.hurdle.data import HurdleData

# Rounds of one Newton step and one EM step.
_ROUNDS = 100

# The largest change of log odds in one Newton step: they saturate beyond.
_LARGEST_STEP = 2.0


@torch.no_grad()
def find_start(groups: HurdleData, blocks: Mapping[str, Block]) -> tuple[dict[str, Part], dict[str, Normal]]:
    """Return each block at its posterior mode, and mean and standard deviation of each hyperparameter."""
    positive = _Positive(groups, blocks["positive"])
    parts: dict[str, Part] = {
        "positive": positive,
        "log_sigma": _LogSigma(positive, blocks["log_sigma"]),
        "zero": _Zero(groups, blocks["zero"]),
    }
    hyper = {name: prior for block in blocks.values() for name, prior in block.hyperpriors().items()}
    for _ in range(_ROUNDS):
        values = {name: mean for name, (mean, _) in hyper.items()}
        for part in parts.values():
            part.step(values)
        slab = _slab_probabilities(parts.values(), values)
        for part in parts.values():
            hyper |= part.estimate(values, slab)
    for part in reversed(parts.values()):  # the positive part after sigma, which it is given
        part.step({name: mean for name, (mean, _) in hyper.items()})
    return parts, hyper


def _slab_probabilities(parts: Iterable[Part], values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the posterior probability of the slab, by the name of its share (which parts may have in common)."""
    log_odds: dict[str, Tensor] = {}
    for part in parts:
        last = part.block.last
        sparse = last.spike_and_slab(values)
        if sparse is not None and last.share is not None:
            theta, variance = (part.block.split(v)[last.name] for v in (part.theta, part.variance))
            before = log_odds.get(last.share, sparse.logit_share)
            log_odds[last.share] = before + sparse.log_bayes_factor(theta, variance.reciprocal())
    return {share: odds.sigmoid() for share, odds in log_odds.items()}


class Part(ABC):
    """One block of all genes on its way to the mode ``theta``, with its variance, each (genes, donors + core)."""

    def __init__(self, block: Block, theta: Tensor) -> None:
        self.block, self.theta, self.variance = block, theta, torch.zeros_like(theta)

    @abstractmethod
    def information(self) -> Arrowhead:
        """Return the likelihood's negative Hessian."""

    @abstractmethod
    def step(self, values: dict[str, Tensor]) -> None:
        """Move theta up the log posterior given the hyperparameters, and keep its variance."""

    def estimate(self, values: dict[str, Tensor], slab: dict[str, Tensor]) -> dict[str, Normal]:
        """Return mean and standard deviation of the block's hyperparameters after one step of EM."""
        found: dict[str, Normal] = {}
        for c in self.block:
            theta, variance = (self.block.split(v)[c.name] for v in (self.theta, self.variance))
            found |= _em_step(c, theta, variance, slab[c.share] if c.share else torch.ones_like(theta), values)
        return found


class _Regression(Part):
    """The coefficients of a linear predictor eta."""

    largest_step = math.inf

    def __init__(self, groups: HurdleData, design: Tensor, block: Block) -> None:
        self.rows = DonorDesign(design, groups.donor, groups.donors)
        super().__init__(block, design.new_zeros(groups.genes, groups.donors + design.shape[1]))

    @abstractmethod
    def derivatives(self) -> tuple[Tensor, Tensor]:
        """Return the log likelihood's slope and negative curvature by eta, each of shape (genes, rows)."""

    def information(self) -> Arrowhead:
        return self.rows.information(self.derivatives()[1])

    def step(self, values: dict[str, Tensor]) -> None:
        """Take a Newton step, cut where it would leave the range in which the curvature holds."""
        mean, precision = self.block.moments(values)
        slope, curvature = self.derivatives()
        factor = self.rows.information(curvature).add_diagonal(precision).cholesky()
        score = self.rows.score(slope) - precision * (self.theta - mean)
        step = factor.transpose_solve(factor.solve(score))
        largest = self.rows.predict(step).abs().amax(-1, keepdim=True)
        self.theta = self.theta + step * (self.largest_step / largest).clamp(max=1)
        self.variance = factor.inverse_diagonal()


class _Zero(_Regression):
    """Logistic regression of zero or not."""

    largest_step = _LARGEST_STEP

    def __init__(self, groups: HurdleData, block: Block) -> None:
        super().__init__(groups, groups.zero_design, block)
        self.zeros, positives = (groups.value[..., k].mT for k in (0, 1))
        self.cells = self.zeros + positives
        self.theta[:, groups.donors] = ((self.zeros.sum(-1) + 0.5) / (positives.sum(-1) + 0.5)).log()

    def derivatives(self) -> tuple[Tensor, Tensor]:
        pi = self.rows.predict(self.theta).sigmoid()
        return self.zeros - self.cells * pi, self.cells * pi * (1 - pi)


class _Positive(_Regression):
    """Linear regression of log x given sigma, for which one Newton step is exact."""

    def __init__(self, groups: HurdleData, block: Block) -> None:
        super().__init__(groups, groups.design, block)
        self.count, self.mean, self.squares = (groups.value[..., k].mT for k in (1, 2, 3))
        self.total = self.count.sum(-1, keepdim=True)
        self.log_scale = torch.zeros_like(self.total)

    def derivatives(self) -> tuple[Tensor, Tensor]:
        weight = self.count * (-2 * self.log_scale).exp()
        return weight * (self.mean - self.rows.predict(self.theta)), weight

    def step(self, values: dict[str, Tensor]) -> None:
        super().step(values)
        # The degrees of freedom that the coefficients take from log sigma.
        self.fitted = (1 - self.block.moments(values)[1] * self.variance).sum(-1, keepdim=True)

    def squared_residuals(self) -> Tensor:
        """Return the sum over cells of squared residuals, of shape (genes, 1)."""
        rest = self.mean - self.rows.predict(self.theta)
        return (self.squares + self.count * rest.square()).sum(-1, keepdim=True)


class _LogSigma(Part):
    """log sigma, with the coefficients integrated out."""

    def __init__(self, positive: _Positive, block: Block) -> None:
        self.positive = positive
        super().__init__(block, positive.log_scale)

    def information(self) -> Arrowhead:
        """Return the expected information: 2 for each degree of freedom left, less near the floor of sigma."""
        left = self.positive.total - self.positive.fitted
        return Arrowhead.from_diagonal(2 * left.clamp(min=0) * self._slope().square())

    def step(self, values: dict[str, Tensor]) -> None:
        """Take a Newton step up -n l - exp(-2 l) E[squared residuals] / 2 + log prior, l = log_scale(log sigma)."""
        mean, precision = self.block.moments(values)
        squares = self.positive.squared_residuals() * (-2 * self.positive.log_scale).exp() + self.positive.fitted
        step = (squares - self.positive.total) * self._slope() - precision * (self.theta - mean)
        step = step / (2 * squares * self._slope().square() + precision)
        self.theta = self.theta + step.clamp(-_LARGEST_STEP / 2, _LARGEST_STEP / 2)
        self.variance = (self.information().block + precision).reciprocal()
        self.positive.log_scale = log_scale(self.theta)

    def _slope(self) -> Tensor:
        """Return the derivative of log sigma with its floor by that without."""
        return (2 * (self.theta - log_scale(self.theta))).exp()


def _em_step(
    component: Component, theta: Tensor, variance: Tensor, slab: Tensor, values: dict[str, Tensor]
) -> dict[str, Normal]:
    """Return a component's hyperparameters given its elements' posteriors in the slab, and their probability of it."""
    name, hyperpriors, found = component.name, component.hyperpriors(), dict[str, Normal]()
    mean, precision = component.moments(values)
    if f"{name}_mean" in hyperpriors:
        prior_mean, prior_sd = hyperpriors[f"{name}_mean"]
        information = len(theta) * precision + prior_sd.pow(-2)
        mean = (theta.sum(0) * precision + prior_mean * prior_sd.pow(-2)) / information
        found[f"{name}_mean"] = mean, information.rsqrt()
    if f"{name}_logit_share" in hyperpriors:
        found[f"{name}_logit_share"] = _logit_share(hyperpriors[f"{name}_logit_share"], slab)
    # An element informs on the slab as far as it belongs to it, and as its data have resolved it.
    informed = slab * (1 - variance * precision).clamp(min=0).square()
    squares = (theta - mean).square() + variance
    found[f"{name}_log_sd"] = _log_sd(hyperpriors[f"{name}_log_sd"], squares, slab, informed)
    return found


def _logit_share(prior: Normal, slab: Tensor) -> Normal:
    """Return the fixed point of Newton's step for the share given each element's probability, and its sd."""
    middle, sd = prior
    share = ((slab.sum(0) + 0.5) / (len(slab) + 1)).clamp(1e-6, 1 - 1e-6)
    information = len(slab) * share * (1 - share)
    at = (information * share.logit() + middle * sd.pow(-2)) / (information + sd.pow(-2))
    resolved = (slab - 0.5).square().mul(4).sum(0) * share * (1 - share)
    return at, (resolved + sd.pow(-2)).rsqrt()


def _log_sd(prior: Normal, squares: Tensor, slab: Tensor, informed: Tensor) -> Normal:
    """Return the mode of log sd given expected squares, and its sd; each element known for sure has information 2."""
    middle, sd = prior
    if len(middle) == 1:
        squares, slab, informed = (v.reshape(-1, 1) for v in (squares, slab, informed))
    complete, before = 2 * slab.sum(0), sd.pow(-2)
    at = (complete * ((slab * squares).sum(0) / slab.sum(0)).log() / 2 + before * middle) / (complete + before)
    return at, (2 * informed.sum(0) + before).rsqrt()
