"""The zero part of the distribution, P(X = 0) = pi, in the parameter that the user gave: logits, pi itself or cloglog.

Every formula reads pi, 1 - pi and their logarithms from here, so that each is accurate in relative terms at both
ends, and so that cdf and icdf use the very same pi.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_zilognormal.numerics.normal import exp_or_inf, exp_times, log_max, logaddexp, with_slopes


@dataclass(frozen=True)
class ZeroPart:
    """pi = sigmoid(logits). logsigmoid keeps what sigmoid and softplus round away at the ends.

    Args:
        tensor: the parameter as the user gave it, in its own shape.
    """

    tensor: Tensor
    parameter: ClassVar[str] = "zi_logits"  # its name in the constructor of the distribution

    def to(self, dtype: torch.dtype) -> "ZeroPart":
        """The same in another dtype."""
        return type(self)(self.tensor.to(dtype))

    @property
    def logits(self) -> Tensor:
        """log pi - log(1 - pi)."""
        return self.tensor

    @property
    def zero(self) -> Tensor:
        """pi = P(X = 0)."""
        return _exp(self.log_zero)

    @property
    def positive(self) -> Tensor:
        """1 - pi = P(X > 0)."""
        return _exp(self.log_positive)

    @property
    def log_zero(self) -> Tensor:
        """log pi."""
        return logsigmoid(self.tensor)

    @property
    def log_positive(self) -> Tensor:
        """log(1 - pi)."""
        return logsigmoid(-self.tensor)

    @property
    def skew(self) -> Tensor:
        """pi - (1 - pi), exact near 0."""
        return torch.tanh(self.tensor / 2)

    @property
    def odds(self) -> Tensor:
        """pi / (1 - pi), at most 1."""
        return self.tensor.clamp(max=0).exp()

    @property
    def one_minus_odds(self) -> Tensor:
        """1 - odds, exact near 0, at least 0."""
        return -torch.expm1(self.tensor.clamp(max=0))

    @property
    def falling(self) -> tuple[Tensor, Tensor]:
        """The parameter in which log(1 - pi) falls, and the logarithm of how fast it does."""
        return self.tensor, self.log_zero

    @property
    def log_slope(self) -> Tensor:
        """log dpi / dparameter, of the parameter in which log(1 - pi) falls."""
        return self.log_zero + self.log_positive

    def log_variance(self) -> Tensor:
        """log pi(1 - pi); near pi = 1/2, where its derivative vanishes, from the skew."""
        skew = self.skew
        central = skew.abs() < 0.5
        near = torch.log1p(-torch.where(central, skew, 0).square()) - math.log(4)
        return torch.where(central, near, self.log_zero + self.log_positive)

    def entropy(self, positive: Tensor) -> Tensor:
        """H(Bernoulli(pi)) + (1 - pi) times the entropy of the positive part; 0 log 0 = 0."""
        return _entropy(self.falling[0], self.log_slope, self.log_zero, self.log_positive, self.logits, positive)

    def weigh(self, log_a: Tensor, log_b: Tensor | None = None) -> Tensor:
        """(1 - pi) a, or (1 - pi) (b + pi) a."""
        return exp_or_inf(self.log_weigh(log_a, log_b))

    def log_weigh(self, log_a: Tensor, log_b: Tensor | None = None) -> Tensor:
        """The logarithm of `weigh`, a constant -inf where 1 - pi is 0."""
        possible = self.log_positive > -math.inf
        log = log_positive = torch.where(possible, self.log_positive, 0)
        if log_b is not None:
            # Near pi = 1/2 and b = 0 the derivative nearly vanishes; through pi (1 - pi) it keeps its digits.
            within = logaddexp(log_positive + log_b, torch.where(possible, self.log_variance(), 0))
            log = torch.where(self.skew.abs() < 0.5, within, log_positive + self._log_plus_zero(log_b))
        return torch.where(possible, log + log_a, -math.inf)

    def _log_plus_zero(self, log_b: Tensor) -> Tensor:
        """log(b + pi). Where pi < b, pi has more digits than its logarithm."""
        plain = (log_b > -1) & (self.log_zero < log_b)
        in_log_space = logaddexp(log_b, self.log_zero)
        return torch.where(plain, log_b + torch.log1p(self.zero * torch.where(plain, -log_b, 0).exp()), in_log_space)


class ProbZeroPart(ZeroPart):
    """pi given as such. At exactly 0 or 1 an infinite logarithm is a constant: 0 * inf would make gradients NaN."""

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

    @property
    def falling(self) -> tuple[Tensor, Tensor]:
        return self.tensor, -self.log_positive

    def entropy(self, positive: Tensor) -> Tensor:
        logs = _finite(self.log_zero), _finite(self.log_positive)
        return _entropy_of_prob(self.zero, self.positive, *logs, positive)

    def weigh(self, log_a: Tensor, log_b: Tensor | None = None) -> Tensor:
        # As a product, so that derivatives are right at 0 and 1; in log space only where it would overflow.
        log_product = log_a if log_b is None else log_a + log_b.clamp(min=0)
        fits = log_product < log_max(log_a.dtype)
        product = torch.where(fits, log_a, 0).exp()
        if log_b is not None:
            product = torch.where(fits, log_a + log_b, 0).exp() + product * self.zero
        product = self.positive * product
        return torch.where(fits, product, exp_or_inf(self.log_weigh(log_a, log_b)))


class CloglogZeroPart(ZeroPart):
    """pi = exp(-rate), given as cloglog = log rate: the complementary log-log of P(X > 0) = 1 - exp(-rate)."""

    parameter = "cloglog"

    @property
    def _rate(self) -> Tensor:
        return exp_or_inf(self.tensor)

    @property
    def logits(self) -> Tensor:
        return self.log_zero - self.log_positive

    @property
    def positive(self) -> Tensor:
        # The slope of expm1 is its value + 1, which would lose its digits near -1.
        large = self._rate > 1
        return torch.where(large, 1 - self.zero, -torch.expm1(torch.where(large, -1, self.log_zero)))

    @property
    def log_zero(self) -> Tensor:
        return -self._rate

    @property
    def log_positive(self) -> Tensor:
        return _log_positive_of_cloglog(self.tensor)

    @property
    def skew(self) -> Tensor:
        large = self._rate > 1
        return torch.where(large, 2 * self.zero - 1, torch.expm1(math.log(2) - torch.where(large, 1, self._rate)))

    @property
    def odds(self) -> Tensor:
        p = self.zero.clamp(max=0.5)
        return p / (1 - p)

    @property
    def one_minus_odds(self) -> Tensor:
        return -self.skew.clamp(max=0) / (1 - self.zero.clamp(max=0.5))

    @property
    def falling(self) -> tuple[Tensor, Tensor]:
        possible = self.log_zero > -math.inf
        return -self.tensor, torch.where(possible, self.log_slope - self.log_positive, -math.inf)

    @property
    def log_slope(self) -> Tensor:
        return self.tensor + self.log_zero


ZERO_PARTS = {kind.parameter: kind for kind in (ZeroPart, ProbZeroPart, CloglogZeroPart)}


def _slopes_of_log_positive(cloglog: Tensor, _: Tensor) -> Sequence[Tensor]:
    """rate / (exp(rate) - 1), which is at most 1 where its steps overflow."""
    rate = exp_or_inf(cloglog)
    inside = (rate > 0) & (rate < log_max(rate.dtype))
    some = torch.where(inside, rate, 1)
    return (torch.where(inside, some / torch.expm1(some), torch.where(rate > 0, 0, 1)),)


@with_slopes(_slopes_of_log_positive)
def _log_positive_of_cloglog(cloglog: Tensor) -> Tensor:
    """log(1 - exp(-rate))."""
    rate = exp_or_inf(cloglog)
    # log(rate) + log((1 - exp(-rate)) / rate), the latter by its series: the rate itself may underflow.
    series = cloglog - rate / 2 + rate.square() / 24
    middle, upper = torch.log(-torch.expm1(-rate)), torch.log1p(-torch.exp(-rate))
    return torch.where(rate < 1e-4, series, torch.where(rate > math.log(2), upper, middle))


def _slopes_of_entropy_of_prob(*saved: Tensor) -> Sequence[Tensor]:
    """One slope in pi: 1 - pi and the logarithms, which follow from it, have none of their own."""
    _, positive, log_zero, log_positive, of_positive, _ = saved
    none = torch.zeros_like(positive)
    return log_positive - log_zero - of_positive, none, none, none, positive


@with_slopes(_slopes_of_entropy_of_prob)
def _entropy_of_prob(
    zero: Tensor, positive: Tensor, log_zero: Tensor, log_positive: Tensor, of_positive: Tensor
) -> Tensor:
    return -zero * log_zero + positive * (of_positive - log_positive)


def _slopes_of_entropy(*saved: Tensor) -> Sequence[Tensor]:
    """-exp(log_slope) (logits + positive), where the sum may nearly cancel, and one in the last input alone."""
    _, log_slope, _, log_positive, logits, positive, _ = saved
    inside = logits.abs() < math.inf
    slope = -exp_times(torch.where(inside, log_slope, 0), torch.where(inside, logits, 0) + positive)
    return torch.where(inside, slope, 0), *[torch.zeros_like(slope)] * 4, log_positive.exp()


@with_slopes(_slopes_of_entropy)
def _entropy(
    parameter: Tensor, log_slope: Tensor, log_zero: Tensor, log_positive: Tensor, logits: Tensor, positive: Tensor
) -> Tensor:
    of_zero, of_positive = (log.exp() * _finite(log) for log in (log_zero, log_positive))
    return exp_times(log_positive, positive) - of_positive - of_zero


def _exp(log: Tensor) -> Tensor:
    """exp, a constant where it underflows to 0: there a slope of 0 meets infinite ones."""
    p = log.exp()
    return torch.where(p > 0, p, 0)


def _finite(log: Tensor) -> Tensor:
    """A log probability with 0 for log 0, for products p log p."""
    return torch.where(log == -math.inf, 0, log)
