"""The gate of the law, P(X = 0) = pi, in the parameter its user gave: logits or probabilities.

Every formula reads pi, 1 - pi and their logarithms from here, so that each is accurate in relative terms at both
ends, and so that cdf and icdf see the very same pi.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_zilognormal.numerics.logspace import exp_or_inf, log_max, logaddexp


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
        """(1 - pi) a, or (1 - pi) (b + pi) a."""

    def log_weigh(self, log_a: Tensor, log_b: Tensor | None = None) -> Tensor:
        """Its logarithm, a constant -inf where 1 - pi is 0."""
        possible = self.log_positive > -math.inf
        log = log_positive = torch.where(possible, self.log_positive, 0)
        if log_b is not None:
            # Near pi = 1/2 and b = 0 the derivative nearly vanishes, and comes out right only by way of pi (1 - pi).
            within = logaddexp(log_positive + log_b, torch.where(possible, self.log_variance(), 0))
            log = torch.where(self.skew.abs() < 0.5, within, log_positive + self._log_plus_zero(log_b))
        return torch.where(possible, log + log_a, -math.inf)

    def _log_plus_zero(self, log_b: Tensor) -> Tensor:
        """log(b + pi). Where pi < b, pi itself has more digits than its logarithm."""
        plain = (log_b > -1) & (self.log_zero < log_b)
        in_log_space = logaddexp(log_b, self.log_zero)
        return torch.where(plain, log_b + torch.log1p(self.zero * torch.where(plain, -log_b, 0).exp()), in_log_space)

    def to(self, dtype: torch.dtype) -> "Gate":
        """The same gate in another dtype."""
        return type(self)(self.tensor.to(dtype))  # type: ignore[call-arg]

    @abstractmethod
    def entropy(self, positive: Tensor) -> Tensor:
        """H(Bernoulli(pi)) + (1 - pi) times the entropy of the positive part; 0 log 0 = 0."""

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

    def entropy(self, positive: Tensor) -> Tensor:
        return _LogitEntropy.apply(*torch.broadcast_tensors(self.tensor, positive))

    def weigh(self, log_a: Tensor, log_b: Tensor | None = None) -> Tensor:
        return exp_or_inf(self.log_weigh(log_a, log_b))


class _LogitEntropy(torch.autograd.Function):
    """The entropy, whose slope in the logits is -pi (1 - pi) (logits + positive): the bracket may all but cancel."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, positive: Tensor) -> Tensor:
        log_p, log_q = logsigmoid(logits), logsigmoid(-logits)
        return -log_p.exp() * _finite(log_p) - log_q.exp() * _finite(log_q) + log_q.exp() * positive

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def slopes(logits: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        """The derivatives in the logits and in the entropy of the positive part."""
        inside = logits.abs() < math.inf
        variance = (logsigmoid(logits) + logsigmoid(-logits)).exp()
        return torch.where(inside, -variance * (torch.where(inside, logits, 0) + positive), 0), logsigmoid(
            -logits
        ).exp()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        in_logits, in_positive = _LogitEntropy.slopes(*ctx.saved_tensors)
        return grad * in_logits, grad * in_positive

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        slopes = _LogitEntropy.slopes(*ctx.saved_tensors)
        first, *rest = (slope * tangent for slope, tangent in zip(slopes, tangents, strict=True) if tangent is not None)
        return first + rest[0] if rest else first


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

    def entropy(self, positive: Tensor) -> Tensor:
        return -self.zero * _finite(self.log_zero) + self.positive * (positive - _finite(self.log_positive))

    def weigh(self, log_a: Tensor, log_b: Tensor | None = None) -> Tensor:
        # As a product, so that derivatives are right at 0 and 1; in log space only where it would overflow.
        log_product = log_a if log_b is None else log_a + log_b.clamp(min=0)
        fits = log_product < log_max(log_a.dtype)
        product = self.positive * torch.where(fits, log_a, 0).exp()
        if log_b is not None:
            product = product * (torch.where(fits, log_b, 0).exp() + self.zero)
        return torch.where(fits, product, exp_or_inf(self.log_weigh(log_a, log_b)))


def _exp(log: Tensor) -> Tensor:
    """exp, a constant where it underflows to 0: there a slope of 0 meets infinite ones."""
    p = log.exp()
    return torch.where(p > 0, p, 0)


def _finite(log: Tensor) -> Tensor:
    """A log probability with 0 for log 0, for products p log p."""
    return torch.where(log == -math.inf, 0, log)
