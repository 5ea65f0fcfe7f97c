"""Pictures of differential expression. Matplotlib is imported when the first is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_zilognormal.singlecell.check import inside
from pyro_zilognormal.singlecell.errors import SingleCellError, listed
from pyro_zilognormal.singlecell.genes import GeneCondition, GeneFit
from pyro_zilognormal.singlecell.labels import label_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_UP, _DOWN, _NEITHER = "tab:red", "tab:blue", "0.7"
_CONDITIONS = ("tab:orange", "tab:blue")
_QUANTITIES = {
    "zero_fraction": "share of zeros",
    "mean": "mean, zeros included",
    "sd_log": "sd of log x, where positive",
}


def volcano(table: Any, ax: Axes | None = None, *, labels: int = 30) -> Axes:
    """Draw the change of each gene against how sure it is: the change in units of its posterior sd.

    Probabilities from draws cannot be told apart below 1 / draws, where a volcano would have a flat top.

    Args:
        table: what :meth:`~pyro_zilognormal.singlecell.HurdleDE.test` returns for one contrast.
        ax: where to draw; a new figure if None.
        labels: how many genes to name, the surest called ones, as far as there is room.

    Returns:
        The axes drawn on.

    Raises:
        SingleCellError: a table of several contrasts or without rows.
    """
    names = list(dict.fromkeys(table["contrast"]))
    if len(names) != 1:
        raise SingleCellError(f"table holds the contrasts {listed(names)}; needed one: table[table.contrast == name]")
    ax = _axes(ax)
    x, y = table["log_fc"].to_numpy(), (table["log_fc"].abs() / table["log_fc_sd"]).to_numpy()
    called = table["is_de"].to_numpy(dtype=bool)
    for chosen, colour, what in (
        (called & (x > 0), _UP, "up"),
        (called & (x < 0), _DOWN, "down"),
        (~called, _NEITHER, "not called"),
    ):
        ax.scatter(x[chosen], y[chosen], s=14, color=colour, linewidth=0, label=f"{what} ({chosen.sum()})")
    ax.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.set(xlabel="log2 fold change of the mean", ylabel="|log2 fold change| / posterior sd", title=names[0])
    ax.margins(0.1)
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize="small")
    # As many on either side, and on neither by the other's leave.
    shown = np.sort(np.concatenate([np.flatnonzero(called & (sign * x > 0))[: labels // 2] for sign in (1, -1)]))
    genes = table["variable"].to_numpy()
    label_points(ax, [(x[i], y[i], str(genes[i])) for i in shown], np.column_stack([x, y]))
    return ax


def predictive(check: Any, quantity: str = "zero_fraction", ax: Axes | None = None, *, credible: float = 0.95) -> Axes:
    """Draw what cells drawn anew from the fit show against what the cells show, a point with its interval for a gene.

    A check of several conditions has a point for each gene and condition.

    Args:
        check: what :meth:`~pyro_zilognormal.singlecell.HurdleDE.predictive_check` returns.
        quantity: "zero_fraction", "mean" or "sd_log"; genes whose mean is 0, or that have no sd, are left out of the
            latter two; the axes of the mean are logarithmic.
        ax: where to draw; a new figure if None.
        credible: the probability that the check was made with, for the legend.

    Returns:
        The axes drawn on.

    Raises:
        SingleCellError: another quantity.
    """
    if quantity not in _QUANTITIES:
        raise SingleCellError(f"quantity is {quantity!r}; needed one of {', '.join(map(repr, _QUANTITIES))}")
    ax = _axes(ax)
    if quantity != "zero_fraction":
        check = check[check[quantity] > 0]
    if quantity == "mean":
        ax.set(xscale="log", yscale="log")
    within, seen = inside(check, quantity), check[quantity].to_numpy()
    middle, low, high = (check[f"{quantity}_{end}"].to_numpy() for end in ("predicted", "low", "high"))
    for chosen, colour, what in ((within, "tab:blue", "inside"), (~within, "tab:red", "outside")):
        if chosen.any():
            bars = [(middle - low)[chosen], (high - middle)[chosen]]
            label = f"{what} the {100 * credible:g} % interval ({chosen.sum()})"
            ax.errorbar(
                seen[chosen], middle[chosen], bars, fmt="o", color=colour, markersize=3, linewidth=0.8, label=label
            )
    ends = [min(seen.min(initial=1), middle.min(initial=1)), max(seen.max(initial=0), middle.max(initial=0))]
    ax.plot(ends, ends, color="0.3", linewidth=0.8, zorder=0, label="observed = predicted")
    what = _QUANTITIES[quantity]
    ax.set(xlabel=f"observed {what}", ylabel=f"predicted {what}", title=what.split(",")[0])
    ax.legend(frameon=False, fontsize="small", loc="upper left")
    if (~within).any():
        names = check["variable"].to_numpy()
        label_points(ax, [(seen[i], middle[i], str(names[i])) for i in np.flatnonzero(~within)[:10]])
    return ax


def gene(fit: GeneFit, ax: Axes | None = None) -> Axes:
    """Draw one gene in both conditions: the share of zeros on the left, the positive values and their law.

    Bars are the cells, lines the fitted law with its credible band.

    Args:
        fit: from :func:`~pyro_zilognormal.singlecell.genes.gene_fits`.
        ax: where to draw; a new figure if None. It becomes the frame of two axes.

    Returns:
        The frame; its ``child_axes`` are those of the zeros and of the positive values.
    """
    ax = _axes(ax)
    ax.set_axis_off()
    zeros, amount = ax.inset_axes((0.0, 0.0, 0.2, 1.0)), ax.inset_axes((0.34, 0.0, 0.66, 1.0))
    bins = _bins(np.concatenate([c.positive for c in fit.conditions]))
    for at, (condition, colour) in enumerate(zip(fit.conditions, _CONDITIONS, strict=True)):
        _draw_zeros(zeros, at, condition, colour)
        _draw_positive(amount, condition, colour, bins)
    zeros.set(ylim=(0, 1), xticks=[], xlim=(-0.6, 1.6), xlabel="zeros", ylabel="share of cells")
    amount.set(xscale="log", xlabel="positive values (linear scale)", ylabel="density of log10 x, given x > 0")
    amount.set_ylim(0, 1.4 * amount.get_ylim()[1])  # room for the legend
    amount.legend(frameon=False, fontsize="small", loc="upper left")
    ax.set_title(fit.gene)
    return ax


def _draw_zeros(ax: Axes, at: int, condition: GeneCondition, colour: str) -> None:
    ax.bar(at, condition.zero_fraction, color=colour, alpha=0.4, width=0.8)
    middle, low, high = condition.zero_fitted
    ax.errorbar([at], [middle], [[middle - low], [high - middle]], fmt="o", color=colour, markersize=4, capsize=3)


def _draw_positive(ax: Axes, condition: GeneCondition, colour: str, bins: np.ndarray) -> None:
    label = f"{condition.name}: {len(condition.positive)} of {condition.cells} cells"
    if len(condition.positive):
        width = np.log10(bins[1] / bins[0])
        weights = np.full(len(condition.positive), 1 / len(condition.positive) / width)
        ax.hist(condition.positive, bins=bins.tolist(), weights=weights, color=colour, alpha=0.4)
    middle, low, high = condition.density
    ax.plot(condition.grid, middle, color=colour, label=label)
    ax.fill_between(condition.grid, low, high, color=colour, alpha=0.2, linewidth=0)


def _bins(positive: np.ndarray) -> np.ndarray:
    if not len(positive):
        return np.array([0.1, 1.0])
    low, high = np.log10(positive.min()), np.log10(positive.max())
    if high - low < 1e-6:
        low, high = low - 0.1, high + 0.1
    return np.logspace(low - 1e-9, high + 1e-9, int(np.clip(np.sqrt(len(positive)), 6, 30)) + 1)


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1]
