"""Differential expression: a hurdle regression of all genes of an AnnData."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyro_zilognormal.singlecell import contrasts
from pyro_zilognormal.singlecell.check import CREDIBLE, DRAWS, check_table
from pyro_zilognormal.singlecell.contrasts import CellCondition, Contrast
from pyro_zilognormal.singlecell.draws import draw_blocks
from pyro_zilognormal.singlecell.errors import SingleCellError, require
from pyro_zilognormal.singlecell.fitted import FittedCells
from pyro_zilognormal.singlecell.misfit import misfit_columns
from pyro_zilognormal.singlecell.prediction import prediction_table
from pyro_zilognormal.singlecell.provenance import check_fractions, nearly_zero
from pyro_zilognormal.singlecell.table import contrast_table


class HurdleDE(FittedCells):
    r"""Differential expression between conditions by a Bayesian hurdle regression of all genes at once.

    Each value of a gene is 0, or log-normal; a formula explains the log odds of a zero and the mean of the
    logarithm of the others, with strength shared across genes and random effects of donors
    (:class:`~pyro_zilognormal.models.HurdleRegression`). The matrix is read once, a block at a time.

    Args:
        adata: an AnnData, in memory or backed, or a :class:`CellFile`.
        formula: of columns of obs, as formulaic reads it, with an intercept.
        donor: the column of obs that names who a cell is from, for random effects; None: cells are taken as
            independent, and conclusions are about these cells, not about other donors.
        layer: the matrix to take; None for X.
        use_raw: take ``adata.raw``.
        scale: what is stored: "linear", "log1p" for log(1 + x), or "log2p1" for log2(1 + x).
        offset: the log size factor of each cell, or the column of obs that has it, added to the mean of log x; None for
            values that are normalised already.
        detection_threshold: linear values of at most this are taken as zeros.
        priors: hyperpriors, or those that differ from :meth:`~pyro_zilognormal.models.HurdlePriors.for_data`.
        draws: how many draws from the posterior summaries are made of.
        device: where torch computes.

    Attributes:
        cells: what was read: design, donors, data, and what was observed.
        result: the fit's, or None.
        settings: all of the above in plain values, and those of the fit.

    Raises:
        SingleCellError: data or arguments that cannot be used; a message says why and what to do.
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

    def cond(self, **levels: Any) -> CellCondition:
        """Return a condition: a row of the design.

        Args:
            levels: values of the formula's variables. Those left out have their first level, or the mean of a number.

        Raises:
            UnknownNameError: no such variable or level.
            SingleCellError: a combination that no cells determine.
        """
        return contrasts.make_condition(self.cells.design, levels)

    def contrast(self, column: str, test: Any, reference: Any, name: str | None = None) -> Contrast:
        """Return the comparison of two levels of a column, the test first (pertpy has the baseline first).

        Args:
            column: a variable of the formula.
            test: the level above.
            reference: the level below; any level, not only the formula's reference.
            name: what to call it in tables; "column: test vs reference" if None.

        Raises:
            UnknownNameError: no such variable or level.
            SingleCellError: levels that the design cannot compare, or that differ by another variable too.
        """
        return contrasts.make_contrast(self.cells.design, column, test, reference, name)

    def test(self, contrast: Any, *, delta: float = 0.25, fdr: float = 0.05, credible: float = 0.95) -> Any:
        """Return what changes between conditions, gene by gene.

        Args:
            contrast: (column, test level, reference level), a pair of conditions, what :meth:`contrast`
                returns; a list of such; or a dict of such with names.
            delta: changes of at most so many log2 units are of no interest; 0 asks for the sign alone.
            fdr: call genes up to this expected false discovery rate.
            credible: probability of the interval.

        Returns:
            A DataFrame with the columns of :data:`COLUMNS`, contrast by contrast, the surest gene first.
        """
        check_fractions(delta, fdr, credible)
        chosen = contrasts.parse_contrasts(self.cells.design, contrast)
        checks = self._checks(chosen)
        tables = [self._table(c, checks, delta, fdr, credible) for c in chosen]
        return require("pandas").concat(tables, ignore_index=True)

    def predict(self, *conditions: CellCondition, quantiles: Sequence[float] = (), credible: float = 0.95) -> Any:
        """Return what a cell of a condition is like, gene by gene, for a donor of no effect and an offset of 0.

        Args:
            conditions: what :meth:`cond` returns.
            quantiles: of the values of a cell, zeros included, from 0 to 1.
            credible: probability of the intervals.

        Returns:
            A DataFrame with a row for each condition and gene, with ``variable``, ``condition``, and for each of
            ``mean``, ``median``, ``prob_zero``, ``positive_mean`` and ``q0.9`` (for a quantile of 0.9) the posterior
            median and, with ``_low`` and ``_high``, the ends of the credible interval.
        """
        check_fractions(0.0, 0.05, credible)
        return prediction_table(self.genes, self.draws, conditions, quantiles, credible)

    def predictive_check(self, *conditions: CellCondition, credible: float = 0.95) -> Any:
        """Return how well the fit reproduces the data: cells drawn anew from the posterior predictive distribution.

        Where cells are kept, 250 of each condition are looked at, evenly spaced.

        Args:
            conditions: what :meth:`cond` returns; the cells of each are compared. All cells if none is given.
            credible: probability of the intervals.

        Returns:
            A DataFrame with a row for each condition and gene, with ``variable``, ``condition``, and for each of
            ``zero_fraction``, ``mean`` and ``sd_log`` what was observed and, with ``_predicted``, ``_low`` and
            ``_high``, the median of as many cells drawn anew for the same donors, and the ends of their interval.
            ``sd_log`` is the standard deviation of log x where positive, among cells alike to the model, and
            ``sd_log_freedom`` its degrees of freedom; where these are 0 it is NaN. Means are drawn by the
            approximation of Fenton and Wilkinson, a sum of log-normals as one of the same mean and variance.

        Raises:
            TypeError: something else than conditions.
            SingleCellError: a condition that no cell is in.
        """
        check_fractions(0.0, 0.05, credible)
        if not all(isinstance(c, CellCondition) for c in conditions):
            raise TypeError(f"conditions: got {conditions!r}; needed what cond(...) returns")
        chosen = {c.name: self.cells.having(c.levels) for c in conditions} or {"all cells": self.cells.having({})}
        for name, having in chosen.items():
            if not having.any():
                raise SingleCellError(f"condition: no cell has {name}; needed a condition that cells are in")
        return self._check(chosen, credible)

    def _check(self, chosen: Mapping[str, Any], credible: float) -> Any:
        """Return the check of some cells by name, which a table and a report of the same conditions share."""
        result, asked = self._fitted(), (*chosen, credible)
        if asked not in self._checked:
            blocks = draw_blocks(result, self.data, DRAWS, self.settings["seed"], donors=True)
            self._checked[asked] = check_table(self.cells, chosen, blocks, credible, self.settings["seed"])
        return self._checked[asked].copy()

    def _checks(self, chosen: Sequence[Contrast]) -> dict[str, Any]:
        """Return the predictive check of each condition of some contrasts that cells are in, by its name."""
        conditions = {c.name: self.cells.having(c.levels) for pair in chosen for c in (pair.test, pair.reference)}
        some = {name: having for name, having in conditions.items() if having.any()}
        return dict(iter(self._check(some, CREDIBLE).groupby("condition"))) if some else {}

    def _table(self, contrast: Contrast, checks: Mapping[str, Any], delta: float, fdr: float, credible: float) -> Any:
        ends = (contrast.test, contrast.reference)
        arms = [self.cells.arm(levels) for levels in (*(c.levels for c in ends), {})]
        misfit = misfit_columns(checks.get(ends[0].name), checks.get(ends[1].name), len(self.genes))
        zero = nearly_zero(self.priors)
        return contrast_table(self.genes, self.draws, contrast, arms, misfit, delta, fdr, credible, zero)
