"""Predictions against the distribution, and the predictive check against cells that are simulated one by one."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from torch.nn.functional import logsigmoid

from pyro_zilognormal import ZeroInflatedLogNormal
from pyro_zilognormal.models import draw_coefficients
from pyro_zilognormal.models.hurdle.components import log_scale
from pyro_zilognormal.singlecell import HurdleDE, SingleCellError
from pyro_zilognormal.singlecell.predictive_check import sum_of_log_normals
from tests.singlecell.cell_cases import GENES, STEPS, experiment, fitted, frame, values


def test_predictions_are_those_of_the_distribution() -> None:
    de = fitted()
    conditions = [de.cond(condition=c) for c in ("ctrl", "stim")]
    table = de.predict(*conditions, quantiles=(0.5, 0.9), credible=0.9)
    assert table["condition"].tolist() == ["condition=ctrl"] * 6 + ["condition=stim"] * 6
    for condition in conditions:
        part = table[table["condition"] == condition.name]
        assert part["variable"].tolist() == list(GENES)
        sites = [torch.cat([de.draws[p + "intercept"], de.draws[p + "effects"]], -1) for p in ("", "zero_")]
        sites.append(de.draws["log_sigma"])
        log_mean, logits, log_sigma = (s @ torch.from_numpy(condition.design) for s in sites)
        logits = logits - de.draws["zero_slope"][..., 0] * log_mean
        sigma = log_scale(log_sigma).exp()
        known = ZeroInflatedLogNormal(log_mean - logsigmoid(-logits) - sigma.square() / 2, sigma, logits)
        wanted = {
            "mean": known.mean,
            "median": known.median,
            "prob_zero": known.cdf(torch.zeros((), dtype=torch.float64)),
            "positive_mean": known.mean / (1 - known.cdf(torch.zeros((), dtype=torch.float64))),
            "q0.5": known.median,
            "q0.9": known.icdf(torch.tensor(0.9, dtype=torch.float64)),
        }
        for name, drawn in wanted.items():
            for column, q in ((name, 0.5), (f"{name}_low", 0.05), (f"{name}_high", 0.95)):
                np.testing.assert_allclose(part[column], np.quantile(drawn.numpy(), q, 0), rtol=1e-9, err_msg=column)


def test_predictions_meet_the_cells() -> None:
    de = fitted()
    table = de.predict(de.cond(condition="stim"), credible=0.999).set_index("variable")
    x = values()[frame()["condition"] == "stim"]
    for i, gene in enumerate(GENES):
        row = table.loc[gene]
        assert row["mean_low"] < x[:, i].mean() < row["mean_high"], gene
        assert row["prob_zero_low"] < (x[:, i] == 0).mean() < row["prob_zero_high"], gene
        assert row["median_low"] <= np.median(x[:, i]) <= row["median_high"], gene


def test_a_number_is_predicted_at_its_mean() -> None:
    de = fitted(None, "~ condition + age")
    one, other = (de.predict(c)["mean"] for c in (de.cond(), de.cond(age=frame()["age"].mean())))
    np.testing.assert_allclose(one, other, rtol=1e-9)


def test_quantiles_are_checked() -> None:
    for q in (-0.1, 1.0, math.nan):
        with pytest.raises(SingleCellError, match=r"an element of quantiles is .*; needed a number from 0 to below 1"):
            fitted().predict(fitted().cond(), quantiles=[q])


@pytest.mark.parametrize(("formula", "donor"), [("~ condition", None), ("~ condition", "donor"), ("~ age", "donor")])
def test_the_check_of_a_model_that_holds(formula: str, donor: str | None) -> None:
    de = fitted(donor, formula)
    table = de.predictive_check(credible=0.99).set_index("variable")
    assert table.index.tolist() == list(GENES)
    np.testing.assert_allclose(table["zero_fraction"], (values() == 0).mean(0), rtol=1e-12)
    np.testing.assert_allclose(table["mean"], values().mean(0), rtol=1e-9)
    for name in ("zero_fraction", "mean", "sd_log"):
        low, middle, high = (table[f"{name}_{end}"] for end in ("low", "predicted", "high"))
        assert ((low <= middle) & (middle <= high)).all()
        assert ((low <= table[name]) & (table[name] <= high)).all()
        assert (high > low).all()


def test_the_check_sees_a_model_that_does_not_hold() -> None:
    x = values()
    rng = np.random.default_rng(0)
    x[:, 3] = np.where(rng.random(160) < 0.5, 0, np.where(rng.random(160) < 0.05, 5000.0, 0.01))
    table = HurdleDE(experiment(x=x), "~ condition").fit(steps=STEPS).predictive_check().set_index("variable")
    assert not table.mean_low["same"] < table["mean"]["same"] < table.mean_high["same"]


def test_the_check_is_that_of_cells_drawn_one_by_one() -> None:
    adata = experiment()
    adata.obs["size"] = np.linspace(-1, 1, 160)
    de = HurdleDE(adata, "~ condition", donor="donor", offset="size").fit(steps=STEPS)
    rng = np.random.default_rng(0)
    drawn = {k: v.numpy() for k, v in draw_coefficients(de.result, de.data, 1000, 5, random=1000).items()}
    x = (frame()["condition"] == "stim").to_numpy()
    donor = de.cells.terms[0].code
    eta = {
        p: drawn[f"{p}intercept"] + drawn[f"{p}effects"] * x + drawn[f"{p}random"][..., donor] for p in ("", "zero_")
    }
    logits = eta["zero_"] - drawn["zero_slope"] * eta[""]
    share = 1 / (1 + np.exp(logits))
    sigma = np.exp(drawn["log_sigma"] @ np.stack([np.ones(160), x]))
    mu = eta[""] - np.log(share) - sigma**2 / 2
    noise = rng.standard_normal(mu.shape) * sigma
    cells = (rng.random(mu.shape) < share) * np.exp(mu + noise)  # size factors divided out
    table = de.predictive_check(credible=0.8)
    wanted = {"zero_fraction": (cells == 0).mean(-1), "mean": cells.mean(-1)}
    for name, by_cell in wanted.items():
        for column, q in ((f"{name}_low", 0.1), (f"{name}_predicted", 0.5), (f"{name}_high", 0.9)):
            below = (by_cell <= table[column].to_numpy()).mean(0)
            assert (np.abs(below - q) < 5 * math.sqrt(q * (1 - q) / 200) + 0.01).all(), (column, below)


@pytest.mark.parametrize("count", [1, 2, 50])
def test_sums_of_log_normals_have_their_mean_and_variance(count: int) -> None:
    n, mu, sigma = 200_000, 0.7, 0.5
    full = torch.full((n, 1), float(count), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    parameters = (torch.full_like(full, mu), torch.full_like(full, sigma))
    drawn = sum_of_log_normals(full, *parameters, generator).numpy()
    first, second = math.exp(mu + sigma**2 / 2), math.exp(2 * mu + 2 * sigma**2)
    mean, variance = count * first, count * (second - first**2)
    assert abs(drawn.mean() - mean) < 5 * math.sqrt(variance / n)
    assert abs(drawn.var() / variance - 1) < 0.05
    if count == 1:
        assert scipy.stats.kstest(drawn[:20_000, 0], scipy.stats.lognorm(sigma, scale=math.exp(mu)).cdf).pvalue > 0.01


def test_a_sum_of_nothing_is_zero() -> None:
    nothing = torch.zeros(3, 1, dtype=torch.float64)
    drawn = sum_of_log_normals(nothing, nothing, nothing + 1, torch.Generator())
    assert drawn.eq(0).all()


@pytest.mark.parametrize("count", [1, 2, 50])
@pytest.mark.parametrize("sigma", [9.99, 10.01, 30.0])  # exp(30^2) overflows
def test_sums_of_wide_log_normals_have_finite_logarithms(count: int, sigma: float) -> None:
    n, mu = 20_000, 0.7
    spread = float(mpmath.log1p(mpmath.expm1(mpmath.mpf(sigma) ** 2) / count))
    wanted = math.log(count) + mu + sigma**2 / 2 - spread / 2
    shape = torch.ones(n, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    logs = sum_of_log_normals(count * shape, mu * shape, sigma * shape, generator).log()
    assert abs(float(logs.mean()) - wanted) < 5 * math.sqrt(spread / n)
    assert abs(float(logs.var()) / spread - 1) < 5 * math.sqrt(2 / n)
