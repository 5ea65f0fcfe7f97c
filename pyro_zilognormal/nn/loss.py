"""The outputs of a network as a zero-inflated log-normal, and its negative log-likelihood as a loss."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_zilognormal.distribution import ZeroInflatedLogNormal
from pyro_zilognormal.distribution.validation import known_false

REDUCTIONS = ("none", "mean", "sum")


def ziln_distribution(params: Tensor, validate_args: bool | None = None) -> ZeroInflatedLogNormal:
    r"""The distribution that the three outputs (a, b, c) of a network stand for.

    .. math:: \text{mu} = a, \qquad \text{scale} = \log(1 + e^b), \qquad \text{zi\_logits} = c

    The scale has no floor but the smallest normal number. Outputs in half precision, as under autocast, are converted
    to float32.

    Args:
        params: floating-point tensor of shape (..., 3).
        validate_args: as that of :class:`~pyro_zilognormal.ZeroInflatedLogNormal`.

    Returns:
        A distribution of batch_shape (...).

    Raises:
        TypeError: no tensor.
        ValueError: a last dimension other than 3, or, with validation, parameters that are not finite.

    Example:
        >>> ziln_distribution(torch.tensor([0.0, 0.5413, 0.0])).mean
        tensor(0.8243)
    """
    _check_tensor("params", params)
    if params.shape[-1:] != (3,):
        raise ValueError(
            f"params must have shape (..., 3) with mu, the scale before softplus, and zi_logits in the last dimension, "
            f"got {tuple(params.shape)}. Let the last layer have 3 outputs, as ZILNHead has."
        )
    loc, raw, zi_logits = params.to(torch.promote_types(params.dtype, torch.float32)).unbind(-1)
    scale = -logsigmoid(-raw)  # torch's softplus turns linear past 20
    scale = scale.clamp(min=torch.finfo(scale.dtype).tiny)  # so that all finite outputs stand for a distribution
    return ZeroInflatedLogNormal(loc, scale, zi_logits, validate_args=validate_args)


def raw_scale(scale: Tensor) -> Tensor:
    """The inverse of softplus, log(exp(scale) - 1)."""
    return scale + torch.log(-torch.expm1(-scale))


def ziln_loss(params: Tensor, target: Tensor, reduction: str = "mean", weight: Tensor | None = None) -> Tensor:
    r"""The negative log-likelihood of zero-inflated log-normals, in nats.

    .. math::
        \ell = \begin{cases} -\log \pi & y = 0 \\
        -\log(1 - \pi) + \log y + \log(\text{scale} \sqrt{2 \pi}) + (\log y - \text{mu})^2 / (2\,\text{scale}^2) & y > 0
        \end{cases}

    Args:
        params: outputs of a network, of shape (..., 3); `ziln_distribution` says what they mean.
        target: y >= 0, of shape (...), in any unit.
        reduction: "none", "mean" or "sum".
        weight: of each target, >= 0, of the same shape. "mean" divides by the sum of the weights. A target of weight 0
            does not count, even if it is NaN.

    Returns:
        The losses, of shape (...), or their weighted mean or sum, a scalar.

    Raises:
        TypeError: an argument that is no tensor.
        ValueError: shapes that differ, another reduction, or, with torch's validation switched on, a negative or NaN
            target, a negative weight, or parameters that are not finite.

    References:
        X. Wang, T. Liu and J. Miao (2019), "A deep probabilistic model for customer lifetime value prediction",
        arXiv:1912.07753. Their logits (p, mu, s) are the params (mu, s, -p).

    Example:
        >>> params = torch.tensor([[0.0, 0.5413, -1.0], [2.0, 0.0, 1.0]], requires_grad=True)
        >>> ziln_loss(params, torch.tensor([1.5, 0.0]), reduction="none")
        tensor([1.7199, 0.3133], grad_fn=<NegBackward0>)
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}.")
    distribution = ziln_distribution(params)
    _check_shape("target", target, distribution.batch_shape)
    if weight is not None:
        _check_shape("weight", weight, distribution.batch_shape)
        if distribution._validate_args and known_false((weight >= 0).all()):
            raise ValueError(f"weight must not be negative, got {weight.min().item()}.")
        target = torch.where(weight == 0, 0, target)
    loss = -distribution.log_prob(target)
    if weight is not None:
        loss = weight * loss
    if reduction == "mean":
        return loss.mean() if weight is None else loss.sum() / weight.sum()
    return loss if reduction == "none" else loss.sum()


def _check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(value).__name__}. Convert it with torch.as_tensor()."
        )


def _check_shape(name: str, tensor: Tensor, shape: torch.Size) -> None:
    _check_tensor(name, tensor)
    # A target of shape (n, 1) would broadcast to n x n losses.
    if tensor.shape != shape:
        raise ValueError(
            f"{name} must have the shape of params without the last dimension, {tuple(shape)}, "
            f"got {tuple(tensor.shape)}. Reshape it with {name}.reshape({tuple(shape)})."
        )
