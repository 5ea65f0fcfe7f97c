"""Where tables of results go in an AnnData: our own keys, and those of scanpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pyro_zilognormal.singlecell.errors import SingleCellError, listed, require, unknown

# Columns that also go to varm, as arrays of genes x contrasts.
_IN_VARM = ("log_fc", "log_fc_sd", "prob_de", "lfsr", "expected_fdr", "pval", "padj")


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


_SCANPY_FIELDS: dict[str, tuple[str, str]] = {
    "names": ("variable", "O"),
    "scores": ("score", "float32"),
    "logfoldchanges": ("log_fc", "float32"),
    "pvals": ("pval", "float64"),
    "pvals_adj": ("padj", "float64"),
}


def to_scanpy(adata: Any, key: str = "ziln_de", key_added: str = "rank_genes_groups") -> None:
    """Write results as scanpy's ``rank_genes_groups`` does, for scanpy's tables and plots.

    A group is the test level of a contrast, or the contrast where levels would be ambiguous, without colons, which
    files do not take. ``logfoldchanges`` are posterior means,
    ``scores`` are posterior means over posterior standard deviations. ``pvals`` and ``pvals_adj`` are those of the test
    of samples. Where there is none, without random effects, they are not p-values: they hold the local false sign rate
    and the expected false discovery rate.

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
