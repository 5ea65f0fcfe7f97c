"""How much power is there? Rank genes of donors.py's sets by exact posteriors of their simulator, and take that apart.

    OMP_NUM_THREADS=1 python benchmarks/donors_power.py FOLDER

The order of genes by posterior probability of the called sign is the best there is, in the mean over data sets, where
the distributions across genes of donor sds, dispersions and effects are known, and no gene's own. Each further rung of
the ladder knows less. Results are kept in donors_power.json, those that donors.json has come from there, and the page
POWER.md is written at the end, and by ``--sets 0`` alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from donors import name, save
from donors_bound import EFFECTS, SDS, Samples, evidence, read_samples, sample_of
from donors_data import CHANGED, DONOR_SDS, INTERFERON, SIMULATED, TYPES, Cells, interferon, parameters
from donors_measures import mean_and_error, measure
from donors_methods import METHODS
from donors_power_page import BOUND, DESIGNS, PAGE, page
from scipy.special import logsumexp

OUT = Path(__file__).parent / "donors_power.json"
NONE = len(EFFECTS) // 2
_EDGES = (EFFECTS[1:] + EFFECTS[:-1]) / 2
_WIDTHS = np.gradient(EFFECTS)
# Scales of a learned mixture of Normal effects, and the pseudo-counts of genes without one.
SCALES, PSEUDO, ROUNDS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2), 10, 60


def rungs(cells: Cells, folder: Path) -> dict[str, pd.DataFrame]:
    """Return the table of each rung of the ladder."""
    known, given = (sd_weights(DONOR_SDS), effect_weights()), parameters(folder)
    samples = read_samples(cells, given)
    exact = evidence(samples)
    own = given.donor_sd[[int(gene[1:]) for gene in cells.genes]]
    sums = normal_evidence(samples, samples.log_mean, samples.variance)
    hurdle = normal_evidence(samples, *hurdle_means(cells))
    found = {
        "true donor sds": posterior(exact, at_nodes(own), known[1]),
        "known distributions": posterior(exact, *known),
        "learned distributions": posterior(exact, *learn(exact)),
        "sums of samples": posterior(sums, *learn(sums)),
        "zeros and log-normals": posterior(hurdle, *learn(hurdle)),
    }
    return {rung: table(log, cells.genes) for rung, log in found.items()}


# --- Distributions across genes


def sd_weights(quantiles: tuple[list[float], list[float]]) -> np.ndarray:
    """Return the probabilities of the nodes of donor sds, of a distribution given by its quantiles."""
    return np.diff(np.interp(np.r_[0, np.sqrt(SDS[1:] * SDS[:-1]), np.inf], quantiles[1], quantiles[0]))


def at_nodes(sds: np.ndarray) -> np.ndarray:
    """Return the weights of the two nodes beside each gene's own sd."""
    place = np.interp(np.log(sds), np.log(SDS), np.arange(len(SDS)))
    return np.maximum(1 - np.abs(place[:, None] - np.arange(len(SDS))), 0)


def effect_weights() -> np.ndarray:
    """Return the probabilities of the nodes of effects of the simulator."""
    size = np.abs(EFFECTS) / np.log(2) + 1e-12
    weights = scipy.stats.lognorm.pdf(size, 0.5) * _WIDTHS
    weights *= CHANGED / weights.sum()
    weights[NONE] = 1 - CHANGED
    return weights


def learn(log: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Learn, by EM, a log-normal of donor sds and a scale mixture of effects that prefers none, as our model has."""
    components = np.array([scipy.stats.norm.pdf(EFFECTS, scale=scale) * _WIDTHS for scale in SCALES])
    components = np.vstack([np.eye(len(EFFECTS))[NONE], components / components.sum(1, keepdims=True)])
    each = np.stack([logsumexp(log, axis=2, b=weights) for weights in components], 2)
    share, of_sds = np.r_[0.9, np.full(len(SCALES), 0.1 / len(SCALES))], sd_weights(DONOR_SDS)
    edges = np.r_[-np.inf, np.log(SDS[1:] * SDS[:-1]) / 2, np.inf]
    for _ in range(ROUNDS):
        joint = each + np.log(of_sds)[:, None] + np.log(share)
        joint = np.exp(joint - logsumexp(joint, axis=(1, 2), keepdims=True))
        share = joint.sum((0, 1)) + 1e-9
        share[0] += PSEUDO - 1
        share /= share.sum()
        of_sds = joint.sum((0, 2)) / len(log)
        mean = of_sds @ np.log(SDS)
        spread = max(np.sqrt(of_sds @ (np.log(SDS) - mean) ** 2), 0.3)
        of_sds = np.diff(scipy.stats.norm.cdf(edges, mean, spread)) + 1e-12
    return of_sds, share @ components


# --- Samples in place of cells


def hurdle_means(cells: Cells) -> tuple[np.ndarray, np.ndarray]:
    """Return log mean and variance of each sample from its zeros and its log-normal positive values, normalised."""
    sample, stim = sample_of(cells)
    member = (sample == np.arange(len(stim))[:, None]).astype(float)
    positive, number = cells.counts > 0, member.sum(1, keepdims=True)
    log = np.log(np.where(positive, cells.normalised, 1))
    found, share = member @ positive, positive.mean(0)
    mean = (member @ log + 0.5 * log.sum(0) / positive.sum(0)) / (found + 0.5)
    squares = (((log - (member @ log / np.maximum(found, 1))[sample]) * positive) ** 2).sum(0)
    variance = (squares + 1) / (np.maximum(found - 1, 0).sum(0) + 4)
    y = np.log((found + 0.5) / (number + 0.5 / share)) + mean
    return y, (1 - share + variance) / (number * share + 0.5)


def normal_evidence(samples: Samples, y: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Return the log marginal likelihood of Normal log means of samples, of shape (genes, sds, effects)."""
    number = len(samples.stim)
    between = np.eye(number)
    if samples.paired:
        between = between + np.kron(np.eye(number // 2), np.ones((2, 2)))
    covariance = SDS[:, None, None] ** 2 * between + (variance.T[:, :, None] * np.eye(number))[:, None]
    design = np.column_stack([np.ones(number), samples.stim])
    inverse = np.linalg.inv(covariance)
    normal = design.T @ inverse @ design
    unscaled = np.linalg.inv(normal)
    fitted = np.einsum("gtpq,qs,gtsr,rg->gtp", unscaled, design.T, inverse, y, optimize=True)
    rest = y.T[:, None] - fitted @ design.T
    log = np.linalg.slogdet(covariance)[1] + np.linalg.slogdet(normal)[1]
    log = -(log + np.einsum("gts,gtsr,gtr->gt", rest, inverse, rest, optimize=True)) / 2
    effect, se = fitted[..., 1:], np.sqrt(unscaled[..., 1, 1:])
    found = log[..., None] + scipy.stats.norm.logpdf(EFFECTS, effect, se)
    return found - found.max((1, 2), keepdims=True)


# --- Posteriors and their tables


def posterior(log: np.ndarray, of_sds: np.ndarray, of_effects: np.ndarray) -> np.ndarray:
    """Return the posterior probabilities of the nodes of effects, of shape (genes, effects)."""
    with np.errstate(divide="ignore"):
        log = logsumexp(log + np.log(of_sds)[..., None], axis=1) + np.log(of_effects)
    return np.exp(log - logsumexp(log, axis=1, keepdims=True))


def table(probability: np.ndarray, genes: np.ndarray) -> pd.DataFrame:
    """Return the table of a method; calls are by the mean of the local false sign rates of those called."""
    down, up = probability[:, :NONE].sum(1), probability[:, NONE + 1 :].sum(1)
    error = probability[:, NONE] + np.minimum(down, up)
    rank = np.argsort(error, kind="stable")
    called = np.empty(len(error), dtype=bool)
    called[rank] = np.cumsum(error[rank]) <= 0.05 * np.arange(1, len(error) + 1)
    edges = np.r_[_EDGES, EFFECTS[-1]]
    edges[[NONE - 1, NONE]] = 0
    low, high = ([np.interp(level, p, edges) for p in probability.cumsum(1)] for level in (0.025, 0.975))
    sign = np.where(up > down, 1, -1)
    order = np.log(np.maximum(up, down) + 1e-300) - np.log(error + 1e-300)
    found = {"order": order, "p": np.minimum(2 * error, 1), "called": called, "called_delta": called}
    found |= {"log2_fc": sign * np.abs(probability @ EFFECTS) / np.log(2)}
    return pd.DataFrame(found | {"low": low / np.log(2), "high": high / np.log(2)}, index=genes)


# --- Cells stimulated with interferon


def interferon_facts(cells: Cells) -> dict[str, Any]:
    """Return how many genes change by much, and how far observed ratios can be from true ones."""
    called = METHODS["ours"](cells)["called"].to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.array([log_ratio(cells, cells.donor == donor)[0] for donor in np.unique(cells.donor)])
        observed, error = log_ratio(cells, np.full(len(cells.stim), True))
    finite = called & np.isfinite(observed)
    within = 1 - 2 * scipy.stats.norm.sf(0.3 / error[finite])
    number = (cells.counts > 0).sum(0)[np.isin(cells.genes, INTERFERON)]
    found = {f"beyond_{2**k}": int((called & (np.abs(ratios) > k).all(0) & _same_sign(ratios)).sum()) for k in (2, 3)}
    found |= {"genes": len(called), "cells": len(cells.stim), "called": int(called.sum())}
    found |= {"rarest": str(cells.genes[np.isin(cells.genes, INTERFERON)][number.argmin()])}
    found |= {"rarest_cells": int(number.min()), "infinite": int((called & ~np.isfinite(observed)).sum())}
    return found | {"error": float(np.median(error[finite])), "within": float(within.sum() / called.sum())}


def log_ratio(cells: Cells, some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the log2 ratio of means of some cells, and its standard error over cells."""
    (one, first), (other, second) = (mean_and_error(cells.normalised[some & of]) for of in (cells.stim, ~cells.stim))
    return np.log2(one / other), np.hypot(first / one, second / other) / np.log(2)


def _same_sign(ratios: np.ndarray) -> np.ndarray:
    return np.abs(np.sign(ratios).sum(0)) == len(ratios)


def main() -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder of the data")
    parser.add_argument("--sets", type=int, default=20, help="sets a design")
    given = parser.parse_args()
    record = json.loads(OUT.read_text()) if OUT.exists() else {}
    peers = json.loads((OUT.parent / "donors.json").read_text())["results"]
    for index, design in itertools.product(range(given.sets), DESIGNS):
        if name((design, "", index), BOUND) not in record:
            cells = SIMULATED[design](given.folder, index)
            tables = rungs(cells, given.folder)
            record |= {name((design, "", index), rung): measure(cells, found) for rung, found in tables.items()}
            save(record, OUT)
            print(design, index, flush=True)
    for cell_type in TYPES:
        if f"response/{cell_type}" not in record:
            record[f"response/{cell_type}"] = interferon_facts(interferon(given.folder, cell_type))
            save(record, OUT)
    PAGE.write_text(page(peers | record))


if __name__ == "__main__":
    main()
