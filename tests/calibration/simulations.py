"""Data sets whose truth is known: drawn from the model's own prior, or with a known share of affected genes."""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_zilognormal.datasets import pbmc68k_reduced
from pyro_zilognormal.models import (
    Condition,
    HurdleData,
    HurdleGuide,
    HurdleModel,
    HurdlePriors,
    draw_coefficients,
    fit_hurdle,
    log_fold_change,
)
from pyro_zilognormal.sufficient import SufficientStatistics
from pyro_zilognormal.svi import FitResult

TEST, REFERENCE = Condition([1.0, 1.0]), Condition([1.0, 0.0])

# Effects in most genes, of sds that a sampler can move between.
DENSE = {"effects_share": (0.95, 0.5), "spike_sd": 0.1}

# Informative enough that a handful of genes and cells make data like real ones, for calibration over the prior.
PRIORS = HurdlePriors(
    intercept_mean=(1.5, 0.5),
    intercept_sd=(0.6, 0.3),
    effects_share=(0.5, 0.5),
    spike_sd=0.05,
    random_sd=(0.25, 0.4),
    random_spread=(0.5, 0.3),
    log_sigma_mean=(-0.5, 0.3),
    log_sigma_sd=(0.25, 0.3),
    log_sigma_effects_sd=(0.1, 0.3),
    zero_slope=(1.0, 0.2),
    zero_intercept_mean=(0.0, 0.5),
    zero_effects_mean=(0.0, 0.2),
    zero_sd=(0.4, 0.4),
    zero_spread=(0.5, 0.3),
    zero_random_sd=(0.2, 0.4),
    zero_random_spread=(0.5, 0.3),
)


def design(donors: int) -> tuple[Tensor, Tensor]:
    """Return design and donor of groups, one a donor: two conditions, each of half of the donors."""
    donor = torch.arange(donors)
    return torch.stack([torch.ones(donors), donor % 2], 1).double(), donor


def draw_from_prior(seed: int, genes: int, donors: int, cells: int) -> tuple[HurdleData, dict[str, Tensor]]:
    """Return data of ``cells`` cells a donor, and the values of all latent sites that made them."""
    rows, donor = design(donors)
    silent = torch.zeros(donors, genes, 5, dtype=torch.float64)
    silent[..., 0] = cells
    blank = HurdleData.from_groups(SufficientStatistics.from_value(silent), rows, factors=donor)
    with torch.random.fork_rng(devices=[]):
        pyro.set_rng_seed(seed)
        trace = poutine.trace(HurdleModel(blank, PRIORS)).get_trace(*blank.arguments[:-1])
    truth = {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes if name not in ("x", "genes", "rows")}
    stats = SufficientStatistics.from_value(trace.nodes["x"]["value"])
    return HurdleData.from_groups(stats, rows, factors=donor), truth


@dataclass(frozen=True)
class Experiment:
    """Cells of donors in two conditions, of which a share of the genes differ.

    Attributes:
        x: cells x genes.
        condition: of each cell, 0 or 1.
        donor: of each cell.
        log_fc: the true log2 ratio of means of each gene.
    """

    x: Tensor
    condition: Tensor
    donor: Tensor
    log_fc: Tensor


def experiment(seed: int, genes: int, share: float, donors: int = 10, cells: int = 50) -> Experiment:
    """Return an experiment whose donors differ, with an sd of 0.25 in log mean and 0.4 in log odds."""
    noise = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=noise, dtype=torch.float64)

    donor = torch.arange(donors).repeat_interleave(cells)
    condition = (donor % 2).double()
    affected = (torch.rand(genes, generator=noise, dtype=torch.float64) < share).double()
    mean, odds = 1.5 + 0.7 * normal(genes), 0.5 + 1.5 * normal(genes)
    effect, zero_effect = 0.8 * normal(genes) * affected, 1.2 * normal(genes) * affected
    of_donor, zero_of_donor = 0.25 * normal(donors, genes), 0.4 * normal(donors, genes)
    mu = mean + condition[:, None] * effect + of_donor[donor]
    logits = odds + condition[:, None] * zero_effect + zero_of_donor[donor]
    sigma = (-0.5 + 0.3 * normal(genes)).exp()
    positive = torch.rand(len(donor), genes, generator=noise, dtype=torch.float64) > logits.sigmoid()
    x = (mu + sigma * normal(len(donor), genes)).exp() * positive
    log_fc = (effect + logsigmoid(-odds - zero_effect) - logsigmoid(-odds)) / torch.log(torch.tensor(2.0))
    return Experiment(x, condition, donor, log_fc)


def fit(data: HurdleData, priors: HurdlePriors | None, seed: int, steps: int = 200) -> FitResult:
    """Fit model and guide; None stands for the default priors."""
    model = HurdleModel(data, priors)
    return fit_hurdle(model, HurdleGuide(model, data), data, steps=steps, seed=seed)


def fitted_log_fc(data: HurdleData, priors: HurdlePriors | None, seed: int, steps: int = 200) -> Tensor:
    """Return 2,000 draws of log2 fold changes of the mean, of shape (draws, genes)."""
    drawn = draw_coefficients(fit(data, priors, seed, steps), data, 2000, seed)
    return log_fold_change(drawn, TEST, REFERENCE).total


T_CELLS = ("CD8+ Cytotoxic T", "CD4+/CD45RO+ Memory", "CD4+/CD45RA+/CD25- Naive T", "CD4+/CD25 T Reg")


def blood(reduce: bool = True) -> HurdleData:
    """Return monocytes and T cells: real data, 50 genes."""
    cells = pbmc68k_reduced()
    kinds = list(cells.cell_type)
    keep = torch.tensor([k == "CD14+ Monocyte" or k in T_CELLS for k in kinds])
    monocyte = torch.tensor([k == "CD14+ Monocyte" for k in kinds])[keep]
    rows = torch.stack([torch.ones(len(monocyte)), monocyte], 1)
    return HurdleData.from_cells(cells.values[keep][:, :50], rows, reduce=reduce)


def with_donors() -> HurdleData:
    """Return simulated cells of 8 donors, 20 genes that all change."""
    made = experiment(3, genes=20, share=1.0, donors=8, cells=40)
    rows = torch.stack([torch.ones_like(made.condition), made.condition], 1)
    return HurdleData.from_cells(made.x, rows, factors=made.donor)


def with_covariates() -> HurdleData:
    """Return 500 simulated cells of two conditions, with two covariates of which each cell has its own value."""
    noise = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=noise, dtype=torch.float64)

    cells, genes = 500, 20
    rows = torch.cat([torch.ones(cells, 1), torch.arange(cells)[:, None] % 2, normal(cells, 2)], 1).double()
    log_mean = 1.5 + 0.7 * normal(genes) + rows[:, 1:] @ (0.4 * normal(3, genes))
    logits = 0.5 + normal(genes) + rows[:, 1:] @ (0.4 * normal(3, genes)) - 0.7 * (log_mean - 1.5)
    sigma = (-0.5 + 0.3 * normal(genes)).exp()
    positive = torch.rand(cells, genes, generator=noise, dtype=torch.float64) > logits.sigmoid()
    mu = log_mean - logsigmoid(-logits) - sigma**2 / 2
    x = (mu + sigma * normal(cells, genes)).exp() * positive
    return HurdleData.from_cells(x, rows, reduce=False)


NUTS_DATA = {"blood": blood, "donors": with_donors, "covariates": with_covariates}
