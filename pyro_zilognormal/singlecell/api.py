"""Differential expression of an AnnData, step by step: :class:`HurdleDE`."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyro_zilognormal.models import Condition, HurdleGuide, HurdleModel, HurdlePriors, draw_coefficients, fit_hurdle
from pyro_zilognormal.models.hurdle.fit import draw_blocks
from pyro_zilognormal.singlecell import arguments, predictive_check, results
from pyro_zilognormal.singlecell import genes as single_genes
from pyro_zilognormal.singlecell.arguments import fraction, text_or_none, whole
from pyro_zilognormal.singlecell.cube.reduce import read_any
from pyro_zilognormal.singlecell.design.design import Contrast
from pyro_zilognormal.singlecell.errors import ArgumentTypeError, SingleCellError, require, shown
from pyro_zilognormal.singlecell.files.io import Arm, warn_of_remnants
from pyro_zilognormal.singlecell.genes import Curve, GeneFit
from pyro_zilognormal.singlecell.moderated_t import compare_samples
from pyro_zilognormal.singlecell.predictive_check import RANDOM_DRAWS, Check
from pyro_zilognormal.singlecell.results import CREDIBLE, describe_columns
from pyro_zilognormal.svi import Callback, Checkpoint, FitResult, Run

Columns = dict[str, NDArray[np.float64]]
Summary = Callable[[dict[str, Tensor]], Columns]

_log = logging.getLogger(__name__)
# The guide starts near the posterior. Minibatches of less than a tenth of the cells add more noise than they correct.
_STEPS, _FEWEST_STEPS, _MANY_BATCHES = 30, 10, 10
# Fewer samples in a condition say nothing about how much samples vary.
_FEWEST_SAMPLES = 2


class HurdleDE:
    r"""Differential expression between conditions by a Bayesian hurdle regression of all genes at once.

    A value of a gene is 0 or log-normal; a formula explains the log odds of a zero and the mean of log x where x > 0.
    Genes share hyperparameters, effects are sparse, and donors may have random effects
    (:class:`~pyro_zilognormal.models.HurdleModel`). The matrix is read once, a block at a time.

    Args:
        adata: an AnnData, in memory, backed, or from :func:`open_cells`; or a :class:`Cube`, which was given layer,
            use_raw, scale, offset and detection_threshold when it was made.
        formula: columns of obs as formulaic reads them, with an intercept: ``"~ condition + batch"``. Names with dots,
            spaces or other signs stand in backticks, ``"~ `orig.ident`"``, or ``Q("...")``. Random effects are written
            as in lme4: ``(1 | donor)``, ``(1 | batch:donor)``, ``(1 | batch/donor)`` for (1 | batch) +
            (1 | batch:donor), ``(condition | donor)`` for (1 | donor) + (1 | donor:condition) of a category.
        donor: the column of obs that names the donors: (1 | donor), and (1 | donor:condition) if some donor has cells
            in several levels of variables of the formula, so that the replicate is the sample. None, without random
            effects in the formula, takes cells as independent, and conclusions are about these cells, not about other
            donors.
        layer: the layer to use; None for X.
        use_raw: whether to use ``adata.raw``.
        scale: the stored scale: "linear", "log1p" for log(1 + x), "log2p1" or "log10p1" for logarithms to base 2 or
            10, or "counts" for raw counts: a cell's size factor is its total over all genes of the matrix, divided by
            the median of these. None takes what ``uns["log1p"]`` declares for X, or else what the values show:
            whole numbers are counts, fractions beside values above 30 are linear. ``settings["scale"]`` has it,
            ``settings["scale_from"]`` how it is known.
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
        ['LYZ', 'FTL']
    """

    def __init__(
        self,
        adata: Any,
        formula: str,
        *,
        donor: str | None = None,
        layer: str | None = None,
        use_raw: bool = False,
        scale: str | None = None,
        offset: Any = None,
        depth: str | None = None,
        detection_threshold: float = 0.0,
        priors: HurdlePriors | Mapping[str, Any] | None = None,
        draws: int = 1000,
        device: str = "cpu",
    ) -> None:
        for module in ("anndata", "pandas", "formulaic", "scipy"):
            require(module)
        draws, device = whole("draws", draws, 100), arguments.check_device(device)
        depth = text_or_none("depth", depth, "'auto' or the name of a column of obs")
        given = arguments.matrix_arguments(layer, use_raw, scale, offset, detection_threshold)
        self.cells, read = read_any(adata, formula, donor, depth, given)
        if read["scale_from"] != "given":
            _log.info("scale: %s, as %s", read["scale"], read["scale_from"])
        warn_of_remnants(self.cells)
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self.cells.data).items() if isinstance(v, Tensor)}
        self.data = replace(self.cells.data, **moved)
        self.priors = arguments.priors_for(priors, self.data)
        self.settings: dict[str, Any] = {"formula": formula, "donor": donor, "draws": draws, "device": device}
        self.settings |= results.described(self.cells, donor) | {name: read[name] for name in (*given, "scale_from")}
        self._result: FitResult | None = None
        self._draws: dict[str, Tensor] | None = None
        self._checks: dict[Any, Columns] = {}

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
        """Fit all genes, and return itself.

        Args:
            seed: the random seed of the fit and of the draws.
            steps: number of steps; by default 30, as the guide starts near the posterior, or 10 for minibatches of less
                than a tenth of the cells, where nothing is left to gain.
            batch_size: cells in a minibatch, where single cells are fitted.
            callbacks: callbacks of ``svi.fit``.
            checkpoint: a file to save the fit to now and then, and to resume from if it exists; or a
                ``svi.Checkpoint``.
        """
        seed, batch_size = whole("seed", seed, 0, 2**32 - 1), whole("batch_size", batch_size, 1)
        if steps is None:
            many = not self.data.reduced and len(self.data.design) > _MANY_BATCHES * batch_size
            steps = _FEWEST_STEPS if many else _STEPS
        options: dict[str, Any] = {"steps": whole("steps", steps, _FEWEST_STEPS), "batch_size": batch_size}
        options |= {"seed": seed, "callbacks": arguments.callbacks_of(callbacks, checkpoint)}
        model = HurdleModel(self.data, self.priors)
        self._result = fit_hurdle(model, HurdleGuide(model, self.data), self.data, **options)
        self._draws, self._checks = None, {}
        self.settings |= {"seed": seed, "steps": self.result.steps}
        return self

    @property
    def draws(self) -> dict[str, Tensor]:
        """Posterior draws of the coefficients of all genes, each of shape (draws, genes, width), no random effects.

        ``zero_slope``, which all genes share, has shape (draws, 1, 1). Tables are made of the same draws, but of some
        genes at a time, so that they need not be in memory.
        """
        if self._draws is None:
            self._draws = self._draw_genes(None, 0)
        return self._draws

    def _draw_genes(self, genes: Sequence[int] | None, random: int) -> dict[str, Tensor]:
        result, number = self.result, self.settings["draws"]
        return draw_coefficients(result, self.data, number, self.settings["seed"], min(number, random), genes)

    def _summarise(
        self, conditions: Sequence[Mapping[str, Any]], credible: float, others: Sequence[Summary] = ()
    ) -> tuple[list[Columns], list[Columns]]:
        """Return the checks of conditions, which are kept, and other summaries of the draws, some genes at a time."""
        result, number, seed = self.result, self.settings["draws"], self.settings["seed"]
        keys = [(tuple(levels.items()), credible) for levels in conditions]
        new = {key: Check.of(self.cells, dict(key[0]), credible) for key in keys if key not in self._checks}
        found: list[Columns] = [{} for _ in [*new, *others]]
        random = min(number, RANDOM_DRAWS) if new else 0
        for some, draws in draw_blocks(result, self.data, number, seed, random) if found else ():
            parts = [check.columns(draws, some, seed) for check in new.values()] + [other(draws) for other in others]
            for columns, part in zip(found, parts, strict=True):
                for name, values in part.items():
                    # Small arrays, kept between the large ones of blocks, would let memory grow.
                    columns.setdefault(name, np.empty(self.data.genes))[some] = values
        self._checks |= zip(new, found, strict=False)
        return [self._checks[key] for key in keys], found[len(new) :]

    def cond(self, **levels: Any) -> Condition:
        """Return a condition: a row of the design.

        Args:
            levels: levels of the formula's variables. Others have their first level, or the mean of a number.

        Returns:
            The condition; the difference of two, ``cond(...) - cond(...)``, is a pair for :meth:`test`.

        Raises:
            SingleCellError: no such variable or level, or a combination that the cells do not determine.
        """
        return self.cells.design.condition(levels)

    def contrast(self, column: str, *, baseline: Any, group_to_compare: Any, name: str | None = None) -> Contrast:
        """Return the comparison of two levels of a column, with the arguments of pertpy's method of this name.

        Args:
            column: a variable of the formula.
            baseline: the reference level, any level.
            group_to_compare: the test level.
            name: its name in tables; "column: test vs reference" if None.

        Raises:
            SingleCellError: no such level, or levels that the cells cannot compare or that interact with a variable.
        """
        return self.cells.design.contrast(column, group_to_compare, baseline, text_or_none("name", name, "text"))

    @describe_columns
    def test(
        self,
        contrast: Any,
        *,
        delta: float = 0.25,
        fdr: float = 0.05,
        max_error: float = 0.2,
        credible: float = CREDIBLE,
    ) -> Any:
        """Return the changes between conditions, gene by gene.

        The columns of the table are

        COLUMNS

        Args:
            contrast: (column, test level, reference level); or a pair of conditions, each from :meth:`cond`, as a dict
                of levels or as text, ``("condition=stim,dose=high", "condition=ctrl,dose=high")``; or a
                :class:`Contrast`; or a pair of contrasts, whose difference it is. A list of such gives several, a dict
                names them.
            delta: changes of at most this many log2 units are of no interest; 0 tests the sign alone.
            fdr: the expected false discovery rate of the calls; with random effects, also the false discovery rate of
                the test of samples that calls need too.
            max_error: the largest posterior probability that a called gene does not change.
            credible: probability of the interval.

        Returns:
            A DataFrame, contrast by contrast, the most certain gene first, by expected_fdr and, where that is equal,
            such as 0, by the end of the interval that is nearer to 0 (Harrison et al. 2019, "Topconfects").
        """
        arguments.check_fractions(delta, fdr, credible, max_error)
        calls = results.Calls(delta, fdr, max_error, credible, results.negligible(self.priors))
        contrasts = self.cells.design.contrasts(contrast)
        ends = [end.levels for one in contrasts for end in one.ends]
        everything, *arms = self.cells.arms([{}, *ends])
        # A condition without cells, such as a value of a number, cannot be checked.
        checked = [levels for levels, arm in zip(ends, arms, strict=True) if arm.cells]
        summary = functools.partial(results.posterior_columns, calls=calls)
        summaries = [functools.partial(summary, contrast=one) for one in contrasts]
        tables, each = [], iter(arms)
        for one, posterior in zip(contrasts, self._summarise(checked, CREDIBLE, summaries)[1], strict=True):
            tables.append(self._table(one, [next(each) for _ in one.ends], everything, posterior, calls))
        return require("pandas").concat(tables, ignore_index=True)

    def _table(
        self, contrast: Contrast, arms: Sequence[Arm], everything: Arm, posterior: Columns, calls: results.Calls
    ) -> Any:
        """Return the table of a contrast, from what was observed in its conditions and the posterior's columns."""
        (skewness, error), outside, few = self.cells.log_skewness, None, False
        if all(arm.cells for arm in arms):
            ends = [end.levels for end in contrast.ends]
            checks, _ = self._summarise(ends, CREDIBLE)  # which have been made
            outside = predictive_check.outside_of(*checks) | {"left_tail": skewness + 2 * error < results.LEFT_TAIL}
            factors = [self.cells.data.factors[self.cells.rows(levels)] for levels in ends]
            few = bool(self.cells.terms) and min(len(own.unique(dim=0)) for own in factors) < _FEWEST_SAMPLES
        columns = {"variable": self.genes, "log_skewness": skewness, **posterior}
        columns |= results.observed_columns(arms, everything, few)
        samples = compare_samples(self.cells, contrast)
        return results.contrast_table(columns, contrast, arms, samples, outside, calls)

    def predict(self, *conditions: Condition, quantiles: Sequence[float] = (), credible: float = CREDIBLE) -> Any:
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
            SingleCellError: something else than conditions, or a quantile or probability out of range.
        """
        _check_conditions(conditions, fewest=1)
        fraction("credible", credible)
        quantiles = predictive_check.check_quantiles(quantiles)
        summary = functools.partial(predictive_check.prediction_columns, quantiles=quantiles, credible=credible)
        _, found = self._summarise([], credible, [functools.partial(summary, condition=c) for c in conditions])
        return predictive_check.by_condition(self.genes, dict(zip((c.name for c in conditions), found, strict=True)))

    def predictive_check(self, *conditions: Condition, credible: float = CREDIBLE) -> Any:
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
            SingleCellError: something else than conditions, or a condition without cells.
        """
        fraction("credible", credible)
        _check_conditions(conditions)
        levels = {c.name: c.levels for c in conditions} or {"all cells": {}}
        for name, chosen in levels.items():
            if not len(self.cells.rows(chosen)):
                raise SingleCellError(f"condition: no cell has {name}; needed a condition with cells")
        found, _ = self._summarise([*levels.values()], credible)
        return predictive_check.by_condition(self.genes, dict(zip(levels, found, strict=True)))

    def gene_fits(self, genes: Sequence[str], contrast: Any, *, credible: float = CREDIBLE) -> list[GeneFit]:
        """Return observed values and the fitted distribution of each of some genes, to plot with ``pl.gene``.

        The distribution is that of the cells of a condition, averaged over their random effects and other variables.
        With random effects, each donor's own fold change comes with it, or each sample's own mean where donors have
        cells in one of the conditions only. The matrix is read once more, so that its file must still be open; a cube
        has none.

        Args:
            genes: names.
            contrast: one contrast, as :meth:`test` takes it.
            credible: probability of the intervals.

        Raises:
            SingleCellError: no such gene, or a condition without cells.
        """
        fraction("credible", credible)
        one, *others = self.cells.design.contrasts(contrast)
        if others:
            raise SingleCellError(f"contrast: got {1 + len(others)} contrasts; needed one")
        return single_genes.gene_fits(self.cells, self._draw_genes, genes, one, credible)

    def curves(
        self, genes: Sequence[str], column: str, at: Condition | None = None, *, credible: float = CREDIBLE
    ) -> list[Curve]:
        """Return the mean of each of some genes along a number, such as an age or a pseudotime, for ``pl.curve``.

        The mean is that of a cell with random effects of 0. The matrix is read once more, so that its file must still
        be open.

        Args:
            genes: names.
            column: a variable of the formula that holds numbers.
            at: the condition, from :meth:`cond`, that gives the other variables; these have their first level, or
                their mean, if None. The observed means are those of the cells with the levels it names.
            credible: probability of the band.

        Raises:
            SingleCellError: no such gene or variable, a variable of categories, or a condition that gives it.

        Example:
            >>> import anndata, numpy, pandas
            >>> from pyro_zilognormal.datasets import pbmc68k_reduced
            >>> data = pbmc68k_reduced()
            >>> obs = pandas.DataFrame({"time": numpy.arange(700) / 700}, index=data.barcodes)
            >>> adata = anndata.AnnData(data.values.numpy(), obs, pandas.DataFrame(index=data.genes))
            >>> de = HurdleDE(adata[:, ["CD3D", "FTL"]], "~ bs(time, df=4)").fit(steps=10)
            >>> curve, = de.curves(["FTL"], "time")
            >>> curve.grid.shape, curve.observed.shape
            ((100,), (10,))
        """
        fraction("credible", credible)
        return single_genes.curves(self.cells, self._draw_genes, genes, column, at, credible)


def _check_conditions(conditions: Sequence[Any], fewest: int = 0) -> None:
    if len(conditions) < fewest or not all(isinstance(c, Condition) for c in conditions):
        number = "one or more conditions" if fewest else "conditions"
        raise ArgumentTypeError(f"conditions: got {shown(conditions)}; needed {number}, from cond(...)")
