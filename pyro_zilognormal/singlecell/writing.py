"""Results in an AnnData, where other tools find them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pyro_zilognormal.singlecell.errors import SingleCellError, require, unknown

# What also goes to varm, gene by gene and contrast by contrast.
_IN_VARM = ("log_fc", "log_fc_sd", "prob_de", "lfsr", "expected_fdr")


def write_results(adata: Any, table: Any, parameters: Mapping[str, Any], key_added: str = "ziln_de") -> None:
    """Write a table to an AnnData.

    ``uns[key_added]`` gets a dict of the ``table`` and of ``params`` in plain values, and ``varm`` arrays of genes x
    contrasts, ``varm[f"{key_added}_log_fc"]`` and likewise ``log_fc_sd``, ``prob_de``, ``lfsr`` and
    ``expected_fdr``; their columns are ``uns[key_added]["params"]["contrasts"]``. All survives h5ad and zarr files.

    Args:
        adata: what to write to.
        table: what :meth:`HurdleDE.test` returns.
        parameters: text, numbers, booleans, lists of text and None; what :func:`result_parameters` returns.
        key_added: under which key.

    Raises:
        SingleCellError: a key with "/", which files take as a path.
    """
    check_key(key_added)
    contrasts = list(dict.fromkeys(table["contrast"]))
    plain = {name: _plain(value) for name, value in parameters.items() if value is not None}
    plain["contrasts"] = _plain(contrasts)
    for name in _IN_VARM:
        wide = table.pivot(index="variable", columns="contrast", values=name)
        adata.varm[f"{key_added}_{name}"] = wide.reindex(index=adata.var_names, columns=contrasts).to_numpy()
    adata.uns[key_added] = {"table": table.copy(), "params": plain}


def check_key(key_added: Any) -> None:
    """Raise for a key that files take as a path."""
    if not isinstance(key_added, str) or not key_added or "/" in key_added:
        raise SingleCellError(f"key_added is {key_added!r}; needed text without '/', which files take as a path")


def _plain(value: Any) -> Any:
    """Return a list as an array, which is what comes back from a file."""
    return np.asarray(value, dtype=object) if isinstance(value, list) else value


def to_scanpy(adata: Any, key: str = "ziln_de", key_added: str = "rank_genes_groups") -> None:
    """Write results also as scanpy's ``rank_genes_groups`` does, for its tables and plots.

    A group is the test level of a contrast, or the contrast where they would be ambiguous. ``logfoldchanges`` are the
    posterior means, ``scores`` these over their standard deviations. ``pvals`` and ``pvals_adj`` are no p values: they
    hold the local false sign rate and the expected false discovery rate, which can be used alike.

    Args:
        adata: has results under ``uns[key]``.
        key: of the results.
        key_added: the key in uns to write; scanpy's functions look at "rank_genes_groups" unless told.

    Raises:
        UnknownNameError: no results under that key.

    Example:
        After ``to_scanpy(adata)``, ``scanpy.get.rank_genes_groups_df(adata, group="stim")``.
    """
    if key not in adata.uns or "table" not in adata.uns[key]:
        raise unknown("key", key, "keys of adata.uns", adata.uns)
    table, params = adata.uns[key]["table"], adata.uns[key]["params"]
    contrasts = [str(c) for c in params["contrasts"]]
    groups = _group_names(params, contrasts)
    parts = {group: _by_score(table, contrast) for group, contrast in zip(groups, contrasts, strict=True)}
    found: dict[str, Any] = {"params": _params(params)}
    found |= {name: _records(parts, how) for name, how in _FIELDS.items()}
    # Files take no column with "/" in its name.
    shares = () if any("/" in group for group in groups) else (("pts", "detection_test"), ("pts_rest", "detection_ref"))
    for name, source in shares:
        found[name] = require("pandas").DataFrame({g: p.set_index("variable")[source] for g, p in parts.items()})
    adata.uns[key_added] = found


_FIELDS: dict[str, tuple[str, str]] = {
    "names": ("variable", "O"),
    "scores": ("score", "float32"),
    "logfoldchanges": ("log_fc", "float32"),
    "pvals": ("lfsr", "float64"),
    "pvals_adj": ("expected_fdr", "float64"),
}


def _by_score(table: Any, contrast: str) -> Any:
    part = table[table["contrast"] == contrast]
    part = part.assign(score=part["log_fc"] / part["log_fc_sd"])
    return part.sort_values("score", ascending=False, kind="stable")


def _records(parts: Mapping[str, Any], how: tuple[str, str]) -> Any:
    column, dtype = how
    length = len(next(iter(parts.values())))
    records = np.empty(length, dtype=[(group, dtype) for group in parts])
    for group, part in parts.items():
        records[group] = part[column].to_numpy()
    return records


def _group_names(params: Mapping[str, Any], contrasts: list[str]) -> list[str]:
    tests = [str(t) for t in params.get("test_levels", ())]
    same = len({*params.get("columns", ())}) == 1 and len({*params.get("reference_levels", ())}) == 1
    names = tests if same and len({*tests}) == len(contrasts) else contrasts
    return [name.replace(":", "") for name in names]  # zarr takes no colon in the name of a field


def _params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what scanpy's functions read."""
    columns = [str(c) for c in params.get("columns", ())]
    references = {str(r) for r in params.get("reference_levels", ())}
    return {
        "groupby": columns[0] if columns else "",
        "reference": references.pop() if len(references) == 1 else "rest",
        "method": "pyro_zilognormal",
        "use_raw": bool(params.get("use_raw", False)),
        "corr_method": "expected_fdr",
    } | ({"layer": params["layer"]} if "layer" in params else {})
