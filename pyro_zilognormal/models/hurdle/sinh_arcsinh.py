r"""The posterior of a gene's coefficients: a Normal whose white noise is skewed, heavy-tailed, curved or sparse.

The sinh-arcsinh transform is that of Jones and Pewsey (2009), "Sinh-arcsinh distributions". The triangular coupling
v_i = w_i + sum_{j > i} C_ij arsinh(w_j)^2 curves: the posterior of a zero part that is silent in two conditions is
shaped like a banana. Its Jacobian has determinant 1.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor
from torch.distributions import constraints

from pyro_zilognormal.models.hurdle.arrowhead import Factor
from pyro_zilognormal.models.hurdle.components import ScaleMixture

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def sinh_arcsinh(noise: Tensor, skewness: Tensor, log_tails: Tensor) -> Tensor:
    """Return sinh((arsinh(noise) + skewness) / tails): the noise itself at skewness 0 and log tails 0."""
    return ((noise.asinh() + skewness) * (-log_tails).exp()).sinh()


def sinh_arcsinh_inverse(x: Tensor, skewness: Tensor, log_tails: Tensor) -> Tensor:
    """Return the noise whose sinh-arcsinh transform is x."""
    return (x.asinh() * log_tails.exp() - skewness).sinh()


def sinh_arcsinh_log_density(x: Tensor, skewness: Tensor, log_tails: Tensor) -> Tensor:
    """Return the log density of the sinh-arcsinh transform of standard Normal noise."""
    noise = sinh_arcsinh_inverse(x, skewness, log_tails)
    # d noise / dx = tails cosh(angle) / sqrt(1 + x^2), and cosh^2 = 1 + noise^2.
    log_slope = log_tails + (noise.square().log1p() - x.square().log1p()) / 2
    return log_slope - noise.square() / 2 - _HALF_LOG_2PI


def couple(noise: Tensor, coupling: Tensor) -> Tensor:
    """Return v of noise w, of shape (..., core), and C, strictly upper, of shape (..., core, core)."""
    return noise + _curve(noise, coupling)


def uncouple(coupled: Tensor, coupling: Tensor) -> Tensor:
    """Return the noise w of v, from its last element backwards."""
    noise = coupled[..., -1:]
    for k in range(coupled.shape[-1] - 2, -1, -1):
        own = coupled[..., k : k + 1] - _curve(noise, coupling[..., k : k + 1, k + 1 :])
        noise = torch.cat([own, noise], -1)
    return noise


def _curve(later: Tensor, coupling: Tensor) -> Tensor:
    """Return what the noise of later elements, of shape (..., k), adds to those of the rows of C (..., rows, k)."""
    return (coupling * later.asinh().square().unsqueeze(-2)).sum(-1)


class MixturePosterior:
    """A mixture of Normals whose standardised noise is sinh-arcsinh: a scale mixture after some evidence."""

    def __init__(
        self, prior: ScaleMixture, mean: Tensor, precision: Tensor, skewness: Tensor, log_tails: Tensor
    ) -> None:
        self.log_shares, self.means, precisions = prior.posterior(mean, precision)
        self.roots = precisions.sqrt().expand_as(self.means)
        self.skewness, self.log_tails = skewness.unsqueeze(-1), log_tails.unsqueeze(-1)

    def rsample(self) -> Tensor:
        """Draw a component, and within it by reparameterization.

        The path through the choice is left out: its gradient is 0 where the guide equals the posterior, and the
        variance of an implicit one is too large where components lie apart.
        """
        uniform = torch.rand(self.means.shape[:-1], dtype=self.means.dtype, device=self.means.device)
        chosen = (self.log_shares.exp().cumsum(-1) < uniform.unsqueeze(-1)).sum(-1, keepdim=True)
        chosen = chosen.clamp(max=self.means.shape[-1] - 1)
        noise = sinh_arcsinh(torch.randn_like(self.means[..., :1]), self.skewness, self.log_tails)
        return (self.means.gather(-1, chosen) + noise / self.roots.gather(-1, chosen)).squeeze(-1)

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
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.white_mean.dtype, device=self.white_mean.device)
        others, core = self._split(noise)
        core = sinh_arcsinh(core, self.skewness, self.log_tails)
        if self.sparse is not None:
            core = self._sparse_noise(core, self.sparse)
        return self.factor.colour(self.white_mean + torch.cat([others, couple(core, self.coupling)], -1))

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

    def _sparse_noise(self, noise: Tensor, sparse: ScaleMixture) -> Tensor:
        """Replace the noise of the last elements, each depending on those after it, by that of their mixtures."""
        upper, white = self.factor.core.mT, self.white_mean
        values = last = noise[..., :0]
        size, core = upper.shape[-1], noise.shape[-1]
        for k in range(1, sparse.width + 1):
            row = upper[..., -k, size - k :]
            later = (row[..., 1:] * values).sum(-1, keepdim=True)
            curved = _curve(last, self.coupling[..., -k, None, core - k + 1 :])
            mean = (white[..., -k, None] + curved - later) / row[..., :1]
            at = slice(-k, core - k + 1)
            value = self._mixture(sparse.column(sparse.width - k), mean, row[..., :1], at).rsample()
            values = torch.cat([value, values], -1)
            last = torch.cat([row[..., :1] * (value - mean), last], -1)
        return torch.cat([noise[..., : -sparse.width], last], -1)

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
