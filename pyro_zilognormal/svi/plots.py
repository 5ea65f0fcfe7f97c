"""Figures of fits and checks. Matplotlib is imported when the first is drawn."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyro_zilognormal.svi.predictive import PredictiveCheck
from pyro_zilognormal.svi.result import FitResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Values that differ by more than this factor are drawn on a logarithmic scale, if they are all positive.
_WIDE = 20.0


def plot_loss(result: FitResult, ax: "Axes | None" = None, window: int = 100) -> "Axes":
    """Draw training, smoothed and held-out loss per observation over steps, with the stopping point.

    Args:
        result: a fit.
        ax: where to draw; a new figure if None.
        window: how many steps to smooth over.

    Returns:
        The axes drawn on.
    """
    ax = _axes(ax)
    loss = result.losses / result.rows
    # Where the plate over rows is known, held-out losses are scaled to the rows of the fit, as training losses are.
    held_out_rows = result.held_out_rows if result.objective.plate is None else result.rows
    held_out = [value / held_out_rows for _, value in result.held_out]
    steps = np.arange(1, len(loss) + 1)
    ax.plot(steps, loss, color="0.75", linewidth=0.8, label="training")
    middle = _smooth(loss, window)
    ax.plot(
        steps[len(steps) - len(middle) :],
        middle,
        color="C0",
        label=f"training, mean of {_width(loss, window)}",
    )
    if result.held_out:
        at = [step for step, _ in result.held_out]
        ax.plot(at, held_out, color="C1", marker="o", markersize=3, label="held out")
    reason = {"steps": "out of steps", "max_seconds": "out of time"}.get(result.stop_reason, result.stop_reason)
    ax.axvline(result.best_step, color="C3", linestyle="--", linewidth=1, label=f"step {result.best_step}, kept")
    ax.axvline(result.steps, color="0.3", linestyle=":", linewidth=1, label=f"stopped: {reason}")
    _set_range(ax, loss, middle, held_out)
    ax.set(xlabel="step", ylabel="loss per observation (nats)")
    ax.legend(frameon=False, fontsize="small")
    return ax


def plot_predictive(check: PredictiveCheck, statistic: str = "zero fraction", ax: "Axes | None" = None) -> "Axes":
    """Draw a statistic of drawn data against that of the data, a point with a 95 % interval for each column.

    Columns whose tail probability is below 0.025 or above 0.975 are marked, and those without one left out. The
    scales are logarithmic where all values are positive and differ by more than a factor of 20.

    Args:
        check: from :func:`posterior_predictive`.
        statistic: one of ``check.observed``.
        ax: where to draw; a new figure if None.

    Returns:
        The axes drawn on.

    Raises:
        ValueError: for a statistic that the check does not hold.
    """
    if statistic not in check.observed:
        raise ValueError(f"statistic is {statistic!r}; the check holds {sorted(check.observed)}")
    ax = _axes(ax)
    observed = check.observed[statistic].cpu().numpy()
    low, middle, high = np.quantile(check.replicated[statistic].cpu().numpy(), [0.025, 0.5, 0.975], axis=0)
    tail = check.tail[statistic].cpu().numpy()
    for bad, color in ((False, "C0"), (True, "C3")):
        here = (((tail < 0.025) | (tail > 0.975)) == bad) & ~np.isnan(tail)
        if here.any():
            label = f"tail probability {'outside' if bad else 'within'} 0.025 to 0.975 ({here.sum()})"
            bars = [(middle - low)[here], (high - middle)[here]]
            ax.errorbar(
                observed[here],
                middle[here],
                bars,
                fmt="o",
                color=color,
                markersize=3,
                linewidth=0.8,
                label=label,
            )
    ends = [np.nanmin([observed, low]), np.nanmax([observed, high])]
    ax.plot(ends, ends, color="0.5", linewidth=0.8, zorder=0)
    if ends[0] > 0 and ends[1] > _WIDE * ends[0]:
        ax.set(xscale="log", yscale="log")
    drawn = f"{statistic} of drawn data (median, 95 % interval)"
    plural = "" if len(observed) == 1 else "s"
    ax.set(xlabel=f"{statistic} of the data", ylabel=drawn, title=f"{check.site}, {len(observed)} column{plural}")
    ax.legend(frameon=False, fontsize="small")
    return ax


def _axes(ax: "Axes | None") -> "Axes":
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1]


def _width(loss: npt.NDArray[np.float64], window: int) -> int:
    return max(1, min(window, len(loss)))


def _smooth(loss: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    """Return the mean of each window, skipped steps left out."""
    width = _width(loss, window)
    finite = np.isfinite(loss)
    total = np.convolve(np.where(finite, loss, 0.0), np.ones(width), "valid")
    count = np.convolve(finite.astype(float), np.ones(width), "valid")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _set_range(ax: Any, loss: npt.NDArray[np.float64], smooth: npt.NDArray[np.float64], extra: list[float]) -> None:
    """Leave the first steps' large losses out of the range where they would hide the rest."""
    late = loss[len(loss) // 10 :]
    shown = np.concatenate([late[np.isfinite(late)], smooth[len(smooth) // 10 :], extra])
    shown = shown[np.isfinite(shown)]
    if shown.size and np.ptp(shown) > 0:
        low, high = np.quantile(shown, [0.0, 0.995])
        ax.set_ylim(low - 0.05 * (high - low), high + 0.15 * (high - low))
