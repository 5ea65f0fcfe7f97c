"""How good predictions of skewed outcomes with zeros are: ranking, calibration, and the whole distribution."""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.special import erfcx

from pyro_zilognormal.distribution import ZeroInflatedLogNormal
from pyro_zilognormal.distribution.validation import broadcast_shapes
from pyro_zilognormal.numerics.normal import ndtr


class Calibration(NamedTuple):
    """Mean predictions and targets of groups of rows, each of shape (groups,), and their mean relative error.

    The error is the mean of abs(predicted / actual - 1): 0 for perfect calibration, inf if a group has only zeros.
    """

    predicted: np.ndarray
    actual: np.ndarray
    error: float


def crps(distribution: ZeroInflatedLogNormal, target: Tensor | ArrayLike) -> Tensor:
    r"""The continuous ranked probability score in closed form: a proper score in the unit of y, the smaller the better.

    .. math::
        \int (F(x) - 1[x \ge y])^2 dx
        = y - 2 (1 - \pi)\, E[\min(L, y)] + (1 - \pi)^2\, E[\min(L, L')], \qquad y \ge 0

    L and L' are independent log-normals, and with z = (log y - mu) / scale

    .. math::
        E[\min(L, y)] = e^{\text{mu} + \text{scale}^2 / 2}\, \Phi(z - \text{scale}) + y\, \Phi(-z), \qquad
        E[\min(L, L')] = e^{\text{mu} + \text{scale}^2 / 2} \operatorname{erfc}(\text{scale} / 2).

    For a point forecast it is the absolute error. Where the scale is far below 1, the terms cancel to a relative error
    of about 1e-15 / scale.

    Args:
        distribution: of batch_shape (...).
        target: y, a tensor or array that broadcasts with the distribution.

    Returns:
        A float64 tensor, differentiable in the distribution's parameters and in y > 0.

    Raises:
        ValueError: shapes that do not broadcast.

    References:
        T. Gneiting and A. E. Raftery (2007), "Strictly proper scoring rules, prediction, and estimation", JASA 102.

    Example:
        >>> crps(ZeroInflatedLogNormal(0.0, 1.0, zi_probs=0.5), [0.0, 1.0, 5.0])
        tensor([0.1976, 0.4361, 3.7271], dtype=torch.float64)
    """
    y = _as_double(target).to(distribution.loc.device)
    broadcast_shapes(target=y.shape, batch_shape=distribution.batch_shape)
    loc, scale = distribution.loc.double(), distribution.scale.double()
    log_positive = logsigmoid(-distribution.zi_logits.double())
    z = (torch.where(y > 0, y, 1).log() - loc) / scale
    two = (2 * log_positive + loc + scale * scale / 4).exp() * erfcx(scale / 2)  # (1 - pi)^2 E[min(L, L')]
    above_zero = y * (1 - 2 * log_positive.exp() * (_below(z, scale) + ndtr(-z)))
    return torch.where(y > 0, above_zero, -y) + two


def _below(z: Tensor, scale: Tensor) -> Tensor:
    """E[L; L < y] / y = exp(scale^2 / 2 - scale z) Phi(z - scale), where neither factor overflows."""
    left, right = torch.minimum(z, scale), torch.maximum(z, scale)
    from_left = (-left * left / 2).exp() * erfcx((scale - left) * math.sqrt(0.5)) / 2
    from_right = (scale * (scale / 2 - right)).exp() * ndtr(right - scale)
    return torch.where(z < scale, from_left, from_right)


def crps_skill(
    distribution: ZeroInflatedLogNormal, target: Tensor | ArrayLike, weight: Tensor | ArrayLike | None = None
) -> float:
    r"""The share of the CRPS that the predictions save, as R^2 is that of the squared error.

    .. math:: 1 - \frac{\operatorname{mean} \operatorname{crps}(F_i, y_i)}{\frac12 \operatorname{mean} |y_i - y_j|}

    The denominator is the CRPS of the empirical distribution of the targets. So 1 is perfect, and 0 as good as one
    distribution for all rows. It is 0 if all targets are equal, as in scikit-learn's `r2_score`.

    Args:
        distribution: of batch_shape (n,).
        target: y, of shape (n,).
        weight: of each row, of shape (n,).

    Raises:
        ValueError: other shapes, or NaN.

    Example:
        >>> crps_skill(ZeroInflatedLogNormal(torch.tensor([0.0, 2.0]), 0.5, -2.0), [1.0, 7.0])  # doctest: +ELLIPSIS
        0.62...
    """
    y = _as_vector("target", target)
    w = torch.ones_like(y) if weight is None else _as_vector("weight", weight)
    if not y.shape == w.shape == distribution.batch_shape:
        needed, came = tuple(distribution.batch_shape), f"{tuple(y.shape)} and {tuple(w.shape)}"
        raise ValueError(f"target and weight must have one value for each distribution, {needed}, got {came}.")
    w = w / w.sum()
    order = y.argsort()
    above = 2 * w[order].cumsum(0) - w[order] - 1  # the weight of smaller targets minus that of larger ones
    spread = (w[order] * above * (y[order] - y.min())).sum()
    found = (w * crps(distribution, y).detach().cpu()).sum()
    return (1 - found / spread).item() if spread > 0 else 0.0


def normalized_gini(target: Tensor | ArrayLike, score: Tensor | ArrayLike) -> float:
    """How well a score ranks the rows by target: 1 for a perfect ranking, 0 for a random one, -1 for the reverse.

    Twice the area between the gains curve (the share of the total that the best rows hold) and the diagonal, divided by
    that of the perfect ranking. Rows with equal scores share their rank, so the order of the rows does not matter. It
    is NaN if all targets are equal.

    Args:
        target: y, of shape (n,).
        score: of each row, of shape (n,); only its order counts, so a log mean serves where the mean overflows.

    Raises:
        ValueError: shapes that differ, or NaN.

    Example:
        >>> round(normalized_gini([0.0, 0.0, 3.0, 5.0], [0.1, 0.2, 0.9, 0.8]), 3)
        0.778
    """
    _, ranked = _by_score(target, score)
    rank = torch.arange(len(ranked), dtype=torch.float64) - (len(ranked) - 1) / 2
    return (rank @ ranked / (rank @ _as_vector("target", target).sort().values)).item()


def decile_calibration(target: Tensor | ArrayLike, prediction: Tensor | ArrayLike, groups: int = 10) -> Calibration:
    """Whether predicted means are right at every level: rows sorted by prediction, in groups of equal size.

    Args:
        target: y, of shape (n,).
        prediction: the predicted mean of each row, of shape (n,).
        groups: how many groups, at most n.

    Raises:
        ValueError: shapes that differ, NaN, or fewer rows than groups.

    Example:
        >>> decile_calibration([0.0, 1.0, 2.0, 6.0], [0.5, 0.5, 2.0, 4.0], groups=2)
        Calibration(predicted=array([0.5, 3. ]), actual=array([0.5, 4. ]), error=0.125)
    """
    pair = _by_score(target, prediction)
    if not 1 <= groups <= len(pair[0]):
        raise ValueError(f"groups must be from 1 to the number of rows, {len(pair[0])}, got {groups}.")
    predicted, actual = (torch.stack([group.mean() for group in values.tensor_split(groups)]) for values in pair)
    return Calibration(predicted.numpy(), actual.numpy(), (predicted / actual - 1).abs().mean().item())


def _by_score(target: Tensor | ArrayLike, score: Tensor | ArrayLike) -> tuple[Tensor, Tensor]:
    """Scores in rising order, and the targets in that order, each the mean of those with an equal score."""
    y, s = _as_vector("target", target), _as_vector("score", score)
    if y.shape != s.shape:
        raise ValueError(f"target and score must have one value a row, got {len(y)} and {len(s)}.")
    values, group, counts = s.unique(return_inverse=True, return_counts=True)
    means = torch.zeros_like(values).index_add_(0, group, y) / counts
    return values.repeat_interleave(counts), means.repeat_interleave(counts)


def _as_vector(name: str, values: Tensor | ArrayLike) -> Tensor:
    vector = _as_double(values).detach().cpu()
    if vector.dim() != 1 or len(vector) == 0 or bool(vector.isnan().any()):
        raise ValueError(f"{name} must be numbers of shape (n,) without NaN, got shape {tuple(vector.shape)}.")
    return vector


def _as_double(values: Tensor | ArrayLike) -> Tensor:
    return values.double() if isinstance(values, Tensor) else torch.tensor(np.asarray(values), dtype=torch.float64)
