"""Where the guide starts: the posterior mode of both parts and its curvature, with hyperparameters by empirical Bayes.

All genes take one Newton step together, then the hyperparameters one step of EM, and so on. Given these, the
gate's log posterior is concave; the positive part's is a ridge regression given sigma, and concave in log sigma.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_zilognormal.models._arrow import Arrow
from pyro_zilognormal.models._blocks import Block, Normal
from pyro_zilognormal.models._em import em_step
from pyro_zilognormal.models._rows import Rows
from pyro_zilognormal.models._sigma import log_scale

# The largest change of a linear predictor in one Newton step: log odds saturate beyond.
_LARGEST_STEP = 2.0


@dataclass
class Mode:
    """Where a block starts.

    Attributes:
        theta: the posterior mode, of shape (genes, donors + core).
        information: the likelihood's negative Hessian there.
    """

    theta: Tensor
    information: Arrow


@dataclass
class Start:
    """Where the guide starts.

    Attributes:
        modes: of each block, by name.
        hyper: mean and standard deviation of each hyperparameter.
    """

    modes: dict[str, Mode]
    hyper: dict[str, Normal]


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
        slab = _slab(list(parts.values()), {k: v for k, (v, _) in hyper.items()})
        for part in parts.values():
            hyper.update(part.update(hyper, slab))
    for part in reversed(parts.values()):  # the positive part after sigma, which it is given
        part.step({k: v for k, (v, _) in hyper.items()})
    return Start({name: part.mode() for name, part in parts.items()}, hyper)


def _slab(parts: list[_Part], values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the probability that effects are not nearly 0, by the name of their share (parts may share it)."""
    log_odds: dict[str, Tensor] = {}
    for part in parts:
        last = part.block.components[-1]
        sparse = last.spike_and_slab(values)
        if sparse is not None and last.share is not None:
            theta, variance = (part.block.split(v)[last.name] for v in (part.theta, part.variance))
            before = log_odds.get(last.share, values[last.share])
            log_odds[last.share] = before + sparse.evidence(theta, variance.reciprocal())
    return {share: odds.sigmoid() for share, odds in log_odds.items()}


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
        return mean.expand_as(self.theta), precision.expand_as(self.theta)

    def update(self, hyper: dict[str, Normal], slab: dict[str, Tensor]) -> dict[str, Normal]:
        """Return mean and standard deviation of the hyperparameters, from one step of EM."""
        values = {k: v for k, (v, _) in hyper.items()}
        theta, variance = self.block.split(self.theta), self.block.split(self.variance)
        found: dict[str, Normal] = {}
        for c in self.block.components:
            own = slab[c.share] if c.share else torch.ones_like(theta[c.name])
            found |= em_step(c, theta[c.name], variance[c.name], own, values)
        return found

    def mode(self) -> Mode:
        """Return where it has come to."""
        return Mode(self.theta, self.information())


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
    """Linear regression of log x given sigma, cell by cell of precision exp(-2 log scale)."""

    def __init__(self, value: Tensor, rows: Rows, block: Block) -> None:
        self.rows = rows
        self.count, self.mean, self.squares = (value[..., k].mT for k in (1, 2, 3))
        self.log_scale = torch.zeros(len(self.count), 1).to(value)
        super().__init__(block, torch.zeros(len(self.count), rows.donors + rows.design.shape[1]).to(value))

    def information(self) -> Arrow:
        """Return the likelihood's negative Hessian."""
        return self.rows.information(self.count * (-2 * self.log_scale).exp())

    def step(self, hyper: dict[str, Tensor]) -> None:
        """Solve for the coefficients given sigma."""
        mean, precision = self.prior(hyper)
        factor = self.information().add_diagonal(precision).cholesky()
        right = self.rows.score(self.count * (-2 * self.log_scale).exp() * self.mean) + precision * mean
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
        super().__init__(block, positive.log_scale)

    def information(self) -> Arrow:
        """Return the expected information: 2 for each degree of freedom left, less near the floor of sigma."""
        left = self.positive.count.sum(-1, keepdim=True) - self.positive.spent
        return Arrow.from_diagonal(2 * left.clamp(min=0) * self._slope().square())

    def step(self, hyper: dict[str, Tensor]) -> None:
        """Take a Newton step up  -n l - exp(-2 l) E[S] / 2 - precision (log sigma - mean)^2 / 2.

        S are the squared residuals, and l is log sigma with its floor.
        """
        mean, precision = self.prior(hyper)
        squares = self.positive.squared_residuals() * (-2 * self.positive.log_scale).exp() + self.positive.spent
        slope = squares - self.positive.count.sum(-1, keepdim=True)
        step = slope * self._slope() - precision * (self.theta - mean)
        step = step / (2 * squares * self._slope().square() + precision)
        self.theta = self.theta + step.clamp(-_LARGEST_STEP / 2, _LARGEST_STEP / 2)
        self.variance = (self.information().tips + precision).reciprocal()
        self.positive.log_scale = log_scale(self.theta)

    def _slope(self) -> Tensor:
        """Return the derivative of log sigma with its floor by that without."""
        return (2 * (self.theta - log_scale(self.theta))).exp()
