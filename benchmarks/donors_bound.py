"""The evidence that cells of the negative binomial simulator have on a gene's change, integrated numerically.

A sample's log mean is Normal about that of its condition, with the gene's donor sd; where donors are paired they have
an effect of the same sd in both conditions. Given the log mean of the reference, the change and the donor sd, samples
(or donors) are independent, and each is integrated on a grid. Two approximations are made, which change the log odds of
a change by 0.006 in the mean: cells of a sample whose depths are within 6 % are taken for equally deep, and a gene's
dispersion is at its posterior mode, which a thousand cells determine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.special
from donors_data import Cells, Parameters
from scipy.interpolate import CubicSpline

# Nodes of donor sds, and of natural log fold changes, of which the middle one is no change.
SDS = np.array([0.02, 0.03, 0.045, 0.065, 0.09, 0.12, 0.155, 0.2, 0.27, 0.37, 0.52, 0.75, 1.1])
EFFECTS = 0.15 * np.sinh(np.linspace(-1, 1, 201) * np.arcsinh(3.6 / 0.15))
NONE = len(EFFECTS) // 2
# Nodes of the log mean of a sample, and shifts of it, in nodes, at which paired donors are integrated.
NODES = 96
SHIFTS = np.array([0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 26, 34, 44, 56, 70, 88])
SHIFTS = np.unique([-SHIFTS, SHIFTS])


@dataclass(frozen=True)
class Samples:
    """Counts of each sample, a donor in a condition, ordered by donor.

    Attributes:
        stim: whether a sample is of the tested condition, of shape (samples,).
        paired: whether each donor has two samples.
        of: the sample of each bin of cells of like depth, of shape (bins,).
        number, depth: cells of each bin, and their mean depth, of shape (bins, 1).
        counts: of each bin, of shape (bins, genes).
        total, exposure, square: sums over the cells of each sample, of counts, of depth, and of its square.
        rate, dispersion: of each gene.
    """

    stim: np.ndarray
    paired: bool
    of: np.ndarray
    number: np.ndarray
    depth: np.ndarray
    counts: np.ndarray
    total: np.ndarray
    exposure: np.ndarray
    square: np.ndarray
    rate: np.ndarray
    dispersion: np.ndarray

    @property
    def log_mean(self) -> np.ndarray:
        """Log mean of each sample a unit of depth, drawn to that of all by half a count."""
        return np.log((self.total + 0.5) / (self.exposure + 0.5 / self.rate))

    @property
    def variance(self) -> np.ndarray:
        """Its variance over cells of the sample."""
        return 1 / (self.exposure * self.rate + 0.5) + self.dispersion * self.square / self.exposure**2


def sample_of(cells: Cells) -> tuple[np.ndarray, np.ndarray]:
    """Return the sample of each cell, and whether samples are of the tested condition."""
    key = np.stack([np.unique(cells.donor, return_inverse=True)[1], cells.stim])
    samples, sample = np.unique(key, axis=1, return_inverse=True)
    return sample.ravel(), samples[1].astype(bool)


def read_samples(cells: Cells, parameters: Parameters) -> Samples:
    """Return the samples, with the posterior mode of each gene's dispersion given its samples' means."""
    sample, stim = sample_of(cells)
    key, bin_of = np.unique([sample, np.round(np.log(cells.depth) / 0.06)], axis=1, return_inverse=True)
    member = (bin_of.ravel() == np.arange(key.shape[1])[:, None]).astype(float)
    number, counts, of = member.sum(1)[:, None], member @ cells.counts, key[0].astype(int)
    depth = member @ cells.depth[:, None] / number
    within = (of == np.arange(len(stim))[:, None]).astype(float)
    sums = within @ counts, within @ (number * depth), within @ (number * depth**2)
    rate = counts.sum(0) / cells.depth.sum()
    found = Samples(stim, cells.paired, of, number, depth, counts, *sums, rate, np.ones_like(rate))
    return replace(found, dispersion=dispersion(cells.counts, found, parameters))


def dispersion(counts: np.ndarray, samples: Samples, parameters: Parameters) -> np.ndarray:
    """Return the mode of each gene's dispersion, whose log has a line in the log rate as prior mean."""
    line = np.polyfit(np.log(parameters.rate), np.log(parameters.dispersion), 1)
    sd = np.std(np.log(parameters.dispersion) - np.polyval(line, np.log(parameters.rate)))
    mean, (cell, gene) = samples.depth * np.exp(samples.log_mean[samples.of]), np.nonzero(counts)
    some, profile, grid = counts[cell, gene], [], np.linspace(-5.5, 3, 29)
    for log_phi, phi in zip(grid, np.exp(grid), strict=True):
        each = scipy.special.gammaln(some + 1 / phi) - scipy.special.gammaln(1 / phi) + some * log_phi
        own = np.bincount(gene, each, counts.shape[1])
        own -= ((samples.counts + samples.number / phi) * np.log1p(phi * mean)).sum(0)
        profile.append(own - ((log_phi - np.polyval(line, np.log(samples.rate))) / sd) ** 2 / 2)
    best = np.argmax(profile[1:-1], axis=0) + 1
    before, at, after = (np.take_along_axis(np.array(profile), (best + i)[None], 0)[0] for i in (-1, 0, 1))
    return np.exp(grid[best] + (grid[1] - grid[0]) * (before - after) / (before - 2 * at + after) / 2)


# --- The evidence of each donor sd and effect


def evidence(samples: Samples) -> np.ndarray:
    """Return the log marginal likelihood, up to a constant, of shape (genes, sds, effects)."""
    mode, stim = samples.log_mean, samples.stim
    known = np.minimum(samples.exposure * samples.rate, samples.exposure * np.exp(mode)) + 0.5
    sd = np.sqrt(1 / known + samples.dispersion * samples.square / samples.exposure**2)
    low, high = (mode - 5 * sd).min(0), (mode + 5 * sd).max(0)
    step = (high - low) / (NODES - 1)
    nodes = low + step * np.arange(NODES)[:, None]
    log = samples.total[:, None] * nodes
    for j, x, number, depth in zip(samples.of, samples.counts, samples.number, samples.depth, strict=True):
        log[j] -= (x + number / samples.dispersion) * np.log1p(samples.dispersion * depth * np.exp(nodes))
    likelihood = np.exp(log - log.max(1, keepdims=True)).transpose(2, 0, 1)
    found = np.empty((len(step), len(SDS), len(EFFECTS)))
    for k, donor_sd in enumerate(SDS):
        smooth = kernel((donor_sd / step) ** 2)
        sides = (likelihood[:, side] @ smooth for side in (~stim, stim))
        shifts, values = paired(*sides, smooth) if samples.paired else nested(*sides)
        for g, at in enumerate(EFFECTS / step[:, None]):
            inside = np.abs(at) <= shifts[-1]
            found[g, k] = np.where(inside, CubicSpline(shifts, values[g])(at), values[g].min() - 50)
    return found - found.max((1, 2), keepdims=True)


def kernel(variance: np.ndarray) -> np.ndarray:
    """Return discrete Normal kernels (Lindeberg 1990) of a variance in nodes, reflected at the ends."""
    weight = np.nan_to_num(scipy.special.ive(np.arange(2 * NODES), variance[:, None]))
    i, j = np.mgrid[:NODES, :NODES]
    return weight[:, abs(i - j)] + weight[:, i + j + 1] + weight[:, 2 * NODES - 1 - i - j]


def nested(reference: np.ndarray, tested: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return shifts of the log mean in nodes, and the log evidence of each."""
    logs = [np.log(np.maximum(side, 1e-300)).sum(1) for side in (reference, tested)]
    tops = [log.max(1, keepdims=True) for log in logs]
    one, other = (np.fft.rfft(np.exp(log - top), 2 * NODES) for log, top in zip(logs, tops, strict=True))
    product = np.roll(np.fft.irfft(one.conj() * other), NODES - 1, axis=1)[:, : 2 * NODES - 1]
    return np.arange(1 - NODES, NODES), np.log(np.maximum(product, 1e-17)) + sum(tops)


def paired(reference: np.ndarray, tested: np.ndarray, smooth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As ``nested``, with an effect of each donor on both conditions, of the same sd."""
    values, around = [], np.pad(tested, ((0, 0), (0, 0), (NODES, NODES)))
    for shift in SHIFTS:
        both = (reference * around[..., NODES + shift : 2 * NODES + shift]) @ smooth
        values.append(scipy.special.logsumexp(np.log(np.maximum(both, 1e-300)).sum(1), axis=1))
    return SHIFTS, np.array(values).T
