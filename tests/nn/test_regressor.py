"""The estimator keeps the rules of scikit-learn, maximises the likelihood, and predicts calibrated distributions."""

import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from pyro_zilognormal import ZeroInflatedLogNormal
from pyro_zilognormal.nn import ZILNRegressor, crps_skill, ziln_loss

LINEAR = ZILNRegressor()
NETWORK = ZILNRegressor((8,), random_state=0)
MODELS = {"linear": LINEAR, "network": NETWORK}
each_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())


def simulate(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, ZeroInflatedLogNormal]:
    """Features, outcomes and their distributions, linear in the features."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 3))
    mu, scale = 2 + X @ [0.8, -0.5, 0.0], np.log1p(np.exp(0.5 + X @ [0.0, 0.3, 0.0]))
    truth = ZeroInflatedLogNormal(*map(torch.tensor, (mu, scale, 0.4 + X @ [-1.0, 0.0, 0.7])))
    zero = rng.random(n) < truth.zi_probs.numpy()
    return X, np.where(zero, 0, np.exp(mu + scale * rng.normal(size=n))), truth


X, Y, TRUTH = simulate(400)


@pytest.mark.parametrize(("estimator", "check"), list(estimator_checks_generator(LINEAR)))
def test_is_an_estimator(estimator: ZILNRegressor, check: Callable[[Any], None]) -> None:
    check(estimator)


# Held-out rows are drawn at random, so repeating rows does not hold out what weighting them does.
RANDOM = {"check_sample_weight_equivalence_on_dense_data": "rows are held out at random"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "check"),
    list(estimator_checks_generator(ZILNRegressor((2,)), expected_failed_checks=RANDOM, mark="xfail")),
)
def test_a_network_is_an_estimator(network: ZILNRegressor, check: Callable[[Any], None]) -> None:
    check(network)


@pytest.mark.parametrize(
    "y", [Y, np.where(Y > 0, 7.0, 0), np.where(Y > 0, Y, 1)], ids=["usual", "one price", "no zeros"]
)
def test_groups_get_their_own_estimates(y: np.ndarray) -> None:
    """With groups for features the maximum is known: moments, to which one more observation adds its share."""
    group = np.arange(len(y)) % 3
    found = ZILNRegressor(alpha=0, tol=1e-9).fit(np.eye(3)[group], y).predict_dist(np.eye(3))
    n_positive, log_y = (y > 0).sum(), np.log(y[y > 0])
    zero = (len(y) - n_positive + 0.5) / (len(y) + 1)
    mu, var = log_y.mean(), log_y.var() if np.ptp(log_y) else 1.0
    for g in range(3):
        of_group = y[group == g]
        log_y, share = np.log(of_group[of_group > 0]), len(of_group) / len(y)
        weight = len(log_y) + share * (1 - zero)
        expected_mu = (log_y.sum() + share * (1 - zero) * mu) / weight
        squares = ((log_y - expected_mu) ** 2).sum() + share * (1 - zero) * (var + (mu - expected_mu) ** 2)
        expected_zero = ((of_group == 0).sum() + share * zero) / (len(of_group) + share)
        assert found.loc[g].item() == pytest.approx(expected_mu, rel=1e-5)
        assert found.scale[g].item() == pytest.approx((squares / weight) ** 0.5, rel=1e-5)
        assert found.zi_probs[g].item() == pytest.approx(expected_zero, rel=1e-5)


def test_a_linear_model_recovers_the_truth() -> None:
    """Twice the log-likelihood ratio of estimates and truth is chi-squared with 12 degrees of freedom."""
    X, y, truth = simulate(4000, seed=1)
    found = ZILNRegressor(alpha=0).fit(X, y).predict_dist(X)
    ratio = 2 * (found.log_prob(torch.tensor(y)) - truth.log_prob(torch.tensor(y))).sum()
    assert 12 - 4 * 24**0.5 < ratio < 12 + 4 * 24**0.5


def test_predictions_are_those_of_the_distribution() -> None:
    model = clone(LINEAR).fit(X, Y)
    d = model.predict_dist(X[:5])
    assert d.batch_shape == (5,)
    q = np.array([0.3, 0.5, 0.9, 1.0])
    np.testing.assert_array_equal(model.predict(X[:5]), d.mean)
    np.testing.assert_allclose(model.predict_proba_positive(X[:5]), 1 - d.zi_probs, rtol=1e-14)
    np.testing.assert_allclose(model.predict_quantile(X[:5]), d.median, rtol=1e-14)
    assert model.predict_quantile(X[:5], []).shape == (5, 0)
    np.testing.assert_allclose(model.predict_quantile(X[:5], q), d.icdf(torch.tensor(q)[:, None]).T, rtol=1e-15)
    assert model.score(X, Y) == crps_skill(model.predict_dist(X), Y)
    torch.testing.assert_close(model.network_(torch.tensor(X[:5])).mean.detach(), d.mean)


@each_model
def test_distributions_are_calibrated(model: ZILNRegressor) -> None:
    X, y, _ = simulate(3000, seed=2)
    X_test, y_test, _ = simulate(3000, seed=3)
    fitted = clone(model).fit(X, y)
    positive = fitted.predict_proba_positive(X_test)
    assert abs((y_test > 0).mean() - positive.mean()) < 4 * (positive * (1 - positive)).sum() ** 0.5 / 3000
    for q in (0.5, 0.8, 0.95):
        bound = fitted.predict_quantile(X_test, q)
        expected = fitted.predict_dist(X_test).cdf(torch.tensor(bound)).numpy()
        assert abs((y_test <= bound).mean() - expected.mean()) < 4 * (expected * (1 - expected)).sum() ** 0.5 / 3000


def test_a_network_learns_what_a_linear_model_cannot() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1500, 1))
    y = np.exp(np.cos(3 * X[:, 0]) + 0.3 * rng.normal(size=1500)) * (rng.random(1500) < 0.7)
    train, test = slice(1000), slice(1000, None)
    linear, network = (clone(m).fit(X[train], y[train]).score(X[test], y[test]) for m in MODELS.values())
    assert network > linear + 0.1


def test_early_stopping_keeps_the_best() -> None:
    model = ZILNRegressor((16,), validation_fraction=0.25, n_iter_no_change=3, random_state=5).fit(X, Y)
    held_out = np.random.RandomState(5).permutation(400)[:100]

    def loss(m: ZILNRegressor) -> float:
        with torch.no_grad():
            return ziln_loss(m.network_.params(torch.tensor(X[held_out])), torch.tensor(Y[held_out])).item()

    assert model.validation_loss_ == pytest.approx(loss(model), rel=1e-12)
    later = clone(model).set_params(n_iter_no_change=1000, max_iter=model.n_iter_ + 20)
    with pytest.warns(ConvergenceWarning):
        later.fit(X, Y)
    assert later.n_iter_ > model.n_iter_
    sooner = clone(model).set_params(max_iter=model.n_iter_ - 3)  # ends at the best, which is kept
    with pytest.warns(ConvergenceWarning, match="has not converged after"):
        sooner.fit(X, Y)
    assert sooner.validation_loss_ == model.validation_loss_


def test_too_few_iterations_are_said() -> None:
    with pytest.warns(ConvergenceWarning, match=r"after 2 iterations .*Increase max_iter \(2\)"):
        model = ZILNRegressor(max_iter=2).fit(X, Y)
    assert model.n_iter_ == 2


@each_model
def test_frames_in_arrays_out(model: ZILNRegressor) -> None:
    frame, y = pd.DataFrame(X, columns=["a", "b", "c"]), pd.Series(Y, index=np.arange(400) * 7 % 400)
    fitted = clone(model).fit(frame, y)
    assert fitted.feature_names_in_.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(fitted.predict(frame), clone(model).fit(X, Y).predict(X))
    assert fitted.score(frame, y) == fitted.score(frame, Y)
    with pytest.raises(ValueError, match="feature names"):
        fitted.predict(frame[["c", "b", "a"]])


@each_model
def test_pickles(model: ZILNRegressor) -> None:
    fitted = clone(model).fit(X, Y)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict(X), fitted.predict(X))


def test_in_a_pipeline_and_a_grid_search() -> None:
    pipeline = make_pipeline(StandardScaler(), clone(LINEAR))
    search = GridSearchCV(pipeline, {"zilnregressor__alpha": [1e-4, 1e3]}, cv=3).fit(X, Y)
    assert search.best_params_ == {"zilnregressor__alpha": 1e-4}
    np.testing.assert_allclose(search.predict(X), clone(LINEAR).fit(X, Y).predict(X), rtol=1e-5)
    networks = GridSearchCV(clone(NETWORK), {"hidden_layer_sizes": [(), (4,)]}, cv=2).fit(X, Y)
    assert (networks.cv_results_["mean_test_score"] > 0).all()


@each_model
def test_weights_of_zero_are_no_rows(model: ZILNRegressor) -> None:
    weight = (np.arange(400) < 300).astype(float)
    y = np.where(weight > 0, Y, 1e6)
    weighted, shorter = clone(model).fit(X, y, weight), clone(model).fit(X[:300], Y[:300])
    np.testing.assert_array_equal(weighted.predict(X), shorter.predict(X))
    assert weighted.score(X, y, weight) == pytest.approx(shorter.score(X[:300], Y[:300]), rel=1e-12)


def global_state() -> list[Any]:
    numpy_state = np.random.get_state()  # noqa: NPY002
    torch_state = torch.random.get_rng_state().tolist(), torch.get_default_dtype(), torch.is_grad_enabled()
    return [random.getstate(), numpy_state[1].tolist(), numpy_state[2], *torch_state, torch.get_num_threads()]


@each_model
def test_is_deterministic_and_touches_no_global_state(model: ZILNRegressor) -> None:
    before = global_state()
    first = clone(model).set_params(random_state=3).fit(X, Y)
    assert global_state() == before
    torch.rand(1), np.random.rand()  # noqa: NPY002
    second, other = (clone(model).set_params(random_state=seed).fit(X, Y) for seed in (3, 4))
    np.testing.assert_array_equal(first.predict(X), second.predict(X))
    assert np.array_equal(first.predict(X), other.predict(X)) == (model is LINEAR)


def test_the_unit_does_not_matter() -> None:
    dollars, cents = (clone(LINEAR).fit(X, unit * Y) for unit in (1, 100))
    np.testing.assert_allclose(cents.predict(X), 100 * dollars.predict(X), rtol=1e-6)
    assert cents.score(X, 100 * Y) == pytest.approx(dollars.score(X, Y), rel=1e-6)


RNG = np.random.default_rng(1)
HARD = {
    "predictable amounts": (X, np.exp(X[:, 0])),
    "predictable zeros": (X, np.exp(X[:, 0]) * (X[:, 1] > 0)),
    "one price": (X, np.full(400, 5.0)),
    "all zeros": (X, np.zeros(400)),
    "one positive": (X, np.eye(400)[0]),
    "more features than rows": (RNG.normal(size=(15, 30)), Y[:15]),
    "constant feature": (np.c_[X, np.full(400, 1e9)], Y),
    "far from 0": (X + 1e9, Y),
    "tiny features": (1e-200 * X, Y),
    "equal features": (np.c_[X, X], Y),
    "tiny outcomes": (X, 1e-250 * Y),
    "huge outcomes": (X, 1e250 * Y),
    "one row": (X[:1], np.ones(1)),
}


@pytest.mark.parametrize("case", HARD)
def test_hard_data(case: str) -> None:
    x, y = HARD[case]
    model = ZILNRegressor(max_iter=3000).fit(x, y)
    assert np.isfinite(model.predict(x)).all()
    assert model.predict_dist(x).scale.min() > 0
    assert model.score(x, y) > -0.01


@each_model
def test_far_rows_do_not_stop_a_prediction(model: ZILNRegressor) -> None:
    far = np.array([[s * 1e6, t * 1e6, 0.0] for s in (-1, 1) for t in (-1, 1)])
    fitted = clone(model).fit(X, Y)
    assert (fitted.predict(far) >= 0).all()  # perhaps 0 or infinite
    assert (fitted.predict_quantile(far, 0.9) >= 0).all()
    assert not fitted.predict_dist(far).log_mean.isnan().any()


BAD: dict[str, tuple[dict[str, Any], tuple[Any, ...], str]] = {
    "refund": ({}, (X, Y - 1), "y must not be negative, got -1.0"),
    "NaN": ({}, (X, np.where(Y > 0, Y, np.nan)), "Input y contains NaN"),
    "no weight": ({}, (X, Y, 0 * Y), "at least one"),
    "negative weight": ({}, (X, Y, Y - 1), "[Nn]egative values"),
    **{
        name: ({name: value}, (X, Y), f"The '{name}' parameter of ZILNRegressor must be .* Got ")
        for name, value in {
            "hidden_layer_sizes": 8,
            "alpha": -1,
            "early_stopping": "yes",
            "validation_fraction": 1.0,
            "n_iter_no_change": 0,
            "max_iter": 0,
            "tol": np.nan,
        }.items()
    },
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    arguments, data, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        ZILNRegressor(**arguments).fit(*data)


def test_bad_predictions() -> None:
    with pytest.raises(NotFittedError):
        ZILNRegressor().predict_quantile(X)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        clone(LINEAR).fit(X, Y).predict_quantile(X, 1.5)
