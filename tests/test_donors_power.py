"""The bound of power on cells with donors: its evidence is that of plain quadrature, and its tables say what it has."""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import pytest
import scipy.stats
from scipy.special import logsumexp

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks"))
import donors_bound
import donors_data
import donors_power
import donors_power_page
from donors_bound import EFFECTS, SDS

NONE = donors_power.NONE
GIVEN = donors_data.Parameters(
    np.array([1e-3, 2e-3, 1e-2]), np.array([0.2, 0.5, 0.3]), np.full(3, 0.2), np.zeros(9), (7.0, 0.2)
)
SOME_SDS, SOME_EFFECTS = [4, 9], [80, 90, NONE, 112, 125]


def few_cells(paired: bool) -> donors_data.Cells:
    """Three genes in four samples of 12 to 40 cells; all cells of a sample have one depth."""
    return donors_data.simulate(GIVEN, 5, donors=2 if paired else 4, paired=paired, cells=(12, 40), genes=3)


def quadrature(cells: donors_data.Cells, samples: donors_bound.Samples, gene: int, sd: float, effect: float) -> float:
    """Integrate the effects of samples and donors and the log mean of the reference on one fine grid."""
    sample, stim = donors_bound.sample_of(cells)
    grid = np.linspace(-3, 3, 601) + np.log(samples.rate[gene])
    phi, normal = samples.dispersion[gene], scipy.stats.norm.pdf(grid[:, None], grid, sd) * (grid[1] - grid[0])
    own = []
    for j, tested in enumerate(stim):
        x, depth = cells.counts[sample == j, gene, None], cells.depth[sample == j, None]
        mean = depth * np.exp(grid + effect * tested)
        own.append(integrate(normal, scipy.stats.nbinom.logpmf(x, 1 / phi, 1 / (1 + phi * mean)).sum(0)))
    if cells.paired:
        own = [integrate(normal, own[0] + own[1]), integrate(normal, own[2] + own[3])]
    return float(logsumexp(np.sum(own, axis=0)))


def integrate(normal: np.ndarray, log: np.ndarray) -> np.ndarray:
    """Return the log of the integral of exp(log) under Normals about each node."""
    return log.max() + np.log(normal @ np.exp(log - log.max()) + 1e-300)


@pytest.mark.parametrize("paired", [False, True])
def test_evidence_is_that_of_quadrature(paired: bool) -> None:
    cells = few_cells(paired)
    samples = donors_bound.read_samples(cells, GIVEN)
    found = donors_bound.evidence(samples)
    for gene in range(len(cells.genes)):
        exact = np.array(
            [[quadrature(cells, samples, gene, SDS[k], EFFECTS[e]) for e in SOME_EFFECTS] for k in SOME_SDS]
        )
        rest = found[gene][np.ix_(SOME_SDS, SOME_EFFECTS)] - exact
        assert np.ptp(rest[exact > exact.max() - 8]) < 0.05


@pytest.mark.parametrize("paired", [False, True])
def test_evidence_of_normal_means_is_that_of_a_wide_prior(paired: bool) -> None:
    samples = donors_bound.read_samples(few_cells(paired), GIVEN)
    y, variance = samples.log_mean, samples.variance
    found = donors_power.normal_evidence(samples, y, variance)
    pairs = np.kron(np.eye(2), np.ones((2, 2))) if paired else 0
    for gene in range(3):
        exact = [
            [
                scipy.stats.multivariate_normal.logpdf(
                    y[:, gene] - y[:, gene].mean() - effect * samples.stim,
                    cov=np.diag(variance[:, gene]) + sd**2 * (np.eye(4) + pairs) + 1e5,
                )
                for effect in EFFECTS[SOME_EFFECTS]
            ]
            for sd in SDS[SOME_SDS]
        ]
        assert np.ptp(found[gene][np.ix_(SOME_SDS, SOME_EFFECTS)] - np.array(exact)) < 1e-3


def test_distributions_add_up_to_one() -> None:
    sds, effects = donors_power.sd_weights(donors_data.DONOR_SDS), donors_power.effect_weights()
    assert sds.sum() == pytest.approx(1)
    assert effects.sum() == pytest.approx(1)
    assert effects[NONE] == 1 - donors_data.CHANGED
    nodes = donors_power.at_nodes(np.array([0.02, 0.1, 1.1]))
    np.testing.assert_allclose(np.exp(nodes @ np.log(SDS)), [0.02, 0.1, 1.1])


def test_learned_distributions_are_those_that_made_the_genes() -> None:
    """Genes whose effects and sds are known are counted; a tenth of them have an effect of 0.7."""
    log = np.full((1000, len(SDS), len(EFFECTS)), -30.0)
    log[:900, 5, NONE] = 0
    log[900:, 5, np.abs(EFFECTS - 0.7).argmin()] = 0
    sds, effects = donors_power.learn(log)
    assert SDS[sds.argmax()] == SDS[5]
    assert effects[NONE] == pytest.approx(0.9, abs=0.01)


def test_a_table_says_sign_interval_and_calls() -> None:
    probability = np.zeros((3, len(EFFECTS)))
    probability[0, 150], probability[1, 50], probability[2, NONE] = 1, 1, 1
    table = donors_power.table(probability, np.array(["up", "down", "none"]))
    assert table["called"].tolist() == [True, True, False]
    size = EFFECTS[150] / np.log(2)
    np.testing.assert_allclose(table["log2_fc"], [size, -size, 0], atol=1e-12)
    assert table["low"]["up"] < size < table["high"]["up"]
    assert table["low"]["none"] == table["high"]["none"] == 0


def test_the_page_compares_with_the_better_pseudobulk_method() -> None:
    power = {"pydeseq2": 0.5, "moderated t": 0.6, donors_power_page.BOUND: 0.65}
    record = {
        f"{design}/{seed}/{rung}": {"power": power.get(rung, 0.7) + 0.01 * seed, "coverage": 0.98}
        | dict.fromkeys(("coverage_unchanged", "coverage_changed", "coverage_called"), 0.9)
        for design in donors_power_page.DESIGNS
        for seed in (0, 1)
        for rung in donors_power_page.LADDER
    }
    page = donors_power_page.page(record)
    assert "really false, is 5.0 ± 0.0 points above" in page
    assert "| ours | 70.5 | 70.5 | 70.5 | 70.5 | 70.5 | +10.0 ± 0.0 |" in page
