"""Bayesian hurdle regression of all genes at once: the generative model."""

from __future__ import annotations

from dataclasses import replace

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor

from pyro_zilognormal.distribution import ZeroInflatedLogNormal
from pyro_zilognormal.models.hurdle.components import log_scale, make_hierarchy
from pyro_zilognormal.models.hurdle.data import HurdleData
from pyro_zilognormal.models.hurdle.effects import location
from pyro_zilognormal.models.hurdle.priors import HurdlePriors
from pyro_zilognormal.sufficient import GroupedZeroInflatedLogNormal

_DESIGNS = "design", "zero_design", "scale_design"


class HurdleModel(PyroModule):
    r"""Regression of the mean of a zero-inflated log-normal, gene by gene, with strength shared across genes.

    For cell n and gene g, with rows :math:`D_n, E_n, S_n` of the designs of mean, zero part and sigma, and with the
    levels f(n) of some random-effects factors f,

    .. math::
        \lambda_{ng} &= D_n \beta_g + \sum_f u_{g f(n)} \\
        z_{ng} &= E_n \gamma_g + \sum_f v_{g f(n)} - \kappa \lambda_{ng}, \qquad
            \log \sigma_{ng} = S_n \zeta_g \\
        x_{ng} &\sim \mathrm{ZILN}(\lambda_{ng} - \log(1 - \mathrm{sigmoid}\, z_{ng}) - \sigma_{ng}^2 / 2
            + \mathrm{offset}_n,\; \sigma_{ng},\; z_{ng})

    so that :math:`\lambda` is the log mean, log E[X], zeros included, and a log fold change is a difference of
    :math:`\lambda`: a marginalised two-part model (Smith, Preisser, Neelon and Maciejewski 2014, "A marginalized
    two-part model for semicontinuous data"). The log odds of a zero fall with the log mean, by :math:`\kappa` for each
    unit, between genes and within them, and deviate from this line.

    Each gene has its own sds of the random effects, and of its deviations :math:`\gamma_g` of the zero part, one for
    its level and one for its changes, which have distributions across genes; the effects :math:`\beta_{gp}` are a scale
    mixture of Normals (Stephens 2017, "False discovery rates: a new deal") whose weights are learned for each column
    and prefer none; all else is Normal across genes, with hyperpriors of :class:`HurdlePriors`:

    .. math::
        u_{g k} \sim N(0, \tau_{g f}), \; \log \tau_{g f} \sim N(m_f, s_f), \quad
        \gamma_{g0} \sim N(m_0, \omega_{g0}), \; \gamma_{gp} \sim N(m_p, \omega_{g1}), \;
        \log \omega_{gj} \sim N(m_j, s_j), \quad
        \beta_{gp} \sim \sum_k w_{pk} N(0, s_k), \quad \beta_{g0} \sim N(m_0, s_0), \; \ldots

    The average of the distinct rows of each design is taken from it first (of a column of the mean's design, that of
    its rows, in all designs), so that an intercept is that of an average condition, and its prior does not depend on
    which one is coded as the reference; ``at_origin`` returns the
    coefficients of the designs as they were given.

    Sites of shape (genes, width) are ``intercept``, ``effects``, ``random`` and ``random_log_sd``, those of the zero
    part with ``zero_`` before them, ``zero_log_sd`` (log omega) and ``log_sigma``; hyperparameters are ``zero_slope``
    and those that end in ``_mean``, ``_log_sd`` and ``_logits``; ``x`` is the value. sigma is
    sqrt(exp(log_sigma)^2 + 0.001^2): a gene of equal values would otherwise have no posterior.

    A minibatch of b of the N rows of ``data`` is scaled by N / b. All is float64, on the device of ``data``.

    Args:
        data: the data to fit; the model keeps their sizes, not their values.
        priors: those of :meth:`HurdlePriors.for_data` if None.

    Raises:
        TypeError: data that are not :class:`HurdleData`, or priors that are not :class:`HurdlePriors`.
        ValueError: priors of more elements than the design has columns.

    Example:
        >>> import torch
        >>> from pyro.infer import SVI, Predictive, Trace_ELBO
        >>> from pyro_zilognormal.datasets import pbmc68k_reduced
        >>> from pyro_zilognormal.models import HurdleGuide
        >>> pyro.clear_param_store()
        >>> cells = pbmc68k_reduced()
        >>> monocyte = torch.tensor([t == "CD14+ Monocyte" for t in cells.cell_type])
        >>> data = HurdleData.from_cells(cells.values[:, :5], torch.stack([torch.ones(700), monocyte], 1))
        >>> model = HurdleModel(data)
        >>> guide = HurdleGuide(model, data)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        >>> losses = [svi.step(*data.arguments) for _ in range(20)]
        >>> Predictive(model, guide=guide, num_samples=10)(*data.arguments[:-1])["x"].shape
        torch.Size([10, 2, 5, 5])
    """

    def __init__(self, data: HurdleData, priors: HurdlePriors | None = None) -> None:
        super().__init__()
        _check_data(data)
        if not isinstance(priors, HurdlePriors | None):
            raise TypeError(f"priors is a {type(priors).__name__}; needed HurdlePriors(...), or None")
        self.sizes = data.sizes
        self.priors = HurdlePriors.for_data(data) if priors is None else priors
        self.hierarchy = make_hierarchy(data, self.priors)
        for name in _DESIGNS:
            self.register_buffer(f"{name}_centre", _centre(getattr(data, name), data.design))

    @property
    def centres(self) -> tuple[Tensor, ...]:
        """The average of the distinct rows of each design, and 0 for the intercept."""
        return tuple(getattr(self, f"{name}_centre") for name in _DESIGNS)

    def centred(self, data: HurdleData) -> HurdleData:
        """Return the data with the designs that the sites refer to."""
        own, designs = data.design - self.design_centre, {}
        for name, centre in zip(_DESIGNS, self.centres, strict=True):
            given = getattr(data, name)
            # Often one design is all three; it has a row for each cell.
            same = given is data.design and torch.equal(centre, self.design_centre)
            designs[name] = own if same else given - centre
        return replace(data, **designs)

    def at_origin(self, sites: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the sites with intercepts of the designs as they were given.

        Args:
            sites: values of the sites, each of shape (..., genes, width).
        """
        found = dict(sites)
        names = (("intercept", "effects"), ("zero_intercept", "zero_effects"))
        for (intercept, effects), centre in zip(names, self.centres, strict=False):
            if effects in sites:
                found[intercept] = sites[intercept] - sites[effects] @ centre[1:, None]
        log_sigma, centre = sites["log_sigma"], self.scale_design_centre
        found["log_sigma"] = torch.cat([log_sigma[..., :1] - log_sigma @ centre[:, None], log_sigma[..., 1:]], -1)
        return found

    def check_sizes(self, data: HurdleData) -> None:
        """Raise an error unless the data have the rows, genes, levels and columns of the model's."""
        _check_data(data)
        if data.sizes != self.sizes:
            raise ValueError(f"data has {data.sizes}, the model {self.sizes}; needed a model made from these data")

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
        """Draw all coefficients and the values of the rows, or observe the values.

        Args:
            design: of the log mean, of shape (rows, columns).
            zero_design: of the zero part, of shape (rows, zero columns).
            scale_design: of log sigma, of shape (rows, scale columns).
            factors: levels of the random-effects factors, of shape (rows, factors).
            offset: of shape (rows,).
            cells: cells in each group, of shape (rows, genes) or (rows, 1); None where rows are cells.
            value: statistics, of shape (rows, genes, 5), where rows are groups; cells, of shape (rows, genes), where
                they are not; None draws them.
        """
        rows = len(design)
        design, zero_design, scale_design = (
            given - centre for given, centre in zip((design, zero_design, scale_design), self.centres, strict=True)
        )
        values = {
            name: pyro.sample(name, dist.Normal(loc, scale).to_event(1))
            for name, (loc, scale) in self.hierarchy.hyperpriors().items()
        }
        with pyro.plate("genes", self.sizes["genes"], dim=-1):
            for component in [*self.hierarchy.log_sds, *self.hierarchy.coefficients]:
                values[component.name] = pyro.sample(component.name, component.prior(values))
            log_mean = self._predict("", values, design, factors)
            zero = self._predict("zero_", values, zero_design, factors) - values["zero_slope"] * log_mean
            scale = log_scale((values["log_sigma"] @ scale_design.mT).mT).exp()
            with pyro.plate("rows", max(self.sizes["rows"], rows), subsample_size=rows, dim=-2):
                mu, scale, zero = (_beside_rows(v) for v in (location(log_mean, scale, zero), scale, zero))
                if cells is None:
                    likelihood = ZeroInflatedLogNormal(mu + offset.unsqueeze(-1), scale, zero)
                else:
                    likelihood = GroupedZeroInflatedLogNormal(mu, scale, zero, cells)
                pyro.sample("x", likelihood, obs=None if value is None else value.double())

    def _predict(self, part: str, values: dict[str, Tensor], design: Tensor, factors: Tensor) -> Tensor:
        """Return fixed and random effects of a part, of shape (..., rows, genes)."""
        names = [name for name in (f"{part}intercept", f"{part}effects") if name in values]
        eta = torch.cat([values[name] for name in names], -1) @ design.mT
        if self.sizes["levels"]:
            before = 0
            for factor, levels in zip(factors.mT, self.sizes["levels"], strict=True):
                eta = eta + values[f"{part}random"][..., before + factor]
                before += levels
        return eta.mT


def _beside_rows(eta: Tensor) -> Tensor:
    """Drop the dimension of the plate of rows, which coefficients are not in, left of (rows, genes)."""
    return eta if eta.dim() == 2 else eta.squeeze(-3)


def _centre(design: Tensor, of_mean: Tensor) -> Tensor:
    """Return the average of the distinct rows, for columns of the mean's design that of its rows, 0 for the intercept.

    So a column that two designs share is the same in both.
    """
    shared = of_mean.unique(dim=0).mean(0)
    centre = shared.clone() if design is of_mean else design.unique(dim=0).mean(0)
    for k, column in enumerate(design.mT):
        same = (of_mean == column.unsqueeze(-1)).all(0)
        if same.any():
            centre[k] = shared[same][0]
    centre[0] = 0
    return centre


def _check_data(data: object) -> None:
    if not isinstance(data, HurdleData):
        raise TypeError(f"data is a {type(data).__name__}; needed HurdleData.from_cells(x, design, ...)")
