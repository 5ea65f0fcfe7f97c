"""The zero-inflated log-normal with a detection limit: of smaller values only that is known."""

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_zilognormal.distribution import validation
from pyro_zilognormal.distribution.score import ForwardsScore
from pyro_zilognormal.distribution.shared import SharesParameters, describe
from pyro_zilognormal.distribution.support import NonnegativeWithAtom
from pyro_zilognormal.distribution.ziln import ZeroInflatedLogNormal


class WithLimit(SharesParameters):
    """A distribution of what a detection limit leaves of draws of a zero-inflated log-normal, `_cell`."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        **ZeroInflatedLogNormal.arg_constraints,
        "limit": constraints.nonnegative,
    }
    has_rsample = False

    def __init__(
        self,
        cell: ZeroInflatedLogNormal,
        limit: Tensor,
        validate_args: bool | None,
        event_shape: tuple[int, ...] = (),
        **more: torch.Size,
    ) -> None:
        self._cell, self._limit = cell, limit
        shape = validation.broadcast_shapes(parameters=cell.batch_shape, limit=limit.shape, **more)
        super().__init__(shape, validate_args, event_shape)
        if self._validate_args:
            validation.check_parameter("limit", limit, constraints.nonnegative, finite=True)

    @property
    def loc(self) -> Tensor:
        """Mean of log X given X > 0, of groups less the offset, of shape batch_shape."""
        return self._cell.loc.expand(self.batch_shape)

    @property
    def scale(self) -> Tensor:
        """Standard deviation of log X given X > 0, of shape batch_shape."""
        return self._cell.scale.expand(self.batch_shape)

    @property
    def zi_logits(self) -> Tensor:
        """Log odds of a structural zero, of shape batch_shape."""
        return self._cell.zi_logits.expand(self.batch_shape)

    @property
    def limit(self) -> Tensor:
        """The detection limit, of shape batch_shape."""
        return self._limit.expand(self.batch_shape)


class LeftCensoredZeroInflatedLogNormal(ForwardsScore, WithLimit):
    r"""A zero-inflated log-normal X of which only max(X, limit) is known.

    .. math::
        P(X \le \text{limit}) = \pi + (1 - \pi)\, \Phi\left(\frac{\log \text{limit} - \text{loc}}{\text{scale}}\right)

    Above the limit the density is that of X. With zi_logits = -inf there are no structural zeros, and all censored
    values are small ones. With zeros_known a structural zero is recorded as 0, apart from values below the limit:

    .. math::
        P(X = 0) = \pi, \qquad
        P(0 < X \le \text{limit}) = (1 - \pi)\, \Phi\left(\frac{\log \text{limit} - \text{loc}}{\text{scale}}\right)

    Args:
        loc: mean of log X given X > 0, in log units of x. Number or tensor.
        scale: standard deviation of log X given X > 0, > 0.
        zi_logits: log odds of a structural zero, in [-inf, inf].
        limit: detection limit, in units of x, finite and >= 0; at 0 nothing is censored.
        zeros_known: whether a recorded 0 is a structural zero; otherwise it stands for any value up to the limit.
        validate_args: check parameters and values; by default as torch's and Pyro's global switch says.

    The parameters broadcast to batch_shape; the event_shape is (). Draws are max(X, limit), and X = 0 with zeros_known;
    they carry no pathwise gradient.

    Raises:
        TypeError: a parameter that is not a number or a tensor of real numbers.
        ValueError: shapes that do not broadcast, several devices, or, with validation, a parameter outside its
            constraint.

    References:
        J. Tobin (1958), "Estimation of relationships for limited dependent variables", Econometrica 26.

    Example:
        >>> d = LeftCensoredZeroInflatedLogNormal(0.0, 1.0, zi_logits=-1.0, limit=0.5)
        >>> d.log_prob(torch.tensor([0.0, 0.5, 2.0]))
        tensor([-0.8043, -0.8043, -2.1656])
        >>> d.uncensored.mean
        tensor(1.2053)
    """

    support = NonnegativeWithAtom()

    def __init__(
        self,
        loc: float | Tensor,
        scale: float | Tensor,
        zi_logits: float | Tensor,
        limit: float | Tensor,
        zeros_known: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        loc, scale, zi_logits, limit = validation.as_tensors(loc=loc, scale=scale, zi_logits=zi_logits, limit=limit)
        self.zeros_known = zeros_known
        cell = ZeroInflatedLogNormal(loc, scale, zi_logits, validate_args=validate_args)
        super().__init__(cell, limit, validate_args)

    @property
    def uncensored(self) -> ZeroInflatedLogNormal:
        """The distribution of X, of shape batch_shape."""
        return self._cell.expand(self.batch_shape)

    @property
    def log_prob_censored(self) -> Tensor:
        """The log probability of a value that is recorded as censored, of shape batch_shape."""
        d = self._cell
        if not self.zeros_known:
            return d.log_cdf(self._limit).expand(self.batch_shape)
        positive = ZeroInflatedLogNormal(d._loc, d._scale, -math.inf, validate_args=False)
        return (positive.log_cdf(self._limit) + d._zero_part.log_positive).expand(self.batch_shape)

    def log_prob(self, value: Tensor | float) -> Tensor:
        """The log density of X above the limit, the log probability of a censored value from 0 to the limit.

        So a censored value may be recorded as 0, as the limit or as a number in between; with zeros_known, not as 0.

        Args:
            value: of a shape that broadcasts with batch_shape.

        Raises:
            ValueError: with validation, a negative or NaN value (without it: -inf, NaN).
        """
        value = validation.as_value("value", value, self._limit, self.batch_shape)
        censored = (value <= self._limit) & ((value > 0) if self.zeros_known else (value >= 0))
        above = self.uncensored.log_prob(torch.where(censored, 0, value))
        return torch.where(censored, self.log_prob_censored.to(above.dtype), above)

    def cdf(self, value: Tensor | float) -> Tensor:
        """P(max(X, limit) <= value): that of X from the limit on; below it 0, and pi from 0 on with zeros_known."""
        return self.uncensored.cdf(self._of_uncensored(value))

    def log_cdf(self, value: Tensor | float) -> Tensor:
        """The logarithm of the cdf, accurate in both tails."""
        return self.uncensored.log_cdf(self._of_uncensored(value))

    def log_survival_function(self, value: Tensor | float) -> Tensor:
        """The logarithm of 1 - cdf, accurate in both tails."""
        return self.uncensored.log_survival_function(self._of_uncensored(value))

    def icdf(self, value: Tensor | float) -> Tensor:
        """The quantile function: that of X or the limit, whichever is larger; 0 for q <= pi with zeros_known."""
        return self._record(self.uncensored.icdf(value))

    def sample(self, sample_shape: torch.Size | None = None) -> Tensor:
        """Draws of shape sample_shape + batch_shape, without gradient."""
        with torch.no_grad():
            return self._record(self.uncensored.sample(sample_shape))

    def _of_uncensored(self, value: Tensor | float) -> Tensor:
        """A value at which the cdf of X is that of what is recorded."""
        value = validation.as_value("value", value, self._limit, self.batch_shape)
        at_least_zero = torch.where(value >= 0, 0, -1) if self.zeros_known else -1
        return torch.where(value < self._limit, at_least_zero, value)

    def _record(self, x: Tensor) -> Tensor:
        recorded = torch.maximum(x, self._limit.to(x.dtype))
        return torch.where(x == 0, 0, recorded) if self.zeros_known else recorded

    def __repr__(self) -> str:
        known = ", zeros_known" if self.zeros_known else ""
        limit = describe(self._limit, self.batch_shape)
        return f"LeftCensoredZeroInflatedLogNormal(limit: {limit}{known}, of {self._cell})"
