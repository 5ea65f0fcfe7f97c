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
        """pi / (1 - pi)."""

    @property
    @abstractmethod
    def one_minus_odds(self) -> Tensor:
        """1 - odds, exact near 0."""

    @abstractmethod
    def weigh(self, log_a: Tensor, log_b: Tensor) -> Tensor:
        """(1 - pi) (a + pi b)."""

    def log_weigh(self, log_a: Tensor, log_b: Tensor) -> Tensor:
        """log((1 - pi) (a + pi b)), -inf where 1 - pi is 0."""
        possible = self.log_positive > -math.inf
        a = torch.where(possible, self.log_positive, 0) + log_a
        b = torch.where(possible, self.log_variance(), -math.inf) + log_b
        return torch.where(possible, torch.logaddexp(a, b), -math.inf)

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
        return self.log_zero.exp()

    @property
    def positive(self) -> Tensor:
        return self.log_positive.exp()

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
        return self.tensor.exp()

    @property
    def one_minus_odds(self) -> Tensor:
        return -torch.expm1(self.tensor)

    def weigh(self, log_a: Tensor, log_b: Tensor) -> Tensor:
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
        return self.tensor / (1 - self.tensor)

    @property
    def one_minus_odds(self) -> Tensor:
        return (1 - 2 * self.tensor) / (1 - self.tensor)

    def weigh(self, log_a: Tensor, log_b: Tensor) -> Tensor:
        # As a product, so that derivatives are right at 0 and 1; in log space only where it would overflow.
        plain = torch.maximum(log_a, log_b) < _log_max(log_a.dtype)
        a, b = (torch.where(plain, log, 0).exp() for log in (log_a, log_b))
        product = self.positive * (a + self.zero * b)
        return torch.where(plain, product, exp_or_inf(self.log_weigh(log_a, log_b)))


def exp_or_inf(log: Tensor) -> Tensor:
    """exp, with derivative 0 where it overflows: there inf * 0 would make gradients NaN."""
    fits = log < _log_max(log.dtype)
    return torch.where(fits, torch.where(fits, log, 0).exp(), math.inf)


def _log_max(dtype: torch.dtype) -> float:
    return math.log(torch.finfo(dtype).max)


def _finite(log: Tensor) -> Tensor:
    """A log probability with 0 for log 0, for products p log p."""
    return torch.where(log == -math.inf, 0, log)
