"""Pyro's Independent and Masked wrappers, forwarding what they lose: the score of the gate, and clean values.

Pyro's Independent does not forward `score_parts`, so a law whose draws are only partly reparameterized would get
silently biased gradients behind `.to_event()`. These two behave as Pyro's otherwise, and keep their kind through
`.expand()`, `.mask()` and `.to_event()`.
"""

from typing import Any

import torch
from pyro.distributions import Independent, MaskedDistribution, TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import is_identically_zero, sum_rightmost
from torch import Tensor


class ForwardsScore:
    """Mixin for distributions whose wrappers must forward `score_parts`."""

    base_dist: Any
    batch_shape: torch.Size
    event_dim: int

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> TorchDistribution:
        """Reinterpret rightmost batch dimensions as event dimensions, as in Pyro.

        Args:
            reinterpreted_batch_ndims: how many; all of them by default; negative to take some back.
        """
        ndims = len(self.batch_shape) if reinterpreted_batch_ndims is None else reinterpreted_batch_ndims
        if not -self.event_dim <= ndims <= len(self.batch_shape):
            raise ValueError(
                f"to_event({ndims}): a distribution with batch_shape {tuple(self.batch_shape)} and {self.event_dim} "
                f"event dimensions takes {-self.event_dim} to {len(self.batch_shape)}."
            )
        base: Any = self
        while isinstance(base, ScoredIndependent):
            ndims += base.reinterpreted_batch_ndims
            base = base.base_dist
        return ScoredIndependent(base, ndims) if ndims else base

    def mask(self, mask: bool | Tensor) -> TorchDistribution:
        """Score only the elements where the mask is true, as in Pyro; what is behind it may be NaN.

        Args:
            mask: bool, or boolean tensor broadcastable with batch_shape.
        """
        return ScoredMasked(self, mask)


class _Wrapper(ForwardsScore):
    @property
    def has_rsample(self) -> bool:
        """Whether draws carry pathwise gradients: the base's answer, also when set by `has_rsample_`."""
        return bool(self.base_dist.has_rsample)

    @has_rsample.setter
    def has_rsample(self, value: bool) -> None:
        self.base_dist.has_rsample = value


class ScoredIndependent(_Wrapper, Independent):
    """Pyro's Independent with `score_parts`."""

    def score_parts(self, value: Tensor) -> ScoreParts:
        """The parts of the base, each summed over the event dimensions."""
        return ScoreParts(*map(self._sum, self.base_dist.score_parts(value)))

    def _sum(self, part: Any) -> Any:
        return part if is_identically_zero(part) else sum_rightmost(part, self.reinterpreted_batch_ndims)


class ScoredMasked(_Wrapper, MaskedDistribution):
    """Pyro's MaskedDistribution with `score_parts`, and with masked values neither validated nor differentiated."""

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "ScoredMasked":
        """Expand the base and the mask to a batch shape."""
        return super().expand(batch_shape, self.__new__(type(self)) if _instance is None else _instance)

    def log_prob(self, value: Tensor) -> Tensor:
        """The base's log_prob, 0 behind the mask."""
        if isinstance(self._mask, bool):
            return super().log_prob(value)
        mask = self._mask.reshape(self._mask.shape + (1,) * self.event_dim)
        return super().log_prob(torch.where(mask, value, 1))

    def score_parts(self, value: Tensor) -> ScoreParts:
        """The base's parts, masked but for the score: a masked draw is still a draw."""
        if not isinstance(self._mask, bool):
            return super().score_parts(value)
        parts = self.base_dist.score_parts(value)
        return parts if self._mask else ScoreParts(self.log_prob(value), parts.score_function, 0)
