"""Whether a noisy series falls or rises."""

import math
from collections.abc import Sequence

import torch


def trend(values: Sequence[float]) -> tuple[float, float]:
    """Return how much a least-squares line through a series rises from one value to the next, and its standard error.

    Values that are not finite are left out; of fewer than 3, the error is 0.

    Example:
        >>> trend([3.0, float("nan"), 1.0, 0.0])
        (-1.0, 0.0)
    """
    series = torch.tensor(values, dtype=torch.float64)
    at = torch.arange(len(series), dtype=torch.float64)[torch.isfinite(series)]
    series = series[torch.isfinite(series)]
    if len(series) < 2:
        return 0.0, 0.0
    at = at - at.mean()
    spread = float((at * at).sum())
    slope = float((at * (series - series.mean())).sum()) / spread
    rest = series - series.mean() - slope * at
    return slope, math.sqrt(float((rest * rest).sum()) / max(1, len(series) - 2) / spread)
