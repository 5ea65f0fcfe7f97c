r"""The posterior of a gene's coefficients: a Normal whose white noise is skewed, heavy-tailed, curved or sparse.

The sinh-arcsinh transform is that of Jones and Pewsey (2009), "Sinh-arcsinh distributions". The triangular coupling
v_i = w_i + sum_{j > i} C_ij arsinh(w_j)^2 curves: the posterior of a zero part that is silent in two conditions is
shaped like a banana. Its Jacobian has determinant 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor
from torch.distributions import constraints

from pyro_zilognormal.models.hurdle.arrowhead import Factor, apply
from pyro_zilognormal.models.hurdle.components import ScaleMixture

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def arsinh(x: Tensor) -> Tensor:
    """Return arsinh(x), to 1e-15, in a third of the time of ``torch.asinh``."""
    sign = torch.ones_like(x).copysign(x.detach())  # not 0 at 0, where the derivative is 1
    size = x * sign
    return (size + (1 + size.square()).sqrt()).log() * sign


def angle(noise: Tensor, skewness: Tensor, log_tails: Tensor) -> Tensor:
    """Return arsinh of the sinh-arcsinh transform of noise: that of the noise itself at skewness 0 and log tails 0."""
    return (arsinh(noise) + skewness) * (-log_tails).exp()


def sinh_arcsinh_inverse(x: Tensor, skewness: Tensor, log_tails: Tensor) -> Tensor:
    """Return the noise whose sinh-arcsinh transform is x."""
    return (arsinh(x) * log_tails.exp() - skewness).sinh()


def sinh_arcsinh_log_density(x: Tensor, skewness: Tensor, log_tails: Tensor) -> Tensor:
    """Return the log density of the sinh-arcsinh transform of standard Normal noise."""
    noise = sinh_arcsinh_inverse(x, skewness, log_tails)
    # d noise / dx = tails cosh(angle) / sqrt(1 + x^2), and cosh^2 = 1 + noise^2.
    log_slope = log_tails + (noise.square().log1p() - x.square().log1p()) / 2
    return log_slope - noise.square() / 2 - _HALF_LOG_2PI


def couple(angle: Tensor, coupling: Tensor) -> Tensor:
    """Return v of arsinh(w), of shape (..., core), and C, strictly upper, of shape (..., core, core)."""
    return angle.sinh() + apply(coupling, angle.square())


def uncouple(coupled: Tensor, coupling: Tensor) -> Tensor:
    """Return the noise w of v, from its last element backwards."""
    noise = coupled[..., -1:]
    for k in range(coupled.shape[-1] - 2, -1, -1):
        own = coupled[..., k : k + 1] - apply(coupling[..., k : k + 1, k + 1 :], arsinh(noise).square())
        noise = torch.cat([own, noise], -1)
    return noise


class MixturePosterior:
    """A mixture of Normals whose standardised noise is sinh-arcsinh: a scale mixture after some evidence."""

    def __init__(
        self, prior: ScaleMixture, mean: Tensor, precision: Tensor, skewness: Tensor, log_tails: Tensor
    ) -> None:
        self.log_shares, self.means, precisions = prior.posterior(mean, precision)
        self.roots = precisions.sqrt().expand_as(self.means)
        self.skewness, self.log_tails = skewness.unsqueeze(-1), log_tails.unsqueeze(-1)

    def rsample(self, sample_shape: Sequence[int]) -> Tensor:
        """Draw a component, and within it by reparameterization.

        The path through the choice is left out: its gradient is 0 where the guide equals the posterior, and the
        variance of an implicit one is too large where components lie apart.
        """
        means, roots = (v.expand(*sample_shape, *v.shape) for v in (self.means, self.roots))
        uniform = torch.rand_like(means[..., :1])
        chosen = (self.log_shares.exp().cumsum(-1)[..., :-1] < uniform).sum(-1, keepdim=True)
        noise = angle(torch.randn_like(uniform), self.skewness, self.log_tails).sinh()
        return (means.gather(-1, chosen) + noise / roots.gather(-1, chosen)).squeeze(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log density of each element."""
        noise = (x.unsqueeze(-1) - self.means) * self.roots
        density = sinh_arcsinh_log_density(noise, self.skewness, self.log_tails)
        return (self.log_shares + density + self.roots.log()).logsumexp(-1)


class SinhArcsinhNormal(TorchDistribution):
    r"""A multivariate Normal of precision L L', the last elements of whose white noise are sinh-arcsinh and coupled.

    .. math::
        \theta = L'^{-1} (m + v), \quad v_i = w_i + \sum_{j > i} C_{ij} \operatorname{arsinh}(w_j)^2, \quad
        w_i = \sinh((\operatorname{arsinh} e_i + \epsilon_i) / \delta_i), \quad e_i \sim N(0, 1)

    with skewness epsilon and tail weight delta; at 0 and 1, with C = 0, it is the Normal of mean L'^-1 m. These three
    are those of the last elements, the core, of shapes (genes, core) and (genes, core, core); all others have v = e.
    The very last elements may have a scale mixture as prior, of which L holds the widest component: then each is the
    mixture that this prior makes of its distribution given the elements after it.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        factor: Factor,
        white_mean: Tensor,
        skewness: Tensor,
        log_tails: Tensor,
        coupling: Tensor,
        sparse: ScaleMixture | None = None,
    ) -> None:
        self.factor, self.white_mean, self.sparse = factor, white_mean, sparse
        self.skewness, self.log_tails, self.coupling = skewness, log_tails, coupling.triu(1)
        super().__init__(white_mean.shape[:-1], white_mean.shape[-1:], validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw by the reparameterization above."""
        return self.rsample_given_core(self.rsample_core(sample_shape))

    def rsample_core(self, sample_shape: Any = ()) -> Tensor:
        """Draw the core of the factor's layout alone, which needs no draw of the blocks."""
        _, mean = self.factor.layout.split(self.white_mean)
        others, core = self._split(torch.randn_like(mean.expand(*sample_shape, *mean.shape)))
        core = angle(core, self.skewness, self.log_tails)
        if self.sparse is not None:
            core = self._sparse_angle(core, self.sparse)
        return self.factor.colour_core(mean + torch.cat([others, couple(core, self.coupling)], -1))

    def rsample_given_core(self, core: Tensor) -> Tensor:
        """Draw all elements given those of the core."""
        mean, _ = self.factor.layout.split(self.white_mean)
        white = mean + torch.randn_like(mean.expand(*core.shape[:-1], *mean.shape[-2:]))
        return self.factor.layout.join(self.factor.colour_blocks(white, core), core)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density, of batch shape."""
        others, core = self._split(self.factor.uncolour(value) - self.white_mean)
        noise = uncouple(core, self.coupling)
        diagonal = self.factor.diagonal()
        normal = -others.square() / 2 - _HALF_LOG_2PI
        each = torch.cat([normal, sinh_arcsinh_log_density(noise, self.skewness, self.log_tails)], -1) + diagonal.log()
        if self.sparse is None:
            return each.sum(-1)
        last = slice(-self.sparse.width, None)
        mean = value[..., last] - noise[..., last] / diagonal[..., last]
        mixture = self._mixture(self.sparse, mean, diagonal[..., last], last)
        return each[..., : -self.sparse.width].sum(-1) + mixture.log_prob(value[..., last]).sum(-1)

    def _split(self, noise: Tensor) -> tuple[Tensor, ...]:
        return noise.tensor_split([noise.shape[-1] - self.coupling.shape[-1]], -1)

    def _sparse_angle(self, normal: Tensor, sparse: ScaleMixture) -> Tensor:
        """Replace arsinh(w) of the last elements, each depending on those after it, by that of their mixtures."""
        upper, white = self.factor.core.mT, self.white_mean
        values = last = white[..., :0]
        size, core = upper.shape[-1], normal.shape[-1]
        for k in range(1, sparse.width + 1):
            row = upper[..., -k, size - k :]
            later = (row[..., 1:] * values).sum(-1, keepdim=True)
            curved = apply(self.coupling[..., -k, None, core - k + 1 :], last.square())
            mean = (white[..., -k, None] + curved - later) / row[..., :1]
            at = slice(-k, core - k + 1)
            mixture = self._mixture(sparse.column(sparse.width - k), mean, row[..., :1], at)
            value = mixture.rsample(normal.shape[: normal.dim() - mean.dim()])
            batch = value.shape[:-1]
            values = torch.cat([value, values.expand(*batch, -1)], -1)
            last = torch.cat([arsinh(row[..., :1] * (value - mean)), last.expand(*batch, -1)], -1)
        return torch.cat([normal[..., : -sparse.width], last], -1)

    def _mixture(self, sparse: ScaleMixture, mean: Tensor, diagonal: Tensor, at: slice) -> MixturePosterior:
        return MixturePosterior(sparse, mean, diagonal.square(), self.skewness[..., at], self.log_tails[..., at])


class PathDerivative(TorchDistribution):
    """A distribution whose ELBO gradient leaves out the score of its own parameters, which is 0 on average.

    What remains vanishes where the guide equals the posterior, so that the gradient has no noise there (Roeder, Wu
    and Duvenaud 2017, "Sticking the landing").

    ``frozen`` is the distribution ``live`` with the variational parameters held constant.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, live: TorchDistribution, frozen: TorchDistribution) -> None:
        self.live, self.frozen = live, frozen
        super().__init__(live.batch_shape, live.event_shape, validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw by reparameterization."""
        return self.live.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density."""
        return self.live.log_prob(value)

    def score_parts(self, value: Tensor) -> ScoreParts:
        """Leave the score out of the gradient of the entropy."""
        log_prob = self.frozen.log_prob(value)
        return ScoreParts(log_prob, 0, log_prob)
