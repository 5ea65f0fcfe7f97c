"""A moderated t test of the mean at the level of samples: what replicates alone say of a fold change.

The logarithm of each sample's mean is regressed on the design by weighted least squares, gene by gene, and the residual
variances of the genes are shrunk to one another, as limma does (Smyth 2004, https://doi.org/10.2202/1544-6115.1027).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_zilognormal.singlecell.design.design import Contrast, RowSpace, strata
from pyro_zilognormal.singlecell.errors import require
from pyro_zilognormal.singlecell.files.io import Cells
from pyro_zilognormal.singlecell.files.reading import times
from pyro_zilognormal.sufficient import SufficientStatistics

Floats = NDArray[np.float64]
# Genes of fewer positive values are not tested.
_FEWEST_POSITIVE = 3
# Degrees of freedom of the median variance of log x, to which the variances of genes are shrunk.
_PRIOR_FREEDOM = 4.0
# A larger variance of log x says only that a sample's mean is unknown; exp of it overflows at 709.
_WIDEST = 20.0
# Numbers in the normal equations of a block of genes.
_BLOCK = 1 << 22


@dataclass(frozen=True, eq=False)
class SampleTest:
    """What samples say of the change of each gene's mean between two conditions, arrays of shape (genes,)."""

    log_fc: Floats  # log2 ratio of means, adjusted for the other columns of the design
    se: Floats  # its standard error; where the variance between samples is not known, that of independent cells
    pval: Floats  # two-sided; NaN without random effects, or without degrees of freedom for that variance


def compare_samples(cells: Cells, contrast: Contrast) -> SampleTest:
    """Test the change between the conditions of a contrast.

    A sample is a combination of levels of the random effects and of the categories of the formula. Genes of fewer than
    three positive values are NaN, and all are where samples cannot distinguish the conditions.
    """
    found = np.full((3, len(cells.names)), np.nan)
    samples, direction = block(read_samples(cells), contrast.direction)
    reduced, tested = _full_rank(samples.design, direction), samples.positive.sum(0) >= _FEWEST_POSITIVE
    if reduced is None or not tested.any():
        return SampleTest(*found)
    y, variance = log_means(samples.select(tested))
    if cells.terms and len(y) > reduced[0].shape[1]:
        estimate, se, freedom = moderated_t(y, weights(y, variance, reduced[0]), *reduced)
        found[2, tested] = 2 * require("scipy.stats").t.sf(np.abs(estimate / se), freedom)
    else:
        estimate, unscaled, _ = _regress(y, 1 / variance, *reduced)
        se = np.sqrt(unscaled)
    found[:2, tested] = np.stack([estimate, se]) / np.log(2.0)
    return SampleTest(*found)


# --- Samples and their means


@dataclass(frozen=True, eq=False)
class Samples:
    """Sums over the cells of each sample."""

    cells: Floats  # numbers of cells, of shape (samples,)
    positive: Floats  # numbers of positive values, of shape (samples, genes)
    total: Floats  # sums of the normalised values, of shape (samples, genes)
    log_variance: Floats  # variance of log x where x > 0 between cells of a sample, of shape (genes,)
    design: Floats  # means of the cells' rows of the design, of shape (samples, columns)
    factors: NDArray[np.int64]  # the level of each random-effects term, of shape (samples, terms)

    def select(self, genes: NDArray[np.bool_]) -> Samples:
        """Return some genes."""
        positive, total = self.positive[:, genes], self.total[:, genes]
        return replace(self, positive=positive, total=total, log_variance=self.log_variance[genes])

    def merge(self, term: int) -> Samples:
        """Return the samples of each level of a term taken together."""
        levels, which = np.unique(self.factors[:, term], return_inverse=True)
        member = (which == np.arange(len(levels))[:, None]).astype(float)
        cells = member @ self.cells
        design = member @ (self.cells[:, None] * self.design) / cells[:, None]
        sums = member @ self.positive, member @ self.total
        return Samples(cells, *sums, self.log_variance, design, self.factors[member.argmax(1)])


def read_samples(cells: Cells) -> Samples:
    """Return the sums of each sample."""
    data, example = cells.data, cells.example
    categories = [v.values.iloc[example] for v in cells.design.variables.values() if v.levels]
    of_row, first = strata([*data.factors.numpy().T, *categories], len(example))
    rows = np.arange(len(of_row))
    member = require("scipy.sparse").csr_matrix((np.ones(len(rows)), (of_row, rows)), (len(first), len(rows)))
    if cells.totals is not None:
        value, total = data.value.numpy(), member @ cells.totals
        positive = member @ value[..., 1]
    else:
        of_cells = SufficientStatistics.from_cells(data.value, torch.from_numpy(of_row), len(first), data.offset)
        value, total = of_cells.value.numpy(), times(member.multiply(1 / cells.factor).tocsr(), data.value)
        positive = value[..., 1]
    freedom, squares = np.maximum(value[..., 1] - 1, 0).sum(0), value[..., 3].sum(0)
    known = freedom > 0
    prior = np.median(squares[known] / freedom[known]) if known.any() else 1.0
    log_variance = (squares + _PRIOR_FREEDOM * prior) / (freedom + _PRIOR_FREEDOM)
    number = member @ cells.count.astype(float)
    design = member @ (cells.count[:, None] * data.design.numpy()) / number[:, None]
    return Samples(number, positive, total, log_variance, design, data.factors.numpy()[first])


def log_means(samples: Samples) -> tuple[Floats, Floats]:
    r"""Return the log of each sample's mean, and its variance over cells of the sample, each of shape (samples, genes).

    .. math:: y_s = \log\frac{t_s + m / 2}{n_s + 1 / (2 p)}, \qquad
        v_s = \frac{(1 - p) + (e^{s^2} - 1)}{n_s p + 1 / 2}

    Here t_s is the sum of the values of n_s cells, and p, m and s^2 are the gene's share of positive values, their
    mean, and the variance of their logarithms. Half a typical positive value is added to each sample, which draws
    samples of few positive values to the mean of all.
    """
    positive, number = samples.positive.sum(0), samples.cells[:, None]
    share, mean = positive / samples.cells.sum(), samples.total.sum(0) / positive
    y = np.log((samples.total + 0.5 * mean) / (number + 0.5 / share))
    relative = 1 - share + np.expm1(np.minimum(samples.log_variance, _WIDEST))
    return y, relative / (number * share + 0.5)


def weights(y: Floats, variance: Floats, design: Floats) -> Floats:
    """Return the precisions 1 / (variance + between) of log means, of shape (samples, genes).

    ``between`` is the median over genes of a median-unbiased estimate of the variance between samples. One number for
    all genes, it balances large samples with small ones; how variable a gene is, its moderated residual variance says.
    """
    freedom = len(design) - design.shape[1]
    hat = design @ np.linalg.pinv(design)
    residual = ((y - hat @ y) ** 2).sum(0)
    noise = ((1 - np.diag(hat))[:, None] * variance).sum(0) / freedom
    excess = residual / require("scipy.stats").chi2.median(freedom) - noise
    return np.asarray(1 / (variance + max(float(np.median(excess)), 0.0)))


# --- The design of samples


def block(samples: Samples, direction: Floats) -> tuple[Samples, Floats]:
    """Account for random effects that samples share, term by term.

    Where most levels of a term have several samples, such as donors in both conditions, and the contrast can be
    estimated within them, the levels become fixed effects: further columns of the design, and of the direction, the
    difference of two rows. Otherwise, as with several samples of each donor of one condition, the samples of a level
    are taken together, so that the level is the replicate.
    """
    for term in range(samples.factors.shape[1]):
        levels, which, number = np.unique(samples.factors[:, term], return_inverse=True, return_counts=True)
        if (number == 1).all():
            continue
        wide = replace(samples, design=np.hstack([samples.design, np.eye(len(levels))[which]]))
        longer = np.append(direction, np.zeros(len(levels)))
        reduced = _full_rank(wide.design, longer)
        most = 2 * (number > 1).sum() >= len(levels)
        if most and reduced is not None and reduced[0].shape[1] < len(which):
            samples, direction = wide, longer
        else:
            samples = samples.merge(term)
    return samples, direction


def _full_rank(design: Floats, direction: Floats) -> tuple[Floats, Floats] | None:
    """Return a design of independent columns of the same span, and the direction in it; None if not estimable."""
    space = RowSpace(design)
    inside = space.coordinates(direction)
    return None if inside is None else ((design / space.lengths) @ space.basis.T, inside)


# --- The test


def moderated_t(y: Floats, weights: Floats, design: Floats, contrast: Floats) -> tuple[Floats, Floats, float]:
    """Regress each gene, and moderate its residual variance.

    The variances of genes have a scaled inverse chi-squared prior, fitted to the logarithms of their estimates (Smyth
    2004, section 6.2).

    Args:
        y: of shape (samples, genes).
        weights: precisions up to a factor, of shape (samples, genes).
        design: of independent columns, of shape (samples, columns).
        contrast: a combination of coefficients, of shape (columns,).

    Returns:
        The combination and its moderated standard error, of shape (genes,), and the degrees of freedom of their ratio.

    Example:
        >>> y = np.log([[1.0, 2.0], [2.0, 2.2], [8.0, 2.1], [9.0, 1.9]])
        >>> design = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
        >>> estimate, se, freedom = moderated_t(y, np.ones((4, 2)), design, np.array([0.0, 1.0]))
        >>> estimate.round(2), freedom > 2
        (array([ 1.79, -0.05]), True)
    """
    freedom = len(design) - design.shape[1]
    genes = max(1, _BLOCK // design.shape[1] ** 2)
    parts = [slice(start, start + genes) for start in range(0, y.shape[1], genes)]
    fitted = [_regress(y[:, part], weights[:, part], design, contrast) for part in parts]
    estimate, unscaled, squares = (np.concatenate(values) for values in zip(*fitted, strict=True))
    variance = squares / freedom
    prior_freedom, prior_variance = variance_prior(variance, freedom)
    if np.isinf(prior_freedom):
        variance = np.full_like(variance, prior_variance)
    else:
        variance = (prior_freedom * prior_variance + freedom * variance) / (prior_freedom + freedom)
    return estimate, np.sqrt(variance * unscaled), min(prior_freedom + freedom, freedom * y.shape[1])


def _regress(y: Floats, weights: Floats, design: Floats, contrast: Floats) -> tuple[Floats, Floats, Floats]:
    """Return each gene's combination, its variance at a residual variance of 1, and its weighted sum of squares."""
    columns = design.shape[1]
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    normal = (weights.T @ products).reshape(-1, columns, columns)
    sides = np.stack([(weights * y).T @ design, np.broadcast_to(contrast, (y.shape[1], columns))], -1)
    coefficients, direction = np.moveaxis(np.linalg.solve(normal, sides), -1, 0)
    squares = (weights * (y - design @ coefficients.T) ** 2).sum(0)
    return coefficients @ contrast, direction @ contrast, squares


def variance_prior(variance: Floats, freedom: int) -> tuple[float, float]:
    """Return degrees of freedom and scale of the prior of variances; no degrees of freedom for a single one."""
    if len(variance) < 2:
        return 0.0, 1.0
    special = require("scipy.special")
    variance = np.maximum(variance, max(1e-5 * float(np.median(variance)), np.finfo(float).tiny))
    log = np.log(variance) - special.digamma(freedom / 2) + np.log(freedom / 2)
    excess = float(log.var(ddof=1) - special.polygamma(1, freedom / 2))
    if excess <= 0:
        return np.inf, float(variance.mean())
    # The inverse of the trigamma function, in logarithms.
    log_half = require("scipy.optimize").brentq(
        lambda a: np.log(special.polygamma(1, np.exp(a))) - float(np.log(excess)), -20, 20
    )
    half = float(np.exp(log_half))
    return 2 * half, float(np.exp(log.mean() + special.digamma(half) - np.log(half)))
