"""What customers will spend, predicted by ZILNRegressor, a Tweedie regression and a two-part gradient boosting.

    pip install -c constraints.txt -e ".[test]"
    OMP_NUM_THREADS=1 python benchmarks/customer_value.py > benchmarks/CUSTOMER.md

The data are CDNOW (Fader and Hardie), from the package lifetimes, which is not imported. Each method has a grid of four
settings, of which the customers for validation choose; the customers for testing are used once.
"""

from __future__ import annotations

import itertools
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import distribution as installed
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import TweedieRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pyro_zilognormal import ZeroInflatedLogNormal
from pyro_zilognormal.nn import ZILNRegressor, crps, decile_calibration, normalized_gini

SPLITS = 10
DRAWS = 200  # of a Tweedie distribution, whose CRPS has no closed form
BETTER = {"Gini": 1, "decile error": -1, "CRPS ($)": -1, "RMSE ($)": -1, "seconds": -1}  # the sign of what is better
OURS = ("ZILN, linear", "ZILN, network")


class Prediction(NamedTuple):
    """Of each customer: the expected outcome, and the CRPS as a function of the outcomes."""

    mean: np.ndarray
    crps: Callable[[np.ndarray], np.ndarray]


Model = Callable[[np.ndarray], Prediction]


def cdnow() -> tuple[np.ndarray, np.ndarray]:
    """Nine features of the first 39 weeks, and dollars in the next 39, as in tutorial 06."""
    file = installed("lifetimes").locate_file("lifetimes/datasets/CDNOW_master.txt")
    names = ["customer", "date", "cds", "dollars"]
    orders = pd.read_csv(file, sep=r"\s+", skiprows=1, names=names, parse_dates=["date"], date_format="%Y%m%d")
    cut = pd.Timestamp("1997-09-30")
    past, future = orders[orders.date <= cut], orders[orders.date > cut]
    of = past.groupby("customer")
    recent = [past[past.date > cut - pd.Timedelta(days=d)].groupby("customer").dollars.sum() for d in (30, 90)]
    features = [
        np.log(of.date.nunique()),
        np.log1p((cut - of.date.max()).dt.days),
        (cut - of.date.min()).dt.days,
        *(np.log1p(column) for column in (of.cds.sum(), of.dollars.sum(), of.dollars.max(), of.dollars.last())),
        *(np.log1p(dollars.reindex(of.groups.keys(), fill_value=0.0)) for dollars in recent),
    ]
    outcome = future.groupby("customer").dollars.sum().reindex(of.groups.keys(), fill_value=0.0)
    return np.column_stack(features).astype(float), outcome.to_numpy()


def of_distribution(d: ZeroInflatedLogNormal) -> Prediction:
    return Prediction(d.mean.numpy(), lambda y: crps(d, y).numpy())


def ziln(x: np.ndarray, y: np.ndarray, *, widths: tuple[int, ...], alpha: float) -> Model:
    model = ZILNRegressor(widths, alpha=alpha, random_state=0).fit(x, y)
    return lambda x: of_distribution(model.predict_dist(x))


def tweedie(x: np.ndarray, y: np.ndarray, *, power: float) -> Model:
    """A compound Poisson-gamma regression with log link; its dispersion is Pearson's."""
    model = make_pipeline(StandardScaler(), TweedieRegressor(power=power, alpha=1e-4, max_iter=10_000)).fit(x, y)
    fitted = model.predict(x)
    dispersion = ((y - fitted) ** 2 / fitted**power).sum() / (len(y) - x.shape[1] - 1)

    def predict(x: np.ndarray) -> Prediction:
        mean = model.predict(x)
        return Prediction(mean, lambda y: crps_of_draws(tweedie_draws(mean, dispersion, power), y))

    return predict


def tweedie_draws(mean: np.ndarray, dispersion: float, power: float) -> np.ndarray:
    """Draws of shape (DRAWS, n): the sum of a Poisson number of gamma variables."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(mean ** (2 - power) / (dispersion * (2 - power)), (DRAWS, len(mean)))
    shape = counts * (2 - power) / (power - 1)
    return np.where(counts > 0, rng.gamma(np.maximum(shape, 1e-9)), 0) * dispersion * (power - 1) * mean ** (power - 1)


def crps_of_draws(draws: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The unbiased estimate E|X - y| - E|X - X'| / 2."""
    m = len(draws)
    ranks = 2 * np.arange(1, m + 1)[:, None] - m - 1
    return np.abs(draws - y).mean(0) - (ranks * np.sort(draws, 0)).sum(0) / (m * (m - 1))


def boosting(x: np.ndarray, y: np.ndarray, *, learning_rate: float, leaves: int) -> Model:
    """Who spends, by a classifier, and log dollars of those, by a regressor: a ZILN with one scale for all.

    The scale is that of the residuals of a third of those who spent, on whom the regressor is not trained.
    """
    options = {"learning_rate": learning_rate, "max_leaf_nodes": leaves, "early_stopping": True, "random_state": 0}
    spends = HistGradientBoostingClassifier(**options).fit(x, y > 0)
    positive, log_y = x[y > 0], np.log(y[y > 0])
    third = np.arange(len(log_y)) % 3 == 0
    without = HistGradientBoostingRegressor(**options).fit(positive[~third], log_y[~third])
    scale = np.sqrt(np.mean((log_y - without.predict(positive))[third] ** 2))
    amount = HistGradientBoostingRegressor(**options).fit(positive, log_y)

    def predict(x: np.ndarray) -> Prediction:
        zero = torch.tensor(spends.predict_proba(x)[:, 0])
        return of_distribution(ZeroInflatedLogNormal(torch.tensor(amount.predict(x)), float(scale), zi_probs=zero))

    return predict


def grid(method: Callable[..., Model], **values: tuple[object, ...]) -> list[tuple[Callable[..., Model], dict]]:
    return [(method, dict(zip(values, choice, strict=True))) for choice in itertools.product(*values.values())]


METHODS = {
    OURS[0]: grid(ziln, widths=((),), alpha=(1e-4, 1e-3, 1e-2, 1e-1)),
    OURS[1]: grid(ziln, widths=((32,), (32, 32)), alpha=(1e-4, 1e-2)),
    "Tweedie regression": grid(tweedie, power=(1.2, 1.4, 1.6, 1.8)),
    "two-part boosting": grid(boosting, learning_rate=(0.03, 0.1), leaves=(4, 15)),
}


def measure(
    method: str, x: np.ndarray, y: np.ndarray, parts: list[np.ndarray]
) -> tuple[dict[str, float], dict[str, object]]:
    """The figures of a method on the customers for testing, and the setting with the least CRPS in validation."""
    train, valid, test = parts
    fitted = []
    for fit, setting in METHODS[method]:
        start = time.perf_counter()
        model = fit(x[train], y[train], **setting)
        seconds = time.perf_counter() - start
        fitted.append((model(x[valid]).crps(y[valid]).mean(), seconds, setting, model))
    _, seconds, setting, model = min(fitted, key=lambda f: f[0])
    found, truth = model(x[test]), y[test]
    figures = (
        normalized_gini(truth, found.mean),
        decile_calibration(truth, found.mean).error,
        found.crps(truth).mean(),
        np.sqrt(np.mean((truth - found.mean) ** 2)),
        seconds,
    )
    return dict(zip(BETTER, map(float, figures), strict=True)), setting


def splits(n: int, number: int) -> Iterator[list[np.ndarray]]:
    """Customers for training (60 %), validation and testing (20 % each)."""
    for seed in range(number):
        yield np.split(np.random.default_rng(seed).permutation(n), [int(0.6 * n), int(0.8 * n)])


def run(x: np.ndarray, y: np.ndarray, number: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Figures by method and split, and the settings that were chosen."""
    rows, chosen = [], []
    for split, parts in enumerate(splits(len(y), number)):
        for method in METHODS:
            figures, setting = measure(method, x, y, parts)
            rows.append({"method": method, "split": split, **figures})
            chosen.append({"method": method, "setting": ", ".join(f"{k} {v}" for k, v in setting.items())})
            print(rows[-1], file=sys.stderr)
    return pd.DataFrame(rows).set_index(["method", "split"]), pd.DataFrame(chosen)


def comparisons(figures: pd.DataFrame) -> Iterator[tuple[str, str, str, float, float]]:
    """Ours, the other, the measure, and how much better ours is, with its standard error over splits."""
    for ours, other, what in itertools.product(OURS, METHODS.keys() - set(OURS), BETTER):
        gain = BETTER[what] * (figures.loc[ours, what] - figures.loc[other, what])
        yield ours, other, what, gain.mean(), gain.std() / len(gain) ** 0.5


def losses(figures: pd.DataFrame) -> list[str]:
    """A sentence for everything in which another method is better, however little."""
    said = []
    for ours, other, what, gain, error in sorted(comparisons(figures)):
        if gain < 0:
            a, b = figures.loc[ours, what].mean(), figures.loc[other, what].mean()
            size = "more than" if -gain > 2 * error else "within"
            said.append(f"- {what}: {other} {b:.3g}, {ours} {a:.3g}; {size} two standard errors of the difference.")
    return said


def page(figures: pd.DataFrame, chosen: pd.DataFrame) -> str:
    number = figures.index.get_level_values("split").nunique()
    means, errors = (getattr(figures.groupby("method"), f)() for f in ("mean", "sem"))
    lines = [HEAD.format(splits=number), "| | " + " | ".join(BETTER) + " |", "| --- |" + " --- |" * len(BETTER)]
    for method in METHODS:
        cells = [f"{means.loc[method, w]:.3g} ± {errors.loc[method, w]:.1g}" for w in BETTER]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines += [DIFFERENCES, "| | " + " | ".join(BETTER) + " |", "| --- |" + " --- |" * len(BETTER)]
    table = pd.DataFrame(comparisons(figures), columns=["ours", "other", "what", "gain", "error"])
    for (ours, other), rows in table.groupby(["ours", "other"]):
        cells = [f"{r.gain:+.2g} ± {r.error:.1g}" for r in rows.set_index("what").loc[list(BETTER)].itertuples()]
        lines.append(f"| {ours} against {other} | {' | '.join(cells)} |")
    lines += ["", "## Where ours loses", "", *(losses(figures) or ["Nowhere."]), "", "## Chosen settings", ""]
    counts = chosen.groupby(["method", "setting"]).size()
    lines += [f"- {method}: {setting}, {times} times" for (method, setting), times in counts.items()]
    return "\n".join([*lines, TAIL])


HEAD = """# What customers will spend

Printed by `python benchmarks/customer_value.py`.

CDNOW: 23,570 customers, nine features of their first 39 weeks, dollars in the next 39 weeks; 70 % spent nothing.
{splits} random splits of the customers: 60 % for training, 20 % to choose one of four settings by CRPS, 20 % for
testing. Means over the splits, with standard errors. Seconds are those of the chosen fit, on one thread of a shared
machine.
"""
DIFFERENCES = """
Differences, split by split; positive means that ours is better, in every column:
"""
TAIL = """
## What is compared

- ZILN, linear and network: `ZILNRegressor` with no hidden layer, and with one or two of 32.
- Tweedie regression: `TweedieRegressor` of scikit-learn with log link, on standardised features. Its distribution is
  the compound Poisson-gamma with Pearson's dispersion, in which one mean sets P(X = 0) and the amounts. The CRPS is
  estimated from 200 draws a customer.
- Two-part boosting: `HistGradientBoostingClassifier` for who spends, `HistGradientBoostingRegressor` for log dollars.
  With one scale for all it is a ZILN too, so that its mean and CRPS are exact.

One shop, one way to define features and outcome. The standard errors are of splits that share customers, so they are
somewhat too small."""


def main() -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    print(page(*run(*cdnow(), SPLITS)))


if __name__ == "__main__":
    main()
