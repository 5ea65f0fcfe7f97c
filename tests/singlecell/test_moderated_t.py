"""The test of samples: its arithmetic by hand, in closed form and on designs whose answer is known."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import scipy.special
import scipy.stats

from pyro_zilognormal.singlecell import HurdleDE
from pyro_zilognormal.singlecell.moderated_t import (
    Samples,
    block,
    compare_samples,
    log_means,
    moderated_t,
    read_samples,
    variance_prior,
    weights,
)

ARMS = np.array([[1.0, 0.0]] * 3 + [[1.0, 1.0]] * 3)
SECOND = np.array([0.0, 1.0])


def samples(factors: Any, design: np.ndarray, **changed: Any) -> Samples:
    number = len(design)
    sums = {"cells": np.full(number, 10.0), "positive": np.full((number, 2), 5.0), "total": np.full((number, 2), 20.0)}
    factors = np.asarray(factors, dtype=np.int64)
    return Samples(**(sums | {"log_variance": np.ones(2), "design": design, "factors": factors} | changed))


# --- Log means


def test_log_means_by_hand() -> None:
    """Gene 0: 6 of 20 values are positive, with a mean of 4; gene 1 is silent in the second sample."""
    given = samples(
        [[0], [1]],
        ARMS[2:4],
        cells=np.array([5.0, 15.0]),
        positive=np.array([[2.0, 3.0], [4.0, 0.0]]),
        total=np.array([[9.0, 6.0], [15.0, 0.0]]),
        log_variance=np.log([2.0, 1.5]),
    )
    y, variance = log_means(given)
    np.testing.assert_allclose(np.exp(y[:, 0]), [(9 + 2) / (5 + 0.5 / 0.3), (15 + 2) / (15 + 0.5 / 0.3)])
    np.testing.assert_allclose(np.exp(y[:, 1]), [(6 + 1) / (5 + 0.5 / 0.15), 1 / (15 + 0.5 / 0.15)])
    np.testing.assert_allclose(variance[:, 0], (0.7 + 1) / (np.array([5, 15]) * 0.3 + 0.5))
    np.testing.assert_allclose(variance[:, 1], (0.85 + 0.5) / (np.array([5, 15]) * 0.15 + 0.5))


def test_log_means_have_the_variance_that_is_said() -> None:
    rng = np.random.default_rng(0)
    sets, cells, sigma, share = 4000, 60, 0.7, 0.4
    x = rng.lognormal(1, sigma, (sets, cells)) * (rng.random((sets, cells)) < share)
    given = samples(
        np.arange(sets)[:, None],
        np.ones((sets, 1)),
        cells=np.full(sets, float(cells)),
        positive=(x > 0).sum(1, keepdims=True).astype(float),
        total=x.sum(1, keepdims=True),
        log_variance=np.array([sigma**2]),
    )
    y, variance = log_means(given)
    assert y.var() == pytest.approx(variance[0, 0], rel=0.1)


# --- The moderated t


def test_one_gene_is_an_ordinary_t() -> None:
    """Nothing moderates a single gene."""
    y = np.random.default_rng(0).normal(size=(6, 1))
    estimate, se, freedom = moderated_t(y, np.ones((6, 1)), ARMS, SECOND)
    known = scipy.stats.ttest_ind(y[3:, 0], y[:3, 0])
    assert freedom == 4
    assert estimate[0] / se[0] == pytest.approx(known.statistic, rel=1e-12)
    assert 2 * scipy.stats.t.sf(abs(estimate[0] / se[0]), freedom) == pytest.approx(known.pvalue, rel=1e-12)


def test_genes_as_variable_as_one_another_share_one_variance() -> None:
    """Variances that differ less than by chance have a prior of infinite weight, as in limma: the mean of them all."""
    y = np.array([[0, 1], [1, 0], [2, 1], [5, 6], [6, 7], [4, 8.0]]) + np.array([0, 10])
    estimate, se, freedom = moderated_t(y, np.ones((6, 2)), ARMS, SECOND)
    squares = 3 * (y[:3].var(0) + y[3:].var(0))
    np.testing.assert_allclose(se, np.sqrt(squares.sum() / 8 * 2 / 3))
    np.testing.assert_allclose(estimate, [4, 19 / 3])
    assert freedom == 8  # those of both genes: limma allows no more


def test_the_prior_of_variances_is_found() -> None:
    """Variances drawn from a scaled inverse chi-squared prior of 7 degrees of freedom and scale 0.3."""
    rng, freedom = np.random.default_rng(0), 5
    variance = 7 * 0.3 / rng.chisquare(7, 20_000) * rng.chisquare(freedom, 20_000) / freedom
    prior_freedom, scale = variance_prior(variance, freedom)
    assert prior_freedom == pytest.approx(7, rel=0.1)
    assert scale == pytest.approx(0.3, rel=0.03)


def test_moderation_is_the_weighted_mean_of_variances() -> None:
    rng = np.random.default_rng(1)
    y = rng.normal(size=(6, 500)) * np.exp(rng.normal(size=500))
    _, se, total = moderated_t(y, np.ones((6, 500)), ARMS, SECOND)
    variance = np.array([y[:3].var(0, ddof=1), y[3:].var(0, ddof=1)]).mean(0)
    prior, scale = variance_prior(variance, 4)
    assert total == pytest.approx(prior + 4)
    np.testing.assert_allclose(se**2, (prior * scale + 4 * variance) / (prior + 4) * 2 / 3, rtol=1e-10)


def test_weights_are_those_of_repeated_samples() -> None:
    """A sample of weight 2 is two samples, but for the degrees of freedom."""
    y = np.random.default_rng(2).normal(size=(6, 1))
    weight = np.array([1, 2, 1, 1, 2, 2.0])[:, None]
    estimate, se, _ = moderated_t(y, weight, ARMS, SECOND)
    rows = np.repeat(np.arange(6), weight[:, 0].astype(int))
    same, narrow, freedom = moderated_t(y[rows], np.ones((9, 1)), ARMS[rows], SECOND)
    assert estimate[0] == pytest.approx(same[0])
    assert se[0] * np.sqrt(4 / freedom) == pytest.approx(narrow[0])


def test_the_units_of_weights_do_not_matter() -> None:
    rng = np.random.default_rng(3)
    y, weight = rng.normal(size=(6, 40)), rng.uniform(1, 9, (6, 40))
    for one, other in zip(moderated_t(y, weight, ARMS, SECOND), moderated_t(y, 7 * weight, ARMS, SECOND), strict=True):
        np.testing.assert_allclose(one, other)


def test_p_values_of_equal_means_are_uniform() -> None:
    """Of normal samples whose variances have the prior, moderated p-values are exact."""
    rng, genes = np.random.default_rng(4), 20_000
    y = rng.normal(size=(6, genes)) * np.sqrt(5 / rng.chisquare(5, genes))
    estimate, se, freedom = moderated_t(y, np.ones((6, genes)), ARMS, SECOND)
    p = 2 * scipy.stats.t.sf(np.abs(estimate / se), freedom)
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01


@pytest.mark.parametrize("between", [0.0, 0.3])
def test_weights_are_precisions(between: float) -> None:
    rng = np.random.default_rng(5)
    variance = rng.uniform(0.1, 1, (6, 2000))
    y = rng.normal(size=(6, 2000)) * np.sqrt(variance + between)
    np.testing.assert_allclose(1 / weights(y, variance, ARMS) - variance, between, atol=0.05)


# --- Random effects that samples share


NESTED, PAIRS = [[0], [1], [2], [3], [4], [5]], [[0, 0], [1, 1], [2, 2], [0, 3], [1, 4], [2, 5]]
# Levels of the random effects in six samples, three in each arm; the samples and columns of the design that are left.
BLOCKS: dict[str, tuple[Any, int, int]] = {
    "a sample a donor": (NESTED, 6, 2),
    "donors in both arms": (PAIRS, 6, 5),
    "two samples of each donor of one arm": ([[0, 0], [0, 1], [1, 2], [2, 3], [2, 4], [3, 5]], 4, 2),
    "one donor in both arms": ([[0], [1], [2], [0], [3], [4]], 5, 2),
    "batches in both arms, donors in one": ([[0, 0], [0, 1], [1, 2], [0, 3], [1, 4], [1, 5]], 6, 4),
    "batches that are arms": ([[0, 0], [0, 1], [0, 2], [1, 3], [1, 4], [1, 5]], 2, 2),
}


@pytest.mark.parametrize("how", BLOCKS)
def test_shared_levels_are_blocks_or_replicates(how: str) -> None:
    factors, left, columns = BLOCKS[how]
    found, direction = block(samples(factors, ARMS), SECOND)
    assert found.design.shape == (left, columns)
    assert found.cells.sum() == 60
    np.testing.assert_allclose(found.total.sum(0), 120)
    assert direction.tolist() == [0, 1] + [0] * (columns - 2)


def test_paired_samples_are_a_paired_t() -> None:
    rng = np.random.default_rng(6)
    y = rng.normal(size=(6, 1)) + np.tile(rng.normal(size=3) * 10, 2)[:, None]
    found, _ = block(samples(PAIRS, ARMS), SECOND)
    free = np.column_stack([ARMS, found.design[:, 3:]])  # the first donor is in the intercept
    estimate, se, freedom = moderated_t(y, np.ones((6, 1)), free, np.array([0, 1.0, 0, 0]))
    known = scipy.stats.ttest_rel(y[3:, 0], y[:3, 0])
    assert freedom == 2
    assert estimate[0] / se[0] == pytest.approx(known.statistic)


# --- On cells


def cells(donor: Any, condition: Any, x: np.ndarray, **columns: Any) -> anndata.AnnData:
    obs = pd.DataFrame({"donor": donor, "condition": condition} | columns, index=np.arange(len(x)).astype(str))
    return anndata.AnnData(x, obs)


def simulated(genes: int = 300, each: int = 30, paired: bool = False, seed: int = 0) -> anndata.AnnData:
    """Cells of 8 samples whose log means differ by an sd of 0.3, without an effect of the condition."""
    rng = np.random.default_rng(seed)
    sample = np.repeat(np.arange(8), each)
    x = rng.lognormal(1 + 0.3 * rng.normal(size=(8, genes))[sample], 0.6) * (rng.random((8 * each, genes)) < 0.6)
    donor = [f"d{s % 4 if paired else s}" for s in sample]
    return cells(donor, np.where(sample < 4, "ctrl", "stim"), x)


def compared(adata: anndata.AnnData, formula: str = "~ condition", donor: str | None = "donor", **options: Any) -> Any:
    de = HurdleDE(adata, formula, donor=donor, **({"scale": "linear"} | options))
    (contrast,) = de.cells.design.contrasts(("condition", "stim", "ctrl"))
    return compare_samples(de.cells, contrast)


@pytest.mark.parametrize("paired", [False, True])
def test_nothing_is_found_where_nothing_is(paired: bool) -> None:
    p = compared(simulated(600, paired=paired)).pval
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01


def test_a_change_is_found_in_its_own_size() -> None:
    adata = simulated()
    adata.X[(adata.obs["condition"] == "stim").to_numpy(), :10] *= 4
    found = compared(adata)
    assert (np.abs(found.log_fc[:10] - 2) < 3 * found.se[:10]).all()
    assert (found.pval[:10] < 0.01).all()
    assert (found.pval[10:] < 0.01).mean() < 0.03


def test_sums_of_samples_are_those_of_their_cells() -> None:
    adata = simulated(5, paired=True)
    adata.obs["sex"] = np.resize(["f", "m"], adata.n_obs)
    found = read_samples(HurdleDE(adata, "~ condition + sex", donor="donor", scale="linear").cells)
    groups = adata.obs.groupby(["donor", "condition", "sex"], observed=True).indices
    assert len(found.cells) == len(groups) == 16
    known = {tuple(np.round(adata.X[rows].sum(0), 6)) for rows in groups.values()}
    assert {tuple(np.round(total, 6)) for total in found.total} == known


@pytest.mark.parametrize("form", ["dense", "csr"])
def test_cells_that_are_kept_have_the_samples_of_groups(form: str) -> None:
    """With a number that differs from cell to cell, rows are cells."""
    adata = simulated(20)
    adata.obs["age"] = np.random.default_rng(0).normal(50, 9, adata.n_obs)
    if form == "csr":
        adata.X = scipy.sparse.csr_matrix(adata.X)
    offset = np.linspace(-0.5, 0.5, adata.n_obs)
    grouped, kept = (
        read_samples(HurdleDE(adata, formula, donor="donor", offset=offset, scale="linear").cells)
        for formula in ("~ condition", "~ condition + age")
    )
    for name in ("cells", "positive", "total"):
        np.testing.assert_allclose(getattr(kept, name), getattr(grouped, name), rtol=1e-9)
    np.testing.assert_allclose(kept.log_variance, grouped.log_variance, rtol=1e-9)
    ages = adata.obs.groupby("donor", observed=True)["age"].mean()
    assert set(kept.design[:, 2].round(6)) == set(ages.round(6))


def test_size_factors_are_divided_out() -> None:
    adata, offset = simulated(20), np.linspace(-1, 1, 240)
    known = compared(adata)
    adata.X = adata.X * np.exp(offset)[:, None]
    found = compared(adata, offset=offset)
    np.testing.assert_allclose(found.pval, known.pval, rtol=1e-6)
    np.testing.assert_allclose(found.log_fc, known.log_fc, rtol=1e-6)


def test_bins_of_depth_do_not_make_samples() -> None:
    adata = simulated(20)
    known = compared(adata)
    adata.obs["total_counts"] = np.resize([100.0, 200.0, 400.0, 800.0], adata.n_obs)
    np.testing.assert_allclose(compared(adata).log_fc, known.log_fc, atol=0.05)


# --- No p-value


def test_independent_cells_have_no_p_value_and_the_noise_of_cells() -> None:
    found = compared(simulated(50), donor=None)
    assert np.isnan(found.pval).all()
    assert np.isfinite(found.log_fc).all()
    shares = 240 * 0.6 / 2
    assert found.se.mean() == pytest.approx(np.sqrt(2 * (0.4 + np.expm1(0.36 + 0.09)) / shares) / np.log(2), rel=0.1)


def test_rare_genes_are_not_tested() -> None:
    adata = simulated(6)
    adata.X[:, 0] = 0
    adata.X[:, 1] = np.where(np.arange(240) < 2, 1.0, 0.0)
    adata.X[:, 2] = np.where(np.arange(240) % 80 == 0, 1.0, 0.0)
    assert np.isnan(compared(adata).pval).tolist() == [True, True, False, False, False, False]


def test_samples_that_leave_no_freedom_are_not_tested() -> None:
    """Two donors in both conditions leave one degree of freedom, and none once their sexes are accounted for."""
    adata = simulated(30, paired=True)
    two = adata[adata.obs["donor"].isin(["d0", "d1"])].copy()
    assert np.isfinite(compared(two).pval).all()
    two.obs["sex"] = np.where((two.obs["donor"] == "d0") == (two.obs["condition"] == "stim"), "f", "m")
    found = compared(two, "~ condition + sex")
    assert np.isnan(found.pval).all()
    assert np.isnan(found.se).all()
