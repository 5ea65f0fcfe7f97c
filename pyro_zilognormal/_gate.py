"""The gate of the law, P(X = 0) = pi, in the parameter its user gave: logits or probabilities.

Every formula reads pi, 1 - pi and their logarithms from here, so that each is accurate in relative terms at both
ends, and so that cdf and icdf see the very same pi.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_zilognormal._logspace import exp_or_inf, log_max, logaddexp


class Gate(ABC):
    """P(X = 0) and P(X > 0), in plain and in log space."""

    parameter: str  # its name in the constructor
    tensor: Tensor  # what the user gave, in its own shape

    @property
    @abstractmethod
    def logits(self) -> Tensor:
        """log pi - log(1 - pi)."""

    @property
    @abstractmethod
    def zero(self) -> Tensor:
        """pi = P(X = 0)."""

    @property
    @abstractmethod
    def positive(self) -> Tensor:
        """1 - pi = P(X > 0)."""

    @property
    @abstractmethod
    def log_zero(self) -> Tensor:
        """log pi."""

    @property
    @abstractmethod
    def log_positive(self) -> Tensor:
        """log(1 - pi)."""

    @property
    @abstractmethod
    def skew(self) -> Tensor:
        """pi - (1 - pi), exact near 0."""

    @property
    @abstractmethod
    def odds(self) -> Tensor:
        """pi / (1 - pi), at most 1."""

    @property
    @abstractmethod
    def one_minus_odds(self) -> Tensor:
        """1 - odds, exact near 0, at least 0."""

    @abstractmethod
    def weigh(self, log_a: Tensor, log_b: Tensor | None = None) -> Tensor:
        """(1 - pi) (a + pi b)."""

    def log_weigh(self, log_a: Tensor, log_b: Tensor | None = None) -> Tensor:
        """log((1 - pi) (a + pi b)), a constant -inf where 1 - pi is 0."""
        possible = self.log_positive > -math.inf
        log = torch.where(possible, self.log_positive, 0) + log_a
        if log_b is not None:
            log = logaddexp(log, torch.where(possible, self.log_variance(), 0) + log_b)
        return torch.where(possible, log, -math.inf)

    def to(self, dtype: torch.dtype) -> "Gate":
        """The same gate in another dtype."""
        return type(self)(self.tensor.to(dtype))  # type: ignore[call-arg]

    def entropy(self) -> Tensor:
        """Entropy of Bernoulli(pi), 0 log 0 = 0."""
        return -self.zero * _finite(self.log_zero) - self.positive * _finite(self.log_positive)

    def log_variance(self) -> Tensor:
        """log pi(1 - pi). Near pi = 1/2 through the skew, for the derivative there is nearly 0."""
        skew = self.skew
        central = skew.abs() < 0.5
        near = torch.log1p(-torch.where(central, skew, 0).square()) - math.log(4)
        return torch.where(central, near, self.log_zero + self.log_positive)


@dataclass(frozen=True)
class LogitGate(Gate):
    """pi = sigmoid(logits). logsigmoid keeps what sigmoid and softplus round away at the ends."""

    tensor: Tensor
    parameter = "zi_logits"

    @property
    def logits(self) -> Tensor:
        return self.tensor

    @property
    def zero(self) -> Tensor:
        return _exp(self.log_zero)

    @property
    def positive(self) -> Tensor:
        return _exp(self.log_positive)

    @property
    def log_zero(self) -> Tensor:
        return logsigmoid(self.tensor)

    @property
    def log_positive(self) -> Tensor:
        return logsigmoid(-self.tensor)

    @property
    def skew(self) -> Tensor:
        return torch.tanh(self.tensor / 2)

    @property
    def odds(self) -> Tensor:
        return self.tensor.clamp(max=0).exp()

    @property
    def one_minus_odds(self) -> Tensor:
        return -torch.expm1(self.tensor.clamp(max=0))

    def weigh(self, log_a: Tensor, log_b: Tensor | None = None) -> Tensor:
        return exp_or_inf(self.log_weigh(log_a, log_b))


@dataclass(frozen=True)
class ProbGate(Gate):
    """pi given as such. At exactly 0 or 1 an infinite logarithm is a constant: 0 * inf would make gradients NaN."""

    tensor: Tensor
    parameter = "zi_probs"

    @property
    def logits(self) -> Tensor:
        inside = (self.tensor > 0) & (self.tensor < 1)
        edge = torch.where(self.tensor > 0, math.inf, -math.inf).to(self.tensor.dtype)
        edge = torch.where(self.tensor.isnan(), self.tensor.detach(), edge)
        return torch.where(inside, torch.logit(torch.where(inside, self.tensor, 0.5)), edge)

    @property
    def zero(self) -> Tensor:
        return self.tensor

    @property
    def positive(self) -> Tensor:
        return 1 - self.tensor

    @property
    def log_zero(self) -> Tensor:
        above = self.tensor != 0
        return torch.where(above, torch.where(above, self.tensor, 1).log(), -math.inf)

    @property
    def log_positive(self) -> Tensor:
        below = self.tensor != 1
        return torch.where(below, torch.log1p(-torch.where(below, self.tensor, 0)), -math.inf)

    @property
    def skew(self) -> Tensor:
        return 2 * self.tensor - 1

    @property
    def odds(self) -> Tensor:
        p = self.tensor.clamp(max=0.5)
        return p / (1 - p)

    @property
    def one_minus_odds(self) -> Tensor:
        p = self.tensor.clamp(max=0.5)
        return (1 - 2 * p) / (1 - p)

    def weigh(self, log_a: Tensor, log_b: Tensor | None = None) -> Tensor:
        # As a product, so that derivatives are right at 0 and 1; in log space only where it would overflow.
        logs = [log_a] if log_b is None else [log_a, log_b]
        fits = torch.stack(torch.broadcast_tensors(*logs)).amax(0) < log_max(log_a.dtype)
        a, *b = (torch.where(fits, log, 0).exp() for log in logs)
        product = self.positive * (a + self.zero * b[0] if b else a)
        return torch.where(fits, product, exp_or_inf(self.log_weigh(log_a, log_b)))


def _exp(log: Tensor) -> Tensor:
    """exp, a constant where it underflows to 0: there a slope of 0 meets infinite ones."""
    p = log.exp()
    return torch.where(p > 0, p, 0)


def _finite(log: Tensor) -> Tensor:
    """A log probability with 0 for log 0, for products p log p."""
    return torch.where(log == -math.inf, 0, log)
