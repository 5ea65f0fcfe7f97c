"""Small experiments as AnnData, and matrices of cells in all the forms they come in."""

from __future__ import annotations

import functools
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch

from pyro_zilognormal.datasets import simulate_ziln
from pyro_zilognormal.singlecell import HurdleDE

GENES = ("up", "down", "seen", "same", "often", "rare")
STIM = ("condition", "stim", "ctrl")
STEPS = 10


def frame(n: int = 160) -> pd.DataFrame:
    """Cells of four donors a condition, of two sexes, with an age of their own."""
    rng = np.random.default_rng(1)
    condition = np.repeat(["ctrl", "stim"], n // 2)
    donor = [f"{c}{d}" for c, d in zip(condition, np.tile(np.arange(4), n // 4), strict=True)]
    columns = {"condition": condition, "donor": donor, "sex": np.tile(["f", "m"], n // 2), "age": rng.normal(50, 9, n)}
    return pd.DataFrame(columns, index=[f"cell{i}" for i in range(n)])


def values(n: int = 160) -> np.ndarray:
    """Expression of GENES: by 8 up and down, by 2.2 more often seen, and three that do not change."""
    stim = torch.from_numpy(frame(n)["condition"].to_numpy() == "stim")[:, None]
    effect = torch.tensor([np.log(8), -np.log(8), 0, 0, 0, 0])
    gate = torch.tensor([0.0, 0.0, -3.0, 0.0, 0.0, 0.0])
    mu, logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 1.5, 1.5]), torch.tensor([-1.0, -1.0, 1.5, 0.0, -4.0, 2.5])
    simulated = simulate_ziln(n, 6, seed=3, mu=mu + stim * effect, scale=0.6, zi_logits=logits + stim * gate)
    return simulated.values.double().numpy()


def experiment(n: int = 160, x: Any = None) -> anndata.AnnData:
    """An AnnData of them."""
    return anndata.AnnData(values(n) if x is None else x, frame(n), pd.DataFrame(index=list(GENES)))


@functools.cache
def fitted(donor: str | None = None, formula: str = "~ condition") -> HurdleDE:
    """A fit to them, shared by tests that leave it as it is."""
    return HurdleDE(experiment(), formula, donor=donor).fit(steps=STEPS)
