"""Bayesian hurdle regression of all genes at once: the generative model."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor

from pyro_zilognormal.distribution import ZeroInflatedLogNormal
from pyro_zilognormal.models.hurdle.components import log_scale, make_blocks
from pyro_zilognormal.models.hurdle.data import HurdleData
from pyro_zilognormal.models.hurdle.priors import HurdlePriors
from pyro_zilognormal.sufficient import GroupedZeroInflatedLogNormal


class HurdleModel(PyroModule):
    r"""Regression of both parts of the zero-inflated log-normal, gene by gene, with strength shared across genes.

    For cell n with rows :math:`D_n` and :math:`E_n` of the designs, and donor d(n), and gene g,

    .. math::
        x_{ng} \sim \mathrm{ZILN}(D_n \beta_g + u_{g d(n)} + \mathrm{offset}_n,\; \sigma_g,\; E_n \gamma_g + v_{g d(n)})

    with priors across genes, each m and log s with a prior of its own (:class:`HurdlePriors`),

    .. math::
        \beta_{g0} \sim N(m_0, s_0), \; \beta_{gp} \sim N(0, s_p), \; \log \sigma_g \sim N(m_\sigma, s_\sigma), \;
        u_{gd} \sim N(0, s_u)

    and likewise for the zero part, whose coefficients are log odds of a zero. The effects have that prior in a share
    of the genes only, which is learned for each column, and are nearly 0 in the others (spike and slab), in both parts
    together where these have the same design; ``effects_share=None`` gives it to all genes.

    Sites of shape (genes, width) are ``intercept``, ``effects``, ``donors`` and ``log_sigma``, and those of the zero
    part with ``zero_`` before them; hyperparameters end in ``_mean``, ``_log_sd`` and ``_logit_share``; ``x`` is the
    value. sigma is sqrt(exp(log_sigma)^2 + 0.001^2): a gene of equal values would otherwise have no posterior.

    A minibatch of b of the N rows of ``data`` is scaled by N / b. All is float64, on the device of ``data``.

    Args:
        data: the data to fit; the model keeps their sizes, not their values.
        priors: those of :meth:`HurdlePriors.for_data` if None.

    Raises:
        TypeError: data that are not :class:`HurdleData`, or priors that are not :class:`HurdlePriors`.
        ValueError: priors of more elements than the design has columns.

    Example:
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
        self.blocks = make_blocks(data, self.priors)

    def check_sizes(self, data: HurdleData) -> None:
        """Raise an error unless the data have the rows, genes, donors and columns of the model's."""
        _check_data(data)
        if data.sizes != self.sizes:
            raise ValueError(f"data has {data.sizes}, the model {self.sizes}; needed a model made from these data")

    def forward(
        self,
        design: Tensor,
        zero_design: Tensor,
        donor: Tensor,
        offset: Tensor,
        cells: Tensor | None = None,
        value: Tensor | None = None,
    ) -> None:
        """Draw all coefficients and the values of the rows, or observe the values.

        Args:
            design: of the positive part, of shape (rows, columns).
            zero_design: of the zero part, of shape (rows, zero columns).
            donor: of shape (rows,).
            offset: of shape (rows,).
            cells: cells in each group, of shape (rows, genes) or (rows, 1); None where rows are cells.
            value: statistics, of shape (rows, genes, 5), where rows are groups; cells, of shape (rows, genes), where
                they are not; None draws them.
        """
        blocks, rows = self.blocks, len(design)
        values = {
            name: pyro.sample(name, dist.Normal(loc, scale).to_event(1))
            for block in blocks.values()
            for name, (loc, scale) in block.hyperpriors().items()
        }
        with pyro.plate("genes", self.sizes["genes"], dim=-1):
            for block in blocks.values():
                values |= {c.name: pyro.sample(c.name, c.prior(values)) for c in block}
                # Of a share in common: effects are in the slab in both parts, or in neither.
                values |= block.last.update_share(values)
            mu = _predict("", values, design, donor)
            zi_logits = _predict("zero_", values, zero_design, donor)
            sigma = log_scale(values["log_sigma"]).squeeze(-1).exp()
            with pyro.plate("rows", max(self.sizes["rows"], rows), subsample_size=rows, dim=-2):
                if cells is None:
                    likelihood = ZeroInflatedLogNormal(mu + offset.unsqueeze(-1), sigma, zi_logits)
                else:
                    likelihood = GroupedZeroInflatedLogNormal(mu, sigma, zi_logits, cells)
                pyro.sample("x", likelihood, obs=None if value is None else value.double())


def _check_data(data: object) -> None:
    if not isinstance(data, HurdleData):
        raise TypeError(f"data is a {type(data).__name__}; needed HurdleData.from_cells(x, design, ...)")


def _predict(part: str, values: dict[str, Tensor], design: Tensor, donor: Tensor) -> Tensor:
    """Return the linear predictor of a part, of shape (..., rows, genes)."""
    sites = [values[part + name] for name in ("intercept", "effects") if part + name in values]
    eta = torch.cat(sites, -1) @ design.mT
    if f"{part}donors" in values:
        eta = eta + values[f"{part}donors"][..., donor]
    # Particles stand left of the plate of rows, which the coefficients are not in.
    return (eta if eta.dim() == 2 else eta.squeeze(-3)).mT
