"""Covariates of which each cell has its own value: splines, contrasts of numbers, curves, and cells left in a file."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from pyro_zilognormal.models import cell_parameters
from pyro_zilognormal.singlecell import HurdleDE, SingleCellError, open_cells, pl
from pyro_zilognormal.singlecell.design.design import Design

SPLINES = ["bs(time, df=4)", "cr(time, df=4)", "poly(time, 3)"]


def observations(cells=600):
    rng = np.random.default_rng(0)
    condition = pd.Categorical(np.where(np.arange(cells) % 2, "stim", "ctrl"))
    values = {"condition": condition, "age": rng.normal(60, 10, cells), "time": rng.random(cells)}
    return pd.DataFrame(values, index=np.arange(cells).astype(str))


def experiment(cells=600, genes=4):
    """Gene 0 has a peak at time 0.5, gene 1 doubles in 20 years."""
    rng, obs = np.random.default_rng(1), observations(cells)
    log_mean = np.full((cells, genes), 4.0)
    log_mean[:, 0] += 1.5 * np.exp(-(((obs.time - 0.5) / 0.2) ** 2))
    log_mean[:, 1] += np.log(2) * (obs.age - 60) / 20
    positive = rng.random((cells, genes)) < 0.6
    x = np.exp(log_mean + 0.4 * rng.standard_normal((cells, genes))) * positive
    return anndata.AnnData(sp.csr_matrix(x), obs, pd.DataFrame(index=[f"gene{k}" for k in range(genes)]))


@pytest.mark.parametrize("spline", SPLINES)
def test_the_knots_of_a_spline_are_those_of_the_cells(spline):
    """The row of a condition with the values of a cell is that cell's row."""
    obs = observations(200)
    design = Design(f"~ condition + age + {spline}", obs)
    for cell in (0, 17, int(obs.time.argmax()), int(obs.time.argmin())):
        condition = design.condition(obs.iloc[cell].to_dict())
        np.testing.assert_allclose(condition.design, design.matrix[cell], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spline", SPLINES)
def test_contrasts_of_numbers(spline):
    design = Design(f"~ condition + age + {spline}", observations(200))
    plain, unit, times = design.contrasts(
        [("condition", "stim", "ctrl"), ("age=61", "age=60"), ("time=0.8", "time=0.2")]
    )
    expected = np.zeros(len(design.columns))
    expected[design.columns.index("age")] = 1
    np.testing.assert_allclose(unit.direction, expected, atol=1e-12)
    assert np.flatnonzero(plain.direction).tolist() == [1]
    assert not times.direction[:3].any()
    with pytest.raises(SingleCellError, match="depends on time, with which it interacts"):
        Design(f"~ condition * {spline}", observations(200)).contrasts([("condition", "stim", "ctrl")])


def test_a_spline_has_no_values_beyond_the_cells():
    with pytest.raises(SingleCellError, match=r"has no value at this condition.*bounds"):
        Design("~ bs(time, df=4)", observations(200)).condition({"time": 1.5})


@pytest.fixture(scope="module")
def fitted():
    return HurdleDE(experiment(), "~ condition + age + bs(time, df=4)", scale="linear").fit(steps=10)


def test_curves_are_those_of_the_draws(fitted):
    at = fitted.cond(condition="stim")
    peak, flat = fitted.curves(["gene0", "gene3"], "time", at, credible=0.9)
    assert peak.at.startswith("age=59.77")
    assert peak.at.endswith("condition=stim")
    assert len(peak.bins) == 10
    obs = fitted.cells.design.variables["time"].values
    assert (peak.grid[0], peak.grid[-1]) == (obs.min(), obs.max())
    for k in (0, 41, 99):
        cell = cell_parameters(fitted.draws, fitted.cond(condition="stim", time=peak.grid[k]))
        levels = torch.tensor([0.5, 0.05, 0.95], dtype=torch.float64)
        expected = cell.log_mean[:, 0].quantile(levels).exp()
        np.testing.assert_allclose([end[k] for end in peak.mean], expected, rtol=1e-9)
    middle = peak.mean[0]
    assert 2 < middle[50] / middle[0] < 8  # truly 1.5 in log, e^1.5 = 4.5
    assert (flat.mean[1] < flat.mean[2]).all()
    # Observed means of bins of about 30 cells lie near the curve.
    near = np.interp(peak.bins, peak.grid, middle)
    assert (np.abs(np.log(peak.observed / near)) < 0.8).all()
    stim = (fitted.cells.design.variables["condition"].values == "stim").to_numpy()
    x = fitted.cells.genes([0])[stim, 0]
    order = np.argsort(obs.to_numpy()[stim])
    np.testing.assert_allclose(peak.observed[0], x[order][:30].mean(), rtol=0.2)


def test_a_curve_is_drawn(fitted):
    (found,) = fitted.curves(["gene0"], "time")
    ax = pl.curve(found)
    line, crosses = ax.get_lines()
    np.testing.assert_array_equal(line.get_ydata(), found.mean[0])
    np.testing.assert_array_equal(crosses.get_ydata(), found.observed)
    assert ax.get_title() == "gene0"
    assert "99 % band, at age=59.77" in ax.get_legend().get_texts()[0].get_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gene0", "condition"), "holds categories; needed a variable of numbers"),
        (("gene0", "day"), "'day' is not one of the variables"),
        (("gene9", "time"), "'gene9' is not one of the genes"),
        (("gene0", ["time"]), "column is .*; needed the name of a variable"),
    ],
)
def test_curves_that_cannot_be_drawn(fitted, arguments, message):
    gene, column = arguments
    with pytest.raises(SingleCellError, match=message):
        fitted.curves([gene], column)
    with pytest.raises(SingleCellError, match="gives time, along which the curve goes"):
        fitted.curves(["gene0"], "time", fitted.cond(time=0.5))


def test_a_curve_at_levels_that_no_cells_determine_is_refused():
    adata = experiment()
    adata.obs["sex"] = np.where(np.arange(len(adata)) % 3, "m", "f")
    seen = ~((adata.obs["condition"] == "ctrl") & (adata.obs["sex"] == "f"))
    de = HurdleDE(adata[seen.to_numpy()].copy(), "~ condition * sex + age")
    with pytest.raises(SingleCellError, match="'the reference' is not estimable"):
        de.curves(["gene0"], "age")


def test_cells_left_in_a_file_give_the_same_table(tmp_path):
    adata, formula = experiment(), "~ condition + age"
    contrasts = {"age": ("age=70", "age=60"), "condition": ("condition", "stim", "ctrl")}
    adata.write_h5ad(tmp_path / "cells.h5ad")
    tables = []
    with open_cells(tmp_path / "cells.h5ad") as file:
        for cells in (adata, file):
            de = HurdleDE(cells, formula, scale="linear", draws=200).fit(steps=10)
            tables.append(de.test(contrasts))
        assert not hasattr(de.data.value, "indptr")
    pd.testing.assert_frame_equal(*tables, rtol=1e-9)
    age = tables[0].set_index(["contrast", "variable"]).loc[("age", "gene1")]
    assert age.log_fc_low < 0.5 < age.log_fc_high  # log2 units in 10 years
    assert age.log_fc_low > 0
