"""The law of a group's sufficient statistics: a likelihood that costs the same however many cells a group has."""

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_zilognormal import _checks
from pyro_zilognormal._normal import HALF_LOG_2PI
from pyro_zilognormal.distribution import ZeroInflatedLogNormal


class _GroupStatistics(constraints.Constraint):
    """(n_zero, n_pos, mean, m2, offset_sum) that some cells have."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        n_zero, n_pos, mean, m2, offset_sum = value.unbind(-1)
        counts = (n_zero >= 0) & (n_pos >= 0) & (n_zero.floor() == n_zero) & (n_pos.floor() == n_pos)
        empty = (n_pos > 0) | ((mean == 0) & (offset_sum == 0))
        return counts & (m2 >= 0) & ((n_pos > 1) | (m2 == 0)) & empty & value.isfinite().all(-1)


group_statistics = _GroupStatistics()


class GroupedZeroInflatedLogNormal(TorchDistribution):
    r"""The law of the sufficient statistics of a group of cells that share one ZILN.

    .. math::
        \log p = n_0 \log \pi + n_+ \left(\log(1 - \pi) - \log s - \tfrac12 \log 2 \pi\right)
            - \frac{m_2 + n_+ (\text{mean} - \mu)^2}{2 s^2} - \sum \log x

    This is the sum of ``ZeroInflatedLogNormal(mu + offset, scale, zi_logits).log_prob`` over the cells, their Jacobian
    sum(log x) = n_pos mean + offset_sum included.

    Args:
        mu: mean of log X - offset given X > 0. Number or floating-point tensor.
        scale: standard deviation of log X given X > 0, > 0.
        zi_logits: log odds of a zero, in [-inf, inf].
        total_count: number of cells of each group, which only draws need; whole numbers >= 0.
        validate_args: check parameters and values; by default as torch's and Pyro's global switch says.

    The parameters broadcast to batch_shape; the event_shape is (5,), in the order of `SufficientStatistics.value`.

    Raises:
        TypeError: a parameter that is not a number or a floating-point tensor, or tensors of several dtypes.
        ValueError: shapes that do not broadcast, or, with validation, a parameter outside its constraint.

    Example:
        >>> from pyro_zilognormal import SufficientStatistics
        >>> x = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.double)
        >>> stats = SufficientStatistics.from_cells(x)
        >>> GroupedZeroInflatedLogNormal(0.0, 1.0, 0.0).log_prob(stats.value)
        tensor([[-4.8507]], dtype=torch.float64)
        >>> ZeroInflatedLogNormal(0.0, 1.0, 0.0).log_prob(x).sum()
        tensor(-4.8507, dtype=torch.float64)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = ZeroInflatedLogNormal.arg_constraints
    support = group_statistics
    has_rsample = False
    _validate_args: bool

    def __init__(
        self,
        mu: float | Tensor,
        scale: float | Tensor,
        zi_logits: float | Tensor,
        total_count: int | Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self._cell = ZeroInflatedLogNormal(mu, scale, zi_logits, validate_args=validate_args)
        self.total_count = total_count if total_count is None else self._as_count(total_count)
        shape = self._cell.batch_shape
        if self.total_count is not None:
            shape = _checks.broadcast_shapes(parameters=shape, total_count=self.total_count.shape)
        super().__init__(shape, torch.Size((5,)), validate_args=False)
        self.__dict__.pop("_validate_args")  # checked above; values are checked as the switch says at that time
        if validate_args is not None:
            self._validate_args = validate_args

    def _as_count(self, total_count: int | Tensor) -> Tensor:
        count = torch.as_tensor(total_count).to(self._cell._loc)
        if self._cell._validate_args and not bool(((count >= 0) & (count.floor() == count)).all()):
            raise ValueError(f"total_count must hold whole numbers of at least 0, got {total_count}.")
        return count

    @property
    def loc(self) -> Tensor:
        """Mean of log X - offset given X > 0, of shape batch_shape."""
        return self._cell.loc.expand(self.batch_shape)

    @property
    def scale(self) -> Tensor:
        """Standard deviation of log X given X > 0, of shape batch_shape."""
        return self._cell.scale.expand(self.batch_shape)

    @property
    def zi_logits(self) -> Tensor:
        """Log odds of a zero, of shape batch_shape."""
        return self._cell.zi_logits.expand(self.batch_shape)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "GroupedZeroInflatedLogNormal":
        """The same law with a larger batch_shape; parameters are shared, not copied."""
        batch_shape = torch.Size(batch_shape)
        _checks.check_expands("batch_shape", self.batch_shape, batch_shape)
        new = self._get_checked_instance(GroupedZeroInflatedLogNormal, _instance)
        new.__dict__.update(self.__dict__)
        new._batch_shape = batch_shape
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of all cells of a group, of shape batch_shape.

        Args:
            value: (n_zero, n_pos, mean, m2, offset_sum) in the last dimension; the others broadcast with batch_shape.

        Raises:
            TypeError: a value that is not a floating-point tensor.
            ValueError: another last dimension, or, with validation, statistics that no cells have.
        """
        loc, scale, gate = self._cell._law()
        value = self._checked(value)
        n_zero, n_pos, mean, m2, offset_sum = value.to(torch.promote_types(value.dtype, loc.dtype)).unbind(-1)
        some = n_pos > 0
        # Standardise before squaring, and count before multiplying: 0 * inf is NaN.
        z = torch.where(some, mean - loc, 0) / scale
        zeros = torch.where(n_zero > 0, n_zero * torch.where(n_zero > 0, gate.log_zero, 0), 0)
        gated = n_pos * torch.where(some, gate.log_positive, 0)
        squares = n_pos * (z * z) + m2 / scale / scale
        result = zeros + gated - n_pos * (scale.log() + HALF_LOG_2PI + mean) - offset_sum - squares / 2
        dtype = torch.promote_types(value.dtype, self._cell._loc.dtype)
        return result.to(dtype).expand(torch.broadcast_shapes(result.shape, self.batch_shape))

    def sample(self, sample_shape: torch.Size | None = None) -> Tensor:
        """Draws of shape sample_shape + batch_shape + (5,), with offset_sum = 0.

        n_pos is binomial, mean given n_pos is Normal(mu, scale / sqrt(n_pos)), m2 / scale^2 is chi-square with
        n_pos - 1 degrees of freedom.

        Raises:
            ValueError: the law has no total_count.
        """
        if self.total_count is None:
            raise ValueError(
                "GroupedZeroInflatedLogNormal: draws need the number of cells in each group. Pass total_count=..."
            )
        shape = self._extended_shape(() if sample_shape is None else sample_shape)[:-1]
        with torch.no_grad():
            loc, scale, gate = self._cell._law()
            count = self.total_count.to(loc).expand(shape)
            n_pos = torch.binomial(count, gate.positive.expand(shape))
            noise = torch.randn(shape, dtype=loc.dtype, device=loc.device)
            mean = torch.where(n_pos > 0, loc + scale * (noise / n_pos.clamp(min=1).sqrt()), 0)
            freedom = (n_pos - 1).clamp(min=1)
            chi2 = 2 * torch._standard_gamma(freedom / 2)
            m2 = torch.where(n_pos > 1, (scale * chi2.sqrt()).square(), 0)
            return torch.stack([count - n_pos, n_pos, mean, m2, torch.zeros_like(mean)], -1).to(self._cell._loc.dtype)

    def _checked(self, value: Tensor) -> Tensor:
        _checks.check_floating("value", value)
        if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[-1] != 5:
            shape = tuple(value.shape) if isinstance(value, Tensor) else ()
            raise ValueError(
                f"GroupedZeroInflatedLogNormal: value must have 5 entries in its last dimension, (n_zero, n_pos, mean, "
                f"m2, offset_sum), got shape {shape}. Pass the value of SufficientStatistics."
            )
        _checks.as_value("value", value[..., 0], self._cell._loc, self.batch_shape)
        if self._validate_args:
            _checks.check_values("value", value, self.support.check(value), "statistics that some cells have")
        return value
