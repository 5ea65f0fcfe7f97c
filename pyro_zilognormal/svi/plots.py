"""Figures of fits and predictive checks, on the axes given or those of a new figure, which are returned."""

from typing import TYPE_CHECKING

import numpy as np

from pyro_zilognormal.svi.data import whole
from pyro_zilognormal.svi.fit import FitResult
from pyro_zilognormal.svi.posterior import PredictiveCheck

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Positive values that span more than this factor get logarithmic scales.
_WIDE = 20.0


def plot_loss(result: FitResult, ax: "Axes | None" = None, window: int = 100) -> "Axes":
    """Draw training, smoothed and held-out loss per row over steps, on an axis that leaves out the first tenth.

    Args:
        result: a fit.
        window: how many steps to smooth over; at most a quarter of all.
    """
    ax, loss = axes_or_new(ax), result.losses / result.rows
    width = max(1, min(whole("window", window, 1), len(loss) // 4))
    smooth = np.convolve(loss, np.full(width, 1 / width), "valid")
    ax.plot(np.arange(1, len(loss) + 1), loss, color="0.75", linewidth=0.8, label="training")
    ax.plot(np.arange(width, len(loss) + 1), smooth, color="C0", label=f"training, mean of {width}")
    held_out = [value / result.held_out_rows for _, value in result.held_out]
    if held_out:
        ax.plot([step for step, _ in result.held_out], held_out, color="C1", marker="o", ms=3, label="held out")
    reason = "out of steps" if result.stop_reason == "steps" else result.stop_reason
    ax.axvline(result.best_step, color="C3", linestyle="--", linewidth=1, label=f"step {result.best_step}, kept")
    ax.axvline(result.steps, color="0.3", linestyle=":", linewidth=1, label=f"stopped: {reason}")
    shown = np.concatenate([loss[len(loss) // 10 :], smooth[len(smooth) // 10 :], held_out])
    low, high = np.quantile(shown[np.isfinite(shown)], [0.0, 0.995]) if np.isfinite(shown).any() else (0.0, 0.0)
    if high > low:
        ax.set_ylim(low - 0.05 * (high - low), high + 0.15 * (high - low))
    ax.set(xlabel="step", ylabel="loss per row (nats)")
    ax.legend(frameon=False, fontsize="small")
    return ax


def plot_predictive(check: PredictiveCheck, statistic: str = "zero fraction", ax: "Axes | None" = None) -> "Axes":
    """Draw a statistic of replicated data against that of the data: median and 95 % interval of each column.

    Columns whose tail probability is below 0.025 or above 0.975 are marked; those without one are left out.

    Args:
        check: from :func:`posterior_predictive`.
        statistic: one of ``check.observed``.

    Raises:
        ValueError: for a statistic that the check does not hold.
    """
    if statistic not in check.observed:
        raise ValueError(f"statistic is {statistic!r}; the check holds {sorted(check.observed)}")
    ax, parts = axes_or_new(ax), (check.tail, check.observed, check.replicated)
    tail, observed, replicated = (part[statistic].cpu().numpy() for part in parts)
    known = ~np.isnan(tail)
    observed, outside = observed[known], (tail[known] < 0.025) | (tail[known] > 0.975)
    low, middle, high = np.quantile(replicated[:, known], [0.025, 0.5, 0.975], axis=0)
    for here, where, color in ((~outside, "within", "C0"), (outside, "outside", "C3")):
        if here.any():
            bars = [(middle - low)[here], (high - middle)[here]]
            label = f"tail probability {where} 0.025 to 0.975 ({here.sum()})"
            ax.errorbar(observed[here], middle[here], bars, fmt="o", color=color, ms=3, lw=0.8, label=label)
    if known.any():
        ends = min(observed.min(), low.min()), max(observed.max(), high.max())
        ax.plot(ends, ends, color="0.5", linewidth=0.8, zorder=0)
        if 0 < _WIDE * ends[0] < ends[1]:
            ax.set(xscale="log", yscale="log")
        ax.legend(frameon=False, fontsize="small")
    ax.set(xlabel=f"{statistic} of the data", ylabel=f"{statistic} of replicated data (median, 95 % interval)")
    ax.set_title(f"{check.site}, {len(tail)} column{'' if len(tail) == 1 else 's'}")
    return ax


def axes_or_new(ax: "Axes | None") -> "Axes":
    """Return the axes that are given, or those of a new figure."""
    if ax is None:
        import matplotlib.pyplot as plt  # which takes a second

        ax = plt.subplots(layout="constrained")[1]
    return ax
