"""Constructors from the moments of X, zeros included."""

from typing import Any, Self, cast

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_zilognormal.distribution import validation
from pyro_zilognormal.numerics.zero_part import ZERO_PARTS, ZeroPart


class FromMoments:
    """Mixin for a distribution of loc, scale and a zero part."""

    _validate_args: bool

    @classmethod
    def from_mean(
        cls,
        mean: float | Tensor,
        scale: float | Tensor,
        zi_logits: float | Tensor | None = None,
        *,
        zi_probs: float | Tensor | None = None,
        cloglog: float | Tensor | None = None,
        validate_args: bool | None = None,
    ) -> Self:
        r"""The distribution with a given E[X], zeros included, as a regression of the marginal mean needs it.

        .. math:: \text{loc} = \log \text{mean} - \log(1 - \pi) - \text{scale}^2 / 2

        Args:
            mean: E[X] > 0, in units of x.
            scale: standard deviation of log X given X > 0, > 0.
            zi_logits, zi_probs, cloglog: the zero part, as in the constructor; P(X = 0) < 1.
            validate_args: as in the constructor.

        Raises:
            TypeError, ValueError: as the constructor, or, with validation, a mean that is not positive and finite.

        Example:
            >>> from pyro_zilognormal import ZeroInflatedLogNormal
            >>> d = ZeroInflatedLogNormal.from_mean(3.0, 0.5, zi_probs=0.25)
            >>> d.mean, d.zi_probs
            (tensor(3.), tensor(0.2500))
        """
        parameter, zero = validation.only_one(zi_logits=zi_logits, zi_probs=zi_probs, cloglog=cloglog)
        mean, scale, zero = validation.as_tensors(**{"mean": mean, "scale": scale, parameter: zero})
        if cls._validate_args if validate_args is None else validate_args:
            validation.check_parameter("mean", mean, constraints.positive, finite=True)
        loc = _loc_of_mean(mean, scale, ZERO_PARTS[parameter](zero))
        return cast(Any, cls)(loc, scale, validate_args=validate_args, **{parameter: zero})

    @classmethod
    def from_moments(
        cls,
        mean: float | Tensor,
        stddev: float | Tensor,
        zi_probs: float | Tensor,
        validate_args: bool | None = None,
    ) -> Self:
        r"""The distribution with a given mean and standard deviation of X, zeros included.

        .. math:: \text{scale}^2 = \log\big((1 - \pi)(1 + (\text{stddev} / \text{mean})^2)\big)

        Args:
            mean: E[X] > 0, in units of x.
            stddev: the standard deviation of X, in units of x, above mean sqrt(pi / (1 - pi)): the zeros alone give
                that much.
            zi_probs: probability of a zero, in [0, 1).
            validate_args: as in the constructor.

        Raises:
            TypeError, ValueError: as the constructor, or, with validation, moments that no distribution has.

        Example:
            >>> from pyro_zilognormal import ZeroInflatedLogNormal
            >>> d = ZeroInflatedLogNormal.from_moments(3.0, 4.0, zi_probs=0.25)
            >>> d.mean, d.stddev
            (tensor(3.), tensor(4.))
        """
        mean, stddev, zero = validation.as_tensors(mean=mean, stddev=stddev, zi_probs=zi_probs)
        loc, scale = _loc_and_scale(mean, stddev, ZERO_PARTS["zi_probs"](zero))
        if cls._validate_args if validate_args is None else validate_args:
            validation.check_parameter("mean", mean, constraints.positive, finite=True)
            validation.check_moments(stddev, scale)
        return cast(Any, cls)(loc, scale, zi_probs=zero, validate_args=validate_args)


def _loc_of_mean(mean: Tensor, scale: Tensor, zero_part: ZeroPart) -> Tensor:
    """log E[X] - log(1 - pi) - scale^2 / 2."""
    return mean.log() - zero_part.log_positive - scale.square() / 2


def _loc_and_scale(mean: Tensor, stddev: Tensor, zero_part: ZeroPart) -> tuple[Tensor, Tensor]:
    """scale^2 = log((1 - pi) (1 + cv^2)) with cv = stddev / mean, and the loc that goes with it.

    The scale is NaN where no distribution has such moments.
    """
    log_cv = stddev.log() - mean.log()
    large = log_cv > 7  # where the square of cv, and cv itself, may overflow
    cv = torch.where(large, 1, stddev) / torch.where(large, 1, mean)
    log_cv = torch.where(large, log_cv, 7)
    square = zero_part.log_positive + 2 * log_cv + torch.log1p(torch.exp(-2 * log_cv))
    scale = torch.where(large, torch.where(large, square, 1).sqrt(), _scale_of_variation(cv, zero_part))
    return _loc_of_mean(mean, scale, zero_part), scale


def _scale_of_variation(cv: Tensor, zero_part: ZeroPart) -> Tensor:
    """sqrt(log1p(u)) of u = cv^2 (1 - pi) - pi, which may underflow though its root does not."""
    share = cv * zero_part.positive - zero_part.zero / cv  # u / cv
    u = cv * share
    curved = u > torch.finfo(u.dtype).eps
    straight = torch.where(curved, 1, cv).sqrt() * torch.where(curved, 1, share).sqrt()
    return torch.where(curved, torch.log1p(torch.where(curved, u, 1)).sqrt(), straight)
