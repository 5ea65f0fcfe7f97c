"""Differential expression of an AnnData: :class:`HurdleDE`, and one call that does it all."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pyro_zilognormal.models import (
    Condition,
    HurdleData,
    HurdleGuide,
    HurdleModel,
    HurdlePriors,
    draw_coefficients,
    fit_hurdle,
)
from pyro_zilognormal.singlecell.design import Contrast, Variable, column
from pyro_zilognormal.singlecell.errors import SingleCellError, require, unknown
from pyro_zilognormal.singlecell.genes import GeneFit, gene_fits
from pyro_zilognormal.singlecell.io import find_expression, read
from pyro_zilognormal.singlecell.moderated_t import compare_samples
from pyro_zilognormal.singlecell.predictive_check import CREDIBLE, check_condition, outside_of
from pyro_zilognormal.singlecell.results import Calls, by_condition, contrast_table, prediction_table
from pyro_zilognormal.singlecell.scale import Cleaner
from pyro_zilognormal.singlecell.write import check_key, write_results
from pyro_zilognormal.svi import Callback, Checkpoint, FitResult, Run

# Draws that keep the random effects, for replicated cells and pictures of genes: enough for 99 % intervals.
_RANDOM_DRAWS = 200
# Fewer samples in a condition do not tell how much samples vary.
_FEWEST_SAMPLES = 2


class HurdleDE:
    r"""Differential expression between conditions by a Bayesian hurdle regression of all genes at once.

    A value of a gene is 0 or log-normal; a formula explains the log odds of a zero and the mean of log x where x > 0.
    Genes share hyperparameters, effects are sparse, and donors may have random effects
    (:class:`~pyro_zilognormal.models.HurdleModel`). The matrix is read once, a block at a time.

    Args:
        adata: an AnnData, in memory, backed, or from :func:`open_cells`.
        formula: columns of obs as formulaic reads them, with an intercept: ``"~ condition + batch"``. Random effects
            are written as in lme4: ``(1 | donor)``, ``(1 | batch:donor)``, ``(1 | batch/donor)`` for (1 | batch) +
            (1 | batch:donor), ``(condition | donor)`` for (1 | donor) + (1 | donor:condition) of a category.
        donor: the column of obs that names the donors: (1 | donor), and (1 | donor:condition) if some donor has cells
            in several levels of variables of the formula, so that the replicate is the sample. None, without random
            effects in the formula, takes cells as independent, and conclusions are about these cells, not about other
            donors.
        layer: the layer to use; None for X.
        use_raw: whether to use ``adata.raw``.
        scale: the stored scale: "linear", "log1p" for log(1 + x), "log2p1" for log2(1 + x), or "counts" for raw
            counts: a cell's size factor is its total over all genes of the matrix, divided by the median of these.
        offset: the log size factor of each cell, or the column of obs that holds it, added to the mean of log x; None
            for normalised values and for counts.
        depth: the column of obs that holds the total counts or the detection rate of each cell; "auto" for the totals
            of counts, or a column ``total_counts``, ``n_counts`` or ``nCount_RNA``. P(X = 0) then depends on it: cells
            are put in 4 bins of equal size, and the bin's mean log depth, centred, is a column of the zero part's
            design. log_fc, a ratio of means, is free of depth once values are normalised; its detection part is not.
            Size factors of counts are made of a column that is named here.
        detection_threshold: linear values of at most this are taken as zeros.
        priors: hyperpriors, or a dict of those that differ from :meth:`~pyro_zilognormal.models.HurdlePriors.for_data`.
        draws: number of posterior draws that summaries are made of.
        device: the torch device.

    Attributes:
        cells: the design, the random effects and the observations.
        data: the data of the fit.
        priors: the hyperpriors.
        settings: all arguments, and those of :meth:`fit`, as plain values.

    Raises:
        SingleCellError: data or arguments that cannot be used; the message says why and how to fix it.
        ModuleNotFoundError: a package of the extra is missing.

    Example:
        >>> import anndata, pandas
        >>> from pyro_zilognormal.datasets import pbmc68k_reduced
        >>> data = pbmc68k_reduced()
        >>> obs = pandas.DataFrame({"cell_type": data.cell_type}, index=data.barcodes)
        >>> adata = anndata.AnnData(data.values.numpy(), obs, pandas.DataFrame(index=data.genes))
        >>> de = HurdleDE(adata[:, ["CD3D", "FTL", "LYZ"]], "~ cell_type").fit(steps=50)
        >>> table = de.test(("cell_type", "CD14+ Monocyte", "CD19+ B"))
        >>> table.variable[table.is_de].tolist()
        ['FTL', 'LYZ']
    """

    def __init__(
        self,
        adata: Any,
        formula: str,
        *,
        donor: str | None = None,
        layer: str | None = None,
        use_raw: bool = False,
        scale: str = "linear",
        offset: Any = None,
        depth: str | None = None,
        detection_threshold: float = 0.0,
        priors: HurdlePriors | Mapping[str, Any] | None = None,
        draws: int = 1000,
        device: str = "cpu",
    ) -> None:
        for module in ("anndata", "pandas", "formulaic", "scipy"):
            require(module)
        if draws < 100:
            raise SingleCellError(f"draws is {draws!r}; needed a whole number of at least 100")
        _check_device(device)
        expression = find_expression(adata, layer, use_raw)
        self.cells = read(adata.obs, formula, donor, offset, depth, Cleaner(expression, scale, detection_threshold))
        self.data = _on_device(self.cells.data, device)
        self.priors = _priors(priors, self.data)
        self._result: FitResult | None = None
        self.settings: dict[str, Any] = {
            "formula": formula,
            "donor": donor,
            "random_effects": [str(term) for term in self.cells.terms],
            "random_effects_left_out": self.cells.left_out,
            "layer": layer,
            "use_raw": bool(use_raw),
            "scale": scale,
            "offset": offset if isinstance(offset, str | None) else "array",
            "depth": self.cells.depth.name if self.cells.depth else None,
            "depth_bins": self.cells.depth_bins,
            "detection_threshold": detection_threshold,
            "draws": draws,
            "device": str(device),
            "n_cells": expression.shape[0],
            "n_genes": expression.shape[1],
            "n_rows": len(self.data.design),
            "n_donors": next((len(term.names) for term in self.cells.terms if term.columns == (donor,)), 0),
        }
        self._draws: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
        self._checks: dict[Any, dict[str, Any]] = {}

    @property
    def genes(self) -> list[str]:
        """Names of the genes, in the order of the matrix."""
        return self.cells.names

    @property
    def result(self) -> FitResult:
        """The result of the fit; a SingleCellError before it."""
        if self._result is None:
            raise SingleCellError("the genes have not been fitted; call fit() first")
        return self._result

    def fit(
        self,
        *,
        seed: int = 0,
        steps: int | None = None,
        batch_size: int = 512,
        callbacks: Sequence[Callback | Callable[[Run], Any]] = (),
        checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    ) -> HurdleDE:
        """Fit all genes.

        Args:
            seed: the random seed of the fit and of the draws.
            steps: number of steps; by default 50, as the guide starts near the posterior, or ten epochs where single
                cells are fitted in minibatches.
            batch_size: cells in a minibatch, where single cells are fitted.
            callbacks: callbacks of ``svi.fit``.
            checkpoint: a file to save the fit to now and then, and to resume from if it exists; or a
                ``svi.Checkpoint``.

        Returns:
            Itself.
        """
        epochs = 0 if self.data.reduced else -(-10 * len(self.data.design) // batch_size)
        if checkpoint is not None:
            callbacks = [*callbacks, checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)]
        model = HurdleModel(self.data, self.priors)
        self._result = fit_hurdle(
            model,
            HurdleGuide(model, self.data),
            self.data,
            steps=max(50, epochs) if steps is None else steps,
            batch_size=batch_size,
            seed=seed,
            callbacks=callbacks,
        )
        self._draws, self._checks = None, {}
        self.settings |= {"seed": seed, "steps": self.result.steps}
        return self

    @property
    def draws(self) -> dict[str, Tensor]:
        """Posterior draws of the coefficients of all genes, each of shape (draws, genes, width), no random effects.

        ``zero_slope``, which all genes share, has shape (draws, 1, 1).
        """
        return self._drawn()[0]

    def _drawn(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return all draws without random effects, and the first ones with them, which take much memory."""
        if self._draws is None:
            result, number, seed = self.result, self.settings["draws"], self.settings["seed"]
            some = min(number, _RANDOM_DRAWS)
            first = draw_coefficients(result, self.data, some, seed=seed, random=True)
            draws = {name: value for name, value in first.items() if name not in ("random", "zero_random")}
            if number > some:
                rest = draw_coefficients(result, self.data, number - some, seed=seed + 1)
                draws = {name: torch.cat([value, rest[name]]) for name, value in draws.items()}
            self._draws = draws, first
        return self._draws

    def cond(self, **levels: Any) -> Condition:
        """Return a condition: a row of the design.

        Args:
            levels: levels of the formula's variables. Others have their first level, or the mean of a number.

        Returns:
            The condition; the difference of two, ``cond(...) - cond(...)``, is a pair for :meth:`test`.

        Raises:
            UnknownNameError: no such variable or level.
            SingleCellError: a combination that the cells do not determine.
        """
        return self.cells.design.condition(levels)

    def contrast(self, column: str, *, baseline: Any, group_to_compare: Any, name: str | None = None) -> Contrast:
        """Return the comparison of two levels of a column, with the arguments of pertpy's method of this name.

        Args:
            column: a variable of the formula.
            baseline: the reference level, any level.
            group_to_compare: the test level.
            name: its name in tables; "column: test vs reference" if None.

        Returns:
            The contrast.

        Raises:
            UnknownNameError: no such variable or level.
            SingleCellError: levels that the design cannot compare, or that interact with another variable.
        """
        return self.cells.design.contrast(column, group_to_compare, baseline, name)

    def test(
        self, contrast: Any, *, delta: float = 0.25, fdr: float = 0.05, max_error: float = 0.2, credible: float = 0.95
    ) -> Any:
        """Return the changes between conditions, gene by gene.

        Args:
            contrast: (column, test level, reference level), a pair of conditions, or a :class:`Contrast`; a list of
                such; or a dict of such by name.
            delta: changes of at most this many log2 units are of no interest; 0 tests the sign alone.
            fdr: the expected false discovery rate of the calls; with random effects, also the false discovery rate of
                the test of samples that calls need too.
            max_error: the largest posterior probability that a called gene does not change.
            credible: probability of the interval.

        Returns:
            A DataFrame with the columns of :data:`~pyro_zilognormal.singlecell.results.COLUMNS`, contrast by
            contrast, the most certain gene first.
        """
        check_fractions(delta, fdr, credible, max_error)
        calls = Calls(delta, fdr, max_error, credible, _negligible(self.priors))
        tables = []
        for one in self.cells.design.contrasts(contrast):
            ends = one.test.levels, one.reference.levels
            test, reference, everything = self.cells.arm(ends[0]), self.cells.arm(ends[1]), self.cells.arm({})
            # A condition without cells, such as a value of a number, cannot be checked.
            known = test.cells > 0 and reference.cells > 0
            outside = outside_of(*(self._check(end, CREDIBLE) for end in ends)) if known else None
            samples, few = compare_samples(self.cells, one), known and min(map(self._samples, ends)) < _FEWEST_SAMPLES
            arms = test, reference, everything
            tables.append(contrast_table(self.genes, self.draws, one, arms, samples, outside, calls, few))
        return require("pandas").concat(tables, ignore_index=True)

    def _samples(self, levels: Mapping[str, Any]) -> float:
        """Return how many samples have cells of a condition; infinite without random effects."""
        found = self.cells.data.factors[self.cells.rows(levels)]
        return len(found.unique(dim=0)) if self.cells.terms else math.inf

    def predict(self, *conditions: Condition, quantiles: Sequence[float] = (), credible: float = 0.95) -> Any:
        """Return predictions for a cell of a condition, of mean depth, for random effects and an offset of 0.

        Args:
            conditions: from :meth:`cond`.
            quantiles: quantiles of the values of a cell, zeros included, from 0 to below 1.
            credible: probability of the intervals.

        Returns:
            A DataFrame with a row for each condition and gene. It has ``variable``, ``condition``, and the posterior
            medians of ``mean``, ``median``, ``prob_zero``, ``positive_mean`` and ``q0.9`` (for a quantile of 0.9), each
            with the ends ``_low`` and ``_high`` of its credible interval.

        Raises:
            TypeError: something else than conditions.
            SingleCellError: a quantile or probability out of range.
        """
        check_fractions(0.0, 0.05, credible)
        return prediction_table(self.genes, self.draws, conditions, quantiles, credible)

    def predictive_check(self, *conditions: Condition, credible: float = 0.95) -> Any:
        """Return the posterior predictive check: statistics of observed cells and of replicated ones.

        Where single cells are fitted, 250 evenly spaced cells of each condition are compared. Means are replicated by
        the approximation of Fenton and Wilkinson: a sum of log-normals as one of the same mean and variance.

        Args:
            conditions: from :meth:`cond`; the cells of each are checked. All cells together if none is given.
            credible: probability of the intervals.

        Returns:
            A DataFrame with a row for each condition and gene. It has ``variable``, ``condition``, the observed
            ``zero_fraction``, ``mean`` and ``sd_log``, and for each, with ``_predicted``, ``_low`` and ``_high``, the
            median and interval of as many cells replicated for the same levels of the random effects. ``sd_log`` is
            the standard deviation of log x where x > 0 among cells alike in all variables, ``sd_log_freedom`` its
            degrees of freedom.

        Raises:
            TypeError: something else than conditions.
            SingleCellError: a condition without cells.
        """
        check_fractions(0.0, 0.05, credible)
        if not all(isinstance(c, Condition) for c in conditions):
            raise TypeError(f"conditions: got {conditions!r}; needed conditions, from cond(...)")
        levels = {c.name: c.levels for c in conditions} or {"all cells": {}}
        for name, chosen in levels.items():
            if not len(self.cells.rows(chosen)):
                raise SingleCellError(f"condition: no cell has {name}; needed a condition with cells")
        return by_condition(self.genes, {name: self._check(chosen, credible) for name, chosen in levels.items()})

    def gene_fits(self, genes: Sequence[str], contrast: Any, *, credible: float = 0.95) -> list[GeneFit]:
        """Return observed values and fitted distributions of some genes, to plot with ``pl.gene``.

        The distribution is that of the cells of a condition, averaged over their random effects and other variables.
        With random effects, each donor's own fold change comes with it, or each sample's own mean where donors have
        cells in one of the conditions only. The matrix is read once more, so that its file must still be open.

        Args:
            genes: names.
            contrast: one contrast, as :meth:`test` takes it.
            credible: probability of the intervals.

        Returns:
            A fit for each gene.

        Raises:
            UnknownNameError: no such gene.
            SingleCellError: a condition without cells.
        """
        (one,) = self.cells.design.contrasts(contrast)
        return gene_fits(self.cells, self._drawn()[1], genes, one, credible)

    def _check(self, levels: Mapping[str, Any], credible: float) -> dict[str, Any]:
        """Return the check of a condition, which tables and reports share."""
        key = (tuple(levels.items()), credible)
        if key not in self._checks:
            self._checks[key] = check_condition(self.cells, levels, self._drawn()[1], credible, self.settings["seed"])
        return self._checks[key]


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
    depth: str | None = None,
    detection_threshold: float = 0.0,
    delta: float = 0.25,
    fdr: float = 0.05,
    max_error: float = 0.2,
    credible: float = 0.95,
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
        adata: an AnnData with cells in rows, in memory or on disk.
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
        A DataFrame with a row for each contrast and gene, the most certain gene first;
        :data:`~pyro_zilognormal.singlecell.results.COLUMNS` describes its columns. Probabilities are shares of the
        draws, so that 0 means less than 1 / draws.

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
    given = [(adata, formula or "", contrast)] if groupby is None else _group_fits(adata, groupby, groups, reference)
    tables, parameters = [], []
    for number, (cells, own_formula, own_contrast) in enumerate(given, start=1):
        de = HurdleDE(
            cells,
            own_formula,
            donor=donor,
            layer=layer,
            use_raw=use_raw,
            scale=scale,
            offset=offset,
            depth=depth,
            detection_threshold=detection_threshold,
            priors=priors,
            draws=draws,
            device=device,
        )
        contrasts = de.cells.design.contrasts(own_contrast)
        path = None if checkpoint is None else os.fspath(checkpoint) + (f".{number}" if number > 1 else "")
        de.fit(seed=seed, steps=steps, callbacks=callbacks, checkpoint=path)
        tables.append(de.test(contrasts, delta=delta, fdr=fdr, max_error=max_error, credible=credible))
        parameters.append(result_parameters(de, contrasts))
    table = require("pandas").concat(tables, ignore_index=True)
    if not copy:
        settings = {"delta": delta, "fdr": fdr, "max_error": max_error, "credible": credible}
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


_REST = "rest"
# The column of groups in a copy of obs.
_MEMBERS = "group_of_cells"


def _group_fits(adata: Any, groupby: str, groups: Any, reference: Any) -> list[tuple[Any, str, Any]]:
    """Return cells, formula and contrasts of each fit that compares groups with a reference group, or with the rest."""
    values = column(adata.obs, groupby, "groupby")
    factor = Variable.of(values, coded=True)
    against = reference if reference == _REST and _REST not in map(str, factor.levels) else factor.level(reference)
    if isinstance(groups, str) and groups == "all":
        chosen = [level for level in factor.levels if level != against]
    else:
        chosen = [factor.level(group) for group in ([groups] if isinstance(groups, str) else groups)]
    if not chosen or against in chosen or len(set(chosen)) < len(chosen):
        raise SingleCellError(
            f"groups is {groups!r}, reference {reference!r}; needed groups other than the reference, each once"
        )
    # The parts of the AnnData that are read; nothing is copied.
    parts = {name: getattr(adata, name) for name in ("X", "layers", "raw", "uns", "obs_names", "var_names")}
    contrasts = {f"{group} vs {against}": (_MEMBERS, group, against) for group in chosen}
    if against != _REST:
        cells = SimpleNamespace(obs=adata.obs.assign(**{_MEMBERS: values}), **parts)
        return [(cells, f"~ C({_MEMBERS})", contrasts)]
    fits: list[tuple[Any, str, Any]] = []
    for name, contrast in contrasts.items():
        members = values.astype(object).where(values == contrast[1], _REST).astype(str)
        cells = SimpleNamespace(obs=adata.obs.assign(**{_MEMBERS: members}), **parts)
        fits.append((cells, f"~ C({_MEMBERS}, contr.treatment({_REST!r}))", {name: contrast}))
    return fits


def _check_one_way(formula: Any, contrast: Any, groupby: Any, groups: Sequence[Any] | str, reference: Any) -> None:
    """Raise unless the comparison is given in one way."""
    if groupby is not None and (formula is not None or contrast is not None):
        raise SingleCellError(
            "groupby is given with a formula or a contrast; needed either: groupby makes both of groups and reference"
        )
    if groupby is None and (formula is None or contrast is None):
        raise SingleCellError(
            f"formula is {formula!r}, contrast {contrast!r}; needed both, such as '~ condition' and ('condition', "
            "'stim', 'ctrl'), or groupby, a column of adata.obs whose groups are compared"
        )
    if groupby is None and (groups != "all" or reference != _REST):
        raise SingleCellError("groups or reference is given without groupby; needed groupby, or a contrast")


def check_fractions(delta: float, fdr: float, credible: float, max_error: float = 0.2) -> None:
    """Raise for settings of a table that are out of range."""
    if not 0 <= delta < math.inf:
        raise SingleCellError(f"delta is {delta!r}; needed a number >= 0, in log2 units")
    for name, value in (("fdr", fdr), ("credible", credible)):
        if not 0 < value < 1:
            raise SingleCellError(f"{name} is {value!r}; needed a number between 0 and 1")
    if not 0 < max_error <= 1:
        raise SingleCellError(f"max_error is {max_error!r}; needed a probability above 0")


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = str(error).strip().splitlines()[0]
        raise SingleCellError(f"device is {device!r}, which cannot be used here ({said}); pass 'cpu'") from error


def _on_device(data: HurdleData, device: str) -> HurdleData:
    moved: dict[str, Any] = {name: value.to(device) for name, value in vars(data).items() if isinstance(value, Tensor)}
    return dataclasses.replace(data, **moved)


def _priors(given: HurdlePriors | Mapping[str, Any] | None, data: HurdleData) -> HurdlePriors:
    if isinstance(given, HurdlePriors):
        return given
    changed, known = dict(given or {}), HurdlePriors.__dataclass_fields__
    for name in changed.keys() - known:
        raise unknown("priors", name, "fields of HurdlePriors", known)
    return HurdlePriors.for_data(data, **changed)


def _negligible(priors: HurdlePriors) -> float:
    """Return the log2 fold change below which genes without effects may lie: 5 sds of the difference of two spikes."""
    return 5 * math.sqrt(2) * priors.spike_sd / math.log(2)
