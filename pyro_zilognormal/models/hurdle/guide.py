"""The guide of the hurdle regression: for each gene and part, the prior times a learned Gaussian site."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_zilognormal.models.hurdle.arrowhead import Arrowhead, DonorDesign
from pyro_zilognormal.models.hurdle.components import Normal, log_scale
from pyro_zilognormal.models.hurdle.data import HurdleData
from pyro_zilognormal.models.hurdle.initialize import find_start
from pyro_zilognormal.models.hurdle.model import HurdleModel
from pyro_zilognormal.models.hurdle.sinh_arcsinh import PathDerivative, SinhArcsinhNormal

# The precision of a site without information at the start, in units of the prior's.
NO_INFORMATION = 1e-4

# Pretraining of the zero part: pairs of draws of opposite noise a step, and the learning rate in units of posterior
# standard deviations at the start, which falls to 0 over the steps.
_PRETRAINING_PAIRS, _PRETRAINING_RATE = 8, 0.05


class HurdleGuide(PyroModule):
    """The approximate posterior of a :class:`HurdleModel`.

    The hyperparameters have a full-covariance Normal. Given them, each part of a gene (the positive one also given
    sigma) is the product of its prior and a learned Gaussian site, so that genes follow the hyperparameters as in the
    exact posterior; sparse effects make it a mixture. The white noise of this Normal is transformed by sinh-arcsinh
    and coupled, for the skewed and curved posterior of a zero part without a positive value.

    The guide starts at the posterior mode, found by Newton's method and EM; where rows are groups, the zero part of
    each gene is then pretrained by itself. Parameters are in units of posterior standard deviations at the start.
    Under ``SVI`` a guide takes over what Pyro's parameter store holds by its names, as an AutoGuide does: call
    ``pyro.clear_param_store()`` before you train a second one.

    Args:
        model: the model.
        data: the data that the model was made from.

    Raises:
        TypeError: a model that is not a :class:`HurdleModel`, or data that are not :class:`HurdleData`.
        ValueError: data of other sizes than the model's.

    Example:
        >>> from pyro.infer import Trace_ELBO
        >>> pyro.clear_param_store()
        >>> data = HurdleData.from_cells(torch.rand(50, 3).round(decimals=1), torch.ones(50, 1))
        >>> model = HurdleModel(data)
        >>> elbo = Trace_ELBO()(model, HurdleGuide(model, data))
        >>> optimizer = torch.optim.Adam(elbo.parameters(), lr=0.01)
        >>> elbo(*data.arguments).backward()
        >>> optimizer.step()
    """

    def __init__(self, model: HurdleModel, data: HurdleData) -> None:
        super().__init__()
        if not isinstance(model, HurdleModel):
            raise TypeError(f"model is a {type(model).__name__}; needed HurdleModel(data)")
        model.check_sizes(data)
        self.genes, self.blocks = data.genes, model.blocks
        start, hyper = find_start(data.as_groups(), model.blocks)
        values = {name: mean for name, (mean, _) in hyper.items()}
        self.hyper = HyperparameterNormal(hyper)
        for name, block in model.blocks.items():
            setattr(self, name, GaussianSite(start[name].theta, start[name].information(), *block.moments(values)))
        if data.reduced:
            pretrain_zero(self.zero, data, *model.blocks["zero"].moments(values))
        self.register_buffer("log_scale_start", log_scale(start["log_sigma"].theta))

    def forward(
        self,
        design: Tensor,
        zero_design: Tensor,
        donor: Tensor,
        offset: Tensor,
        cells: Tensor | None = None,
        value: Tensor | None = None,
    ) -> None:
        """Draw all coefficients; the arguments are those of the model, and none is used."""
        vector = pyro.sample("hyperparameters", self.hyper.distribution(), infer={"is_auxiliary": True})
        values = self.hyper.split(vector)
        _sample_delta(values)
        with pyro.plate("genes", self.genes, dim=-1):
            values |= self._draw("log_sigma", self.distribution("log_sigma", values))
            positive, zero = self.distribution("positive", values), self.distribution("zero", values)
            values |= self._draw("positive", self._positive_with_prior(positive, zero, values))
            values |= self.blocks["positive"].last.update_share(values)
            sparse = self.blocks["zero"].last.spike_and_slab(values)
            self._draw("zero", zero if sparse is None else zero.with_prior(sparse, sparse))

    def distribution(self, name: str, values: dict[str, Tensor]) -> PathDerivative:
        """Return the distribution of a block given what has been drawn, the effects in the slab."""
        scale = self.log_scale_start.new_ones(1)
        if name == "positive":  # given sigma a linear regression, whose posterior is Normal
            scale = (2 * (self.log_scale_start - log_scale(values["log_sigma"]))).exp()
        return getattr(self, name).distribution(*self.blocks[name].moments(values), scale)

    def _draw(self, name: str, distribution: PathDerivative) -> dict[str, Tensor]:
        """Draw the components of a block."""
        theta = pyro.sample(f"{name}_block", distribution, infer={"is_auxiliary": True})
        sites = self.blocks[name].split(theta)
        _sample_delta(sites)
        return sites

    def _positive_with_prior(
        self, positive: PathDerivative, zero: PathDerivative, values: dict[str, Tensor]
    ) -> PathDerivative:
        """Return the positive part under its spike-and-slab prior, updated by the zero part's log Bayes factor."""
        last = [self.blocks[name].last for name in ("positive", "zero")]
        own, other = (component.spike_and_slab(values) for component in last)
        if own is None:
            return positive
        if other is None or last[0].share != last[1].share:
            return positive.with_prior(own, own)
        return positive.with_prior(*(own.updated(d.log_bayes_factor(other)) for d in (zero.live, zero.frozen)))


def _sample_delta(sites: dict[str, Tensor]) -> None:
    for name, value in sites.items():
        pyro.sample(name, dist.Delta(value, event_dim=1))


class HyperparameterNormal(PyroModule):
    """A full-covariance Normal of all hyperparameters, in units of the standard deviations at the start."""

    start: Tensor
    unit: Tensor

    def __init__(self, start: dict[str, Normal]) -> None:
        super().__init__()
        self.widths = {name: len(mean) for name, (mean, _) in start.items()}
        self.register_buffer("start", torch.cat([mean for mean, _ in start.values()]))
        self.register_buffer("unit", torch.cat([sd for _, sd in start.values()]))
        self.shift = PyroParam(torch.zeros_like(self.start))
        self.tril = PyroParam(torch.eye(len(self.start)).to(self.start))

    def distribution(self) -> PathDerivative:
        """Return the distribution of the vector of all hyperparameters."""

        def normal(shift: Tensor, tril: Tensor) -> dist.MultivariateNormal:
            scale_tril = self.unit.unsqueeze(-1) * tril.tril()
            return dist.MultivariateNormal(self.start + self.unit * shift, scale_tril=scale_tril, validate_args=False)

        return PathDerivative(normal(self.shift, self.tril), normal(self.shift.detach(), self.tril.detach()))

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Return the hyperparameters by name."""
        return dict(zip(self.widths, vector.split(list(self.widths.values()), -1), strict=True))


class GaussianSite(PyroModule):
    """q(theta | mean, sd), proportional to Normal(theta; mean, sd) exp(scale (b' theta - theta' A theta / 2)).

    The exact posterior has this form where the likelihood of theta is Gaussian: then A and b are its own, theta
    follows the hyperparameters as it should, and scale is the residual precision relative to the start. Parameters
    are in units of the posterior's standard deviations at the start, L^-1 with L L' = A + 1/sd^2, so that a step of the
    optimiser has the same size for all genes. It starts at theta, with the likelihood's negative Hessian there.
    """

    centre: Tensor

    def __init__(self, theta: Tensor, information: Arrowhead, mean: Tensor, prior_precision: Tensor) -> None:
        super().__init__()
        unit = information.add_diagonal(prior_precision).cholesky()
        # A is singular where there are no cells; its factor needs a little more than no information. That little is
        # centred at the prior's mean, so that where data are silent the posterior is centred as the prior.
        site = information.add_diagonal(NO_INFORMATION * prior_precision).cholesky()
        linear = unit.times(unit.transpose_times(theta)) - (1 - NO_INFORMATION) * prior_precision * mean
        self.register_buffer("centre", site.transpose_solve(site.solve(linear)))
        for name, buffer in vars(unit).items():
            self.register_buffer(f"unit_{name}", buffer)
        for name, start in vars(unit.solve_factor(site)).items():
            setattr(self, f"site_{name}", PyroParam(start))
        for name in ("shift", "skewness", "log_tails"):
            setattr(self, name, PyroParam(torch.zeros_like(theta)))
        self.coupling = PyroParam(torch.zeros_like(unit.core))

    def distribution(self, mean: Tensor, prior_precision: Tensor, scale: Tensor) -> PathDerivative:
        """Return the distribution of theta under that prior, all slab, with the site's precision scaled."""
        unit = self.unit()
        factor = unit @ Arrowhead(self.site_block, self.site_border, self.site_core.tril())
        # The site's mean is learned, not b: with many cells, 1 % more of A would move A^-1 b by many sds.
        linear = factor.times(factor.transpose_times(self.centre + unit.transpose_solve(self.shift)))
        gram = factor.gram()
        live = (gram.block, gram.border, gram.core, linear, self.skewness, self.log_tails, self.coupling)

        def given(block: Tensor, border: Tensor, core: Tensor, linear: Tensor, *transform: Tensor) -> SinhArcsinhNormal:
            precision = Arrowhead(block, border, core).scale(scale).add_diagonal(prior_precision)
            return SinhArcsinhNormal(precision.cholesky(), linear * scale + prior_precision * mean, *transform)

        return PathDerivative(given(*live), given(*(p.detach() for p in live)))

    def unit(self) -> Arrowhead:
        """Return L, the factor of the posterior precision at the start."""
        return Arrowhead(self.unit_block, self.unit_border, self.unit_core)


@torch.enable_grad()
def pretrain_zero(site: GaussianSite, groups: HurdleData, mean: Tensor, precision: Tensor, steps: int = 300) -> None:
    """Train the zero part of each gene by itself, in place, given its prior, all slab.

    The posterior of a zero part that is nearly always 0 or nearly never in a condition is far from the Normal at its
    mode, and the gradient of one draw is too noisy to reach it within a few hundred steps. Given the hyperparameters
    the zero parts of all genes are small logistic regressions, of which many draws a step cost little.
    """
    zeros, positives = (groups.value[..., k].mT for k in (0, 1))
    rows = DonorDesign(groups.zero_design, groups.donor, groups.donors)
    optimizer = torch.optim.Adam(site.parameters(), lr=_PRETRAINING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1.0 / steps, steps)
    generator = torch.Generator(device=zeros.device).manual_seed(0)
    for _ in range(steps):
        q = site.distribution(mean, precision, scale=zeros.new_ones(1))
        shape = _PRETRAINING_PAIRS, *q.shape()
        half = torch.randn(shape, dtype=zeros.dtype, device=zeros.device, generator=generator)
        theta = q.live.transform(torch.cat([half, -half]))
        eta = rows.predict(theta)
        log_likelihood = (zeros * logsigmoid(eta) + positives * logsigmoid(-eta)).sum(-1)
        log_prior = -((theta - mean).square() * precision).sum(-1) / 2
        loss = (q.frozen.log_prob(theta) - log_likelihood - log_prior).mean(0).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()
