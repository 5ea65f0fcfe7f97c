"""Intervals of effects of covariates, of which each cell has its own value, hold the truth as often as they say."""

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine

from pyro_zilognormal.models import HurdleData, HurdleModel, draw_coefficients
from pyro_zilognormal.models.hurdle import data as data_module
from tests.calibration.simulations import PRIORS, fit

pytestmark = pytest.mark.slow

EXPERIMENTS, CELLS, GENES, CREDIBLE = 40, 1500, 8, 0.9


def draw_from_prior(seed):
    """Cells of two covariates, and the effects that made them, drawn from the model itself."""
    covariates = torch.randn(CELLS, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    design = torch.cat([torch.ones(CELLS, 1, dtype=torch.float64), covariates], 1)
    blank = HurdleData.from_cells(torch.zeros(CELLS, GENES), design)
    with torch.random.fork_rng(devices=[]):
        pyro.set_rng_seed(seed)
        trace = poutine.trace(HurdleModel(blank, PRIORS)).get_trace(*blank.arguments[:-1])
    truth = {name: trace.nodes[name]["value"] for name in ("effects", "zero_effects", "log_sigma")}
    return HurdleData.from_cells(trace.nodes["x"]["value"], design), truth


def held(seed):
    """Which 90 % intervals hold the truth, of shape (sites, genes, covariates)."""
    data, truth = draw_from_prior(seed)
    drawn = draw_coefficients(fit(data, PRIORS, seed), data, 1000, seed)
    ends = torch.tensor([(1 - CREDIBLE) / 2, (1 + CREDIBLE) / 2], dtype=torch.float64)
    found = []
    for name, true in truth.items():
        low, high = drawn[name].quantile(ends, 0)
        found.append(((low <= true) & (true <= high))[:, -2:].numpy())
    return np.stack(found)


def test_intervals_of_many_cells_hold_the_truth(monkeypatch):
    """The start is from 500 of 1,500 cells; genes of one experiment share hyperparameters, so that they are one."""
    monkeypatch.setattr(data_module, "_MOST_CELLS", 500)
    share = np.stack([held(seed).mean((1, 2)) for seed in range(EXPERIMENTS)])
    error = share.std(0, ddof=1) / np.sqrt(EXPERIMENTS)
    assert (np.abs(share.mean(0) - CREDIBLE) < 3 * error + 0.01).all()
