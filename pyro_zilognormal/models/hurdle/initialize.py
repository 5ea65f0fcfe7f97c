"""Where the guide starts: the posterior mode of both parts and its curvature, with hyperparameters by empirical Bayes.

All genes take one Newton step together, then the hyperparameters one step of EM, and so on. Given these, the zero
part's log posterior is concave; the positive part's is a ridge regression given sigma, and concave in log sigma.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_zilognormal.models.hurdle.arrowhead import Arrowhead, DonorDesign
from pyro_zilognormal.models.hurdle.components import Block, Component, Normal, log_scale
from pyro_zilognormal.models.hurdle.data import HurdleData

if TYPE_CHECKING:
    from pyro_zilognormal.models.hurdle.guide import GaussianSite

# Rounds of one Newton step and one EM step.
_ROUNDS = 100

# The largest change of a linear predictor in one Newton step: log odds saturate beyond.
_LARGEST_STEP = 2.0

# Pretraining of the zero part: steps of Adam, draws of the guide a step in pairs of opposite noise, and the learning
# rate in units of posterior standard deviations at the start, which falls to 0 over the steps.
_PRETRAINING_STEPS, _PRETRAINING_DRAWS, _PRETRAINING_RATE = 300, 16, 0.05


@dataclass(frozen=True)
class Mode:
    """Where a block starts.

    Attributes:
        theta: the posterior mode, of shape (genes, donors + core).
        information: the likelihood's negative Hessian there.
    """

    theta: Tensor
    information: Arrowhead


@torch.no_grad()
def find_start(groups: HurdleData, blocks: Mapping[str, Block]) -> tuple[dict[str, Mode], dict[str, Normal]]:
    """Return the mode of each block, and mean and standard deviation of each hyperparameter.

    Args:
        groups: data whose rows are groups.
        blocks: "log_sigma", "positive" and "zero".
    """
    positive = _Positive(groups, blocks["positive"])
    parts = {
        "positive": positive,
        "log_sigma": _LogSigma(positive, blocks["log_sigma"]),
        "zero": _Zero(groups, blocks["zero"]),
    }
    hyper = {k: prior for block in blocks.values() for k, prior in block.hyperpriors().items()}
    for _ in range(_ROUNDS):
        for part in parts.values():
            part.step({k: v for k, (v, _) in hyper.items()})
        slab = _slab_probabilities(list(parts.values()), {k: v for k, (v, _) in hyper.items()})
        for part in parts.values():
            hyper |= part.update(hyper, slab)
    for part in reversed(parts.values()):  # the positive part after sigma, which it is given
        part.step({k: v for k, (v, _) in hyper.items()})
    return {name: Mode(part.theta, part.information()) for name, part in parts.items()}, hyper


def _slab_probabilities(parts: list[_Part], values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the posterior probability of the slab, by the name of its share (which parts may have in common)."""
    log_odds: dict[str, Tensor] = {}
    for part in parts:
        last = part.block.last
        sparse = last.spike_and_slab(values)
        if sparse is not None and last.share is not None:
            theta, variance = (part.block.split(v)[last.name] for v in (part.theta, part.variance))
            before = log_odds.get(last.share, values[last.share])
            log_odds[last.share] = before + sparse.log_bayes_factor(theta, variance.reciprocal())
    return {share: odds.sigmoid() for share, odds in log_odds.items()}


class _Part:
    """One block of all genes on its way to the mode."""

    def __init__(self, block: Block, theta: Tensor) -> None:
        self.block, self.theta = block, theta
        self.variance = torch.zeros_like(theta)

    def information(self) -> Arrowhead:
        """Return the likelihood's negative Hessian."""
        raise NotImplementedError

    def step(self, values: dict[str, Tensor]) -> None:
        """Move theta up the log posterior given the hyperparameters, and keep its variance."""
        raise NotImplementedError

    def update(self, hyper: dict[str, Normal], slab: dict[str, Tensor]) -> dict[str, Normal]:
        """Return mean and standard deviation of the hyperparameters after one step of EM."""
        values = {k: v for k, (v, _) in hyper.items()}
        theta, variance = self.block.split(self.theta), self.block.split(self.variance)
        found: dict[str, Normal] = {}
        for c in self.block:
            own = slab[c.share] if c.share else torch.ones_like(theta[c.name])
            found |= _em_step(c, theta[c.name], variance[c.name], own, values)
        return found


class _Zero(_Part):
    """Logistic regression of zero or not."""

    def __init__(self, groups: HurdleData, block: Block) -> None:
        self.rows = DonorDesign(groups.zero_design, groups.donor, groups.donors)
        self.zeros, self.cells = groups.value[..., 0].mT, (groups.value[..., 0] + groups.value[..., 1]).mT
        zeros, cells = self.zeros.sum(-1), self.cells.sum(-1)
        theta = self.zeros.new_zeros(len(zeros), groups.donors + groups.zero_design.shape[1])
        theta[:, groups.donors] = ((zeros + 0.5) / (cells - zeros + 0.5)).log()
        super().__init__(block, theta)

    def information(self) -> Arrowhead:
        pi = self.rows.predict(self.theta).sigmoid()
        return self.rows.information(self.cells * pi * (1 - pi))

    def step(self, values: dict[str, Tensor]) -> None:
        """Take a Newton step, cut where it would leave the range in which the curvature holds."""
        mean, precision = self.block.moments(values)
        factor = self.information().add_diagonal(precision).cholesky()
        slopes = self.zeros - self.cells * self.rows.predict(self.theta).sigmoid()
        score = self.rows.score(slopes) - precision * (self.theta - mean)
        step = factor.transpose_solve(factor.solve(score))
        largest = self.rows.predict(step).abs().amax(-1, keepdim=True)
        self.theta = self.theta + step * (_LARGEST_STEP / largest.clamp(min=_LARGEST_STEP))
        self.variance = factor.inverse_diagonal()


class _Positive(_Part):
    """Linear regression of log x given sigma, cell by cell of precision exp(-2 log scale)."""

    def __init__(self, groups: HurdleData, block: Block) -> None:
        self.rows = DonorDesign(groups.design, groups.donor, groups.donors)
        self.count, self.mean, self.squares = (groups.value[..., k].mT for k in (1, 2, 3))
        self.log_scale = self.count.new_zeros(len(self.count), 1)
        super().__init__(block, self.count.new_zeros(len(self.count), groups.donors + groups.design.shape[1]))

    def information(self) -> Arrowhead:
        return self.rows.information(self.count * (-2 * self.log_scale).exp())

    def step(self, values: dict[str, Tensor]) -> None:
        """Solve for the coefficients given sigma."""
        mean, precision = self.block.moments(values)
        factor = self.information().add_diagonal(precision).cholesky()
        right = self.rows.score(self.count * (-2 * self.log_scale).exp() * self.mean) + precision * mean
        self.theta, self.variance = factor.transpose_solve(factor.solve(right)), factor.inverse_diagonal()
        # The degrees of freedom that the coefficients take from log sigma.
        self.fitted = (1 - precision * self.variance).sum(-1, keepdim=True)

    def squared_residuals(self) -> Tensor:
        """Return the sum over cells of squared residuals, of shape (genes, 1)."""
        rest = self.mean - self.rows.predict(self.theta)
        return (self.squares + self.count * rest.square()).sum(-1, keepdim=True)


class _LogSigma(_Part):
    """log sigma, with the coefficients integrated out."""

    def __init__(self, positive: _Positive, block: Block) -> None:
        self.positive = positive
        super().__init__(block, positive.log_scale)

    def information(self) -> Arrowhead:
        """Return the expected information: 2 for each degree of freedom left, less near the floor of sigma."""
        left = self.positive.count.sum(-1, keepdim=True) - self.positive.fitted
        return Arrowhead.from_diagonal(2 * left.clamp(min=0) * self._slope().square())

    def step(self, values: dict[str, Tensor]) -> None:
        """Take a Newton step up  -n l - exp(-2 l) E[S] / 2 - precision (log sigma - mean)^2 / 2.

        S are the squared residuals, and l is log sigma with its floor.
        """
        mean, precision = self.block.moments(values)
        squares = self.positive.squared_residuals() * (-2 * self.positive.log_scale).exp() + self.positive.fitted
        slope = squares - self.positive.count.sum(-1, keepdim=True)
        step = slope * self._slope() - precision * (self.theta - mean)
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
    """Return mean and standard deviation of a component's hyperparameters.

    Args:
        component: the component.
        theta: posterior means of its elements, all in the slab, of shape (genes, width).
        variance: their posterior variances.
        slab: the posterior probability that each is in the slab.
        values: the hyperparameters so far.
    """
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


@torch.enable_grad()
def pretrain_zero(site: GaussianSite, groups: HurdleData, prior: Normal, steps: int = _PRETRAINING_STEPS) -> None:
    """Train the zero part of each gene by itself, given its prior, all slab.

    The posterior of a zero part that is nearly always 0 or nearly never in a condition is far from the Normal at its
    mode, and the gradient of one draw is too noisy to reach it within a few hundred steps. Given the hyperparameters
    the zero parts of all genes are small logistic regressions, of which many draws a step cost little.

    Args:
        site: of the zero part, trained in place.
        groups: data whose rows are groups.
        prior: mean and 1/sd^2 of each coefficient, each of shape (donors + core,).
        steps: of Adam.
    """
    zeros, positives = (groups.value[..., k].mT for k in (0, 1))
    rows = DonorDesign(groups.zero_design, groups.donor, groups.donors)
    optimizer = torch.optim.Adam(site.parameters(), lr=_PRETRAINING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1.0 / steps, steps)
    generator = torch.Generator(device=zeros.device).manual_seed(0)
    for _ in range(steps):
        q = site.distribution(*prior, scale=zeros.new_ones(1))
        shape = _PRETRAINING_DRAWS // 2, *q.shape()
        half = torch.randn(shape, dtype=zeros.dtype, device=zeros.device, generator=generator)
        theta = q.live.transform(torch.cat([half, -half]))
        eta = rows.predict(theta)
        log_likelihood = (zeros * logsigmoid(eta) + positives * logsigmoid(-eta)).sum(-1)
        log_prior = -((theta - prior[0]).square() * prior[1]).sum(-1) / 2
        loss = (q.frozen.log_prob(theta) - log_likelihood - log_prior).mean(0).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()
