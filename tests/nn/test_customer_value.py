"""The benchmark of customer value: its methods run, its scores are right, and its page names every loss."""

import pathlib
import sys

import numpy as np
import pandas as pd
import pytest

from pyro_zilognormal.nn import normalized_gini

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import customer_value as benchmark  # noqa: E402


def test_every_method_beats_a_constant() -> None:
    x, y = benchmark.cdnow()
    assert (x.shape, (y == 0).mean()) == ((23_570, 9), pytest.approx(0.701, abs=5e-4))
    train, test = slice(4000), slice(4000, 8000)
    draws = np.random.default_rng(0).choice(y[train], (200, 4000))
    constant = benchmark.crps_of_draws(draws, y[test]).mean()
    for method, settings in benchmark.METHODS.items():
        fit, setting = settings[0]
        found = fit(x[train], y[train], **setting)(x[test])
        assert found.crps(y[test]).mean() < 0.9 * constant, method
        assert normalized_gini(y[test], found.mean) > 0.6, method


@pytest.mark.parametrize("power", [1.2, 1.8])
def test_draws_have_the_moments_of_a_tweedie_distribution(power: float) -> None:
    mean, dispersion = np.full(2000, 5.0), 3.0
    draws = benchmark.tweedie_draws(mean, dispersion, power)
    variance, n = dispersion * 5**power, draws.size
    assert abs(draws.mean() - 5) < 4 * (variance / n) ** 0.5
    squares = (draws - 5) ** 2
    assert abs(squares.mean() - variance) < 4 * squares.std() / n**0.5
    zero = np.exp(-(5 ** (2 - power)) / (dispersion * (2 - power)))
    assert abs((draws == 0).mean() - zero) < 4 * (zero * (1 - zero) / n) ** 0.5


def test_the_crps_of_draws_is_unbiased() -> None:
    """That of a uniform distribution on [0, 1] at y = 0 is 1/3; few draws show a bias of 1 / (6 m) if there is one."""
    found = benchmark.crps_of_draws(np.random.default_rng(0).random((3, 200_000)), np.zeros(200_000))
    assert abs(found.mean() - 1 / 3) < 4 * found.std() / 200_000**0.5


def test_every_loss_is_said() -> None:
    index = pd.MultiIndex.from_product([benchmark.METHODS, range(4)], names=["method", "split"])
    figures = pd.DataFrame(1.0, index, list(benchmark.BETTER))
    assert benchmark.losses(figures) == []
    figures.loc["Tweedie regression", "Gini"] = [1.1, 1.2, 1.1, 1.2]  # better by many standard errors
    figures.loc["two-part boosting", "seconds"] = [0.1, 1.8, 1.0, 1.0]  # better by less than one
    figures.loc["two-part boosting", "CRPS ($)"] = 2.0  # worse
    said = benchmark.losses(figures)
    assert len(said) == 4
    assert "- Gini: Tweedie regression 1.15, ZILN, linear 1; more than two standard errors of the difference." in said
    assert "- seconds: two-part boosting 0.975, ZILN, network 1; within two standard errors of the difference." in said
    page = benchmark.page(figures, pd.DataFrame({"method": ["ZILN, linear"], "setting": ["alpha 1"]}))
    assert all(sentence in page for sentence in said)


def test_the_page_has_the_methods_and_measures_of_the_code() -> None:
    page = (BENCHMARKS / "CUSTOMER.md").read_text()
    assert f"| | {' | '.join(benchmark.BETTER)} |" in page
    for method in benchmark.METHODS:
        assert f"\n| {method} | " in page
    assert benchmark.TAIL in page
