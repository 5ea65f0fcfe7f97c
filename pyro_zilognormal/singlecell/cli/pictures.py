"""The pictures of a run, as PNG. One that fails never costs the table."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from pyro_zilognormal.singlecell import plots
from pyro_zilognormal.singlecell.cli.report import Results
from pyro_zilognormal.singlecell.errors import printable
from pyro_zilognormal.singlecell.genes import GeneFit
from pyro_zilognormal.singlecell.predictive_check import STATISTICS
from pyro_zilognormal.singlecell.results import CREDIBLE

_DPI = 110


def draw(results: Results) -> tuple[dict[str, bytes], dict[str, bytes], list[str]]:
    """Return the pictures of a run by name, those of single genes, both as PNG, and why others could not be drawn."""
    number, problems = len(results.contrasts), list[str]()
    picture = functools.partial(painted, problems=problems)
    convergence = functools.partial(plots.convergence, results.de.result, len(results.de.genes))
    pictures = {
        "loss": picture("the loss", (7.0, 3.6), 1, lambda axes: convergence(axes[0])),
        "volcano": picture(
            "the volcano", (max(7.0, 5.5 * number), 5.0), number, functools.partial(_volcanoes, results)
        ),
        "predictive": picture("the predictive check", (13.0, 4.6), 3, functools.partial(_checks, results)),
    }
    genes = {}
    for one in results.genes:
        size, columns = ((11.0, 3.6), 2) if one.samples else ((6.4, 3.6), 1)
        genes[f"{one.gene}, {one.contrast}"] = picture(one.gene, size, columns, functools.partial(_gene, one))
    made, of_genes = ({name: png for name, png in found.items() if png} for found in (pictures, genes))
    return made, of_genes, problems


def _volcanoes(results: Results, axes: Sequence[Any]) -> None:
    for ax, contrast in zip(axes, results.contrasts, strict=True):
        plots.volcano(results.of(contrast.name), ax)


def _checks(results: Results, axes: Sequence[Any]) -> None:
    for ax, statistic in zip(axes, STATISTICS, strict=True):
        plots.predictive(results.check, statistic, ax, credible=CREDIBLE)


def _gene(one: GeneFit, axes: Sequence[Any]) -> None:
    plots.gene(one, axes[0])
    if one.samples:
        plots.samples(one, axes[1])


def painted(
    name: str, size: tuple[float, float], columns: int, paint: Callable[[Sequence[Any]], Any], problems: list[str]
) -> bytes:
    """Return a picture as PNG; where it fails, b"", and why in problems, as no picture should cost the results."""
    from matplotlib.figure import Figure

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph", UserWarning)  # names in scripts that the font lacks
            figure = Figure(figsize=size, layout="constrained")  # pyplot would keep it in a global list
            paint(figure.subplots(1, columns, squeeze=False)[0])
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=_DPI)
            return buffer.getvalue()
    except Exception as error:  # whatever matplotlib raises for odd values and names
        problems.append(printable(f"the picture of {name} could not be drawn: {type(error).__name__}: {error}"))
        return b""
