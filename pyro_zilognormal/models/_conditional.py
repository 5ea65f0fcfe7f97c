"""The guide's law of the coefficients of a gene, given the hyperparameters: prior times a Gaussian site."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_zilognormal.models._arrow import Arrow
from pyro_zilognormal.models._bend import bend, bent_log_density
from pyro_zilognormal.models._couple import couple, curve, uncouple
from pyro_zilognormal.models._mixture import SpikeAndBentSlab
from pyro_zilognormal.models._spike import SpikeAndSlab
from pyro_zilognormal.models._start import Mode

# In units of the prior's precision: what a site that knows nothing starts with.
_NOTHING = 1e-4


class BentNormal(TorchDistribution):
    r"""A multivariate Normal of arrowhead precision L L', whose white noise is bent: skewed, heavy-tailed or curved.

    .. math::
        \theta = L'^{-1} (L^{-1} b + v), \quad v_i = w_i + \sum_{j > i} C_{ij} \operatorname{arsinh}(w_j)^2, \quad
        w_i = \sinh((\operatorname{arsinh} e_i + \epsilon_i) / \delta_i), \quad e_i \sim N(0, 1)

    with skewness epsilon and tail weight delta as in Jones and Pewsey (2009), "Sinh-arcsinh distributions"; at 0 and 1,
    with C = 0, it is the Normal of mean (L L')^-1 b. Its last elements may be given a prior of spike and slab, of which
    L holds the slab: then each is the mixture that this makes of its law given the elements after it.

    Args:
        factor: the lower triangular L, with batch shape (..., genes).
        linear: b, of shape (..., genes, donors + core).
        skewness: of shape (genes, donors + core).
        log_tails: log delta, likewise.
        coupling: C of the core's elements, of shape (genes, core, core), of which what is above the diagonal counts.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, factor: Arrow, linear: Tensor, skewness: Tensor, log_tails: Tensor, coupling: Tensor) -> None:
        self.factor, self.white_mean = factor, factor.solve(linear)
        self.skewness, self.log_tails, self.coupling = skewness, log_tails, coupling.triu(1)
        self.sparse: SpikeAndSlab | None = None
        super().__init__(self.white_mean.shape[:-1], self.white_mean.shape[-1:], validate_args=False)

    def given(self, sparse: SpikeAndSlab) -> BentNormal:
        """Return the law under that prior of the last elements."""
        new = copy.copy(self)
        new.sparse = sparse
        return new

    def evidence(self, sparse: SpikeAndSlab) -> Tensor:
        """Return the log ratio of slab to spike that the data of the last elements tell, were others all slab."""
        mean = self.factor.transpose_solve(self.white_mean)
        last = slice(-sparse.width, None)
        return sparse.evidence(mean[..., last], self.factor.inverse_diagonal()[..., last].reciprocal())

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw by the reparameterization above."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.white_mean.dtype, device=self.white_mean.device)
        return self.bent(noise)

    def bent(self, noise: Tensor) -> Tensor:
        """Return the draw that standard Normal noise of shape (..., genes, donors + core) is bent to."""
        bent = bend(noise, self.skewness, self.log_tails)
        if self.sparse is not None:
            bent = self._sparse_noise(bent, self.sparse)
        return self.factor.transpose_solve(self.white_mean + couple(bent, self.coupling))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        bent = uncouple(self.factor.transpose_times(value) - self.white_mean, self.coupling)
        diagonal = self.factor.diagonal()
        each = bent_log_density(bent, self.skewness, self.log_tails) + diagonal.log()
        if self.sparse is None:
            return each.sum(-1)
        last = slice(-self.sparse.width, None)
        mean = (value - bent / diagonal)[..., last]
        mixture = self._mixture(self.sparse, mean, diagonal[..., last], last)
        return each[..., : -self.sparse.width].sum(-1) + mixture.log_prob(value[..., last]).sum(-1)

    def _sparse_noise(self, bent: Tensor, sparse: SpikeAndSlab) -> Tensor:
        """Replace the noise of the last elements, each depending on those after it, by that of their mixtures."""
        upper, white = self.factor.core.mT, self.white_mean
        drawn = noise = bent[..., :0]
        for k in range(1, sparse.width + 1):
            row = upper[..., -k, upper.shape[-1] - k :]
            later = (row[..., 1:] * drawn).sum(-1, keepdim=True)
            curved = curve(noise, self.coupling[..., -k, None, self.coupling.shape[-1] - k + 1 :])
            mean = (white[..., -k, None] + curved - later) / row[..., :1]
            at = slice(-k, white.shape[-1] - k + 1)
            value = self._mixture(sparse.column(sparse.width - k), mean, row[..., :1], at).rsample()
            drawn = torch.cat([value, drawn], -1)
            noise = torch.cat([row[..., :1] * (value - mean), noise], -1)
        return torch.cat([bent[..., : -sparse.width], noise], -1)

    def _mixture(self, sparse: SpikeAndSlab, mean: Tensor, diagonal: Tensor, at: slice) -> SpikeAndBentSlab:
        return SpikeAndBentSlab.of(sparse, mean, diagonal.square(), self.skewness[..., at], self.log_tails[..., at])


class PathOnly(TorchDistribution):
    """A law whose ELBO gradient leaves out the score of its own parameters, which is 0 on average.

    What is left vanishes where the guide equals the posterior, so that the gradient has no noise there (Roeder, Wu
    and Duvenaud 2017, "Sticking the landing").

    Args:
        law: the law to draw from.
        frozen: the same law, with the variational parameters held constant.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True

    def __init__(self, law: TorchDistribution, frozen: TorchDistribution) -> None:
        self.law, self.frozen = law, frozen
        super().__init__(law.batch_shape, law.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Where the law lives."""
        return self.law.support

    def given(self, sparse: SpikeAndSlab, frozen: SpikeAndSlab) -> PathOnly:
        """Return the law under priors of spike and slab, the second with the variational parameters held constant."""
        return PathOnly(self.law.given(sparse), self.frozen.given(frozen))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw from the law."""
        return self.law.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of the law."""
        return self.law.log_prob(value)

    def score_parts(self, value: Tensor) -> ScoreParts:
        """Leave the score out of the gradient of the entropy."""
        log_prob = self.frozen.log_prob(value)
        return ScoreParts(log_prob, 0, log_prob)


class Conditional(nn.Module):
    """q(theta | mean, sd), proportional to Normal(theta; mean, sd) exp(scale (b' theta - theta' A theta / 2)).

    This is the form of the exact posterior where the likelihood of theta is Gaussian: then A and b are its own, theta
    follows the hyperparameters as it should, and scale is the residual precision relative to the start. Parameters
    are in units of the posterior's standard deviations at the start, L^-1 with L L' = A + 1/sd^2, so that a step of the
    optimiser has the same size for all genes.

    Args:
        mode: where to start.
        mean: of the prior at the start, of shape (donors + core,) or (genes, donors + core).
        prior_precision: 1/sd^2 at the start, likewise.
    """

    site_tips: nn.Parameter
    site_border: nn.Parameter
    site_core: nn.Parameter
    shift: nn.Parameter
    skewness: nn.Parameter
    log_tails: nn.Parameter
    coupling: nn.Parameter
    centre: Tensor
    unit_tips: Tensor
    unit_border: Tensor
    unit_core: Tensor

    def __init__(self, mode: Mode, mean: Tensor, prior_precision: Tensor) -> None:
        super().__init__()
        unit = mode.information.add_diagonal(prior_precision).cholesky()
        # Nothing is known around the prior's mean, so that where data are silent the law is centred as the prior.
        linear = unit.times(unit.transpose_times(mode.theta)) - (1 - _NOTHING) * prior_precision * mean
        for name, value in vars(unit).items():
            self.register_buffer(f"unit_{name}", value)
        # A is singular where there are no cells to tell; a factor needs a little more than nothing.
        site = mode.information.add_diagonal(_NOTHING * prior_precision).cholesky()
        self.register_buffer("centre", site.transpose_solve(site.solve(linear)))
        start = {f"site_{name}": value for name, value in vars(unit.divide(site)).items()}
        for name in ("shift", "skewness", "log_tails"):
            start[name] = torch.zeros_like(mode.theta)
        start["coupling"] = torch.zeros_like(unit.core)
        for name, value in start.items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(
        self,
        mean: Tensor,
        prior_precision: Tensor,
        scale: Tensor | float = 1.0,
    ) -> PathOnly:
        """Return the law of theta under that prior, all slab, with the site's precision scaled."""
        unit = Arrow(self.unit_tips, self.unit_border, self.unit_core)
        factor = unit @ Arrow(self.site_tips, self.site_border, self.site_core.tril())
        # The site's mean is learned, not b: with many cells, a hundredth more of A would move A^-1 b by many sds.
        mean_of_site = self.centre + unit.transpose_solve(self.shift)
        live = (
            *vars(factor.gram()).values(),
            factor.times(factor.transpose_times(mean_of_site)),
            self.skewness,
            self.log_tails,
            self.coupling,
        )
        frozen = tuple(value.detach() for value in live)
        return PathOnly(*(_law(p, mean, prior_precision, scale) for p in (live, frozen)))


def _law(site: tuple[Tensor, ...], mean: Tensor, prior_precision: Tensor, scale: Tensor | float) -> BentNormal:
    """Return the law of a site (the parts of A, b, and how its noise is bent) and a prior."""
    tips, border, core, linear, *bends = site
    precision = Arrow(tips, border, core).scale(scale).add_diagonal(prior_precision)
    return BentNormal(precision.cholesky(), linear * scale + prior_precision * mean, *bends)
