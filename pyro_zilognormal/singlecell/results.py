"""Tables of results, the meaning of their columns, and where they go in an AnnData: our own keys, and scanpy's."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_zilognormal.models import HurdlePriors, cell_parameters, expected_fdr, local_false_sign_rate, log_fold_change
from pyro_zilognormal.singlecell.design.design import Contrast
from pyro_zilognormal.singlecell.errors import SingleCellError, listed, require, unknown
from pyro_zilognormal.singlecell.files.io import Arm, Cells
from pyro_zilognormal.singlecell.moderated_t import SampleTest
from pyro_zilognormal.singlecell.predictive_check import summarise

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
    rows = "\n".join(f"- ``{name}``: {meaning}" for name, meaning in COLUMNS.items())
    function.__doc__ = inspect.cleandoc(function.__doc__ or "").replace("COLUMNS", rows)
    return function


_TEXT = ("variable", "contrast", "status", "predictive_check")
# Columns that also go to varm, as arrays of genes x contrasts.
_IN_VARM = ("log_fc", "log_fc_sd", "prob_de", "lfsr", "expected_fdr", "pval", "padj")
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
    """How genes are called, and what is summarised."""

    delta: float  # changes of at most this many log2 units are of no interest
    fdr: float  # the expected false discovery rate of the calls
    max_error: float  # the largest error of a gene that is called
    credible: float  # probability of the intervals
    negligible: float  # changes of at most this many log2 units have no sign


def negligible(priors: HurdlePriors) -> float:
    """Return the log2 fold change below which genes without effects may lie: 5 sds of the difference of two spikes."""
    return 5 * math.sqrt(2) * priors.spike_sd / math.log(2)


def contrast_table(
    columns: Mapping[str, Any],
    contrast: Contrast,
    arms: Sequence[Arm],
    samples: SampleTest,
    outside: Mapping[str, NDArray[np.bool_]] | None,
    calls: Calls,
) -> Any:
    """Return the table of one contrast, the most certain gene first, of columns, its conditions' cells and samples.

    ``outside`` are the genes outside of the predictive check, by statistic, or None where a condition has no cells.
    """
    table = require("pandas").DataFrame({**columns, "contrast": contrast.name, "pval": samples.pval})
    table["padj"] = adjust(samples.pval)
    table["expected_fdr"] = expected_fdr(torch.from_numpy(columns["error"])).numpy()
    words = np.full(len(table), "no_cells", dtype=object)
    if outside is not None:
        noise = _NOISE * samples.se
        excluded = (samples.log_fc + noise < table["log_fc_low"]) | (samples.log_fc - noise > table["log_fc_high"])
        enough = np.min([arm.positive for arm in arms], axis=0) >= _FEWEST_OBSERVED
        failed = {**outside, "log_fc": excluded & enough}
        rows = zip(*failed.values(), strict=True)
        words[:] = ["+".join(itertools.compress(failed, row)) or "ok" for row in rows]
    table["predictive_check"] = words
    table["is_de"] = posterior_calls(table, calls.fdr, calls.max_error) & ~(table["padj"] > calls.fdr)
    # Genes of equal error, such as 0 of 1,000 draws, by the smallest change that is credible (Harrison et al. 2019).
    smallest = np.maximum(table["log_fc_low"], -table["log_fc_high"])
    order = np.lexsort([-smallest.to_numpy(), table["expected_fdr"].to_numpy()])
    return table[list(COLUMNS)].astype(dict.fromkeys(_TEXT, object)).iloc[order].reset_index(drop=True)


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
    found = {"log_fc": total.mean(0), "log_fc_low": ends[0], "log_fc_high": ends[1], "log_fc_sd": total.std(0)}
    found |= {"log_fc_detection": detection.mean(0), "detection_lfsr": local_false_sign_rate(detection)}
    found |= {"log_fc_abundance": abundance.mean(0), "abundance_lfsr": local_false_sign_rate(abundance)}
    found |= {"log_fc_dispersion": dispersion.mean(0), "dispersion_lfsr": local_false_sign_rate(sigma)}
    found |= {"dispersion_fc": sigma.mean(0), "dispersion_fc_low": sigma_ends[0], "dispersion_fc_high": sigma_ends[1]}
    found |= {"prob_up": (total > 0).double().mean(0), "prob_de": (total.abs() > calls.delta).double().mean(0)}
    found["lfsr"] = local_false_sign_rate(total, calls.negligible)
    # Calls need a sign too: an uninformed gene has large changes in both directions, and prob_de near 1.
    found["error"] = local_false_sign_rate(total, max(calls.delta, calls.negligible))
    return {name: values.numpy() for name, values in found.items()}


def _draw_changes(draws: Mapping[str, Tensor], contrast: Contrast) -> tuple[Tensor, ...]:
    """Return draws of the log2 fold change, its three parts, and the log2 ratio of sigma."""
    change = log_fold_change(draws, contrast.test, contrast.reference)
    test, reference = (cell_parameters(draws, end).scale for end in (contrast.test, contrast.reference))
    own = change.total, change.detection, change.abundance, change.dispersion, (test / reference).log2()
    if contrast.minus is None:
        return own
    return tuple(a - b for a, b in zip(own, _draw_changes(draws, contrast.minus), strict=True))


def observed_columns(given: Sequence[Arm], everything: Arm, few_samples: bool) -> dict[str, Any]:
    """Return the columns of what was observed in the cells of a contrast's conditions."""
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


# --- Where results go


def described(cells: Cells, donor: str | None) -> dict[str, Any]:
    """Return what was read as plain values."""
    return {
        "random_effects": [str(term) for term in cells.terms],
        "random_effects_left_out": cells.left_out,
        "depth": cells.depth.name if cells.depth else None,
        "depth_bins": cells.depth_bins,
        "n_cells": int(cells.count.sum()),
        "n_genes": cells.data.genes,
        "n_rows": len(cells.data.design),
        "n_donors": next((len(term.names) for term in cells.terms if term.columns == (donor,)), 0),
    }


def write_results(adata: Any, table: Any, parameters: Mapping[str, Any], key_added: str = "ziln_de") -> None:
    """Write a table of results to an AnnData, from where it survives h5ad and zarr files.

    ``uns[key_added]`` gets ``{"table": table, "params": parameters}``. ``varm[f"{key_added}_log_fc"]`` gets an array of
    genes x contrasts, and so do ``log_fc_sd``, ``prob_de``, ``lfsr``, ``expected_fdr``, ``pval`` and ``padj``; the
    contrasts of their columns are in ``uns[key_added]["params"]["contrasts"]``.

    Args:
        adata: the AnnData to write to.
        table: the result of :meth:`HurdleDE.test`.
        parameters: text, numbers, booleans, lists of text, or None; see :func:`result_parameters`.
        key_added: the key to write to.

    Raises:
        SingleCellError: the key is empty or holds "/", which files take as a path.
    """
    check_key(key_added)
    contrasts = list(dict.fromkeys(table["contrast"]))
    given = {name: value for name, value in parameters.items() if value is not None} | {"contrasts": contrasts}
    # Files give lists back as arrays.
    plain = {k: np.asarray(v, dtype=object) if isinstance(v, list) else v for k, v in given.items()}
    for name in _IN_VARM:
        wide = table.pivot(index="variable", columns="contrast", values=name)
        adata.varm[f"{key_added}_{name}"] = wide.reindex(index=adata.var_names, columns=contrasts).to_numpy()
    adata.uns[key_added] = {"table": table.copy(), "params": plain}


def check_key(key_added: Any) -> None:
    """Raise for a key that files take as a path."""
    if not isinstance(key_added, str) or not key_added or "/" in key_added:
        raise SingleCellError(f"key_added is {key_added!r}; needed text without '/', which files take as a path")


# The names of scanpy's arrays, our columns, and types.
_SCANPY_FIELDS = {"names": ("variable", "O"), "scores": ("score", "f4"), "logfoldchanges": ("log_fc", "f4")}
_SCANPY_FIELDS |= {"pvals": ("pval", "f8"), "pvals_adj": ("padj", "f8")}


def to_scanpy(adata: Any, key: str = "ziln_de", key_added: str = "rank_genes_groups") -> None:
    """Write results as scanpy's ``rank_genes_groups`` does, for scanpy's tables and plots.

    A group is the test level of a contrast, or the contrast where levels would be ambiguous, without colons, which
    files do not take. ``logfoldchanges`` are posterior means, ``scores`` these over posterior standard deviations.
    ``pvals`` and ``pvals_adj`` are those of the test of samples. Where there is none, without random effects, they are
    not p-values: they hold the local false sign rate and the expected false discovery rate.

    Args:
        adata: an AnnData with results in ``uns[key]``.
        key: the key of the results.
        key_added: the key of uns to write to; scanpy's functions read "rank_genes_groups" by default.

    Raises:
        UnknownNameError: there are no results under the key.
        SingleCellError: levels that are one without colons.

    Example:
        After ``to_scanpy(adata)``, ``scanpy.get.rank_genes_groups_df(adata, group="stim")``.
    """
    if key not in adata.uns or "table" not in adata.uns[key]:
        raise unknown("key", key, "keys of adata.uns", adata.uns)
    table, params = adata.uns[key]["table"], adata.uns[key]["params"]
    contrasts = [str(c) for c in params["contrasts"]]
    tested = table["pval"].notna().any()
    if not tested:
        table = table.assign(pval=table["lfsr"], padj=table["expected_fdr"])
    # Genes that are too rare for the test have no p-value.
    table = table.assign(score=table["log_fc"] / table["log_fc_sd"]).fillna({"pval": 1.0, "padj": 1.0})
    table = table.sort_values("score", ascending=False, kind="stable")
    groups = zip(_group_names(params, contrasts), contrasts, strict=True)
    parts = {group: table[table["contrast"] == contrast] for group, contrast in groups}
    found: dict[str, Any] = {"params": _scanpy_params(params, "benjamini-hochberg" if tested else "expected_fdr")}
    for name, (column, dtype) in _SCANPY_FIELDS.items():
        found[name] = np.empty(len(table) // len(parts), dtype=[(group, dtype) for group in parts])
        for group, part in parts.items():
            found[name][group] = part[column].to_numpy()
    if not any("/" in group for group in parts):  # files take no such column
        for name, column in (("pts", "detection_test"), ("pts_rest", "detection_ref")):
            shares = {group: part.set_index("variable")[column] for group, part in parts.items()}
            found[name] = require("pandas").DataFrame(shares)
    adata.uns[key_added] = found


def _group_names(params: Mapping[str, Any], contrasts: list[str]) -> list[str]:
    tests = [str(t) for t in params["test_levels"]]
    same = len({*params["columns"]}) == 1 and len({*params["reference_levels"]}) == 1
    names = tests if same and all(tests) and len({*tests}) == len(contrasts) else contrasts
    found = [name.replace(":", "") for name in names]  # zarr takes none in the name of a field
    if len({*found}) == len(names) and all(found):
        return found
    raise SingleCellError(f"contrast: {listed(names)} are one without colons, which files do not take; rename a level")


def _scanpy_params(params: Mapping[str, Any], correction: str) -> dict[str, Any]:
    references = {str(r) for r in params["reference_levels"]}
    return {
        "groupby": str(params["columns"][0]),
        "reference": references.pop() if len(references) == 1 else "rest",
        "method": "pyro_zilognormal",
        "use_raw": bool(params["use_raw"]),
        "corr_method": correction,
    } | ({"layer": params["layer"]} if "layer" in params else {})
