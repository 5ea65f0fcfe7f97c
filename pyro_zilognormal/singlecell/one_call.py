"""Differential expression in one call, of a formula or of groups as scanpy names them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from pyro_zilognormal.models import HurdlePriors
from pyro_zilognormal.singlecell.api import HurdleDE
from pyro_zilognormal.singlecell.arguments import callbacks_of, check_fractions, flag, items
from pyro_zilognormal.singlecell.cube.cube import Cube, opened
from pyro_zilognormal.singlecell.design.design import Contrast, Variable
from pyro_zilognormal.singlecell.design.formula import column, grouping
from pyro_zilognormal.singlecell.errors import ArgumentTypeError, SingleCellError, require, shown
from pyro_zilognormal.singlecell.results import CREDIBLE, check_key, write_results
from pyro_zilognormal.svi import Callback, Run

_REST = "rest"
# The column of groups in a copy of obs.
_MEMBERS = "group_of_cells"


def differential_expression(
    adata: Any,
    formula: str | None = None,
    contrast: Any = None,
    *,
    donor: str | None = None,
    groupby: str | None = None,
    groups: Sequence[Any] | str = "all",
    reference: Any = "rest",
    layer: str | None = None,
    use_raw: bool = False,
    scale: str | None = None,
    offset: Any = None,
    depth: str | None = None,
    detection_threshold: float = 0.0,
    delta: float = 0.25,
    fdr: float = 0.05,
    max_error: float = 0.2,
    credible: float = CREDIBLE,
    key_added: str = "ziln_de",
    copy: bool = False,
    seed: int = 0,
    steps: int | None = None,
    draws: int = 1000,
    priors: HurdlePriors | Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback | Callable[[Run], Any]] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    device: str = "cpu",
) -> Any:
    """Test which genes differ between conditions, and write the results to the AnnData.

    This is :class:`HurdleDE`, ``fit``, ``test`` and :func:`write_results` in one call, with their arguments. The
    comparison is given by ``formula`` and ``contrast``, or by ``groupby``, ``groups`` and ``reference`` as in
    ``scanpy.tl.rank_genes_groups``.

    Args:
        adata: an AnnData with cells in rows, in memory or on disk, or a :class:`Cube`, to which nothing is written.
        formula, donor, layer, use_raw, scale, offset, depth, detection_threshold, draws, priors, device: see
            :class:`HurdleDE`.
        contrast, delta, fdr, max_error, credible: see :meth:`HurdleDE.test`.
        groupby: the column of obs whose groups are compared, instead of a formula.
        groups: the groups to compare; "all" for all but the reference.
        reference: the group to compare with; "rest" compares each group with all other cells, in a fit of its own.
        key_added: the key of ``uns`` and the start of the keys of ``varm`` to write to.
        copy: whether to leave ``adata`` as it is and only return the table.
        seed, steps, callbacks, checkpoint: see :meth:`HurdleDE.fit`; checkpoints of further fits add a number.

    Returns:
        A DataFrame with a row for each contrast and gene, the most certain gene first; :meth:`HurdleDE.test` describes
        its columns. Probabilities are shares of the draws, so that 0 means less than 1 / draws.

    Raises:
        SingleCellError: data or arguments that cannot be used; the message says why and how to fix it.
        ModuleNotFoundError: a package of the extra is missing.

    Example:
        >>> import anndata, numpy, pandas
        >>> from pyro_zilognormal.datasets import simulate_ziln
        >>> x = simulate_ziln(200, 4, seed=0, mu=1.0, zi_logits=0.0).values.numpy()
        >>> x[100:, 0] *= 8
        >>> obs = pandas.DataFrame({"condition": ["ctrl"] * 100 + ["stim"] * 100}, index=numpy.arange(200).astype(str))
        >>> adata = anndata.AnnData(x, obs, pandas.DataFrame(index=["up", "a", "b", "c"]))
        >>> table = differential_expression(adata, "~ condition", ("condition", "stim", "ctrl"), steps=20)
        >>> table.variable[0], round(table.log_fc[0])
        ('up', 3)
    """
    _check_one_way(formula, contrast, groupby, groups, reference)
    check_fractions(delta, fdr, credible, max_error)
    check_key(key_added)
    copy = flag("copy", copy)
    adata = opened(adata)
    callbacks_of(callbacks, checkpoint)  # raises, before the cells are read
    model: dict[str, Any] = {"donor": donor, "layer": layer, "use_raw": use_raw, "scale": scale, "offset": offset}
    model |= {"depth": depth, "detection_threshold": detection_threshold}
    model |= {"priors": priors, "draws": draws, "device": device}
    settings = {"delta": delta, "fdr": fdr, "max_error": max_error, "credible": credible}
    fits = [(adata, formula, contrast)] if groupby is None else _group_fits(adata, groupby, groups, reference)
    tables, parameters = [], []
    for number, (cells, own_formula, own_contrast) in enumerate(fits, start=1):
        de = HurdleDE(cells, own_formula, **model)
        contrasts = de.cells.design.contrasts(own_contrast)
        own_path = checkpoint if checkpoint is None or number == 1 else f"{os.fspath(checkpoint)}.{number}"
        de.fit(seed=seed, steps=steps, callbacks=callbacks, checkpoint=own_path)
        tables.append(de.test(contrasts, **settings))
        parameters.append(result_parameters(de, contrasts))
    table = require("pandas").concat(tables, ignore_index=True)
    if not copy and not isinstance(adata, Cube):
        write_results(adata, table, _merged(parameters, groupby) | settings, key_added)
    return table


def result_parameters(de: HurdleDE, contrasts: Sequence[Contrast]) -> dict[str, Any]:
    """Return settings, convergence and contrasts as plain values, for :func:`write_results`.

    Args:
        de: a fitted model.
        contrasts: the contrasts that were tested.

    Returns:
        Text, numbers, booleans and lists of text.

    Raises:
        SingleCellError: the model has not been fitted.
    """
    fit, labels = de.result, [c.labels for c in contrasts]
    return de.settings | {
        "converged": bool(fit.converged),
        "stop_reason": fit.stop_reason,
        "test_levels": [test for test, _ in labels],
        "reference_levels": [reference for _, reference in labels],
        "columns": [c.column or "" for c in contrasts],
    }


def _merged(each: Sequence[dict[str, Any]], groupby: str | None) -> dict[str, Any]:
    """Return the parameters of all fits, which differ in contrasts and convergence alone."""
    merged = each[0] | {"converged": all(one["converged"] for one in each)}
    merged |= {name: [v for one in each for v in one[name]] for name in ("test_levels", "reference_levels", "columns")}
    if groupby is not None:
        merged |= {"groupby": groupby, "columns": [groupby] * len(merged["columns"]), "formula": None}
    return merged


def _check_one_way(formula: Any, contrast: Any, groupby: Any, groups: Any, reference: Any) -> None:
    """Raise unless the comparison is given in one way."""
    if groupby is not None:
        if formula is not None or contrast is not None:
            raise SingleCellError("groupby is given with a formula or a contrast; needed one: groupby makes both")
    elif formula is None or contrast is None:
        raise SingleCellError(
            f"formula is {shown(formula)}, contrast {shown(contrast)}; needed both, such as '~ condition' and "
            "('condition', 'stim', 'ctrl'), or groupby, a column of adata.obs whose groups are compared"
        )
    elif not (isinstance(groups, str) and groups == "all" and reference is _REST):
        raise SingleCellError("groups or reference is given without groupby; needed groupby, or a contrast")


def _group_fits(adata: Any, groupby: str, groups: Any, reference: Any) -> list[tuple[Any, Any, Any]]:
    """Return cells, formula and contrasts of each fit that compares groups with a reference group, or with the rest."""
    if not hasattr(adata, "obs"):
        raise ArgumentTypeError(f"adata is {shown(adata)}; needed an AnnData, such as anndata.read_h5ad(path) returns")
    values = (column if isinstance(adata, Cube) else grouping)(adata.obs, groupby, "groupby")
    factor = Variable.of(values, coded=True)
    rest = isinstance(reference, str) and reference == _REST and _REST not in map(str, factor.levels)
    against = _REST if rest else factor.level(reference)
    if isinstance(groups, str) and groups == "all":
        chosen = [level for level in factor.levels if level != against]
    else:
        listed = [groups] if isinstance(groups, str) else items("groups", groups, "'all' or a list of groups")
        chosen = [factor.level(group) for group in listed]
    if not chosen or against in chosen or len(set(chosen)) < len(chosen):
        said = f"groups is {shown(groups)}, reference {shown(reference)}"
        raise SingleCellError(f"{said}; needed groups other than the reference, each once")
    contrasts = {f"{group} vs {against}": (_MEMBERS, group, against) for group in chosen}
    if not rest:
        return [(_with_members(adata, values), f"~ C({_MEMBERS})", contrasts)]
    text, formula = values.astype(object), f"~ C({_MEMBERS}, contr.treatment({_REST!r}))"
    each = {name: text.where(values == contrast[1], _REST).astype(str) for name, contrast in contrasts.items()}
    return [(_with_members(adata, own), formula, {name: contrasts[name]}) for name, own in each.items()]


def _with_members(adata: Any, members: Any) -> Any:
    """Return the parts of an AnnData or a cube that are read, with a column of groups in obs; nothing is copied."""
    obs = adata.obs.assign(**{_MEMBERS: members})
    if isinstance(adata, Cube):
        return replace(adata, obs=obs)
    parts = {name: getattr(adata, name) for name in ("X", "layers", "raw", "uns", "obs_names", "var_names")}
    return SimpleNamespace(obs=obs, **parts)
