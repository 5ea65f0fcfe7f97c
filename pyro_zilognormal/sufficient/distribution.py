"""The distribution of a group's sufficient statistics: its likelihood does not cost more for more cells."""

import torch
from torch import Tensor
from torch.distributions import Chi2, constraints
from torch.utils.weak import WeakIdKeyDictionary

from pyro_zilognormal.distribution import ZeroInflatedLogNormal, validation
from pyro_zilognormal.distribution.censored import WithLimit
from pyro_zilognormal.numerics import quantiles
from pyro_zilognormal.numerics.normal import HALF_LOG_2PI
from pyro_zilognormal.numerics.shapes import tracing

NAMES = "(n_zero, n_pos, mean, m2, offset_sum)"


class GroupStatistics(constraints.Constraint):
    """The values of (n_zero, n_pos, mean, m2, offset_sum) that a set of cells can have."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        """Return a boolean tensor of shape value.shape[:-1]: which statistics are possible."""
        n_zero, n_pos, mean, m2, offset_sum = value.unbind(-1)
        whole = (n_zero.floor() == n_zero) & (n_pos.floor() == n_pos)
        nonnegative = (n_zero >= 0) & (n_pos >= 0) & (m2 >= 0)
        empty = (mean == 0) & (offset_sum == 0)
        return whole & nonnegative & ((n_pos > 0) | empty) & ((n_pos > 1) | (m2 == 0)) & value.isfinite().all(-1)


class GroupedZeroInflatedLogNormal(WithLimit):
    r"""The distribution of the sufficient statistics of a group of cells that share one ZILN.

    .. math::
        \log p = n_0 \log \pi + n_+ \left(\log(1 - \pi) - \log s - \tfrac12 \log 2 \pi\right)
            - \frac{m_2 + n_+ (\text{mean} - \text{loc})^2}{2 s^2} - \sum_{x > 0} \log x

    This is the sum of ``ZeroInflatedLogNormal(loc + offset, scale, zi_logits).log_prob`` over the cells. It includes
    their Jacobian, sum(log x) = n_pos mean + offset_sum.

    Args:
        loc: mean of log X - offset given X > 0, in log units of x. Number or tensor.
        scale: standard deviation of log X given X > 0, > 0.
        zi_logits: log odds of a zero, in [-inf, inf].
        limit: detection limit, in units of x / exp(offset), finite and >= 0. The n_zero cells are then those up to the
            limit, and log pi is log P(X <= limit) of `LeftCensoredZeroInflatedLogNormal`. Cells with other limits are
            other groups.
        total_count: number of cells in each group, whole numbers >= 0; only `sample` needs it.
        validate_args: check parameters and values; by default as the global switch of torch and Pyro says. A value is
            checked once, and again after it was modified in place.

    The parameters broadcast to batch_shape; the event_shape is (5,), in the order of `SufficientStatistics.value`.

    Raises:
        TypeError: a parameter is not a number or a tensor of real numbers.
        ValueError: shapes do not broadcast, or, with validation, a parameter is outside its constraint.

    Example:
        >>> from pyro_zilognormal import SufficientStatistics
        >>> x = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.double)
        >>> stats = SufficientStatistics.from_cells(x)
        >>> GroupedZeroInflatedLogNormal(0.0, 1.0, 0.0).log_prob(stats.value)
        tensor([[-4.8507]], dtype=torch.float64)
        >>> ZeroInflatedLogNormal(0.0, 1.0, 0.0).log_prob(x).sum()
        tensor(-4.8507, dtype=torch.float64)
    """

    support = GroupStatistics()

    def __init__(
        self,
        loc: float | Tensor,
        scale: float | Tensor,
        zi_logits: float | Tensor,
        total_count: int | Tensor | None = None,
        validate_args: bool | None = None,
        limit: float | Tensor = 0.0,
    ) -> None:
        cell = ZeroInflatedLogNormal(loc, scale, zi_logits, validate_args=validate_args)
        self.total_count = None if total_count is None else _as_count(total_count, cell)
        self._censors = isinstance(limit, Tensor) or limit != 0
        limit = limit if isinstance(limit, Tensor) else cell._loc.new_tensor(limit)
        more = {} if self.total_count is None else {"total_count": self.total_count.shape}
        super().__init__(cell, limit, validate_args, (5,), **more)

    @classmethod
    def infer_shapes(cls, **arg_shapes: torch.Size) -> tuple[torch.Size, torch.Size]:
        """The batch_shape and event_shape that arguments of the given shapes lead to, as in Pyro."""
        return validation.broadcast_shapes(**arg_shapes), torch.Size((5,))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of all cells of a group, of shape batch_shape.

        It is differentiable in the parameters, twice and more, but not in the value, which is data.

        Args:
            value: (n_zero, n_pos, mean, m2, offset_sum) in the last dimension; the others broadcast with batch_shape.

        Raises:
            TypeError: value is not a tensor of real numbers.
            ValueError: the last dimension is not 5, value requires grad, or, with validation, no cells can have
                these statistics.
        """
        _check_shape(value)
        validation.as_value("value", value[..., 0], self._cell._loc, self.batch_shape)
        if self._validate_args:
            _check_statistics(value)
        loc, scale, zero_part = self._cell._parameters()
        wide = torch.promote_types(value.dtype, loc.dtype)
        loc, scale, zero_part = loc.to(wide), scale.to(wide), zero_part.to(wide)
        log_zero = zero_part.log_zero
        if self._censors:
            log_zero = quantiles.log_cdf(self._limit.to(wide), loc, scale, zero_part)
        result = _log_density(value.to(wide), loc, scale, log_zero, zero_part.log_positive)
        dtype = torch.promote_types(value.dtype, self._cell._loc.dtype)
        return result.to(dtype).expand(torch.broadcast_shapes(result.shape, self.batch_shape))

    def sample(self, sample_shape: torch.Size | None = None) -> Tensor:
        """Draws of shape sample_shape + batch_shape + (5,), with offset_sum = 0, in at least float32.

        n_pos is Binomial(total_count, 1 - pi); given it, mean is Normal(loc, scale / sqrt(n_pos)) and m2 / scale^2 is
        chi-square with n_pos - 1 degrees of freedom.

        Raises:
            ValueError: total_count was not given.
            NotImplementedError: a limit was given; the statistics of what lies above it have no such distributions.
        """
        if self._censors:
            raise NotImplementedError(
                "GroupedZeroInflatedLogNormal: with a limit there are no draws. Draw cells from "
                "LeftCensoredZeroInflatedLogNormal, set those up to the limit to 0, and take SufficientStatistics."
            )
        if self.total_count is None:
            needed = "Pass total_count=..., for example stats.n_zero + stats.n_pos."
            raise ValueError(f"GroupedZeroInflatedLogNormal: draws need the number of cells in each group. {needed}")
        shape = self._extended_shape(() if sample_shape is None else sample_shape)[:-1]
        with torch.no_grad():
            loc, scale, zero_part = self._cell._parameters()
            count = self.total_count.to(loc).expand(shape)
            n_pos = torch.binomial(count, zero_part.positive.expand(shape))
            mean = loc + scale * (torch.randn_like(count) / n_pos.clamp(min=1).sqrt())
            root = scale * Chi2((n_pos - 1).clamp(min=1), validate_args=False).sample().sqrt()
            m2 = torch.where(n_pos > 1, root.square(), 0)
            return torch.stack([count - n_pos, n_pos, torch.where(n_pos > 0, mean, 0), m2, torch.zeros_like(mean)], -1)

    def __repr__(self) -> str:
        return f"GroupedZeroInflatedLogNormal(batch_shape: {tuple(self.batch_shape)}, of {self._cell})"


def _log_density(statistics: Tensor, loc: Tensor, scale: Tensor, log_zero: Tensor, log_positive: Tensor) -> Tensor:
    n_zero, n_pos, mean, m2, offset_sum = statistics.unbind(-1)
    # 0 log 0 = 0 where no cell is zero (pi = 0) or none is positive (pi = 1).
    zeros = torch.where(n_zero == 0, 0, n_zero * log_zero)
    positives = torch.where(n_pos == 0, 0, n_pos * log_positive)
    # Divide by the scale before squaring: its square may underflow. sqrt(n_pos) comes first, so that 0 stays 0.
    residual, spread = n_pos.sqrt() * (mean - loc) / scale, m2.sqrt() / scale
    squares = torch.addcmul(spread * spread, residual, residual)
    normal = torch.addcmul(offset_sum + n_pos * mean, n_pos, scale.log() + HALF_LOG_2PI)
    return zeros + positives - torch.add(normal, squares, alpha=0.5)


# The version of each valid value. A fit passes the same value at every step, and the check costs 0.6 to 0.9 times as
# much as log_prob with its gradient.
_versions = WeakIdKeyDictionary()


def _check_statistics(value: Tensor) -> None:
    """Raise ValueError unless the value is in the support; where tracing hides the numbers, pass."""
    lasting = not (tracing() or value.is_inference())
    if lasting and _versions.get(value) == value._version:
        return
    valid = GroupedZeroInflatedLogNormal.support.check(value)
    if validation.known_false(valid.all()):
        at = tuple((~valid).nonzero()[0].tolist())
        raise ValueError(
            f"GroupedZeroInflatedLogNormal: value must hold {NAMES} in its last dimension, counts whole and "
            "nonnegative, m2 nonnegative, mean, m2 and offset_sum 0 where n_pos is 0, and all finite; got "
            f"{value[at].tolist()} at index {at} ({int((~valid).sum())} of {valid.numel()} are invalid). Pass the "
            "value of SufficientStatistics, or validate_args=False."
        )
    if lasting:
        _versions[value] = value._version


def _check_shape(value: Tensor) -> None:
    validation.check_real("value", value)
    if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[-1] != 5:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"the number {value}"
        raise ValueError(
            f"GroupedZeroInflatedLogNormal: value must have {NAMES} in its last dimension, got {got}. Pass the value "
            "of SufficientStatistics."
        )
    if value.requires_grad:
        raise ValueError("GroupedZeroInflatedLogNormal: value requires grad, but is data. Pass value.detach().")


def _as_count(total_count: int | Tensor, cell: ZeroInflatedLogNormal) -> Tensor:
    count = torch.as_tensor(total_count, device=cell._loc.device)
    if cell._validate_args and validation.known_false(((count >= 0) & (count.floor() == count)).all()):
        raise ValueError(f"total_count must hold whole numbers of at least 0, got {total_count}.")
    return count
