"""The pictures of a run, as bytes of PNG files."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyro_zilognormal.singlecell import plots
from pyro_zilognormal.singlecell.check import CREDIBLE, QUANTITIES
from pyro_zilognormal.singlecell.genes import GeneFit
from pyro_zilognormal.singlecell.job import Answer
from pyro_zilognormal.svi import plot_loss

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 110


def loss_png(answer: Answer) -> bytes:
    """Return the loss over the steps of the fit."""
    rows = "group of like cells" if answer.de.data.reduced else "cell"

    def draw(figure: Figure) -> None:
        ax = plot_loss(answer.result, figure.subplots(), window=max(1, answer.result.steps // 10))
        ax.set(ylabel=f"loss per {rows}")
        ax.legend(fontsize="small", loc="upper center", framealpha=0.9)

    return _png((7.0, 3.6), draw)


def volcano_png(answer: Answer) -> bytes:
    """Return the volcano of each contrast, side by side."""
    names = [contrast.name for contrast in answer.contrasts]

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(names), squeeze=False)[0]
        for ax, name in zip(axes, names, strict=True):
            plots.volcano(answer.of(name).reset_index(drop=True), ax)

    return _png((7.0 if len(names) == 1 else 5.5 * len(names), 5.0), draw)


def predictive_png(answer: Answer) -> bytes:
    """Return the predictive check: share of zeros, mean and sd of the logarithm, in each condition."""

    def draw(figure: Figure) -> None:
        for ax, quantity in zip(figure.subplots(1, 3), QUANTITIES, strict=True):
            plots.predictive(answer.check, quantity, ax, credible=CREDIBLE)

    return _png((13.0, 4.6), draw)


def gene_png(fit: GeneFit) -> bytes:
    """Return one gene."""
    return _png((6.4, 3.6), lambda figure: plots.gene(fit, figure.subplots()))


def _png(size: tuple[float, float], draw: Callable[[Any], Any]) -> bytes:
    from matplotlib.figure import Figure

    figure, buffer = Figure(figsize=size, layout="constrained"), io.BytesIO()  # no pyplot: nothing global is touched
    draw(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # names in scripts that the font lacks
        figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()
