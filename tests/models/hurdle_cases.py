"""Small data, models of them, and densities that the tests of the hurdle regression share."""

import pyro
import torch
from pyro import poutine

from pyro_zilognormal.models import HurdleData, HurdlePriors, HurdleRegression
from pyro_zilognormal.models._rows import Rows
from pyro_zilognormal.models._start import find_start

# Priors so wide that they say nothing, and do not move.
FLAT = HurdlePriors(
    intercept_mean=(0.0, 1e3),
    gate_intercept_mean=(0.0, 1e3),
    log_sigma_mean=(0.0, 1e3),
    **dict.fromkeys(("intercept_sd", "effects_sd", "donors_sd", "log_sigma_sd"), (1000.0, 0.001)),
    **dict.fromkeys(("gate_intercept_sd", "gate_effects_sd", "gate_donors_sd"), (1000.0, 0.001)),
)


def table(cells=60, genes=5, effects=1, donors=0, continuous=False, seed=0):
    """Cells with effects on both parts, as keyword arguments of HurdleData.from_cells but for the offset."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    columns = normal(cells, effects) if continuous else (normal(cells, effects) > 0).double()
    design = torch.cat([torch.ones(cells, 1), columns], 1)
    donor = torch.arange(cells) % max(donors, 1)
    shift = 0.3 * normal(2, max(donors, 1), genes) * (donors > 0)
    mu = design @ torch.cat([1 + normal(1, genes), 0.4 * normal(effects, genes)]) + shift[0, donor]
    odds = design @ torch.cat([0.7 * normal(1, genes), 0.5 * normal(effects, genes)]) + shift[1, donor]
    positive = torch.rand(cells, genes, dtype=torch.float64, generator=generator) > odds.sigmoid()
    x = torch.where(positive, (mu + 0.5 * normal(cells, genes)).exp(), 0.0)
    return {"x": x, "design": design, "donor": donor if donors else None}


def offsets(cells=60):
    return torch.linspace(-0.5, 0.8, cells, dtype=torch.float64)


def hurdle(reduce=None, offset=None, gate_design=None, priors=None, **kinds):
    """A regression and its data."""
    data = HurdleData.from_cells(**table(**kinds), reduce=reduce, offset=offset, gate_design=gate_design)
    return HurdleRegression(data, priors), data


def start(regression, data):
    rows = [Rows(d, data.donor, data.donors) for d in (data.gate_design, data.design)]
    return find_start(data.statistics(), *rows, regression.blocks)


def latents(regression, data, seed=0):
    """One draw of all latent sites from the guide, without those that are only its own."""
    pyro.set_rng_seed(seed)
    nodes = poutine.trace(regression.guide).get_trace(*data.arguments).nodes
    sites = {k: v for k, v in nodes.items() if v["type"] == "sample" and not v["infer"].get("is_auxiliary")}
    return {k: v["value"].detach() for k, v in sites.items() if k not in ("genes", "rows")}


def log_joint(regression, data, values):
    """The model's log density of latent values and data."""
    trace = poutine.trace(poutine.condition(regression.model, data=values)).get_trace(*data.arguments)
    return trace.log_prob_sum()
