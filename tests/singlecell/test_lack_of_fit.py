"""Where the cells are not as the model has them, the check says so; two spreads are part of the model."""

from __future__ import annotations

import functools
import math

import numpy as np
import pandas as pd
import pytest

from pyro_zilognormal.singlecell import HurdleDE, SingleCellError
from pyro_zilognormal.singlecell.predictive_check import Check
from pyro_zilognormal.singlecell.results import CREDIBLE
from tests.singlecell.cell_cases import GENES, STEPS, STIM, experiment, frame, values


def stim() -> np.ndarray:
    return (frame()["condition"] == "stim").to_numpy()


def with_two_spreads() -> np.ndarray:
    """Values of which those of the gene "often" spread three times as much in the stimulated cells."""
    x = values()
    logs = np.log(np.where(x[:, 4] > 0, x[:, 4], 1.0))
    wide = stim() & (x[:, 4] > 0)
    x[wide, 4] = np.exp(logs[wide].mean() + 3 * (logs[wide] - logs[wide].mean()))
    return x


@functools.cache
def fitted(formula: str = "~ condition", donor: str | None = None) -> HurdleDE:
    return HurdleDE(experiment(x=with_two_spreads()), formula, donor=donor).fit(steps=STEPS)


@pytest.mark.parametrize("donor", [None, "donor"])
def test_the_check_of_a_condition_is_of_its_cells(donor: str | None) -> None:
    de = fitted(donor=donor)
    check = de.predictive_check(de.cond(condition="stim"), de.cond(condition="ctrl"))
    assert check["condition"].tolist() == ["condition=stim"] * 6 + ["condition=ctrl"] * 6
    for level, mask in (("stim", stim()), ("ctrl", ~stim())):
        part = check[check["condition"] == f"condition={level}"]
        x = with_two_spreads()[mask]
        np.testing.assert_allclose(part["zero_fraction"], (x == 0).mean(0))
        np.testing.assert_allclose(part["mean"], x.mean(0), rtol=1e-9)
        groups = frame()["donor"][mask].to_numpy() if donor else np.zeros(len(x))
        for gene, sd in enumerate(part["sd_log"]):
            logs = pd.Series(np.log(x[x[:, gene] > 0, gene])).groupby(groups[x[:, gene] > 0])
            squares, freedom = logs.var(ddof=0).mul(logs.size()).sum(), (logs.size() - 1).sum()
            assert sd == pytest.approx(math.sqrt(squares / freedom), rel=1e-9)
            assert part["sd_log_freedom"].iloc[gene] == freedom


@pytest.mark.parametrize("formula", ["~ condition", "~ condition + age"])
def test_two_spreads_are_fitted(formula: str) -> None:
    table = fitted(formula).test(STIM).set_index("variable")
    assert (table["predictive_check"] == "ok").all()
    row = table.loc["often"]
    assert row["dispersion_fc"] == pytest.approx(math.log2(3), abs=0.3)
    assert row["dispersion_fc_low"] < math.log2(3) < row["dispersion_fc_high"]
    assert row["dispersion_lfsr"] == 0
    x, arm = with_two_spreads()[:, 4], stim()
    spreads = [np.log(x[(x > 0) & side]).var() for side in (arm, ~arm)]
    truth = (spreads[0] - spreads[1]) / (2 * math.log(2))
    assert row["log_fc_dispersion"] == pytest.approx(truth, rel=0.2)
    assert (table.drop(index="often")["log_fc_dispersion"].abs() < 0.3).all()


def test_fold_changes_are_ratios_of_means_where_spreads_differ() -> None:
    """Many cells of two spreads: the log ratio of means is known, and all of it is dispersion."""
    rng = np.random.default_rng(0)
    n, sigma = 8_000, np.where(np.arange(8_000) % 2 == 0, 0.4, 0.9)
    x = np.exp(1 + sigma[:, None] * rng.standard_normal((n, 3))) * (rng.random((n, 3)) < 0.8)
    adata = experiment(160)
    adata = type(adata)(x, pd.DataFrame({"arm": np.tile(["b", "a"], n // 2)}, index=np.arange(n).astype(str)))
    table = HurdleDE(adata, "~ arm").fit(steps=STEPS).test(("arm", "a", "b"))
    truth = (0.9**2 - 0.4**2) / (2 * math.log(2))
    for column in ("log_fc", "log_fc_dispersion"):
        assert ((table[column] - truth).abs() < 0.1).all()
    assert ((table["dispersion_fc"] - math.log2(0.9 / 0.4)).abs() < 0.05).all()


def test_values_that_are_not_log_normal_are_flagged() -> None:
    """Most values of a condition are near 10 and few near 0.01: a log-normal of that spread has a larger mean."""
    rng = np.random.default_rng(0)
    n, arm = 2000, np.tile(["b", "a"], 1000)
    x = np.exp(2.3 + 0.3 * rng.standard_normal((n, 4)))
    low = (arm == "a") & (rng.random(n) < 0.2)
    x[low, 0] *= 1e-3
    obs = pd.DataFrame({"arm": arm}, index=np.arange(n).astype(str))
    table = HurdleDE(type(experiment())(x, obs), "~ arm", scale="linear").fit(steps=STEPS).test(("arm", "a", "b"))
    table = table.set_index("variable")
    assert "log_fc" in table["predictive_check"]["0"]
    assert table["log_fc_low"]["0"] > np.log2(table["mean_test"]["0"] / table["mean_ref"]["0"]) + 0.5
    assert "log_fc" not in "".join(table["predictive_check"].drop("0"))


def test_a_model_that_holds_is_seldom_doubted() -> None:
    """400 genes: three quantities in two conditions, and a ratio, each outside of 99 % by chance at most."""
    rng = np.random.default_rng(0)
    cells, genes = 300, 400
    x = np.exp(rng.normal(1, 1, genes) + 0.6 * rng.standard_normal((cells, genes)))
    x *= rng.random((cells, genes)) < rng.uniform(0.2, 0.9, genes)
    obs = pd.DataFrame({"arm": np.tile(["b", "a"], cells // 2)}, index=np.arange(cells).astype(str))
    table = HurdleDE(type(experiment())(x, obs), "~ arm", scale="linear").fit(steps=STEPS).test(("arm", "a", "b"))
    share, most = (table["predictive_check"] != "ok").mean(), 7 * 0.01
    assert share < most + 4 * math.sqrt(most * (1 - most) / genes)
    assert not table["predictive_check"].str.contains("log_fc").any()


def test_a_table_and_a_check_of_its_conditions_share_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    whole = Check.of
    monkeypatch.setattr(Check, "of", lambda *given: runs.append(1) or whole(*given))
    de = fitted()
    de.test(STIM)
    first = de.predictive_check(de.cond(condition="stim"), de.cond(condition="ctrl"), credible=CREDIBLE)
    first["mean"] = 0.0
    again = de.predictive_check(de.cond(condition="stim"), de.cond(condition="ctrl"), credible=CREDIBLE)
    assert len(runs) == 2  # one for each condition
    assert again["mean"].max() > 0, "what the caller changes is the caller's own"
    de.predictive_check(de.cond(condition="stim"), credible=0.9)
    de.fit(steps=10)
    de.test(STIM)
    assert len(runs) == 5


def test_conditions_of_another_kind_are_refused() -> None:
    de = fitted("~ condition + age")
    with pytest.raises(TypeError, match=r"conditions: got .*; needed conditions, from cond"):
        de.predictive_check("stim")  # type: ignore[arg-type]
    with pytest.raises(SingleCellError, match=r"condition: no cell has age=60\.0; needed a condition"):
        de.predictive_check(de.cond(age=60))


def test_a_difference_of_conditions_is_their_pair() -> None:
    de = fitted()
    ends = de.cond(condition="stim"), de.cond(condition="ctrl")
    pd.testing.assert_frame_equal(de.test(ends[0] - ends[1]), de.test(ends))
    assert list(de.test(ends)["variable"].sort_values()) == sorted(GENES)
