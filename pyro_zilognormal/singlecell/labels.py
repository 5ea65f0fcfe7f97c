"""Names beside points, none on top of another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Where a name may stand, as seen from its point, in points of 1/72 inch, and how it is aligned.
_PLACES = (
    (4, 0, "left", "center"),
    (-4, 0, "right", "center"),
    (3, 5, "left", "bottom"),
    (-3, 5, "right", "bottom"),
    (3, -5, "left", "top"),
    (-3, -5, "right", "top"),
    (0, 10, "center", "bottom"),
)


def label_points(ax: Axes, points: Iterable[tuple[float, float, str]], others: Any = ()) -> list[str]:
    """Write names beside points, the first ones first; a name for which there is no room is left out.

    Args:
        ax: with its final limits.
        points: x, y and name of each.
        others: further points that no name may cover, of shape (number, 2).

    Returns:
        The names that were written.
    """
    figure: Any = ax.figure
    figure.draw_without_rendering()  # lays the axes out, so that places in pixels are known
    covered = ax.transData.transform(np.asarray(others, dtype=float).reshape(-1, 2))
    legend = ax.get_legend()
    taken = [] if legend is None else [legend.get_window_extent()]
    written = []
    for x, y, name in points:
        box = _write(ax, (x, y, name), taken, covered)
        if box is not None:
            taken.append(box)
            written.append(name)
    return written


def _write(ax: Axes, point: tuple[float, float, str], taken: list[Any], covered: np.ndarray) -> Any:
    """Write one name where there is room, and return its box, or None."""
    x, y, name = point
    inside = ax.get_window_extent()
    for dx, dy, horizontal, vertical in _PLACES:
        text = ax.annotate(
            name, (x, y), (dx, dy), textcoords="offset points", ha=horizontal, va=vertical, fontsize="small"
        )
        box = text.get_window_extent()
        within = inside.contains(*box.min) and inside.contains(*box.max)
        free = not any(box.overlaps(other) for other in taken) and not box.count_contains(covered)
        if within and free:
            return box
        text.remove()
    return None
