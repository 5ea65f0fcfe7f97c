"""Differential expression: a hurdle regression of all genes of an AnnData."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from pyro_zilognormal.models import HurdlePriors, HurdleRegression, fit_hurdle
from pyro_zilognormal.singlecell import contrasts
from pyro_zilognormal.singlecell.cells import read_cells
from pyro_zilognormal.singlecell.check import DRAWS, check_table
from pyro_zilognormal.singlecell.contrasts import CellCondition, Contrast
from pyro_zilognormal.singlecell.draws import draw_blocks, draw_coefficients
from pyro_zilognormal.singlecell.errors import SingleCellError, require
from pyro_zilognormal.singlecell.expression import find_expression
from pyro_zilognormal.singlecell.prediction import prediction_table
from pyro_zilognormal.singlecell.provenance import (
    check_device,
    check_draws,
    check_fractions,
    make_priors,
    nearly_zero,
    on_device,
    sizes,
    versions,
)
from pyro_zilognormal.singlecell.scale import Scale
from pyro_zilognormal.singlecell.table import contrast_table
from pyro_zilognormal.svi import Checkpoint, FitResult, Run


class HurdleDE:
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
        detection_threshold: float = 0.0,
        priors: HurdlePriors | Mapping[str, Any] | None = None,
        draws: int = 1000,
        device: str = "cpu",
    ) -> None:
        for module in ("anndata", "pandas", "formulaic", "scipy"):
            require(module)
        self.settings: dict[str, Any] = {
            "formula": formula,
            "donor": donor,
            "layer": layer,
            "use_raw": bool(use_raw),
            "scale": scale,
            "offset": offset if isinstance(offset, str | None) else "array",
            "detection_threshold": detection_threshold,
            "draws": check_draws(draws),
            "device": check_device(device),
        }
        expression = find_expression(adata, layer, use_raw)
        values = Scale(expression, scale, detection_threshold)
        self.cells = read_cells(expression, adata.obs, formula, donor, offset, values)
        self.data = on_device(self.cells.data, device)
        self.priors = make_priors(priors, self.data)
        self.result: FitResult | None = None
        self._draws: dict[str, Tensor] = {}
        self.settings |= sizes(self.data, expression.shape)

    @property
    def genes(self) -> list[str]:
        """Names of the genes, in the order of the matrix."""
        return self.cells.expression.genes

    @property
    def versions(self) -> dict[str, str]:
        """Versions of what made the result."""
        return versions()

    def fit(
        self,
        *,
        seed: int = 0,
        steps: int | None = None,
        batch_size: int = 512,
        callbacks: Sequence[Callable[[Run], Any]] = (),
        checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    ) -> HurdleDE:
        """Fit all genes.

        Args:
            seed: of the fit and of the draws.
            steps: how many; by default 200, or as many as ten passes over the cells where these had to be kept.
            batch_size: cells in a minibatch, where they had to be kept.
            callbacks: as those of ``svi.fit``.
            checkpoint: a file to save the fit to now and then, and to go on from if it exists; or a ``svi.Checkpoint``.

        Returns:
            Itself.
        """
        epochs = 0 if self.data.reduced else -(-10 * len(self.data.design) // batch_size)
        if checkpoint is not None:
            saving = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
            callbacks = [*callbacks, saving]
        self.result = fit_hurdle(
            HurdleRegression(self.data, self.priors),
            self.data,
            steps=max(200, epochs) if steps is None else steps,
            batch_size=batch_size,
            seed=seed,
            callbacks=callbacks,
        )
        self._draws = {}
        self.settings |= {"seed": seed, "steps": self.result.steps}
        return self

    @property
    def draws(self) -> dict[str, Tensor]:
        """Draws of the coefficients of all genes from the posterior, each of shape (draws, genes, width)."""
        if not self._draws:
            result = self._fitted()
            self._draws = draw_coefficients(result, self.data, self.settings["draws"], self.settings["seed"])
        return self._draws

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
        """Return the comparison of two levels of a column.

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
        tables = [self._table(c, delta, fdr, credible) for c in chosen]
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

    def predictive_check(self, *, credible: float = 0.95) -> Any:
        """Return how well the fit reproduces the data: cells drawn anew from the posterior predictive distribution.

        Where cells are kept, 500 of them are looked at, evenly spaced.

        Args:
            credible: probability of the intervals.

        Returns:
            A DataFrame with a row for each gene, with ``variable``, and for each of ``zero_fraction`` and ``mean`` what
            was observed and, with ``_predicted``, ``_low`` and ``_high``, the median of as many cells drawn anew for
            the same donors, and the ends of their interval. Means are drawn by the approximation of Fenton and
            Wilkinson, a sum of log-normals as one of the same mean and variance.
        """
        check_fractions(0.0, 0.05, credible)
        blocks = draw_blocks(self._fitted(), self.data, DRAWS, self.settings["seed"], donors=True)
        return check_table(self.cells, blocks, credible, self.settings["seed"])

    def _table(self, contrast: Contrast, delta: float, fdr: float, credible: float) -> Any:
        arms = [self.cells.arm(levels) for levels in (contrast.test.levels, contrast.reference.levels, {})]
        return contrast_table(self.genes, self.draws, contrast, arms, delta, fdr, credible, nearly_zero(self.priors))

    def _fitted(self) -> FitResult:
        if self.result is None:
            raise SingleCellError("the genes have not been fitted; call fit() first")
        return self.result
