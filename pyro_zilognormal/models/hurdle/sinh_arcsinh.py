r"""The posterior of a gene's coefficients: a Normal whose white noise is skewed, heavy-tailed, curved or sparse.

The sinh-arcsinh transform is that of Jones and Pewsey (2009), "Sinh-arcsinh distributions". The triangular coupling
v_i = w_i + sum_{j > i} C_ij arsinh(w_j)^2 curves: the posterior of a zero part that is silent in two conditions is
shaped like a banana. Its Jacobian has determinant 1.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor
from torch.distributions import constraints

from pyro_zilognormal.models.hurdle.arrowhead import Arrowhead
from pyro_zilognormal.models.hurdle.components import SpikeAndSlab

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
    """Return v of noise w, of shape (..., others + core), and C, strictly upper, of shape (..., core, core)."""
    others, core = _split_core(noise, coupling)
    return torch.cat([others, core + _curve(core, coupling)], -1)


def uncouple(coupled: Tensor, coupling: Tensor) -> Tensor:
    """Return the noise w of v, from its last element backwards."""
    others, core = _split_core(coupled, coupling)
    noise = core[..., -1:]
    for k in range(core.shape[-1] - 2, -1, -1):
        own = core[..., k : k + 1] - _curve(noise, coupling[..., k : k + 1, k + 1 :])
        noise = torch.cat([own, noise], -1)
    return torch.cat([others, noise], -1)


def _curve(later: Tensor, coupling: Tensor) -> Tensor:
    """Return what the noise of later elements, of shape (..., k), adds to those of the rows of C (..., rows, k)."""
    return (coupling * later.asinh().square().unsqueeze(-2)).sum(-1)


def _split_core(noise: Tensor, coupling: Tensor) -> tuple[Tensor, ...]:
    return noise.tensor_split([noise.shape[-1] - coupling.shape[-1]], -1)


@dataclass(frozen=True)
class SpikeAndSlabPosterior:
    """A mixture of a Normal spike and a slab whose standardised noise is sinh-arcsinh."""

    log_shares: Tensor  # of spike and slab, of shape (..., width, 2), as means and precisions
    means: Tensor
    precisions: Tensor
    skewness: Tensor  # of the slab, of shape (..., width), as log_tails
    log_tails: Tensor

    def rsample(self) -> Tensor:
        """Draw spike or slab, and within it by reparameterization.

        The path through the choice is left out: its gradient is 0 where the guide equals the posterior, and the
        variance of an implicit one is too large where spike and slab lie apart.
        """
        spike, slab = torch.randn_like(self.means).unbind(-1)
        noise = torch.stack([spike, sinh_arcsinh(slab, self.skewness, self.log_tails)], -1)
        spike, slab = (self.means + noise * self.precisions.rsqrt()).unbind(-1)
        return torch.where(torch.rand_like(spike) < self.log_shares[..., 1].exp(), slab, spike)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log density of each element."""
        spike, slab = ((x.unsqueeze(-1) - self.means) * self.precisions.sqrt()).unbind(-1)
        density = sinh_arcsinh_log_density(slab, self.skewness, self.log_tails)
        both = torch.stack([-spike.square() / 2 - _HALF_LOG_2PI, density], -1)
        return (self.log_shares + both + self.precisions.log() / 2).logsumexp(-1)


class SinhArcsinhNormal(TorchDistribution):
    r"""A multivariate Normal of arrowhead precision L L', whose white noise is sinh-arcsinh and coupled.

    .. math::
        \theta = L'^{-1} (L^{-1} b + v), \quad v_i = w_i + \sum_{j > i} C_{ij} \operatorname{arsinh}(w_j)^2, \quad
        w_i = \sinh((\operatorname{arsinh} e_i + \epsilon_i) / \delta_i), \quad e_i \sim N(0, 1)

    with skewness epsilon and tail weight delta; at 0 and 1, with C = 0, it is the Normal of mean (L L')^-1 b. Its last
    elements may be given a spike-and-slab prior, of which L holds the slab: then each is the mixture that this prior
    makes of its distribution given the elements after it. C, above the diagonal, has shape (genes, core, core).
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, factor: Arrowhead, linear: Tensor, skewness: Tensor, log_tails: Tensor, coupling: Tensor
    ) -> None:
        self.factor, self.white_mean = factor, factor.solve(linear)
        self.skewness, self.log_tails, self.coupling = skewness, log_tails, coupling.triu(1)
        self.sparse: SpikeAndSlab | None = None
        super().__init__(self.white_mean.shape[:-1], self.white_mean.shape[-1:], validate_args=False)

    def with_prior(self, sparse: SpikeAndSlab) -> SinhArcsinhNormal:
        """Return the distribution under that prior of the last elements."""
        new = copy.copy(self)
        new.sparse = sparse
        return new

    def log_bayes_factor(self, sparse: SpikeAndSlab) -> Tensor:
        """Return the log Bayes factor of slab against spike of each of the last elements, the others in the slab."""
        mean = self.factor.transpose_solve(self.white_mean)
        last = slice(-sparse.width, None)
        return sparse.log_bayes_factor(mean[..., last], self.factor.inverse_diagonal()[..., last].reciprocal())

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw by the reparameterization above."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.transform(torch.randn(shape, dtype=self.white_mean.dtype, device=self.white_mean.device))

    def transform(self, noise: Tensor) -> Tensor:
        """Return the draw that standard Normal noise of shape (..., genes, donors + core) becomes."""
        noise = sinh_arcsinh(noise, self.skewness, self.log_tails)
        if self.sparse is not None:
            noise = self._sparse_noise(noise, self.sparse)
        return self.factor.transpose_solve(self.white_mean + couple(noise, self.coupling))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density, of batch shape."""
        noise = uncouple(self.factor.transpose_times(value) - self.white_mean, self.coupling)
        diagonal = self.factor.diagonal()
        each = sinh_arcsinh_log_density(noise, self.skewness, self.log_tails) + diagonal.log()
        if self.sparse is None:
            return each.sum(-1)
        last = slice(-self.sparse.width, None)
        mean = (value - noise / diagonal)[..., last]
        mixture = self._mixture(self.sparse, mean, diagonal[..., last], last)
        return each[..., : -self.sparse.width].sum(-1) + mixture.log_prob(value[..., last]).sum(-1)

    def _sparse_noise(self, noise: Tensor, sparse: SpikeAndSlab) -> Tensor:
        """Replace the noise of the last elements, each depending on those after it, by that of their mixtures."""
        upper, white = self.factor.core.mT, self.white_mean
        values = last = noise[..., :0]
        for k in range(1, sparse.width + 1):
            row = upper[..., -k, upper.shape[-1] - k :]
            later = (row[..., 1:] * values).sum(-1, keepdim=True)
            curved = _curve(last, self.coupling[..., -k, None, self.coupling.shape[-1] - k + 1 :])
            mean = (white[..., -k, None] + curved - later) / row[..., :1]
            at = slice(-k, white.shape[-1] - k + 1)
            value = self._mixture(sparse.column(sparse.width - k), mean, row[..., :1], at).rsample()
            values = torch.cat([value, values], -1)
            last = torch.cat([row[..., :1] * (value - mean), last], -1)
        return torch.cat([noise[..., : -sparse.width], last], -1)

    def _mixture(self, sparse: SpikeAndSlab, mean: Tensor, diagonal: Tensor, at: slice) -> SpikeAndSlabPosterior:
        shares, means, precisions = sparse.posterior(mean, diagonal.square())
        return SpikeAndSlabPosterior(shares, means, precisions, self.skewness[..., at], self.log_tails[..., at])


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

    def with_prior(self, live: SpikeAndSlab, frozen: SpikeAndSlab) -> PathDerivative:
        """Return the distribution under spike-and-slab priors, the second with variational parameters held constant."""
        return PathDerivative(self.live.with_prior(live), self.frozen.with_prior(frozen))

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
