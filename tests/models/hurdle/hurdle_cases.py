"""Small data, models of them, and densities that the tests of the hurdle regression share."""

import copy
import functools
from unittest import mock

import pyro
import torch
from pyro import poutine

from pyro_zilognormal.models import HurdleData, HurdleGuide, HurdleModel, HurdlePriors
from pyro_zilognormal.models.hurdle import guide
from pyro_zilognormal.models.hurdle.initialize import find_start

# Priors so wide that they are flat, with fixed hyperparameters.
FLAT = HurdlePriors(
    intercept_mean=(0.0, 1e3),
    zero_intercept_mean=(0.0, 1e3),
    log_sigma_mean=(0.0, 1e3),
    **dict.fromkeys(("intercept_sd", "effects_sd", "donors_sd", "log_sigma_sd"), (1000.0, 0.001)),
    effects_share=None,
    **dict.fromkeys(("zero_intercept_sd", "zero_effects_sd", "zero_donors_sd"), (1000.0, 0.001)),
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


def hurdle(reduce=None, offset=None, zero_design=None, priors=None, **kinds):
    """A model, its guide and their data; effects are dense unless priors say otherwise."""
    asked = repr((reduce, offset, zero_design, priors, kinds))
    if asked not in _MADE:
        _MADE[asked] = _make(reduce, offset, zero_design, priors, kinds)
    model, guide, data = _MADE[asked]
    return *copy.deepcopy((model, guide)), data


# The start of a guide takes a second: it is found once.
_MADE = {}


def _make(reduce, offset, zero_design, priors, kinds):
    """Ordinary genes need few steps of pretraining; test_hurdle_pretraining.py and others take all."""
    model, data = without_guide(reduce, offset, zero_design, priors, **kinds)
    with mock.patch.object(guide, "pretrain_zero", functools.partial(guide.pretrain_zero, steps=30)):
        return model, HurdleGuide(model, data), data


def without_guide(reduce=None, offset=None, zero_design=None, priors=None, **kinds):
    data = HurdleData.from_cells(**table(**kinds), reduce=reduce, offset=offset, zero_design=zero_design)
    return HurdleModel(data, HurdlePriors.for_data(data, effects_share=None) if priors is None else priors), data


def start(model, data):
    return find_start(data.as_groups(), model.blocks)


def latents(posterior, data, seed=0):
    """One draw of all latent sites from the guide, without those that are only its own."""
    pyro.set_rng_seed(seed)
    nodes = poutine.trace(posterior).get_trace(*data.arguments).nodes
    sites = {k: v for k, v in nodes.items() if v["type"] == "sample" and not v["infer"].get("is_auxiliary")}
    return {k: v["value"].detach() for k, v in sites.items() if k not in ("genes", "rows")}


def log_joint(model, data, values):
    """The model's log density of latent values and data."""
    trace = poutine.trace(poutine.condition(model, data=values)).get_trace(*data.arguments)
    return trace.log_prob_sum()
