"""The guide's law of the hyperparameters."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_zilognormal.models._conditional import PathOnly


class HyperNormal(nn.Module):
    """A full-covariance Normal of all hyperparameters; its own are in units of the standard deviations at the start.

    Args:
        start: mean and standard deviation of each at the start, by name, each of shape (k,).
    """

    start: Tensor
    unit: Tensor

    def __init__(self, start: dict[str, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.widths = {name: len(mean) for name, (mean, _) in start.items()}
        self.register_buffer("start", torch.cat([mean for mean, _ in start.values()]))
        self.register_buffer("unit", torch.cat([sd for _, sd in start.values()]))
        self.shift = nn.Parameter(torch.zeros_like(self.start))
        self.tril = nn.Parameter(torch.eye(len(self.start)).to(self.start))

    def forward(self) -> PathOnly:
        """Return the law."""
        return PathOnly(self._law(self.shift, self.tril), self._law(self.shift.detach(), self.tril.detach()))

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Return the hyperparameters by name."""
        return dict(zip(self.widths, vector.split(list(self.widths.values()), -1), strict=True))

    def _law(self, shift: Tensor, tril: Tensor) -> dist.MultivariateNormal:
        scale_tril = self.unit.unsqueeze(-1) * tril.tril()
        return dist.MultivariateNormal(self.start + self.unit * shift, scale_tril=scale_tril, validate_args=False)
