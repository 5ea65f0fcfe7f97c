"""Tables of results, their columns, and where they go in an AnnData."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_zilognormal import ZeroInflatedLogNormal
from pyro_zilognormal.models import (
    Condition,
    expected_fdr,
    linear_predictor,
    local_false_sign_rate,
    log_fold_change,
)
from pyro_zilognormal.singlecell.design import Contrast
from pyro_zilognormal.singlecell.errors import SingleCellError, require, unknown
from pyro_zilognormal.singlecell.io import Arm

#: The columns of a table of results, in order, with their meaning.
COLUMNS = {
    "variable": "Gene.",
    "contrast": "Name of the contrast: test condition against reference condition.",
    "log_fc": "Log2 fold change of mean expression, zeros included (posterior mean): log2 of E[X | test] / E[X | "
    "reference]. 1 means twice the expression in the test condition.",
    "log_fc_low": "Lower end of the credible interval of log_fc (95 % unless set otherwise).",
    "log_fc_high": "Upper end of the credible interval of log_fc.",
    "log_fc_sd": "Posterior standard deviation of log_fc.",
    "log_fc_detection": "Part of log_fc due to detection: log2 ratio of P(X > 0).",
    "log_fc_abundance": "Part of log_fc due to abundance: log2 ratio of geometric means where X > 0. Detection and "
    "abundance add up to log_fc.",
    "log_fc_bias": "Estimated bias of log_fc where the spread of log x differs between conditions (the model has one "
    "spread a gene); log_fc - log_fc_bias is corrected for it. 0 where spreads do not differ clearly.",
    "prob_up": "Posterior probability that mean expression is higher in the test condition.",
    "lfsr": "Local false sign rate: posterior probability that the sign of log_fc is wrong.",
    "prob_de": "Posterior probability that |log_fc| is larger than delta.",
    "expected_fdr": "Expected false discovery rate if this gene and all more certain ones are called.",
    "is_de": "Whether the gene is called differentially expressed: expected_fdr is at most the chosen rate.",
    "detection_test": "Observed share of cells with X > 0, test condition.",
    "detection_ref": "Observed share of cells with X > 0, reference condition.",
    "mean_test": "Observed mean on the linear scale, zeros included, test condition.",
    "mean_ref": "Observed mean on the linear scale, zeros included, reference condition.",
    "n_test": "Number of cells, test condition.",
    "n_ref": "Number of cells, reference condition.",
    "status": "ok; all_zero: no positive value in either condition; all_positive: no zero in either; "
    "too_few_positive: fewer than 3 positive values in both together.",
    "predictive_check": "ok, or the statistics that the model does not reproduce in one of the conditions (outside the "
    "99 % posterior predictive interval): zero_fraction, mean, sd_log (standard deviation of log x where X > 0). "
    "no_cells: a condition has no cells.",
}
_TEXT = ("variable", "contrast", "status", "predictive_check")
# Columns that also go to varm, as arrays of genes x contrasts.
_IN_VARM = ("log_fc", "log_fc_sd", "prob_de", "lfsr", "expected_fdr")

# Genes summarised at a time: 1,000 draws of as many are 16 MB, some dozen times over.
_GENES_A_BLOCK = 2000
# torch.quantile takes 16 million values at most.
_VALUES_A_QUANTILE = 1 << 23
_FEWEST_POSITIVE = 3


def parameters(
    draws: Mapping[str, Tensor], condition: Condition, donor: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return draws of mu, sigma and zi_logits in a condition, each of shape (draws, genes)."""
    mu, zero = (linear_predictor(draws, condition, part) for part in ("positive", "zero"))
    if donor is not None:
        mu, zero = mu + draws["donors"][..., donor], zero + draws["zero_donors"][..., donor]
    return mu, draws["log_sigma"].squeeze(-1).exp(), zero


def summarise(values: Tensor, credible: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the median and the ends of the central credible interval over draws, each of shape (genes,)."""
    levels = torch.tensor([0.5, (1 - credible) / 2, (1 + credible) / 2], dtype=values.dtype)
    parts = values.split(max(1, _VALUES_A_QUANTILE // len(values)), dim=1)
    middle, low, high = torch.cat([torch.quantile(part, levels, dim=0) for part in parts], 1)
    return middle, low, high


def summary_columns(name: str, values: Tensor, credible: float, median: str = "") -> dict[str, NDArray[np.float64]]:
    """Return median and interval of draws as columns ``name`` and ``median``, ``_low`` and ``_high``."""
    ends = zip((median, "_low", "_high"), summarise(values, credible), strict=True)
    return {f"{name}{end}": summary.numpy() for end, summary in ends}


def contrast_table(
    genes: list[str],
    draws: Mapping[str, Tensor],
    contrast: Contrast,
    arms: tuple[Arm, Arm, Arm],
    lack_of_fit: Mapping[str, Any],
    *,
    delta: float,
    fdr: float,
    credible: float,
    negligible: float,
) -> Any:
    """Return the table of one contrast, the most certain gene first."""
    columns = {"variable": genes, "contrast": contrast.name}
    columns |= _posterior(draws, contrast, delta, credible, negligible) | _observed(*arms) | dict(lack_of_fit)
    table = require("pandas").DataFrame(columns).astype(dict.fromkeys(_TEXT, object))
    table["is_de"] = (table["expected_fdr"] <= fdr) & (table["status"] != "all_zero")
    # Genes of equal error, such as 0 of 1,000 draws, are ordered by their change in posterior standard deviations.
    size = table["log_fc"].abs() / table["log_fc_sd"]
    order = np.lexsort([-size.to_numpy(), table["expected_fdr"].to_numpy()])
    return table[list(COLUMNS)].iloc[order].reset_index(drop=True)


def _posterior(
    draws: Mapping[str, Tensor], contrast: Contrast, delta: float, credible: float, negligible: float
) -> dict[str, Any]:
    """Return posterior summaries of all genes, computed for some genes at a time."""
    parts = zip(*(value.split(_GENES_A_BLOCK, dim=1) for value in draws.values()), strict=True)
    some = [_changes(dict(zip(draws, part, strict=True)), contrast, delta, credible, negligible) for part in parts]
    found = {name: torch.cat([part[name] for part in some]) for name in some[0]}
    found["expected_fdr"] = expected_fdr(found.pop("error"))
    return {name: values.numpy() for name, values in found.items()}


def _changes(
    draws: Mapping[str, Tensor], contrast: Contrast, delta: float, credible: float, negligible: float
) -> dict[str, Tensor]:
    change = log_fold_change(draws, contrast.test, contrast.reference)
    total = change.total
    _, low, high = summarise(total, credible)
    return {
        "log_fc": total.mean(0),
        "log_fc_low": low,
        "log_fc_high": high,
        "log_fc_sd": total.std(0),
        "log_fc_detection": change.detection.mean(0),
        "log_fc_abundance": change.abundance.mean(0),
        "prob_up": (total > 0).double().mean(0),
        "lfsr": local_false_sign_rate(total, negligible),
        "prob_de": (total.abs() > delta).double().mean(0),
        # Calls need a sign too: an uninformed gene has large changes in both directions, and prob_de near 1.
        "error": local_false_sign_rate(total, max(delta, negligible)),
    }


def _observed(test: Arm, reference: Arm, everything: Arm) -> dict[str, Any]:
    # Where a condition has no cells, as with a value of a continuous covariate, the status is that of all cells.
    arms = (test, reference) if test.cells and reference.cells else (everything,)
    positive = np.sum([arm.positive for arm in arms], axis=0)
    status = np.full(len(positive), "ok", dtype=object)
    status[positive == sum(arm.cells for arm in arms)] = "all_positive"
    status[positive < _FEWEST_POSITIVE] = "too_few_positive"
    status[positive == 0] = "all_zero"
    found: dict[str, Any] = {"status": status}
    for name, arm in (("test", test), ("ref", reference)):
        found |= {f"detection_{name}": arm.detection, f"mean_{name}": arm.mean, f"n_{name}": arm.cells}
    return found


def log_fc_bias(
    test: tuple[NDArray[np.float64], NDArray[np.float64]], reference: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> NDArray[np.float64]:
    r"""Return the bias of log_fc that comes from the model's one sigma in both conditions.

    .. math:: b = \frac{s_b^2 - s_a^2}{2 \log 2}, \qquad \left(1 - \frac{\mathrm{se}(b)^2}{b^2}\right)_+ b

    log2 E[X] has the term sigma^2 / (2 log 2), which cancels in the model, but not where the spreads s of the cells
    differ. The positive-part James-Stein factor shrinks the estimate where values are few.

    Args:
        test: the sd of log x in the test condition and its degrees of freedom, each of shape (genes,).
        reference: the same for the reference condition.

    Returns:
        The bias in log2 units, of shape (genes,); 0 where a condition has no degrees of freedom.

    Example:
        >>> spread = lambda sd, freedom: (np.array([sd]), np.array([freedom]))
        >>> log_fc_bias(spread(0.3, 128.0), spread(0.66, 189.0)).round(2)
        array([0.24])
    """
    (sd_a, freedom_a), (sd_b, freedom_b) = test, reference
    known = (freedom_a > 0) & (freedom_b > 0)
    a, b = (np.where(known, sd, 1.0) ** 2 for sd in (sd_a, sd_b))
    na, nb = (np.where(known, n, 1.0) for n in (freedom_a, freedom_b))
    bias = (b - a) / (2 * math.log(2))
    pooled = (na * a + nb * b) / (na + nb)
    variance = (pooled / (2 * math.log(2))) ** 2 * (2 / na + 2 / nb)  # of the bias, if both spreads are alike
    kept = 1 - variance / np.maximum(bias**2, np.finfo(float).tiny)
    return np.where(known, np.maximum(kept, 0.0) * bias, 0.0)


def biased(table: Any, delta: float) -> NDArray[np.bool_]:
    """Return which genes' log_fc, corrected for its bias, lies outside its own interval."""
    corrected = table["log_fc"] - table["log_fc_bias"]
    outside = (corrected < table["log_fc_low"]) | (corrected > table["log_fc_high"])
    return ((table["log_fc_bias"].abs() > delta) & outside).to_numpy()


def prediction_table(
    genes: list[str],
    draws: Mapping[str, Tensor],
    conditions: Sequence[Condition],
    quantiles: Sequence[float],
    credible: float,
) -> Any:
    """Return predictions for a cell of each condition; see :meth:`HurdleDE.predict`."""
    if not conditions or not all(isinstance(c, Condition) for c in conditions):
        raise TypeError(f"conditions: got {conditions!r}; needed one or more conditions, from cond(...)")
    for q in quantiles:
        if not 0 <= q < 1:
            raise SingleCellError(f"quantiles holds {q!r}; needed numbers from 0 to below 1: there is no largest value")
    found = {}
    for condition in conditions:
        distribution = ZeroInflatedLogNormal(*parameters(draws, condition))
        predicted = {
            "mean": distribution.mean,
            "median": distribution.median,
            "prob_zero": distribution.zi_logits.sigmoid(),
            "positive_mean": (distribution.loc + distribution.scale.square() / 2).exp(),
        } | {f"q{q:g}": distribution.icdf(torch.tensor(q, dtype=torch.float64)) for q in quantiles}
        columns = [summary_columns(name, values, credible) for name, values in predicted.items()]
        found[condition.name] = {name: values for each in columns for name, values in each.items()}
    return by_condition(genes, found)


def by_condition(genes: list[str], columns: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return the columns of several conditions as one DataFrame, with those of genes and conditions before them."""
    pandas = require("pandas")
    tables = [pandas.DataFrame({"variable": genes, "condition": name} | dict(c)) for name, c in columns.items()]
    return pandas.concat(tables, ignore_index=True).astype({"variable": object, "condition": object})


def write_results(adata: Any, table: Any, parameters: Mapping[str, Any], key_added: str = "ziln_de") -> None:
    """Write a table of results to an AnnData, from where it survives h5ad and zarr files.

    ``uns[key_added]`` gets ``{"table": table, "params": parameters}``. ``varm[f"{key_added}_log_fc"]`` gets an array of
    genes x contrasts, and so do ``log_fc_sd``, ``prob_de``, ``lfsr`` and ``expected_fdr``; the contrasts of their
    columns are in ``uns[key_added]["params"]["contrasts"]``.

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


_SCANPY_FIELDS: dict[str, tuple[str, str]] = {
    "names": ("variable", "O"),
    "scores": ("score", "float32"),
    "logfoldchanges": ("log_fc", "float32"),
    "pvals": ("lfsr", "float64"),
    "pvals_adj": ("expected_fdr", "float64"),
}


def to_scanpy(adata: Any, key: str = "ziln_de", key_added: str = "rank_genes_groups") -> None:
    """Write results as scanpy's ``rank_genes_groups`` does, for scanpy's tables and plots.

    A group is the test level of a contrast, or the contrast where levels would be ambiguous. ``logfoldchanges`` are
    posterior means, ``scores`` are posterior means over posterior standard deviations. ``pvals`` and ``pvals_adj`` are
    not p-values: they hold the local false sign rate and the expected false discovery rate.

    Args:
        adata: an AnnData with results in ``uns[key]``.
        key: the key of the results.
        key_added: the key of uns to write to; scanpy's functions read "rank_genes_groups" by default.

    Raises:
        UnknownNameError: there are no results under the key.

    Example:
        After ``to_scanpy(adata)``, ``scanpy.get.rank_genes_groups_df(adata, group="stim")``.
    """
    if key not in adata.uns or "table" not in adata.uns[key]:
        raise unknown("key", key, "keys of adata.uns", adata.uns)
    table, params = adata.uns[key]["table"], adata.uns[key]["params"]
    contrasts = [str(c) for c in params["contrasts"]]
    table = table.assign(score=table["log_fc"] / table["log_fc_sd"])
    table = table.sort_values("score", ascending=False, kind="stable")
    groups = zip(_group_names(params, contrasts), contrasts, strict=True)
    parts = {group: table[table["contrast"] == contrast] for group, contrast in groups}
    found: dict[str, Any] = {"params": _scanpy_params(params)}
    for name, (column, dtype) in _SCANPY_FIELDS.items():
        found[name] = np.empty(len(table) // len(parts), dtype=[(group, dtype) for group in parts])
        for group, part in parts.items():
            found[name][group] = part[column].to_numpy()
    if not any("/" in group for group in parts):  # files take no column with "/" in its name
        for name, column in (("pts", "detection_test"), ("pts_rest", "detection_ref")):
            shares = {group: part.set_index("variable")[column] for group, part in parts.items()}
            found[name] = require("pandas").DataFrame(shares)
    adata.uns[key_added] = found


def _group_names(params: Mapping[str, Any], contrasts: list[str]) -> list[str]:
    tests = [str(t) for t in params["test_levels"]]
    same = len({*params["columns"]}) == 1 and len({*params["reference_levels"]}) == 1
    names = tests if same and len({*tests}) == len(contrasts) else contrasts
    return [name.replace(":", "") for name in names]  # zarr takes no colon in the name of a field


def _scanpy_params(params: Mapping[str, Any]) -> dict[str, Any]:
    references = {str(r) for r in params["reference_levels"]}
    return {
        "groupby": str(params["columns"][0]),
        "reference": references.pop() if len(references) == 1 else "rest",
        "method": "pyro_zilognormal",
        "use_raw": bool(params["use_raw"]),
        "corr_method": "expected_fdr",
    } | ({"layer": params["layer"]} if "layer" in params else {})
