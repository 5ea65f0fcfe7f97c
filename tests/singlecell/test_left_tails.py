"""The skewness of the logarithms against numpy, and the genes whose left tails make means too large."""

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import scipy.stats

from pyro_zilognormal.singlecell import HurdleDE
from pyro_zilognormal.singlecell.cli.report import LEFT_TAIL
from pyro_zilognormal.singlecell.errors import ScaleWarning

FORMATS = {"dense": np.asarray, "csr": scipy.sparse.csr_matrix, "csc": scipy.sparse.csc_matrix}
GENES = ("log-normal", "gamma", "sparse", "constant", "silent")


def cells(cells: int = 400) -> tuple[np.ndarray, pd.DataFrame]:
    """Genes of known shapes in two conditions whose means differ, and log size factors."""
    random = np.random.default_rng(0)
    condition = np.arange(cells) % 2
    x = np.stack(
        [
            random.lognormal(1.0, 0.8, cells) * (random.random(cells) > 0.2),
            random.gamma(0.5, 1.0, cells),
            random.lognormal(0.0, 0.5, cells) * (np.arange(cells) < 3),
            np.full(cells, 3.0),
            np.zeros(cells),
        ],
        1,
    )
    obs = pd.DataFrame({"condition": np.where(condition, "b", "a"), "shift": random.normal(0, 0.3, cells)})
    obs.index = obs.index.astype(str)
    return x * np.exp(obs["shift"].to_numpy() + 2.0 * condition)[:, None], obs


@pytest.mark.parametrize("kind", FORMATS)
def test_it_is_the_third_moment_about_the_means_of_conditions(kind: str) -> None:
    x, obs = cells()
    de = HurdleDE(anndata.AnnData(FORMATS[kind](x), obs), "~ condition", offset="shift", scale="linear")
    skewness, error = de.cells.log_skewness
    for gene, name in enumerate(GENES):
        if name in ("sparse", "constant", "silent"):
            assert np.isnan(skewness[gene])
            continue
        log = [
            np.log(x[own, gene]) - obs["shift"].to_numpy()[own]
            for own in ((obs["condition"] == c).to_numpy() & (x[:, gene] > 0) for c in ("a", "b"))
        ]
        deviation = np.concatenate([part - part.mean() for part in log])
        freedom = len(deviation) - 2
        assert skewness[gene] == pytest.approx(
            (deviation**3).sum() / freedom / (deviation @ deviation / freedom) ** 1.5
        )
        assert error[gene] == pytest.approx((6 / freedom) ** 0.5)


@pytest.mark.parametrize("formula", ["~ condition", "~ condition + shift"])
def test_numbers_that_stand_for_nothing_are_named(formula: str) -> None:
    x, obs = cells()
    x[:20, 0] = 1e-185
    adata = anndata.AnnData(x, obs)
    with pytest.warns(ScaleWarning, match="the sd of log x is above 5 in 0: .* pass detection_threshold"):
        HurdleDE(adata, formula, scale="linear")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScaleWarning)
        HurdleDE(adata, formula, scale="linear", detection_threshold=1e-9)


def test_left_tails_are_named() -> None:
    x, obs = cells(2000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        de = HurdleDE(
            anndata.AnnData(x[:, :2], obs, pd.DataFrame(index=GENES[:2])), "~ condition", offset="shift", scale="linear"
        )
        table = de.fit(steps=10).test(("condition", "b", "a")).set_index("variable")
    assert "left_tail" in table.loc["gamma", "predictive_check"]
    assert "left_tail" not in table.loc["log-normal", "predictive_check"]
    assert table.loc["gamma", "log_skewness"] < LEFT_TAIL < table.loc["log-normal", "log_skewness"]


def test_cells_that_are_not_grouped_have_none() -> None:
    x, obs = cells(40)
    obs["age"] = np.linspace(20, 60, 40)
    de = HurdleDE(anndata.AnnData(x[:, :1], obs), "~ condition + age", scale="linear")
    assert all(np.isnan(v).all() for v in de.cells.log_skewness)
