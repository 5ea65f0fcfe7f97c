"""Tables of results, and the meaning of their columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_zilognormal import ZeroInflatedLogNormal
from pyro_zilognormal.models import (
    Condition,
    cell_parameters,
    expected_fdr,
    local_false_sign_rate,
    log_fold_change,
)
from pyro_zilognormal.singlecell.arguments import items, real
from pyro_zilognormal.singlecell.design.design import Contrast
from pyro_zilognormal.singlecell.errors import ArgumentTypeError, require, shown
from pyro_zilognormal.singlecell.files.io import Arm
from pyro_zilognormal.singlecell.moderated_t import SampleTest

Function = TypeVar("Function", bound=Callable[..., Any])

#: The probability of intervals unless another is asked for: one gene in a hundred lies outside by chance.
CREDIBLE = 0.99
#: The columns of a table of results, in order, with their meaning.
COLUMNS = {
    "variable": "Gene.",
    "contrast": "Name of the contrast: test condition against reference condition.",
    "log_fc": "Log2 fold change of mean expression, zeros included (posterior mean): log2 of E[X, test] / E[X, "
    "reference]. 1 means twice the expression in the test condition, -1 half of it. Finite also where a condition has "
    "only zeros. Of a difference of two contrasts, the first log2 fold change less the second, and so are its parts.",
    "log_fc_low": f"Lower end of the {100 * CREDIBLE:g} % credible interval of log_fc, unless credible says otherwise.",
    "log_fc_high": "Upper end of the credible interval of log_fc.",
    "log_fc_sd": "Posterior standard deviation of log_fc.",
    "log_fc_detection": "Part of log_fc due to detection: log2 ratio of P(X > 0). Detection, abundance and dispersion "
    "add up to log_fc.",
    "detection_lfsr": "Posterior probability that the sign of log_fc_detection is wrong.",
    "log_fc_abundance": "Part of log_fc due to abundance: log2 ratio of geometric means where X > 0.",
    "abundance_lfsr": "Posterior probability that the sign of log_fc_abundance is wrong.",
    "log_fc_dispersion": "Part of log_fc due to dispersion: a wider distribution of log X has a larger mean. The "
    "difference of sigma^2 / 2 in log2 units, where sigma is the sd of log X where X > 0.",
    "dispersion_fc": "Log2 ratio of sigma, the sd of log X where X > 0 (posterior mean). 1 means that it is twice as "
    "large in the test condition.",
    "dispersion_fc_low": "Lower end of the credible interval of dispersion_fc.",
    "dispersion_fc_high": "Upper end of the credible interval of dispersion_fc.",
    "dispersion_lfsr": "Posterior probability that the sign of dispersion_fc is wrong.",
    "prob_up": "Posterior probability that mean expression is higher in the test condition.",
    "lfsr": "Local false sign rate: posterior probability that the sign of log_fc is wrong.",
    "prob_de": "Posterior probability that log_fc is larger than delta or smaller than -delta.",
    "error": "Posterior probability that log_fc does not lie beyond delta on its likelier side.",
    "expected_fdr": "Expected false discovery rate if this gene and all more certain ones are called.",
    "pval": "P-value of log_fc from a moderated t test of the samples' log means. Missing without random effects, "
    "where too few samples are left to estimate their variance, and for genes of fewer than 3 positive values.",
    "padj": "pval adjusted by Benjamini and Hochberg, over the genes that have one.",
    "is_de": "Whether the gene is called differentially expressed: expected_fdr is at most the chosen rate, error at "
    "most max_error, and padj, where there is one, at most the chosen rate; never with status all_zero or few_cells.",
    "detection_test": "Observed share of cells with X > 0, test condition. This and the next three are missing for a "
    "difference of two contrasts.",
    "detection_ref": "Observed share of cells with X > 0, reference condition.",
    "mean_test": "Observed mean on the linear scale, zeros included, test condition.",
    "mean_ref": "Observed mean on the linear scale, zeros included, reference condition.",
    "n_test": "Number of cells, test condition; of a difference of two contrasts, of both conditions of the first.",
    "n_ref": "Number of cells, reference condition; of a difference, of both conditions of the second contrast.",
    "status": "ok; all_zero: no positive value in any condition; too_few_positive: fewer than 3 positive values in "
    "all together; few_cells: a condition has fewer than 10 cells or, with random effects, fewer than 2 samples; "
    "all_positive: no zero in any.",
    "log_skewness": "Skewness of log X where X > 0, in all cells, about the means of the groups of cells alike in all "
    "variables; 0 for a log-normal. Missing where cells are not grouped.",
    "predictive_check": "ok, or what the model does not reproduce: zero_fraction, mean, sd_log (standard deviation of "
    "log X where X > 0), outside of the 99 % posterior predictive interval in one of the conditions; log_fc, whose "
    "interval excludes the log2 ratio of the observed means by more than the noise of that ratio; left_tail, a "
    "log_skewness below -1 by more than two standard errors, which makes the model's means too large. no_cells: a "
    "condition has no cells.",
}


def describe_columns(function: Function) -> Function:
    """Write the columns of the table where a docstring has "COLUMNS"."""
    if function.__doc__:  # none under python -OO
        found = re.search(r"( *)COLUMNS\n", function.__doc__)
        rows = "".join(f"{found[1]}- ``{name}``: {meaning}\n" for name, meaning in COLUMNS.items()) if found else ""
        function.__doc__ = re.sub(r" *COLUMNS\n", lambda _: rows, function.__doc__)
    return function


_TEXT = ("variable", "contrast", "status", "predictive_check")

_FEWEST_POSITIVE = 3
# A skewness of log x below which the log-normal's mean is too large by a quarter, that of an exponential distribution.
LEFT_TAIL = -1.0
FEWEST_CELLS = 10
# A few cells, or one sample, do not distinguish a condition from what they have in common by chance.
_UNCALLED = ("all_zero", "few_cells")
# Positive values in each condition, from which on a ratio of means is compared with its interval.
_FEWEST_OBSERVED = 5
# Standard errors that 99 % of Normal values lie within.
_NOISE = 2.576


@dataclass(frozen=True)
class Calls:
    """How genes are called, and what is summarised.

    Attributes:
        delta: changes of at most this many log2 units are of no interest.
        fdr: the expected false discovery rate of the calls.
        max_error: the largest error of a gene that is called.
        credible: probability of the intervals.
        negligible: changes of at most this many log2 units have no sign.
    """

    delta: float
    fdr: float
    max_error: float
    credible: float
    negligible: float


def summarise(values: Tensor, credible: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the median and the ends of the central credible interval over draws, each of shape (genes,)."""
    # NumPy partitions, and takes a third of the time of torch.quantile, which sorts.
    middle, low, high = np.quantile(values.numpy(), [0.5, (1 - credible) / 2, (1 + credible) / 2], axis=0)
    return torch.from_numpy(middle), torch.from_numpy(low), torch.from_numpy(high)


def summary_columns(name: str, values: Tensor, credible: float, median: str = "") -> dict[str, NDArray[np.float64]]:
    """Return median and interval of draws as columns ``name`` and ``median``, ``_low`` and ``_high``."""
    ends = zip((median, "_low", "_high"), summarise(values, credible), strict=True)
    return {f"{name}{end}": summary.numpy() for end, summary in ends}


def contrast_table(
    genes: list[str],
    posterior: Mapping[str, NDArray[np.float64]],
    contrast: Contrast,
    arms: Sequence[Arm],
    everything: Arm,
    samples: SampleTest,
    outside: Mapping[str, NDArray[np.bool_]] | None,
    calls: Calls,
    skewness: NDArray[np.float64],
    few_samples: bool = False,
) -> Any:
    """Return the table of one contrast, the most certain gene first.

    Args:
        genes: their names.
        posterior: what :func:`posterior_columns` says of all genes.
        contrast: the comparison.
        arms: observations of the conditions of the contrast.
        everything: observations of all cells.
        samples: the test of samples.
        outside: which genes fail the predictive check of each statistic; None where a condition has no cells.
        calls: how genes are called.
        skewness: of the logarithms.
        few_samples: whether a condition has too few samples.
    """
    columns: dict[str, Any] = {"variable": genes, "contrast": contrast.name} | dict(posterior)
    columns["expected_fdr"] = expected_fdr(torch.from_numpy(posterior["error"])).numpy()
    columns |= {"pval": samples.pval, "padj": adjust(samples.pval)} | _observed(arms, everything, few_samples)
    columns["log_skewness"] = skewness
    table = require("pandas").DataFrame(columns)
    if outside is None:
        table["predictive_check"] = "no_cells"
    else:
        table["predictive_check"] = _words(dict(outside) | {"log_fc": excludes_observed(table, samples, arms)})
    table["is_de"] = posterior_calls(table, calls.fdr, calls.max_error) & ~(table["padj"] > calls.fdr)
    # Genes of equal error, such as 0 of 1,000 draws, by the smallest change that is credible (Harrison et al. 2019).
    smallest = np.maximum(table["log_fc_low"], -table["log_fc_high"])
    order = np.lexsort([-smallest.to_numpy(), table["expected_fdr"].to_numpy()])
    return table[list(COLUMNS)].astype(dict.fromkeys(_TEXT, object)).iloc[order].reset_index(drop=True)


def excludes_observed(table: Any, samples: SampleTest, arms: Sequence[Arm]) -> NDArray[np.bool_]:
    """Return which intervals of log_fc exclude the observed log2 ratio of means by more than its noise."""
    noise = _NOISE * samples.se
    outside = (samples.log_fc + noise < table["log_fc_low"]) | (samples.log_fc - noise > table["log_fc_high"])
    enough = np.min([arm.positive for arm in arms], axis=0) >= _FEWEST_OBSERVED
    return np.asarray(outside & enough, dtype=bool)


def _words(outside: Mapping[str, NDArray[np.bool_]]) -> list[str]:
    """Return, for each gene, the names of what holds for it, or ok."""
    rows = zip(*outside.values(), strict=True)
    return ["+".join(name for name, holds in zip(outside, row, strict=True) if holds) or "ok" for row in rows]


def adjust(pval: NDArray[np.float64]) -> NDArray[np.float64]:
    """Adjust p-values by Benjamini and Hochberg; missing ones are left out."""
    found, known = np.full_like(pval, np.nan), ~np.isnan(pval)
    if known.any():
        found[known] = require("scipy.stats").false_discovery_control(pval[known])
    return found


def posterior_calls(table: Any, fdr: float, max_error: float) -> Any:
    """Return which genes the posterior alone would call."""
    return (table["expected_fdr"] <= fdr) & (table["error"] <= max_error) & ~table["status"].isin(_UNCALLED)


def posterior_columns(draws: Mapping[str, Tensor], contrast: Contrast, calls: Calls) -> dict[str, NDArray[np.float64]]:
    """Return the columns of a table that summarise the draws of some genes."""
    total, detection, abundance, dispersion, sigma = _draw_changes(draws, contrast)
    (_, *ends), (_, *sigma_ends) = (summarise(values, calls.credible) for values in (total, sigma))
    found = {
        "log_fc": total.mean(0),
        "log_fc_low": ends[0],
        "log_fc_high": ends[1],
        "log_fc_sd": total.std(0),
        "log_fc_detection": detection.mean(0),
        "detection_lfsr": local_false_sign_rate(detection),
        "log_fc_abundance": abundance.mean(0),
        "abundance_lfsr": local_false_sign_rate(abundance),
        "log_fc_dispersion": dispersion.mean(0),
        "dispersion_fc": sigma.mean(0),
        "dispersion_fc_low": sigma_ends[0],
        "dispersion_fc_high": sigma_ends[1],
        "dispersion_lfsr": local_false_sign_rate(sigma),
        "prob_up": (total > 0).double().mean(0),
        "lfsr": local_false_sign_rate(total, calls.negligible),
        "prob_de": (total.abs() > calls.delta).double().mean(0),
        # Calls need a sign too: an uninformed gene has large changes in both directions, and prob_de near 1.
        "error": local_false_sign_rate(total, max(calls.delta, calls.negligible)),
    }
    return {name: values.numpy() for name, values in found.items()}


def _draw_changes(draws: Mapping[str, Tensor], contrast: Contrast) -> tuple[Tensor, ...]:
    """Return draws of the log2 fold change, its three parts, and the log2 ratio of sigma."""
    change = log_fold_change(draws, contrast.test, contrast.reference)
    test, reference = (cell_parameters(draws, end).scale for end in (contrast.test, contrast.reference))
    own = change.total, change.detection, change.abundance, change.dispersion, (test / reference).log2()
    if contrast.minus is None:
        return own
    return tuple(a - b for a, b in zip(own, _draw_changes(draws, contrast.minus), strict=True))


def _observed(given: Sequence[Arm], everything: Arm, few_samples: bool) -> dict[str, Any]:
    # Where a condition has no cells, as with a value of a continuous covariate, the status is that of all cells.
    arms = given if all(arm.cells for arm in given) else (everything,)
    positive = np.sum([arm.positive for arm in arms], axis=0)
    status = np.full(len(positive), "ok", dtype=object)
    status[positive == sum(arm.cells for arm in arms)] = "all_positive"
    if few_samples or min(arm.cells for arm in arms) < FEWEST_CELLS:
        status[:] = "few_cells"
    status[positive < _FEWEST_POSITIVE] = "too_few_positive"
    status[positive == 0] = "all_zero"
    found: dict[str, Any] = {"status": status}
    for name, sides in (("test", given[: len(given) // 2]), ("ref", given[len(given) // 2 :])):
        one = sides[0] if len(sides) == 1 else None
        found |= {f"detection_{name}": one.detection if one else np.nan, f"mean_{name}": one.mean if one else np.nan}
        found[f"n_{name}"] = sum(arm.cells for arm in sides)
    return found


def check_predictions(conditions: Sequence[Condition], quantiles: Sequence[float]) -> list[float]:
    """Return the quantiles as numbers; raise for what is none, and for no conditions."""
    if not conditions or not all(isinstance(c, Condition) for c in conditions):
        raise ArgumentTypeError(f"conditions: got {shown(conditions)}; needed one or more conditions, from cond(...)")
    needed = "a number from 0 to below 1: there is no largest value"
    each = items("quantiles", quantiles, "a list of numbers")
    return [real("an element of quantiles", q, lambda v: 0 <= v < 1, needed) for q in each]


def prediction_columns(
    draws: Mapping[str, Tensor], condition: Condition, quantiles: Sequence[float], credible: float
) -> dict[str, NDArray[np.float64]]:
    """Return predictions for a cell of a condition, of some genes; see :meth:`HurdleDE.predict`."""
    cell = cell_parameters(draws, condition)
    distribution = ZeroInflatedLogNormal(cell.mu, cell.scale, cell.zi_logits)
    predicted = {
        "mean": cell.log_mean.exp(),
        "median": distribution.median,
        "prob_zero": cell.zi_logits.sigmoid(),
        "positive_mean": (cell.mu + cell.scale.square() / 2).exp(),
    } | {f"q{q:g}": distribution.icdf(torch.tensor(q, dtype=torch.float64)) for q in quantiles}
    each = [summary_columns(name, values, credible) for name, values in predicted.items()]
    return {name: values for columns in each for name, values in columns.items()}


def by_condition(genes: list[str], columns: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return the columns of several conditions as one DataFrame, with those of genes and conditions before them."""
    pandas = require("pandas")
    tables = [pandas.DataFrame({"variable": genes, "condition": name} | dict(c)) for name, c in columns.items()]
    return pandas.concat(tables, ignore_index=True).astype({"variable": object, "condition": object})
