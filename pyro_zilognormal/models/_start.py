"""Where the guide starts: the posterior mode of both parts and its curvature, with hyperparameters by empirical Bayes.

All genes take one Newton step together, then the hyperparameters one step of EM, and so on. Given these, the
gate's log posterior is concave; the positive part's is a ridge regression given sigma, and concave in log sigma.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_zilognormal.models._arrow import Arrow
from pyro_zilognormal.models._blocks import Block, Component
from pyro_zilognormal.models._rows import Rows

# The largest change of a linear predictor in one Newton step: log odds saturate beyond.
_LARGEST_STEP = 2.0


@dataclass
class Mode:
    """Where a block starts.

    Attributes:
        theta: the posterior mode, of shape (genes, donors + core).
        information: the likelihood's negative Hessian there.
        weights: what the precision of the prior of each element is multiplied by: that of Student's t where it is.
    """

    theta: Tensor
    information: Arrow
    weights: Tensor


@dataclass
class Start:
    """Where the guide starts.

    Attributes:
        modes: of each block, by name.
        hyper: mean and standard deviation of each hyperparameter.
    """

    modes: dict[str, Mode]
    hyper: dict[str, tuple[Tensor, Tensor]]


def find_start(value: Tensor, gate_rows: Rows, rows: Rows, blocks: dict[str, Block], rounds: int = 100) -> Start:
    """Return the posterior mode of all genes and the hyperparameters that suit them.

    Args:
        value: statistics of shape (rows, genes, 5).
        gate_rows: the gate's design.
        rows: the positive part's design.
        blocks: the components of "gate", "positive" and "log_sigma".
        rounds: how often all is updated.
    """
    positive = _Positive(value, rows, blocks["positive"])
    parts = {
        "positive": positive,
        "log_sigma": _LogSigma(positive, blocks["log_sigma"]),
        "gate": _Gate(value, gate_rows, blocks["gate"]),
    }
    hyper = {k: prior for block in blocks.values() for k, prior in block.hyperparameters().items()}
    for _ in range(rounds):
        for part in parts.values():
            part.step({k: v for k, (v, _) in hyper.items()})
            hyper.update(part.update(hyper))
    return Start({name: part.mode(hyper) for name, part in parts.items()}, hyper)


class _Part:
    """One block of all genes on its way to the mode."""

    def __init__(self, block: Block, theta: Tensor) -> None:
        self.block, self.theta = block, theta
        self.variance = torch.zeros_like(theta)

    def information(self) -> Arrow:
        """Return the likelihood's negative Hessian."""
        raise NotImplementedError

    def step(self, hyper: dict[str, Tensor]) -> None:
        """Move theta up the log posterior given the hyperparameters, and note its variance."""
        raise NotImplementedError

    def prior(self, hyper: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the mean and the precision of each element's prior, of shape (genes, donors + core)."""
        mean, precision = self.block.moments(hyper)
        return mean.expand_as(self.theta), precision * self.weights(hyper)

    def weights(self, hyper: dict[str, Tensor]) -> Tensor:
        """Return the expected precision of Student's t as a mixture of Normals, in units of 1 / scale^2."""
        parts = self.block.split(self.theta.square() + self.variance)
        each = [_weight(c, parts[c.name], hyper) for c in self.block.components]
        return torch.cat(each, -1)

    def update(self, hyper: dict[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return mean and standard deviation of the hyperparameters, from one step of EM."""
        now = {k: v for k, (v, _) in hyper.items()}
        theta, variance = self.block.split(self.theta), self.block.split(self.variance)
        weights = self.block.split(self.weights(now))
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for c in self.block.components:
            found |= _em_step(c, theta[c.name], variance[c.name], weights[c.name], now)
        return found

    def mode(self, hyper: dict[str, tuple[Tensor, Tensor]]) -> Mode:
        """Return where it has come to."""
        return Mode(self.theta, self.information(), self.weights({k: v for k, (v, _) in hyper.items()}))


class _Gate(_Part):
    """Logistic regression of zero or not."""

    def __init__(self, value: Tensor, rows: Rows, block: Block) -> None:
        self.rows, self.zeros, self.cells = rows, value[..., 0].mT, (value[..., 0] + value[..., 1]).mT
        total = self.cells.sum(-1, keepdim=True)
        odds = (self.zeros.sum(-1, keepdim=True) + 0.5) / (total - self.zeros.sum(-1, keepdim=True) + 0.5)
        theta = torch.zeros(len(odds), rows.donors + rows.design.shape[1]).to(value)
        theta[:, rows.donors : rows.donors + 1] = odds.log()
        super().__init__(block, theta)

    def information(self) -> Arrow:
        """Return the likelihood's negative Hessian."""
        pi = self.rows.predict(self.theta).sigmoid()
        return self.rows.information(self.cells * pi * (1 - pi))

    def step(self, hyper: dict[str, Tensor]) -> None:
        """Take a Newton step, cut where it would leave the range in which the curvature holds."""
        mean, precision = self.prior(hyper)
        factor = self.information().add_diagonal(precision).cholesky()
        slopes = self.zeros - self.cells * self.rows.predict(self.theta).sigmoid()
        score = self.rows.score(slopes) - precision * (self.theta - mean)
        step = factor.transpose_solve(factor.solve(score))
        largest = self.rows.predict(step).abs().amax(-1, keepdim=True)
        self.theta = self.theta + step * (_LARGEST_STEP / largest.clamp(min=_LARGEST_STEP))
        self.variance = factor.inverse_diagonal()


class _Positive(_Part):
    """Linear regression of log x given sigma, cell by cell of precision exp(-2 log sigma)."""

    def __init__(self, value: Tensor, rows: Rows, block: Block) -> None:
        self.rows = rows
        self.count, self.mean, self.squares = (value[..., k].mT for k in (1, 2, 3))
        self.log_sigma = torch.zeros(len(self.count), 1).to(value)
        super().__init__(block, torch.zeros(len(self.count), rows.donors + rows.design.shape[1]).to(value))

    def information(self) -> Arrow:
        """Return the likelihood's negative Hessian."""
        return self.rows.information(self.count * (-2 * self.log_sigma).exp())

    def step(self, hyper: dict[str, Tensor]) -> None:
        """Solve for the coefficients given sigma."""
        mean, precision = self.prior(hyper)
        factor = self.information().add_diagonal(precision).cholesky()
        right = self.rows.score(self.count * (-2 * self.log_sigma).exp() * self.mean) + precision * mean
        self.theta, self.variance = factor.transpose_solve(factor.solve(right)), factor.inverse_diagonal()
        # What the coefficients are fitted to: the degrees of freedom that log sigma does not have.
        self.spent = (1 - precision * self.variance).sum(-1, keepdim=True)

    def squared_residuals(self) -> Tensor:
        """Return the sum over cells of squared residuals, of shape (genes, 1)."""
        rest = self.mean - self.rows.predict(self.theta)
        return (self.squares + self.count * rest.square()).sum(-1, keepdim=True)


class _LogSigma(_Part):
    """log sigma, with the coefficients integrated out."""

    def __init__(self, positive: _Positive, block: Block) -> None:
        self.positive = positive
        super().__init__(block, positive.log_sigma)

    def information(self) -> Arrow:
        """Return the expected information: 2 for each degree of freedom left."""
        left = 2 * (self.positive.count.sum(-1, keepdim=True) - self.positive.spent).clamp(min=0)
        empty = left.new_zeros(len(left), 1, 0)
        return Arrow(empty[:, 0], empty, left.unsqueeze(-1))

    def step(self, hyper: dict[str, Tensor]) -> None:
        """Take a Newton step up  -n l - exp(-2 l) E[S] / 2 - precision (l - mean)^2 / 2,  S the squared residuals."""
        mean, precision = self.prior(hyper)
        squares = self.positive.squared_residuals() * (-2 * self.theta).exp() + self.positive.spent
        slope = squares - self.positive.count.sum(-1, keepdim=True) - precision * (self.theta - mean)
        step = slope / (2 * squares + precision)
        self.theta = self.theta + step.clamp(-_LARGEST_STEP / 2, _LARGEST_STEP / 2)
        self.variance = (self.information().core[..., 0] + precision).reciprocal()
        self.positive.log_sigma = self.theta


def _weight(component: Component, square: Tensor, hyper: dict[str, Tensor]) -> Tensor:
    """Return E[precision of the mixture] of Student's t given theta^2; 1 for a Normal."""
    if component.df is None:
        return torch.ones_like(square)
    return (component.df + 1) / (component.df + square * component.moments(hyper)[1])


def _em_step(
    component: Component, theta: Tensor, variance: Tensor, weights: Tensor, hyper: dict[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return mean and sd of a component's hyperparameters given its elements, of shape (genes, width)."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    mean, precision = component.moments(hyper)
    if component.mean is not None:
        prior_mean, prior_sd = component.mean
        information = theta.shape[0] * precision + prior_sd.pow(-2)
        at = (theta.sum(0) * precision + prior_mean * prior_sd.pow(-2)) / information
        found[f"{component.name}_mean"] = at, information.rsqrt()
        mean = at
    spread = weights * ((theta - mean).square() + variance)
    told = (1 - weights * variance * precision).clamp(min=0).square()
    found[f"{component.name}_log_sd"] = _log_sd(component.log_sd, spread, told)
    return found


def _log_sd(prior: tuple[Tensor, Tensor], spread: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mode of log sd given expected squares, and its standard deviation.

    Complete data tell 2 of log sd an element; the observed ones tell less, by the square of the share of its prior
    variance that an element's data have resolved.
    """
    middle, sd = prior
    shared = len(middle) == 1
    squares = spread.mean().reshape(1) if shared else spread.mean(0)
    count = spread.numel() if shared else spread.shape[0]
    complete, before = 2 * count, sd.pow(-2)
    at = (complete * squares.log() / 2 + before * middle) / (complete + before)
    told = told.sum().reshape(1) if shared else told.sum(0)
    return at, (2 * told + before).rsqrt()
