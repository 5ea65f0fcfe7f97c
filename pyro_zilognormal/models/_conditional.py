"""The guide's law of the coefficients of a gene, given the hyperparameters: prior times a Gaussian site."""

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_zilognormal.models._arrow import Arrow
from pyro_zilognormal.models._start import Mode

# In units of the prior's precision: what a site that knows nothing starts with.
_NOTHING = 1e-4


class BentNormal(TorchDistribution):
    r"""A multivariate Normal of arrowhead precision L L', whose white noise is bent to be skewed or heavy-tailed.

    .. math::
        \theta = L'^{-1} (L^{-1} b + w), \quad
        w_i = \sinh((\operatorname{arsinh} e_i + \epsilon_i) / \delta_i), \quad e_i \sim N(0, 1)

    with skewness epsilon and tail weight delta as in Jones and Pewsey (2009), "Sinh-arcsinh distributions"; at 0 and 1
    it is the Normal of mean (L L')^-1 b.

    Args:
        factor: the lower triangular L, with batch shape (..., genes).
        linear: b, of shape (..., genes, donors + core).
        skewness: of shape (genes, donors + core).
        log_tails: log delta, likewise.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, factor: Arrow, linear: Tensor, skewness: Tensor, log_tails: Tensor) -> None:
        self.factor, self.white_mean = factor, factor.solve(linear)
        self.skewness, self.log_tails = skewness, log_tails
        super().__init__(self.white_mean.shape[:-1], self.white_mean.shape[-1:], validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw by the reparameterization above."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.white_mean.dtype, device=self.white_mean.device)
        bent = ((noise.asinh() + self.skewness) * (-self.log_tails).exp()).sinh()
        return self.factor.transpose_solve(self.white_mean + bent)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        bent = self.factor.transpose_times(value) - self.white_mean
        angle = bent.asinh() * self.log_tails.exp() - self.skewness
        noise = angle.sinh()
        # d noise / d bent = delta cosh(angle) / sqrt(1 + bent^2), and cosh^2 = 1 + noise^2.
        slope = self.log_tails + (noise.square().log1p() - bent.square().log1p()) / 2
        constant = 0.5 * math.log(2 * math.pi)
        return self.factor.log_diagonal() + (slope - noise.square() / 2 - constant).sum(-1)


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

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw from the law."""
        return self.law.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of the law."""
        return self.law.log_prob(value)

    def score_parts(self, value: Tensor) -> ScoreParts:
        """Leave the score out of the gradient of the entropy."""
        return ScoreParts(self.log_prob(value), 0, self.frozen.log_prob(value))


class Conditional(nn.Module):
    """q(theta | mean, sd), proportional to Normal(theta; mean, sd) exp(scale (b' theta - theta' A theta / 2)).

    This is the form of the exact posterior where the likelihood of theta is Gaussian: then A and b are its own, theta
    follows the hyperparameters as it should, and scale is the residual precision relative to the start. Parameters
    are in units of the posterior's standard deviations at the start, L^-1 with L L' = A + 1/sd^2, so that a step of the
    optimiser has the same size for all genes.

    Args:
        mode: where to start.
        mean: of the prior at the start, of shape (donors + core,).
        prior_precision: 1/sd^2 at the start, likewise.
    """

    weights: Tensor
    linear: Tensor
    unit_tips: Tensor
    unit_border: Tensor
    unit_core: Tensor

    def __init__(self, mode: Mode, mean: Tensor, prior_precision: Tensor) -> None:
        super().__init__()
        prior_precision = prior_precision * mode.weights
        unit = mode.information.add_diagonal(prior_precision).cholesky()
        linear = unit.times(unit.transpose_times(mode.theta)) - prior_precision * mean
        for name, value in {"weights": mode.weights, "linear": linear}.items():
            self.register_buffer(name, value)
        for name, value in vars(unit).items():
            self.register_buffer(f"unit_{name}", value)
        # A is singular where there are no cells to tell; a factor needs a little more than nothing.
        site = mode.information.add_diagonal(_NOTHING * prior_precision).cholesky()
        start = {f"site_{name}": value for name, value in vars(unit.divide(site)).items()}
        for name in ("shift", "skewness", "log_tails"):
            start[name] = torch.zeros_like(mode.theta)
        for name, value in start.items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, mean: Tensor, prior_precision: Tensor, scale: Tensor | float = 1.0) -> PathOnly:
        """Return the law of theta under a prior of that mean and precision, with the site's precision scaled."""
        live: dict[str, Tensor] = dict(self.named_parameters())
        frozen = {name: value.detach() for name, value in live.items()}
        prior_precision = prior_precision * self.weights
        return PathOnly(*(self._law(p, mean, prior_precision, scale) for p in (live, frozen)))

    def _law(self, p: dict[str, Tensor], mean: Tensor, prior_precision: Tensor, scale: Tensor | float) -> BentNormal:
        unit = Arrow(self.unit_tips, self.unit_border, self.unit_core)
        site = (unit @ Arrow(p["site_tips"], p["site_border"], p["site_core"].tril())).gram().scale(scale)
        linear = (self.linear + unit.times(p["shift"])) * scale + prior_precision * mean
        return BentNormal(site.add_diagonal(prior_precision).cholesky(), linear, p["skewness"], p["log_tails"])
