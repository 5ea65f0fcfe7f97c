"""Cells, and the fit to them: what is read, trained and drawn from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from pyro_zilognormal.models import HurdlePriors, HurdleRegression, fit_hurdle
from pyro_zilognormal.singlecell.cells import read_cells
from pyro_zilognormal.singlecell.draws import draw_coefficients
from pyro_zilognormal.singlecell.errors import SingleCellError, require
from pyro_zilognormal.singlecell.expression import find_expression
from pyro_zilognormal.singlecell.provenance import check_device, check_draws, make_priors, on_device, sizes, versions
from pyro_zilognormal.singlecell.scale import Scale
from pyro_zilognormal.svi import Checkpoint, FitResult, Run

Self = TypeVar("Self", bound="FittedCells")


class FittedCells:
    """Cells that are read when it is made, and a fit to them; arguments are those of :class:`HurdleDE`."""

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
        self._checked: dict[Any, Any] = {}
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
        self: Self,
        *,
        seed: int = 0,
        steps: int | None = None,
        batch_size: int = 512,
        callbacks: Sequence[Callable[[Run], Any]] = (),
        checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    ) -> Self:
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
        self._draws, self._checked = {}, {}
        self.settings |= {"seed": seed, "steps": self.result.steps}
        return self

    @property
    def draws(self) -> dict[str, Tensor]:
        """Draws of the coefficients of all genes from the posterior, each of shape (draws, genes, width)."""
        if not self._draws:
            result = self._fitted()
            self._draws = draw_coefficients(result, self.data, self.settings["draws"], self.settings["seed"])
        return self._draws

    def _fitted(self) -> FitResult:
        if self.result is None:
            raise SingleCellError("the genes have not been fitted; call fit() first")
        return self.result
