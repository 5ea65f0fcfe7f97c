"""The outputs of a network as a zero-inflated log-normal: the last layer, and the negative log-likelihood as a loss."""

from typing import Any, Self

import torch
from torch import Tensor, nn
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
    _check("params", params)
    if params.shape[-1:] != (3,):
        raise ValueError(
            f"params must have shape (..., 3) with mu, the scale before softplus, and zi_logits in the last dimension, "
            f"got {tuple(params.shape)}. Let the last layer have 3 outputs, as ZILNHead has."
        )
    loc, raw, zi_logits = params.to(torch.promote_types(params.dtype, torch.float32)).unbind(-1)
    # Torch's softplus turns linear past 20. All finite outputs stand for a distribution.
    scale = -logsigmoid(-raw).clamp(max=-torch.finfo(raw.dtype).tiny)
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
    _check("target", target, distribution.batch_shape)
    if weight is not None:
        _check("weight", weight, distribution.batch_shape)
        if distribution._validate_args and known_false((weight >= 0).all()):
            raise ValueError(f"weight must not be negative, got {weight.min().item()}.")
        target = torch.where(weight == 0, 0, target)
    loss = -distribution.log_prob(target) if weight is None else -weight * distribution.log_prob(target)
    if reduction == "mean":
        return loss.mean() if weight is None else loss.sum() / weight.sum()
    return loss if reduction == "none" else loss.sum()


def _check(name: str, value: Any, shape: torch.Size | None = None) -> None:
    """Raise for what is no tensor, or of another shape: a target of shape (n, 1) would broadcast to n x n losses."""
    if not isinstance(value, Tensor):
        came = type(value).__name__
        raise TypeError(f"{name} must be a torch.Tensor, got {came}. Convert it with torch.as_tensor().")
    if shape is not None and value.shape != shape:
        raise ValueError(
            f"{name} must have the shape of params without the last dimension, {tuple(shape)}, got "
            f"{tuple(value.shape)}. Reshape it with {name}.reshape({tuple(shape)})."
        )


class ZILNHead(nn.Linear):
    """A linear layer from features to a zero-inflated log-normal.

    Its weights start at 0, so that before training every row has the same distribution, ZILN(0, 1, 0), or that of the
    data after `start_at`. It takes no random numbers.

    Args:
        in_features: the number of features.
        device, dtype: of the parameters.

    Example:
        >>> y = torch.tensor([0.0, 0.0, 10.0, 20.0])
        >>> head = ZILNHead(in_features=2).start_at(y)
        >>> distribution = head(torch.randn(5, 2))
        >>> distribution.loc.exp()
        tensor([14.1421, 14.1421, 14.1421, 14.1421, 14.1421], grad_fn=<ExpBackward0>)
        >>> loss = -distribution.log_prob(torch.ones(5)).mean()  # or ziln_loss(head.params(x), y)
    """

    def __init__(
        self, in_features: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(in_features, 3, device=device, dtype=dtype)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the weights to 0 and the biases to mu 0, scale 1, zi_logits 0."""
        self.weight.zero_()
        self.bias.copy_(torch.tensor([0.0, raw_scale(torch.tensor(1.0)), 0.0]))

    @torch.no_grad()
    def start_at(self, target: Tensor, weight: Tensor | None = None) -> Self:
        """Set the biases to the maximum likelihood estimates of all targets, and the weights to 0.

        mu and scale are mean and standard deviation of log y where y > 0, zi_logits is log((n_zero + 1/2) /
        (n_positive + 1/2)), finite also if there are no zeros. With fewer than two different positive values the scale
        is 1.

        Args:
            target: y >= 0, of any shape.
            weight: of each target, >= 0, of the same shape.

        Returns:
            The layer itself.

        Raises:
            ValueError: a target that is negative, NaN or infinite, or a weight of another shape.
        """
        weight = torch.ones_like(target) if weight is None else weight
        if weight.shape != target.shape:
            raise ValueError(f"weight must have the shape of target, {tuple(target.shape)}, got {tuple(weight.shape)}.")
        y, w = target[weight > 0].double(), weight[weight > 0].double()
        if not bool(((y >= 0) & y.isfinite()).all()):
            raise ValueError(
                f"target must be finite and not negative, got values from {y.min().item()} to {y.max().item()}. Clean "
                "them, or give them a weight of 0."
            )
        n_positive, n_zero = w[y > 0].sum(), w[y == 0].sum()
        log_y, share = y[y > 0].log(), w[y > 0] / n_positive
        mu = (share * log_y).sum()
        several = len(log_y) > 0 and bool(log_y.min() < log_y.max())
        scale = (share * (log_y - mu).square()).sum().sqrt() if several else torch.ones_like(mu)
        self.weight.zero_()
        self.bias.copy_(torch.stack([mu, raw_scale(scale), torch.log((n_zero + 0.5) / (n_positive + 0.5))]))
        return self

    def params(self, x: Tensor) -> Tensor:
        """The three outputs for each row of features, of shape (..., 3), as `ziln_loss` takes them."""
        return super().forward(x)

    def forward(self, x: Tensor) -> ZeroInflatedLogNormal:
        """The distribution of each row of features, of batch_shape (...)."""
        return ziln_distribution(self.params(x))
