"""How fast a hurdle regression is fitted: against the number of cells, NUTS, and minibatches of the same cells.

    python benchmarks/hurdle.py [--large] --json hurdle.json

1. The time of a step at 1,000 and at 1,000,000 cells of the same design, in turn: their ratio must be below 1.1.
2. --large: 1,000,000 cells x 2,000 genes of 20 donors in 2 conditions, from their statistics to convergence.
3. Seconds, and the largest error of fold changes against a long run of NUTS: our guide, shorter runs of NUTS on the
   same statistics, and an AutoNormal guide on minibatches of the cells. NUTS is NumPyro's, on the model as
   tests/calibration/nuts_reference.py writes it in JAX.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_zilognormal import GroupedZeroInflatedLogNormal, SufficientStatistics
from pyro_zilognormal.models import (
    Condition,
    HurdleData,
    HurdleGuide,
    HurdleModel,
    HurdlePriors,
    draw_coefficients,
    fit_hurdle,
    log_fold_change,
)
from pyro_zilognormal.svi import Minibatches, fit, posterior_draws

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.calibration.nuts_reference import posterior
from tests.calibration.simulations import DENSE


def simulate(cells: int, genes: int, donors: int, seed: int = 0) -> HurdleData:
    """Return statistics of groups, one for each donor and condition, drawn from their exact distribution."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        donor, condition = torch.arange(donors).repeat(2), torch.arange(2).repeat_interleave(donors)
        rows = torch.stack([torch.ones(2 * donors), condition], 1).double()

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64)

        mu = 1.5 + 0.7 * normal(genes) + 0.3 * normal(genes) * rows[:, 1:] + 0.2 * normal(donors, genes)[donor]
        logits = 0.5 + 1.5 * normal(genes) + 0.5 * normal(genes) * rows[:, 1:] + 0.3 * normal(donors, genes)[donor]
        sigma = (-0.5 + 0.3 * normal(genes)).exp()
        total = torch.full((2 * donors, 1), cells // (2 * donors)).double()
        value = GroupedZeroInflatedLogNormal(mu, sigma, logits, total).sample()
    return HurdleData.from_groups(SufficientStatistics.from_value(value), rows, factors=donor)


def dense(data: HurdleData) -> HurdlePriors:
    """Return the priors of the model in NumPyro, with effects in most genes."""
    return HurdlePriors.for_data(data, **DENSE)


def pair(data: HurdleData) -> tuple[HurdleModel, HurdleGuide]:
    """Return model and guide."""
    model = HurdleModel(data, dense(data))
    return model, HurdleGuide(model, data)


def step_seconds(data: HurdleData) -> Callable[[], float]:
    """Return a function that times one step on the data."""
    elbo = Trace_ELBO()(*pair(data))
    optimizer = torch.optim.Adam(elbo.parameters(), lr=1e-4)

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        elbo(*data.arguments).backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


def scaling(genes: int = 200, pairs: int = 60) -> dict[str, float]:
    """Time steps at few and many cells in turn."""
    few, many = (step_seconds(simulate(cells, genes, donors=10)) for cells in (1_000, 1_000_000))
    for _ in range(5):
        few(), many()
    times = [(few(), many()) for _ in range(pairs)]
    ratio = statistics.median(b / a for a, b in times)
    return {"seconds_1e3": statistics.median(a for a, _ in times), "ratio_1e6": ratio}


def large() -> dict[str, float | bool]:
    """Fit 1,000,000 cells x 2,000 genes x 20 donors from their statistics to convergence."""
    data = simulate(1_000_000, 2_000, donors=20)
    start = time.perf_counter()
    model, guide = pair(data)
    started = time.perf_counter()
    result = fit_hurdle(model, guide, data)
    end = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "start_seconds": started - start,
        "fit_seconds": end - started,
        "steps": len(result.losses),
        "converged": result.converged,
        "peak_GiB": peak,
    }


def accuracy() -> dict[str, dict[str, dict[str, float]]]:
    """Compare seconds and the largest error of fold changes, in posterior sds, against a long run of NUTS."""
    sizes = ((20, 4, 4_000), (60, 6, 6_000))
    data = {
        f"{genes} genes, {donors} donors, {cells:,} cells": simulate(cells, genes, donors)
        for genes, donors, cells in sizes
    }
    # All fits come first: after JAX had run in the process, a fit was seen to take six times as long as alone.
    fitted = {size: fits(d) for size, d in data.items()}
    return {size: against_nuts(d, fitted[size]) for size, d in data.items()}


def against_nuts(data: HurdleData, fitted: dict[str, tuple[Tensor, float]]) -> dict[str, dict[str, float]]:
    """Return seconds and error of each fit, and of NUTS."""
    exact, seconds = nuts(data, draws=4_000)
    sampled = {f"statistics, NUTS, {draws:,} draws": nuts(data, draws) for draws in (400, 1600)}
    found = {"statistics, NUTS, 4,000 draws: the reference": {"seconds": seconds, "error": 0.0}}
    for name, (draws, seconds) in (fitted | sampled).items():
        found[name] = {"seconds": seconds, "error": error(draws, exact)}
    return found


def fits(data: HurdleData) -> dict[str, tuple[Tensor, float]]:
    """Return draws of fold changes and seconds of our fit, and of minibatches of the cells."""
    found = {"statistics, fit_hurdle": reduction(data)}
    for steps in (500, 2000):
        found[f"cells, minibatches, AutoNormal, {steps:,} steps"] = minibatches(data, steps)
    return found


def reduction(data: HurdleData) -> tuple[Tensor, float]:
    """Return draws of fold changes from the statistics of the groups by our guide, and its seconds."""
    start = time.perf_counter()
    result = fit_hurdle(*pair(data), data)
    return change(draw_coefficients(result, data, draws=2000)), time.perf_counter() - start


def nuts(data: HurdleData, draws: int) -> tuple[Tensor, float]:
    """Return draws of fold changes by NumPyro's NUTS after a warm-up, and its seconds, compilation included."""
    start = time.perf_counter()
    found = posterior(data, draws, warmup=max(draws // 2, 100))
    seconds = time.perf_counter() - start
    return change({name: torch.tensor(values) for name, values in found.items()}), seconds


def minibatches(data: HurdleData, steps: int) -> tuple[Tensor, float]:
    """Return draws of fold changes from a plain fit to cells with the statistics of the groups, and its seconds."""
    cells = as_cells(data)
    model = HurdleModel(cells, dense(cells))
    guide = AutoNormal(model)
    batches = Minibatches(*cells.arguments, batch_size=256, plate="rows")
    start = time.perf_counter()
    adam = functools.partial(torch.optim.Adam, lr=0.02)
    result = fit(model, guide, batches, steps=steps, optimizer=adam)
    return change(posterior_draws(result, *data.arguments, draws=2000)), time.perf_counter() - start


def as_cells(data: HurdleData) -> HurdleData:
    """Return cells with exactly the statistics of the groups: positives half above and half below their mean."""
    blocks, rows = [], []
    for group, value in enumerate(data.value):
        total = int(value[0, :2].sum())
        position = torch.arange(total)[:, None]
        positive = position < value[:, 1]
        sign = torch.where(position % 2 == 0, 1.0, -1.0) * (position < 2 * (value[:, 1] // 2))
        spread = (value[:, 3] / (2 * (value[:, 1] // 2)).clamp(min=1)).sqrt()
        blocks.append((value[:, 2] + sign * spread).exp() * positive)
        rows += [group] * total
    at = torch.tensor(rows)
    return HurdleData.from_cells(torch.cat(blocks), data.design[at], factors=data.factors[at], reduce=False)


def change(draws: dict[str, Tensor]) -> Tensor:
    """Return log2 fold changes, of shape (draws, genes)."""
    slope = {"zero_slope": draws["zero_slope"].reshape(-1, 1, 1)}  # the same for all genes
    return log_fold_change(draws | slope, Condition([1.0, 1.0]), Condition([1.0, 0.0])).total


def error(found: Tensor, exact: Tensor) -> float:
    """Return the largest error of a mean or an sd, in posterior sds."""
    mean = (found.mean(0) - exact.mean(0)).abs() / exact.std(0)
    sd = (found.std(0) / exact.std(0) - 1).abs()
    return float(torch.maximum(mean, sd).max())


def main() -> None:
    """Run all parts, print them and keep them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--json", required=True)
    args = parser.parse_args()
    found: dict[str, object] = {"torch": torch.__version__, "threads": torch.get_num_threads(), "scaling": scaling()}
    if args.large:
        found["large"] = large()
    found["accuracy"] = accuracy()
    print(json.dumps(found, indent=2))
    with open(args.json, "w") as file:
        json.dump(found, file, indent=2)


if __name__ == "__main__":
    main()
