"""The guide of the hurdle regression: gene by gene, the prior times a Gaussian likelihood, with learned corrections."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor

from pyro_zilognormal.models.hurdle.arrowhead import Arrowhead
from pyro_zilognormal.models.hurdle.components import Block, Normal, ScaleMixture
from pyro_zilognormal.models.hurdle.data import HurdleData
from pyro_zilognormal.models.hurdle.initialize import find_start
from pyro_zilognormal.models.hurdle.model import HurdleModel
from pyro_zilognormal.models.hurdle.passes import find_start_of_cells
from pyro_zilognormal.models.hurdle.sinh_arcsinh import PathDerivative, SinhArcsinhNormal
from pyro_zilognormal.models.hurdle.site import Pairs, Site, shear
from pyro_zilognormal.models.hurdle.third_order import Correction, no_correction

# In each step of training the means of hyperparameters move that many times as far as other parameters: they are few,
# and all genes share them, so that their gradients have little noise.
_PACE = 4.0


class HurdleGuide(PyroModule):
    """The approximate posterior of a :class:`HurdleModel`.

    The hyperparameters have a full-covariance Normal. Given them, the log sds of a gene's random effects, and given
    these its coefficients, have the product of their prior and a Gaussian approximation of the likelihood, so that
    genes follow the hyperparameters as in the exact posterior; the scale mixture of the effects makes it a mixture. The
    white noise of this Normal is transformed by sinh-arcsinh and coupled, for skewed and curved posteriors such as
    those of a zero part without a positive value.

    The guide starts at nested Laplace approximations, with hyperparameters by empirical Bayes, which are nearly the
    posterior; training corrects their means and shapes. Parameters are in units of posterior standard deviations.
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
        self.genes, self.hierarchy = data.genes, model.hierarchy
        find = find_start if data.reduced else find_start_of_cells
        start = find(model.centred(data), model.hierarchy)
        self.hyper = HyperparameterNormal(start.hyper)
        log_sds = start.log_sds.linear
        self.log_sds = GaussianSite(start.log_sds, no_correction(log_sds, log_sds.shape[-1]))
        self.coefficients = GaussianSite(start.coefficients, start.correction, start.pairs)

    def forward(
        self,
        design: Tensor,
        zero_design: Tensor,
        scale_design: Tensor,
        factors: Tensor,
        offset: Tensor,
        cells: Tensor | None = None,
        value: Tensor | None = None,
    ) -> None:
        """Draw all coefficients; the arguments are those of the model, and none is used."""
        vector = pyro.sample("hyperparameters", self.hyper.distribution(), infer={"is_auxiliary": True})
        values = self.hyper.split(vector)
        _sample_delta(values)
        with pyro.plate("genes", self.genes, dim=-1):
            for name, block in self.blocks():
                vector = pyro.sample(name, self.distribution(name, values), infer={"is_auxiliary": True})
                sites = block.split(vector)
                _sample_delta(sites)
                values |= sites

    def blocks(self) -> list[tuple[str, Block]]:
        """Return the blocks of a gene, in the order in which they are drawn."""
        return [(name, getattr(self.hierarchy, name)) for name in ("log_sds", "coefficients")]

    def distribution(self, name: str, values: dict[str, Tensor], genes: slice = slice(None)) -> PathDerivative:
        """Return the distribution of a block given what has been drawn, of some genes."""
        block: Block = getattr(self.hierarchy, name)
        sparse = None if block.sparse is None else block.sparse.mixture(values)
        site: GaussianSite = getattr(self, name)
        distribution: PathDerivative = site.distribution(*block.moments(values), values["zero_slope"], sparse, genes)
        return distribution

    def sample_hyperparameters(self, number: int) -> dict[str, Tensor]:
        """Return draws of the hyperparameters, each of shape (number, 1, width)."""
        vector = self.hyper.distribution().sample((number,))
        return {name: value.unsqueeze(-2) for name, value in self.hyper.split(vector).items()}

    def sample_coefficients(
        self, hyper: dict[str, Tensor], draws: int, random: int, genes: slice = slice(None)
    ) -> dict[str, Tensor]:
        """Return draws of all sites of some genes, ``draws`` for each one of the hyperparameters and a gene's sds.

        A factor of the precision is costly, and serves all draws of the same sds. The first ``random`` of each have
        random effects, which the other coefficients do not need.

        Returns:
            Tensors of shape (draws * hyperparameters, genes, width), with one row for each draw.
        """
        values = hyper | self.hierarchy.log_sds.split(self.distribution("log_sds", hyper, genes).live.rsample())
        block, posterior = self.hierarchy.coefficients, self.distribution("coefficients", values, genes).live
        core = posterior.rsample_core((draws,))
        found = {name: value.expand(draws, *value.shape) for name, value in values.items()}
        found |= block.fixed.split(core[..., -block.core :])
        if random:
            found |= {
                k: v for k, v in block.split(posterior.rsample_given_core(core[:random])).items() if k not in found
            }
        return {name: value.flatten(0, 1) for name, value in found.items()}


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
            mean = self.start + _PACE * self.unit * shift
            return dist.MultivariateNormal(mean, scale_tril=scale_tril, validate_args=False)

        return PathDerivative(normal(self.shift, self.tril), normal(self.shift.detach(), self.tril.detach()))

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Return the hyperparameters by name."""
        return dict(zip(self.widths, vector.split(list(self.widths.values()), -1), strict=True))


class GaussianSite(PyroModule):
    """q(theta | mean, precision), proportional to Normal(theta; mean, precision) exp(b' theta - theta' A theta / 2).

    This is the posterior where the likelihood of theta is Gaussian; where it is not, a learned shift of its white noise
    and the skewness, tails and coupling of the last elements, ``core`` of them, correct it.

    Args:
        site: the Gaussian likelihood, at a slope of 0.
        start: values of the corrections.
        pairs: elements which the likelihood takes with the slope of the zero part times others added.
    """

    information: Tensor
    shears: Tensor
    linear: Tensor
    power: Tensor

    def __init__(self, site: Site, start: Correction, pairs: Pairs = ([], [])) -> None:
        super().__init__()
        self.layout, self.pairs = site.information.layout, pairs
        self.register_buffer("information", site.information.values)
        self.register_buffer("shears", site.information.shears(*pairs), persistent=False)
        self.register_buffer("linear", site.linear)
        self.register_buffer("power", site.power)
        self.shift, self.skewness, self.coupling = map(PyroParam, (start.shift, start.skewness, start.coupling))
        self.log_tails = PyroParam(torch.zeros_like(start.skewness))

    def distribution(
        self, mean: Tensor, precision: Tensor, slope: Tensor, sparse: ScaleMixture | None, genes: slice
    ) -> PathDerivative:
        """Return the distribution of theta under that prior and slope, the last elements under a scale mixture."""
        linear = shear(self.linear[genes], slope, self.pairs)
        information = Arrowhead(self.layout, self.information[genes]).sheared(slope, self.shears[:, genes])
        factor = information.plus_diagonal(precision).factor()
        white_mean = factor.whiten(linear + precision * mean)

        def given(shift: Tensor, skewness: Tensor, log_tails: Tensor, coupling: Tensor) -> SinhArcsinhNormal:
            return SinhArcsinhNormal(factor, white_mean + shift, skewness, log_tails, coupling, sparse)

        sparse = None if sparse is None else sparse.tempered(self.power[genes])
        learned = [p[genes] for p in (self.shift, self.skewness, self.log_tails, self.coupling)]
        return PathDerivative(given(*learned), given(*(p.detach() for p in learned)))
