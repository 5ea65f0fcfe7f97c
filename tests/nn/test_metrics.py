"""The metrics against quadrature, Monte Carlo and brute force."""

import itertools

import mpmath as mp
import numpy as np
import pandas as pd
import pytest
import torch

from pyro_zilognormal import ZeroInflatedLogNormal
from pyro_zilognormal.nn import crps, crps_skill, decile_calibration, normalized_gini

RNG = np.random.default_rng(0)
SKEWED = np.exp(RNG.normal(size=200)) * (RNG.random(200) < 0.4)
SCORE = SKEWED + RNG.normal(size=200)
# mu, scale, zi_logits; and z of the targets besides 0.
DISTRIBUTIONS = list(itertools.product((-2.0, 3.0), (1e-3, 0.1, 1.0, 2.5, 8.0), (-np.inf, 5.0, -3.0)))
POINTS = (-30.0, -1.5, 0.0, 0.4, 3.0, 20.0)


def quadrature(mu: float, scale: float, logit: float, y: float) -> mp.mpf:
    """The integral of (F(x) - 1[x >= y])^2 dx, in t = (log x - mu) / scale."""
    mu, scale, y = mp.mpf(mu), mp.mpf(scale), mp.mpf(y)
    positive = mp.mpf(1) if logit == -np.inf else 1 / (1 + mp.exp(mp.mpf(logit)))
    at = (mp.log(y) - mu) / scale if y > 0 else mp.mpf(-45 - scale)
    knots = sorted({-45 - scale, at, *(k for k in (-8, 0, scale / 2, 8, scale + 8))})
    below = [k for k in knots if k <= at]
    above = [k for k in knots if k >= at] + [max(at, scale) + 45]

    def jacobian(t: mp.mpf) -> mp.mpf:
        return scale * mp.exp(mu + scale * t)

    left = mp.quad(lambda t: (1 - positive * mp.ncdf(-t)) ** 2 * jacobian(t), below) if len(below) > 1 else 0
    right = mp.quad(lambda t: (positive * mp.ncdf(-t)) ** 2 * jacobian(t), above)
    first = (1 - positive if y > 0 else positive) ** 2 * mp.exp(mu + scale * knots[0])  # from x = 0 to the first knot
    return first + left + right


@pytest.mark.parametrize(("mu", "scale", "logit"), DISTRIBUTIONS[::2])
def test_crps_is_the_integral(mu: float, scale: float, logit: float) -> None:
    d = ZeroInflatedLogNormal(*(torch.tensor(p, dtype=torch.float64) for p in (mu, scale, logit)))
    targets = [0.0, *(float(np.exp(mu + scale * z)) for z in POINTS)]
    for y, found in zip(targets, crps(d, targets).tolist(), strict=True):
        with mp.workdps(20):
            expected = float(quadrature(mu, scale, logit, y))
        assert found == pytest.approx(expected, rel=1e-12 * max(1, 1 / scale)), (y, found, expected)


def test_crps_is_the_expected_distance_less_half_of_that_of_two_draws() -> None:
    d = ZeroInflatedLogNormal(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.5, 1.0, 0.7]), torch.tensor([-1.0, 0, 2]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = d.sample((200_000,)).double(), d.sample((200_000,)).double()
    for y in (0.0, 0.5, 10.0):
        terms = (first - y).abs() - (first - second).abs() / 2
        error = terms.std(0) / len(terms) ** 0.5
        assert ((crps(d, y) - terms.mean(0)).abs() < 4 * error).all()


def test_crps_is_differentiable() -> None:
    mu, scale, logits, y = torch.cartesian_prod(
        *(torch.tensor(v).double() for v in ((0.3,), (0.4, 1.5, 6.0), (-2.0, 3.0), (0.2, 1.0, 40.0)))
    ).unbind(-1)
    leaves = [t.clone().requires_grad_() for t in (mu, scale, logits, y)]
    assert torch.autograd.gradcheck(lambda *args: crps(ZeroInflatedLogNormal(*args[:3]), args[3]), leaves)
    at_zero = crps(ZeroInflatedLogNormal(*leaves[:3]), torch.zeros_like(y)).sum()
    assert all(g.isfinite().all() for g in torch.autograd.grad(at_zero, leaves[:3]))


def test_crps_at_the_edges() -> None:
    d = ZeroInflatedLogNormal(0.0, 1.0, 0.0)
    assert crps(d, torch.nan).isnan()
    assert crps(d, torch.inf) == torch.inf
    assert crps(d, -2.0) == 2 + crps(d, 0.0)
    assert crps(ZeroInflatedLogNormal(800.0, 30.0, torch.inf), [0.0, 3.0]).tolist() == [0, 3]  # the point mass at 0
    far = crps(ZeroInflatedLogNormal(torch.tensor(0.0).double(), 50.0, 0.0), [0.0, 1.0])
    assert far.isfinite().all()  # where the mean is infinite
    assert crps(ZeroInflatedLogNormal(0.0, 1.0, 0.0), pd.Series([1.0, 2.0], index=[7, 3])).shape == (2,)


def test_crps_is_least_for_the_truth_and_for_a_point_the_absolute_error() -> None:
    truth = ZeroInflatedLogNormal(*torch.tensor([1.0, 0.8, -0.5], dtype=torch.float64))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        y = truth.sample((100_000,))
    for other in ((1.2, 0.8, -0.5), (1.0, 1.0, -0.5), (1.0, 0.8, 0.0), (1.0, 0.65, -0.5)):
        worse = crps(ZeroInflatedLogNormal(*torch.tensor(other).double()), y) - crps(truth, y)
        assert worse.mean() > 4 * worse.std() / len(y) ** 0.5
    point = ZeroInflatedLogNormal(torch.tensor(1.0).double(), 1e-9, -torch.inf)
    assert crps(point, [0.0, 1.0, 9.0]).tolist() == pytest.approx([np.e, np.e - 1, 9 - np.e], rel=1e-6)


def test_skill_compares_with_the_empirical_distribution() -> None:
    d = ZeroInflatedLogNormal(torch.linspace(-1, 1, 200).double(), 0.7, 0.5)
    weight = RNG.integers(0, 4, 200)
    y = np.repeat(SKEWED, weight)
    repeated = ZeroInflatedLogNormal(d.loc.repeat_interleave(torch.tensor(weight)), 0.7, 0.5)
    expected = 1 - crps(repeated, y).mean().item() / (np.abs(y[:, None] - y).mean() / 2)
    assert crps_skill(repeated, y) == pytest.approx(expected, rel=1e-12)
    assert crps_skill(d, SKEWED, weight) == pytest.approx(expected, rel=1e-12)
    assert crps_skill(d, torch.full((200,), 0.1)) == 0
    perfect = ZeroInflatedLogNormal(torch.tensor([1.0, 2.0]).double(), 1e-9, -torch.inf)
    assert crps_skill(perfect, np.exp([1.0, 2.0])) == pytest.approx(1, abs=1e-8)


def test_gini_is_the_ratio_of_areas() -> None:
    def area(order: np.ndarray) -> float:
        gains = np.r_[0, np.cumsum(SKEWED[order])] / SKEWED.sum()
        return np.trapezoid(gains, np.linspace(0, 1, 201)) - 0.5

    expected = area(np.argsort(-SCORE)) / area(np.argsort(-SKEWED))
    assert normalized_gini(SKEWED, SCORE) == pytest.approx(expected, rel=1e-12)
    assert normalized_gini(torch.tensor(SKEWED), pd.Series(SCORE)) == pytest.approx(expected, rel=1e-12)


def test_gini_of_known_rankings() -> None:
    assert normalized_gini(SKEWED, SKEWED) == pytest.approx(1, rel=1e-12)
    assert normalized_gini(SKEWED, -SKEWED) == pytest.approx(-1, rel=1e-12)
    assert normalized_gini(SKEWED, np.ones(200)) == pytest.approx(0, abs=1e-12)
    assert np.isnan(normalized_gini([1.0, 1.0], [1.0, 2.0]))


def test_ties_make_no_difference() -> None:
    rough, order = SCORE.round(), RNG.permutation(200)
    for metric in (normalized_gini, lambda y, s: decile_calibration(y, s).error):
        assert metric(SKEWED[order], rough[order]) == pytest.approx(metric(SKEWED, rough), rel=1e-12)
    shuffled = [normalized_gini(SKEWED, rough + 1e-9 * RNG.random(200)) for _ in range(500)]
    error = np.std(shuffled) / 500**0.5
    assert abs(np.mean(shuffled) - normalized_gini(SKEWED, rough)) < 4 * error


def test_calibration_by_hand() -> None:
    prediction = np.exp(SCORE)
    groups = np.array_split(np.argsort(prediction), 10)
    found = decile_calibration(SKEWED, prediction)
    predicted, actual = (np.array([v[g].mean() for g in groups]) for v in (prediction, SKEWED))
    np.testing.assert_allclose(found.predicted, predicted, rtol=1e-12)
    np.testing.assert_allclose(found.actual, actual, rtol=1e-12)
    with np.errstate(divide="ignore"):
        assert found.error == pytest.approx(np.mean(np.abs(predicted / actual - 1)), rel=1e-12)
    assert decile_calibration(SKEWED + 1, SKEWED + 1, groups=7).error == pytest.approx(0, abs=1e-12)


TWO = ZeroInflatedLogNormal(torch.zeros(2), 1.0, 0.0)
BAD = {
    "lengths": (lambda: normalized_gini([1.0, 2.0], [1.0]), "one value a row, got 2 and 1"),
    "a matrix": (lambda: normalized_gini(np.ones((2, 2)), np.ones(2)), r"target must be .*got shape \(2, 2\)"),
    "nothing": (lambda: normalized_gini([], []), r"got shape \(0,\)"),
    "NaN": (lambda: decile_calibration([0.0, 1.0], [np.nan, 1.0], 2), r"score must be .* without NaN"),
    "a column": (lambda: crps_skill(TWO, np.ones((2, 1))), r"target must be .*got shape \(2, 1\)"),
    "too many": (lambda: crps_skill(TWO, np.ones(3)), r"one value for each distribution, \(2,\), got \(3,\)"),
    "shapes": (lambda: crps(TWO, np.ones(3)), r"do not broadcast: target \(3,\), batch_shape \(2,\)"),
    "weights": (lambda: crps_skill(TWO, np.ones(2), np.ones(1)), r"got \(2,\) and \(1,\)"),
    "groups": (lambda: decile_calibration([0.0, 1.0], [0.0, 1.0]), "from 1 to the number of rows, 2, got 10"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
