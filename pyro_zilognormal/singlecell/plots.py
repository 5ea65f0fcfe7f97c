"""Plots of differential expression, as ``singlecell.pl``. Matplotlib is imported when the first one is drawn.

Each function draws on the axes it is given, or on those of a new figure, and returns them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_zilognormal.singlecell.errors import SingleCellError, listed, printable
from pyro_zilognormal.singlecell.genes import Curve, GeneFit
from pyro_zilognormal.singlecell.predictive_check import inside
from pyro_zilognormal.singlecell.results import CREDIBLE
from pyro_zilognormal.svi import FitResult
from pyro_zilognormal.svi.plots import axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_UP, _DOWN, _NEITHER = "tab:red", "tab:blue", "0.7"
_CONDITIONS = ("tab:orange", "tab:blue", "tab:green", "tab:purple")
# Genes that are drawn as points with bars; more of them are a blot.
_MOST_BARS = 500
# Posterior standard deviations: fits count as converged if less is left to go.
_NEGLIGIBLE = 0.2
_STATISTICS = {"zero_fraction": "share of zeros", "mean": "mean, zeros included", "sd_log": "sd of log x where x > 0"}
# Offsets of a name from its point, in points of 1/72 inch; the name lies on that side of it.
_PLACES = ((4, 0), (-4, 0), (3, 5), (-3, 5), (3, -5), (-3, -5), (0, 10))


def volcano(table: Any, ax: Axes | None = None, *, labels: int = 30) -> Axes:
    """Plot each gene's log2 fold change against its absolute value in posterior standard deviations.

    (Probabilities from draws are flat below 1 / draws, so that a volcano of them would have a flat top.)

    Args:
        table: the result of :meth:`~pyro_zilognormal.singlecell.HurdleDE.test` for one contrast.
        labels: how many called genes to name, the most certain first, where there is room.

    Raises:
        SingleCellError: a table of several contrasts or without rows.
    """
    names = list(dict.fromkeys(table["contrast"]))
    if len(names) != 1:
        raise SingleCellError(f"table holds the contrasts {listed(names)}; needed one: table[table.contrast == name]")
    ax = axes_or_new(ax)
    x, y = table["log_fc"].to_numpy(), (table["log_fc"].abs() / table["log_fc_sd"]).to_numpy()
    called = table["is_de"].to_numpy(dtype=bool)
    groups = (called & (x > 0), _UP, "up"), (called & (x < 0), _DOWN, "down"), (~called, _NEITHER, "not called")
    for chosen, colour, what in groups:
        ax.scatter(x[chosen], y[chosen], s=14, color=colour, linewidth=0, label=f"{what} ({chosen.sum()})")
    ax.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.set(xlabel="log2 fold change of the mean", ylabel="|log2 fold change| / posterior sd", title=literal(names[0]))
    ax.margins(0.1)
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize="small")
    # Half of the labels for each side, so that neither crowds out the other.
    shown = np.sort(np.concatenate([np.flatnonzero(called & (sign * x > 0))[: labels // 2] for sign in (1, -1)]))
    genes = table["variable"].to_numpy()
    label_points(ax, [(x[i], y[i], str(genes[i])) for i in shown], np.column_stack([x, y]))
    return ax


def predictive(
    check: Any, statistic: str = "zero_fraction", ax: Axes | None = None, *, credible: float = CREDIBLE
) -> Axes:
    """Plot replicated against observed statistics, a point with its interval for each gene and condition.

    Of more than 500 points inside their intervals 500 are drawn, chosen at random; those outside lie on top, the
    farthest 500 of them.

    Args:
        check: the result of :meth:`~pyro_zilognormal.singlecell.HurdleDE.predictive_check`.
        statistic: "zero_fraction"; "mean", on logarithmic axes; or "sd_log". The latter two leave out genes for which
            they are 0 or undefined.
        credible: the probability of the check's intervals, for the legend.

    Raises:
        SingleCellError: another statistic.
    """
    if statistic not in _STATISTICS:
        raise SingleCellError(f"statistic is {statistic!r}; needed one of {', '.join(map(repr, _STATISTICS))}")
    ax = axes_or_new(ax)
    if statistic != "zero_fraction":
        check = check[check[statistic] > 0]
    if statistic == "mean":
        ax.set(xscale="log", yscale="log")
    within, observed = inside(check, statistic), check[statistic].to_numpy()
    middle, low, high = (check[f"{statistic}_{end}"].to_numpy() for end in ("predicted", "low", "high"))
    distance = np.maximum(low - observed, observed - high) / np.maximum(high - low, np.finfo(float).tiny)
    at_random = np.random.default_rng(0).random(len(check))
    bars = np.stack([middle - low, high - middle])
    interval = f"{100 * credible:g} % interval"
    _draw_bars(ax, within, at_random, observed, middle, bars, color="tab:blue", label=f"inside the {interval}")
    _draw_bars(ax, ~within, -distance, observed, middle, bars, color="tab:red", label=f"outside the {interval}")
    ends = [min(observed.min(initial=1), middle.min(initial=1)), max(observed.max(initial=0), middle.max(initial=0))]
    ax.plot(ends, ends, color="0.3", linewidth=0.8, zorder=0, label="observed = predicted")
    what = _STATISTICS[statistic]
    ax.set(xlabel=f"observed {what}", ylabel=f"predicted {what}", title=what)
    ax.legend(frameon=False, fontsize="small", loc="upper left")
    names = check["variable"].to_numpy()
    farthest = np.flatnonzero(~within)[np.argsort(-distance[~within], kind="stable")][:10]
    label_points(ax, [(observed[i], middle[i], str(names[i])) for i in farthest])
    return ax


def _draw_bars(
    ax: Axes, chosen: np.ndarray, order: np.ndarray, x: np.ndarray, y: np.ndarray, bars: np.ndarray, **style: Any
) -> None:
    """Draw the first of the chosen points in an order, at most 500, and say how many there are."""
    some = np.flatnonzero(chosen)
    some = some[np.argsort(order[some], kind="stable")][:_MOST_BARS]
    if len(some):
        part = f", {len(some)} of them drawn" if len(some) < chosen.sum() else ""
        style["label"] += f" ({chosen.sum()}{part})"
        ax.errorbar(x[some], y[some], bars[:, some], fmt="o", markersize=3, linewidth=0.8, **style)


def convergence(fit: FitResult, genes: int, ax: Axes | None = None) -> Axes:
    r"""Plot how far a fit of steps was from its end, in posterior standard deviations.

    The loss is a Kullback-Leibler divergence but for a constant, and a coefficient that lies d posterior standard
    deviations from its place costs d^2 / 2 nats. A loss that is g nats a gene above its mean over the last fifth of the
    steps is therefore drawn at :math:`\sqrt{2 g}`: as far as one coefficient a gene would have to move.

    Args:
        fit: the result of a fit.
        genes: the number of genes.
    """
    ax = axes_or_new(ax)
    distance, noise = distance_from_end(fit, genes)
    width = fit.steps // len(distance)
    middle = width * (np.arange(len(distance)) + 0.5)
    ax.plot(middle, distance, "o-", color="C0", markersize=3, label=f"mean of {width}")
    ax.axhspan(0, noise, color="0.85", zorder=0, label="what noise of the loss hides")
    ax.axhline(_NEGLIGIBLE, color="tab:red", linewidth=1, linestyle="--", label=f"{_NEGLIGIBLE}, of no interest")
    # The first steps come from afar and would hide the rest.
    later = distance[len(distance) // 10 :]
    ax.set(xlabel="step", ylabel="distance from the end (posterior sd)")
    ax.set_ylim(0, 1.3 * max(later.max(), noise, 2 * _NEGLIGIBLE))
    ax.legend(frameon=False, fontsize="small")
    return ax


def distance_from_end(fit: FitResult, genes: int) -> tuple[np.ndarray, float]:
    """Return the distance of parts of a fit from its last fifth, in posterior sds, and that which noise can hide."""
    losses = np.asarray(fit.losses)
    losses = losses[np.isfinite(losses)]
    window, width = max(1, len(losses) // 5), max(1, len(losses) // 10)
    last, parts = losses[-window:], losses[: len(losses) // width * width].reshape(-1, width).mean(1)
    # From successive differences, which a trend does not inflate.
    noise = 3 * np.sqrt(np.square(np.diff(last)).mean() / 2 * (1 / width + 1 / window)) if window > 1 else 0.0
    return np.sqrt(2 * np.maximum(parts - last.mean(), 0) / genes), float(np.sqrt(2 * noise / genes))


def gene(fit: GeneFit, ax: Axes | None = None) -> Axes:
    """Plot one gene in the conditions of a contrast: the share of zeros on the left, the positive values on the right.

    Bars are observed cells, points and lines the fitted distribution with its credible interval.

    Args:
        fit: from :meth:`~pyro_zilognormal.singlecell.HurdleDE.gene_fits`.
        ax: the axes, which become the frame of two others, its ``child_axes``: of zeros and of positive values.
    """
    ax = axes_or_new(ax)
    ax.set_axis_off()
    zeros, amount = ax.inset_axes((0.0, 0.0, 0.2, 1.0)), ax.inset_axes((0.34, 0.0, 0.66, 1.0))
    every = np.log10(np.concatenate([c.positive for c in fit.conditions]))
    bins = 10 ** np.histogram_bin_edges(every, int(np.clip(np.sqrt(len(every)), 6, 30)))
    lines, names = [], []
    for at, (condition, colour) in enumerate(zip(fit.conditions, _CONDITIONS, strict=False)):
        seen = condition.positive
        zeros.bar(at, condition.zero_fraction, color=colour, alpha=0.4, width=0.8)
        middle, low, high = condition.zero_fitted
        bars = [[middle - low], [high - middle]]
        zeros.errorbar([at], [middle], bars, fmt="o", color=colour, markersize=4, capsize=3)
        if len(seen):
            weights = np.full(len(seen), 1 / len(seen) / np.log10(bins[1] / bins[0]))
            amount.hist(seen, bins=bins.tolist(), weights=weights, color=colour, alpha=0.4)
        lines.append(_band(amount, condition.grid, condition.density, colour, 0.2))
        names.append(literal(f"{condition.name}: {len(seen)} of {condition.cells} cells"))
    zeros.set(ylim=(0, 1), xticks=[], xlim=(-0.6, len(fit.conditions) - 0.4), xlabel="zeros", ylabel="share of cells")
    amount.set(xscale="log", xlabel="positive values (linear scale)", ylabel="density of log10 x where x > 0")
    amount.set_ylim(0, 1.4 * amount.get_ylim()[1])  # room for the legend
    # Handles are given, as matplotlib would leave out those whose label starts with an underscore.
    amount.legend(lines, names, frameon=False, fontsize="small", loc="upper left")
    ax.set_title(literal(fit.gene))
    return ax


def _band(ax: Axes, x: np.ndarray, interval: Any, colour: str, alpha: float, label: str = "") -> Any:
    """Draw a median with its interval as a line, which is returned, with a band."""
    middle, low, high = interval
    ax.fill_between(x, low, high, color=colour, alpha=alpha, linewidth=0)
    return ax.plot(x, middle, color=colour, label=label)[0]


def curve(found: Curve, ax: Axes | None = None) -> Axes:
    """Plot the mean of one gene along a number, with its credible band, and the observed means of bins of cells.

    Args:
        found: from :meth:`~pyro_zilognormal.singlecell.HurdleDE.curves`.
    """
    ax = axes_or_new(ax)
    said = f"fitted, {100 * found.credible:g} % band" + (f", at {found.at}" if found.at else "")
    _band(ax, found.grid, found.mean, _CONDITIONS[1], 0.25, literal(said))
    shown = found.observed > 0
    ax.plot(found.bins[shown], found.observed[shown], "x", color="0.2", label="observed means of bins of cells")
    ax.set(xlabel=literal(found.column), ylabel="mean, zeros included", title=literal(found.gene), yscale="log")
    ax.legend(frameon=False, fontsize="small")
    return ax


def samples(fit: GeneFit, ax: Axes | None = None) -> Axes:
    """Plot one gene's log2 fold change in each donor, or its log2 mean in each sample.

    Points with bars are the fit and its credible interval, which borrows strength from the other samples; crosses are
    the observed values.

    Args:
        fit: from :meth:`~pyro_zilognormal.singlecell.HurdleDE.gene_fits`, of a model with random effects.

    Raises:
        SingleCellError: a fit without random effects.
    """
    if not fit.samples:
        raise SingleCellError(f"fit: {fit.gene} has no samples; needed a model with random effects, such as donor=")
    ax = axes_or_new(ax)
    paired = fit.samples[0].condition == fit.contrast
    colours = dict(zip([c.name for c in fit.conditions], _CONDITIONS, strict=False))
    for at, sample in enumerate(fit.samples):
        middle, low, high = sample.fitted
        colour = colours.get(sample.condition, _CONDITIONS[0])
        ax.errorbar([middle], [at], xerr=[[middle - low], [high - middle]], fmt="o", color=colour, markersize=4)
        if np.isfinite(sample.observed):
            ax.plot([sample.observed], [at], "x", color="0.2", markersize=5)
    ax.set_yticks(range(len(fit.samples)), [literal(one.name) for one in fit.samples], fontsize="x-small")
    ax.invert_yaxis()
    if paired:
        ax.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.set(
        xlabel="log2 fold change" if paired else "log2 mean",
        title=literal(f"{fit.gene}: fitted (points), observed (crosses)"),
    )
    return ax


def literal(text: str) -> str:
    """Return text for matplotlib to draw as it is, without mathematics between dollar signs.

    Example:
        >>> literal("CD4$_a$")
        'CD4\\\\$_a\\\\$'
    """
    return printable(text).replace("$", r"\$")


def label_points(ax: Axes, points: Iterable[tuple[float, float, str]], others: Any = ()) -> list[str]:
    """Write names beside points, none on top of another; a name without room is left out."""
    figure: Any = ax.figure
    points = list(points)
    if not points:  # to lay out the whole figure takes longer than to draw these axes
        return []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # names in scripts that the font lacks
        figure.draw_without_rendering()  # lays the axes out, so that places in pixels are known
        covered = ax.transData.transform(np.asarray(others, dtype=float).reshape(-1, 2))
        legend = ax.get_legend()
        taken = [] if legend is None else [legend.get_window_extent()]
        return [point[2] for point in points if _write(ax, point, taken, covered)]


def _write(ax: Axes, point: tuple[float, float, str], taken: list[Any], covered: np.ndarray) -> bool:
    """Write one name where there is room, and add its box to those taken; return whether there was."""
    x, y, name = point
    frame = ax.get_window_extent()
    for dx, dy in _PLACES:
        place: dict[str, Any] = {"ha": ("center", "left", "right")[np.sign(dx)]}
        place["va"] = ("center", "bottom", "top")[np.sign(dy)]
        text = ax.annotate(literal(name), (x, y), (dx, dy), textcoords="offset points", fontsize="small", **place)
        box = text.get_window_extent()
        within = frame.contains(*box.min) and frame.contains(*box.max)
        if within and not any(box.overlaps(other) for other in taken) and not box.count_contains(covered):
            taken.append(box)
            return True
        text.remove()
    return False
