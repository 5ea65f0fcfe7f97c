"""Bayesian hurdle regression of all genes at once: the model and its guide."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor

from pyro_zilognormal.distribution import ZeroInflatedLogNormal
from pyro_zilognormal.models._blocks import Block, Component
from pyro_zilognormal.models._conditional import Conditional, PathOnly
from pyro_zilognormal.models._hyper import HyperNormal
from pyro_zilognormal.models._rows import Rows
from pyro_zilognormal.models._settle import settle_gate
from pyro_zilognormal.models._sigma import log_scale
from pyro_zilognormal.models._start import find_start
from pyro_zilognormal.models.data import HurdleData
from pyro_zilognormal.models.priors import HurdlePriors
from pyro_zilognormal.sufficient import GroupedZeroInflatedLogNormal


class HurdleRegression(PyroModule):
    r"""Regression of both parts of the zero-inflated log-normal, gene by gene, with strength shared across genes.

    For cell n with rows :math:`D_n` and :math:`E_n` of the designs, and donor d(n), and gene g,

    .. math::
        x_{ng} \sim \mathrm{ZILN}(D_n \beta_g + u_{g d(n)} + \mathrm{offset}_n,\; \sigma_g,\; E_n \gamma_g + v_{g d(n)})

    with priors across genes, each m and log s with a prior of its own (:class:`HurdlePriors`),

    .. math::
        \beta_{g0} \sim N(m_0, s_0), \; \beta_{gp} \sim N(0, s_p), \; \log \sigma_g \sim N(m_\sigma, s_\sigma), \;
        u_{gd} \sim N(0, s_u)

    and likewise for the gate, whose coefficients are log odds of a zero. Sparse effects are that only in a share of the
    genes, which is learned for each column, and nearly 0 in the others, in both parts together if these have the same
    design. The sites of a gene, each of shape (genes, width), are ``intercept``, ``effects``, ``donors`` and
    ``log_sigma``, and those of the gate with ``gate_`` before them; the hyperparameters' end in ``_mean``, ``_log_sd``
    and ``_logit_share``. sigma is sqrt(exp(log_sigma)^2 + 0.001^2): a gene of equal values has no posterior without.

    Given the hyperparameters, the two parts of a gene are independent in the posterior (where effects are not sparse),
    and so they are in the guide. Each is a full-covariance Normal, the product of the prior and a learned Gaussian
    site, so that genes follow the hyperparameters as in the exact posterior; the positive part is one given sigma,
    which is what it is in the exact posterior. Sparse effects make a mixture of two of it. Its white noise is bent
    where the posterior is skewed or curved, as that of a silent gene's gate. The hyperparameters have a full-covariance
    Normal. All start at the posterior mode, found by Newton's method and EM, from which the gates are trained gene by
    gene where rows are groups, and move in units of posterior sds.

    Args:
        data: what it will be fitted to; everything is float64, on the device of ``data``.
        priors: those of :meth:`HurdlePriors.for_data` if None.

    Raises:
        TypeError: for data that are not :class:`HurdleData`, and priors that are not :class:`HurdlePriors`.
        ValueError: for priors of more elements than the design has columns.

    Example:
        >>> from pyro_zilognormal.datasets import pbmc68k_reduced
        >>> from pyro_zilognormal.svi import fit, posterior_draws
        >>> cells = pbmc68k_reduced()
        >>> monocyte = torch.tensor([t == "CD14+ Monocyte" for t in cells.cell_type])
        >>> data = HurdleData.from_cells(cells.values[:, :5], torch.stack([torch.ones(700), monocyte], 1))
        >>> regression = HurdleRegression(data)
        >>> result = fit(regression.model, regression.guide, *data.arguments, steps=20)
        >>> posterior_draws(result, *data.arguments, draws=10)["effects"].shape
        torch.Size([10, 5, 1])
    """

    def __init__(self, data: HurdleData, priors: HurdlePriors | None = None) -> None:
        super().__init__()
        if not isinstance(data, HurdleData):
            raise TypeError(f"data is a {type(data).__name__}; needed HurdleData.from_cells(x, design, ...)")
        if not isinstance(priors, HurdlePriors | None):
            raise TypeError(f"priors is a {type(priors).__name__}; needed HurdlePriors(...), or None")
        self.genes, self.sizes = data.genes, data.sizes
        self.priors = HurdlePriors.for_data(data) if priors is None else priors
        self.blocks = _blocks(data, self.priors)
        self._start(data)

    def model(self, value: Tensor, design: Tensor, gate_design: Tensor, donor: Tensor, offset: Tensor) -> None:
        """Draw rows of cells, or the statistics of groups, from the prior.

        Args:
            value: statistics, of shape (rows, genes, 5), or cells, of shape (rows, genes).
            design: of shape (rows, columns).
            gate_design: of shape (rows, gate columns).
            donor: of shape (rows,).
            offset: of shape (rows,).
        """
        values = {name: _sample_normal(name, prior) for name, prior in self._hyperpriors().items()}
        with pyro.plate("genes", self.genes, dim=-1):
            for block in self.blocks.values():
                values |= {c.name: pyro.sample(c.name, c.prior(values)) for c in block.components}
                values |= self._evidence(values, block)
            mu = _predict(design, donor, values["intercept"], values.get("effects"), values.get("donors"))
            gate = [values.get(f"gate_{k}") for k in ("effects", "donors")]
            zi_logits = _predict(gate_design, donor, values["gate_intercept"], *gate)
            sigma = log_scale(values["log_sigma"]).squeeze(-1).exp()
            with pyro.plate("rows", len(design), dim=-2):
                pyro.sample("x", _likelihood(value, mu, sigma, zi_logits, offset), obs=value.double())

    def guide(self, value: Tensor, design: Tensor, gate_design: Tensor, donor: Tensor, offset: Tensor) -> None:
        """Draw all latent sites from the approximate posterior; arguments as those of the model."""
        vector = pyro.sample("hyperparameters", self.hyper(), infer={"is_auxiliary": True})
        values = self.hyper.split(vector)
        for name, found in values.items():
            pyro.sample(name, dist.Delta(found, event_dim=1))
        with pyro.plate("genes", self.genes, dim=-1):
            values |= self._draw("log_sigma", self._law("log_sigma", values))
            # Given sigma the positive part is a linear regression, whose posterior is Normal.
            scale = (2 * (self.log_scale_start - log_scale(values["log_sigma"]))).exp()
            positive, gate = self._law("positive", values, scale), self._law("gate", values)
            values |= self._draw("positive", self._sparse_positive(positive, gate, values))
            values |= self._evidence(values, self.blocks["positive"])
            sparse = self.blocks["gate"].spike_and_slab(values)
            self._draw("gate", gate if sparse is None else gate.given(sparse, sparse))

    def _law(self, name: str, values: dict[str, Tensor], scale: Tensor | float = 1.0) -> PathOnly:
        """Return the law of a block given what has been drawn, were the prior of effects all slab."""
        return self.laws[name](*self.blocks[name].moments(values), scale)

    def _draw(self, name: str, law: PathOnly) -> dict[str, Tensor]:
        """Draw the components of a block."""
        theta = pyro.sample(f"{name}_block", law, infer={"is_auxiliary": True})
        parts = self.blocks[name].split(theta)
        for site, value in parts.items():
            pyro.sample(site, dist.Delta(value, event_dim=1))
        return parts

    def _sparse_positive(self, positive: PathOnly, gate: PathOnly, values: dict[str, Tensor]) -> PathOnly:
        """Return the positive part's law under its prior of spike and slab and what the gate's data tell of it."""
        own, other = (self.blocks[k].spike_and_slab(values) for k in ("positive", "gate"))
        if own is None:
            return positive
        if other is None or not self._shared:
            return positive.given(own, own)
        return positive.given(*(own.shifted(law.evidence(other)) for law in (gate.law, gate.frozen)))

    def _evidence(self, values: dict[str, Tensor], drawn: Block) -> dict[str, Tensor]:
        """Return what the positive part's effects, once drawn, tell of the gate's: they are nearly 0 together."""
        sparse = drawn.spike_and_slab(values)
        if sparse is None or not self._shared or drawn is not self.blocks["positive"]:
            return {}
        return {"gate_effects_evidence": sparse.told_by(values["effects"])}

    @property
    def _shared(self) -> bool:
        return self.blocks["gate"].components[-1].share == "effects_logit_share"

    def _hyperpriors(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: prior for block in self.blocks.values() for name, prior in block.hyperparameters().items()}

    def _start(self, data: HurdleData) -> None:
        """Set the guide to the posterior mode, that of a subset of the cells where there are no groups."""
        some = data.some_rows()
        rows = Rows(data.design[some], data.donor[some], data.donors)
        gate_rows = Rows(data.gate_design[some], data.donor[some], data.donors)
        with torch.no_grad():
            start = find_start(data.statistics(), gate_rows, rows, self.blocks)
        self.hyper = HyperNormal({name: start.hyper[name] for name in self._hyperpriors()})
        values = {name: mean for name, (mean, _) in start.hyper.items()}
        laws = {k: Conditional(start.modes[k], *block.moments(values)) for k, block in self.blocks.items()}
        self.laws = torch.nn.ModuleDict(laws)
        if data.reduced:
            settle_gate(laws["gate"], data.statistics(), gate_rows, self.blocks["gate"].moments(values))
        self.register_buffer("log_scale_start", log_scale(start.modes["log_sigma"].theta))


def _blocks(data: HurdleData, priors: HurdlePriors) -> dict[str, Block]:
    """Return what the likelihood ties together: log sigma, the positive part given it, and the gate."""
    sigma = Component("log_sigma", 1, _log(priors.log_sigma_sd, 1), _pair(priors.log_sigma_mean, 1))
    same = torch.equal(data.design, data.gate_design)
    positive = _components("", data.design.shape[1] - 1, data.donors, priors, "effects")
    gate = _components(
        "gate_", data.gate_design.shape[1] - 1, data.donors, priors, "effects" if same else "gate_effects"
    )
    return {
        "log_sigma": Block((sigma,), 0),
        "positive": Block(tuple(positive), data.donors),
        "gate": Block(tuple(gate), data.donors),
    }


def _components(part: str, effects: int, donors: int, priors: HurdlePriors, owner: str) -> list[Component]:
    def prior(name: str) -> Any:
        return getattr(priors, part + name)

    mean = _pair(prior("intercept_mean"), 1)
    intercept = Component(f"{part}intercept", 1, _log(prior("intercept_sd"), 1), mean)
    groups = Component(f"{part}donors", donors, _log(prior("donors_sd"), 1))
    slopes = Component(f"{part}effects", effects, _log(prior("effects_sd"), effects))
    if priors.effects_share is not None:
        share = _logit(priors.effects_share, effects) if owner == slopes.name else None
        slopes = replace(slopes, logit_share=share, share=f"{owner}_logit_share", spike_sd=priors.spike_sd)
    return [c for c in (groups, intercept, slopes) if c.width]


def _pair(pair: tuple[Any, Any], width: int) -> tuple[Tensor, Tensor]:
    first, second = (torch.as_tensor(v, dtype=torch.float64).reshape(-1) for v in pair)
    if not {len(first), len(second)} <= {1, width}:
        raise ValueError(
            f"a prior of HurdlePriors is {pair}; needed numbers, or {width} elements where effects have it"
        )
    return first.expand(width), second.expand(width)


def _log(pair: tuple[Any, Any], width: int) -> tuple[Tensor, Tensor]:
    """Return mean and sd of the logarithm of a LogNormal from its median and spread."""
    median, spread = _pair(pair, width)
    return median.log(), spread


def _logit(pair: tuple[Any, Any], width: int) -> tuple[Tensor, Tensor]:
    """Return mean and sd of the log odds of a share from its median and spread."""
    median, spread = _pair(pair, width)
    return median.logit(), spread


def _sample_normal(name: str, prior: tuple[Tensor, Tensor]) -> Tensor:
    return pyro.sample(name, dist.Normal(*prior).to_event(1))


def _predict(design: Tensor, donor: Tensor, intercept: Tensor, effects: Tensor | None, donors: Tensor | None) -> Tensor:
    """Return the linear predictor, of shape (..., rows, genes)."""
    coefficients = intercept if effects is None else torch.cat([intercept, effects], -1)
    eta = coefficients @ design.mT
    if donors is not None:
        eta = eta + donors[..., donor]
    # Particles stand left of the plate of rows, which the coefficients are not in.
    return (eta if eta.dim() == 2 else eta.squeeze(-3)).mT


def _likelihood(value: Tensor, mu: Tensor, sigma: Tensor, zi_logits: Tensor, offset: Tensor) -> dist.TorchDistribution:
    if value.dim() == 3:
        return GroupedZeroInflatedLogNormal(mu, sigma, zi_logits, value[..., 0] + value[..., 1])
    return ZeroInflatedLogNormal(mu + offset.unsqueeze(-1), sigma, zi_logits)
