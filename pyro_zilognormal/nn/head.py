"""A last layer that gives a zero-inflated log-normal."""

from typing import Self

import torch
from torch import Tensor, nn

from pyro_zilognormal.distribution import ZeroInflatedLogNormal
from pyro_zilognormal.nn.loss import raw_scale, ziln_distribution


class ZILNHead(nn.Linear):
    """A linear layer from features to a zero-inflated log-normal.

    Its weights start at 0, so that before training every row has the same distribution, ZILN(0, 1, 0), or that of the
    data after `start_at`. It takes no random numbers.

    Args:
        in_features: the number of features.
        device: of the parameters.
        dtype: of the parameters.

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
        self.bias.copy_(torch.stack([torch.tensor(0.0), raw_scale(torch.tensor(1.0)), torch.tensor(0.0)]))

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
        counts = weight > 0
        y, w = target[counts].double(), weight[counts].double()
        if not bool(((y >= 0) & y.isfinite()).all()):
            raise ValueError(
                "target must be finite and not negative, got values from "
                f"{y.min().item()} to {y.max().item()}. Clean them, or give them a weight of 0."
            )
        self.weight.zero_()
        self.bias.copy_(torch.stack(_estimates(y, w)))
        return self

    def params(self, x: Tensor) -> Tensor:
        """The three outputs for each row of features, of shape (..., 3), as `ziln_loss` takes them."""
        return super().forward(x)

    def forward(self, x: Tensor) -> ZeroInflatedLogNormal:
        """The distribution of each row of features, of batch_shape (...)."""
        return ziln_distribution(self.params(x))


def _estimates(y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """mu, the scale before softplus, and zi_logits."""
    positive = y > 0
    n_positive, n_zero = weight[positive].sum(), weight[~positive].sum()
    log_y, share = y[positive].log(), weight[positive] / n_positive
    mu = (share * log_y).sum()
    several = len(log_y) > 0 and bool(log_y.min() < log_y.max())
    scale = (share * (log_y - mu).square()).sum().sqrt() if several else torch.ones_like(mu)
    return mu, raw_scale(scale), torch.log((n_zero + 0.5) / (n_positive + 0.5))
