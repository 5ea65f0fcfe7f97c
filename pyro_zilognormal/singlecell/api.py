"""Differential expression in one call."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyro_zilognormal.models import HurdlePriors
from pyro_zilognormal.singlecell.contrasts import Contrast, parse_contrasts
from pyro_zilognormal.singlecell.de import HurdleDE
from pyro_zilognormal.singlecell.errors import require
from pyro_zilognormal.singlecell.groups import Question, check_one_way, questions
from pyro_zilognormal.singlecell.provenance import check_fractions
from pyro_zilognormal.singlecell.writing import check_key, write_results
from pyro_zilognormal.svi import Run


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
    scale: str = "linear",
    offset: Any = None,
    detection_threshold: float = 0.0,
    delta: float = 0.25,
    fdr: float = 0.05,
    credible: float = 0.95,
    key_added: str = "ziln_de",
    copy: bool = False,
    seed: int = 0,
    steps: int | None = None,
    draws: int = 1000,
    priors: HurdlePriors | Mapping[str, Any] | None = None,
    callbacks: Sequence[Callable[[Run], Any]] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    device: str = "cpu",
) -> Any:
    """Compare conditions, gene by gene, and write the results to the AnnData.

    It is :class:`HurdleDE`, ``fit``, ``test`` and :func:`write_results` in one. Either ``formula`` and ``contrast`` say
    what is compared, or ``groupby``, ``groups`` and ``reference`` do, as in ``scanpy.tl.rank_genes_groups``.

    Args:
        adata: an AnnData, in memory or backed, with cells in rows.
        formula: what explains the cells, columns of ``adata.obs`` as formulaic reads them: ``"~ condition + batch"``.
        contrast: (column, test level, reference level); a list of such; or a dict of such with names.
        donor: the column of obs that names who a cell is from, for random effects.
        groupby: the column of obs whose groups are compared, without a formula.
        groups: which groups; "all" for all but the reference.
        reference: the group that the others are compared with; "rest" compares each with all other cells, in a fit
            of its own.
        layer: the matrix to take; None for X.
        use_raw: take ``adata.raw``.
        scale: what is stored: "linear", "log1p" for log(1 + x), or "log2p1" for log2(1 + x).
        offset: the log size factor of each cell, or the column of obs that has it; None for normalised values.
        detection_threshold: linear values of at most this are taken as zeros.
        delta: changes of at most so many log2 units are of no interest; 0 asks for the sign alone.
        fdr: call genes up to this expected false discovery rate.
        credible: probability of the interval of ``log_fc``.
        key_added: where results go: ``uns[key_added]``, and varm.
        copy: leave ``adata`` as it is, and only return the table.
        seed: of everything random.
        steps: of the fit; see :meth:`~pyro_zilognormal.singlecell.HurdleDE.fit`.
        draws: how many draws from the posterior summaries are made of.
        priors: hyperpriors that differ from the defaults.
        callbacks: as those of ``svi.fit``.
        checkpoint: a file to save the fit to now and then, and to go on from if it exists; those of further fits get
            a number.
        device: where torch computes.

    Returns:
        A DataFrame with a row for each contrast and gene, contrast by contrast, the surest gene first, with ``variable``,
        ``contrast``; ``log_fc``, the posterior mean of log2 of the ratio of means, with interval ``log_fc_low`` to
        ``log_fc_high`` and ``log_fc_sd``, and its parts ``log_fc_detection`` and ``log_fc_abundance``, which add up to
        it; ``log_fc_bias``, what it is probably too high by where the values of a gene spread less in the test
        condition than in the reference, or the other way round, which the model takes to be alike; ``prob_up``,
        P(log_fc > 0); ``lfsr``, the local false sign rate; ``prob_de``, P(abs(log_fc) > delta); ``expected_fdr``, the
        expected share of genes whose change has the other sign or is of at most delta among all genes at least as
        sure, and ``is_de`` where that is at most ``fdr``; what was observed: ``detection_test``, ``detection_ref``,
        ``mean_test``, ``mean_ref``, ``n_test``, ``n_ref``; ``status``: "ok", "all_zero", "all_positive" or
        "too_few_positive" (fewer than 3) in both conditions together; and ``predictive_check``: "ok", or what cells
        drawn anew from the fit do not reproduce in one of the conditions.
        Probabilities are shares of the draws, so 0 means less than 1 / draws.

    Raises:
        SingleCellError: data or arguments that cannot be used; a message says why and what to do.
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
    check_one_way(formula, contrast, groupby, groups, reference)
    check_fractions(delta, fdr, credible)
    check_key(key_added)
    read = functools.partial(
        HurdleDE,
        donor=donor,
        layer=layer,
        use_raw=use_raw,
        scale=scale,
        offset=offset,
        detection_threshold=detection_threshold,
        priors=priors,
        draws=draws,
        device=device,
    )
    single = Question(adata, formula or "", contrast)
    asked = [single] if groupby is None else questions(adata, groupby, groups, reference)
    answers = []
    for question, path in zip(asked, _paths(checkpoint, len(asked)), strict=True):
        de = read(question.adata, question.formula)
        found = parse_contrasts(de.cells.design, question.contrasts)
        de.fit(seed=seed, steps=steps, callbacks=callbacks, checkpoint=path)
        answers.append((de, found, de.test(found, delta=delta, fdr=fdr, credible=credible)))
    table = require("pandas").concat([table for _, _, table in answers], ignore_index=True)
    if not copy:
        settings = {"delta": delta, "fdr": fdr, "credible": credible}
        write_results(adata, table, _parameters(answers, groupby) | settings, key_added)
    return table


def result_parameters(de: HurdleDE, contrasts: Sequence[Contrast]) -> dict[str, Any]:
    """Return settings, convergence and contrasts in plain values, as :func:`write_results` takes them."""
    ends = {
        "test_levels": [c.test.levels.get(c.column or "", c.test.name) for c in contrasts],
        "reference_levels": [c.reference.levels.get(c.column or "", c.reference.name) for c in contrasts],
        "columns": [c.column or "" for c in contrasts],
    }
    plain = {name: [str(v) for v in values] for name, values in ends.items()}
    fit = {"converged": bool(de.result.converged), "stop_reason": de.result.stop_reason} if de.result else {}
    return de.settings | fit | plain


def _parameters(answers: Sequence[tuple[HurdleDE, Sequence[Contrast], Any]], groupby: str | None) -> dict[str, Any]:
    """Return the parameters of all fits, which differ in their contrasts and convergence alone."""
    each = [result_parameters(de, found) for de, found, _ in answers]
    merged = each[0] | {"converged": all(p["converged"] for p in each)}
    for name in ("test_levels", "reference_levels", "columns"):
        merged[name] = [v for p in each for v in p[name]]
    if groupby is not None:
        merged |= {"groupby": groupby, "columns": [groupby] * len(merged["columns"]), "formula": None}
    return merged


def _paths(checkpoint: str | os.PathLike[str] | None, fits: int) -> list[str | None]:
    if checkpoint is None:
        return [None] * fits
    path = os.fspath(checkpoint)
    return [path, *(f"{path}.{number}" for number in range(2, fits + 1))]
