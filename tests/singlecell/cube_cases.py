"""Cells, their cube, and comparisons that the tests of cubes share."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch

from pyro_zilognormal.singlecell import Cube, reduce

STIM = ("condition", "stim", "ctrl")
BY = ["donor", "cell_type", "condition"]
FAST: dict[str, Any] = {"steps": 10, "draws": 100}
LAST_DIGIT = 2.0**-23  # of float32, relative


def cells(n: int = 480, counts: bool = True, seed: int = 0) -> anndata.AnnData:
    """Six genes of six donors, three a condition, of two cell types, at three doses."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame({"donor": rng.choice([f"d{i}" for i in range(6)], n)}, index=np.arange(n).astype(str))
    obs["condition"] = np.where(obs["donor"].str[1].astype(int) % 2, "stim", "ctrl")
    obs["cell_type"] = pd.Categorical(rng.choice(["T", "B"], n), ["T", "B"])  # T is the reference
    obs["dose"] = rng.choice([0.0, 1.0, 2.5], n)
    obs["umis"] = rng.lognormal(8, 0.5, n)
    obs["size"] = np.log(obs["umis"]) - 8
    mean = obs["umis"].to_numpy()[:, None] / 2000 * np.array([1.0, 2.0, 0.5, 1.0, 4.0, 8.0])
    mean[obs["condition"] == "stim", 0] *= 4
    x = rng.negative_binomial(2, 2 / (2 + mean)).astype(float)
    x[:, 5] += 1  # no cell is empty
    values = x if counts else np.log1p(x / obs["umis"].to_numpy()[:, None] * 3000)
    return anndata.AnnData(values, obs, pd.DataFrame(index=[f"g{i}" for i in range(6)]))


def compare(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    """Compare tables to the last digit of float32."""
    assert found.columns.tolist() == wanted.columns.tolist()
    for name in wanted:
        if wanted[name].dtype.kind == "f":
            np.testing.assert_allclose(found[name], wanted[name], rtol=LAST_DIGIT, atol=0, err_msg=name)
        else:
            assert found[name].tolist() == wanted[name].tolist(), name


def same(a: Cube, b: Cube, rtol: float = 0.0) -> None:
    """Compare cubes, to rounding or bit for bit."""
    assert (a.genes, a.obs.astype(str).to_dict("list")) == (b.genes, b.obs.astype(str).to_dict("list"))
    assert a.settings == b.settings
    close = {"rtol": rtol, "atol": 1e-10 if rtol else 0.0}
    torch.testing.assert_close(a.statistics.value, b.statistics.value, **close)
    pairs = [(a.cells, b.cells), (a.totals, b.totals), (a.log_cubes, b.log_cubes)]
    if b.depth:
        assert a.depth
        assert a.depth.name == b.depth.name
        pairs += [(a.depth.value, b.depth.value), (a.depth.log, b.depth.log), (a.depth.bin, b.depth.bin)]
    for one, other in pairs:
        np.testing.assert_allclose(one, other, **close)


CUBE = reduce(cells(), BY)
