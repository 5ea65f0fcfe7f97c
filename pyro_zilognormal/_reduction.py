"""Cells to statistics of groups, and their merging. Statistics are stacked as (5, groups, columns), float64.

The five are n_zero, n_pos, mean, m2, offset_sum: see `SufficientStatistics`.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_zilognormal._cells import Positives, as_vector, positives


def merge(a: Tensor, b: Tensor) -> Tensor:
    """The statistics of two sets of cells together, by Chan's formula.

    References:
        T. F. Chan, G. H. Golub and R. J. LeVeque (1983), "Algorithms for computing the sample variance", The
        American Statistician 37.
    """
    n_pos, delta = a[1] + b[1], b[2] - a[2]
    share = b[1] / n_pos.clamp(min=1)
    m2 = a[3] + b[3] + delta * delta * (a[1] * share)
    return torch.stack([a[0] + b[0], n_pos, a[2] + delta * share, m2, a[4] + b[4]])


def reduce_chunks(chunks: Iterable[Any], n_groups: int) -> Tensor:
    """The statistics of a stream of (x, groups) or (x, groups, offset)."""
    total, row = None, 0
    for chunk in chunks:
        x, groups, offset = _unpack(chunk)
        cells = positives(x, row)
        count = len(cells.per_row)
        if total is None:
            total = torch.zeros(5, n_groups, cells.columns, dtype=torch.float64)
        if cells.columns != total.shape[2]:
            raise ValueError(f"chunks must have the same columns, got {total.shape[2]}, then {cells.columns}.")
        groups = _check_groups(groups, count, n_groups, row)
        offset = None if offset is None else _check_offset(offset, count, row)
        present, local = np.unique(groups, return_inverse=True)
        part = torch.from_numpy(_reduce(cells, local, len(present), offset))
        index = torch.from_numpy(present)
        total[:, index] = merge(total[:, index], part)
        row += count
    if total is None:
        raise ValueError("chunks is empty; needed at least one (x, groups), to know the number of columns.")
    return total


def _reduce(
    cells: Positives, groups: NDArray[np.int64], n_groups: int, offset: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """The statistics of one chunk, in two passes over it.

    Logarithms are taken relative to one of their own group and column, so that equal ones have m2 = 0 exactly, and the
    sums lose no digits to a mean that is large beside the deviation.
    """
    bins = n_groups * cells.columns
    offset_sum: NDArray[np.float64] = np.zeros(bins)
    key = np.repeat(groups * cells.columns, cells.per_row) + cells.column
    y = np.log(cells.value)
    if offset is not None:
        of_value = np.repeat(offset, cells.per_row)
        y -= of_value
        offset_sum[:] = np.bincount(key, of_value, bins)
    n_pos = np.bincount(key, minlength=bins).astype(np.float64)
    reference = np.zeros(bins)
    reference[key] = y
    y -= reference[key]
    mean = np.bincount(key, y, bins) / np.maximum(n_pos, 1)
    y -= mean[key]
    m2 = np.bincount(key, y * y, bins)
    n_zero = np.repeat(np.bincount(groups, minlength=n_groups), cells.columns) - n_pos
    return np.stack([n_zero, n_pos, reference + mean, m2, offset_sum]).reshape(5, n_groups, cells.columns)


def _unpack(chunk: Any) -> tuple[Any, Any, Any]:
    if not isinstance(chunk, tuple | list) or len(chunk) not in (2, 3):
        raise TypeError(f"a chunk must be (x, groups) or (x, groups, offset), got {type(chunk).__name__}.")
    return (*chunk, None) if len(chunk) == 2 else tuple(chunk)


def _check_groups(groups: Any, cells: int, n_groups: int, first_row: int) -> NDArray[np.int64]:
    if groups is None:
        return np.zeros(cells, np.int64)
    groups = as_vector("groups", groups, cells)
    if groups.dtype.kind not in "iu":
        raise TypeError(
            f"groups must hold whole numbers, got dtype {groups.dtype}. For labels, pass "
            "numpy.unique(labels, return_inverse=True)[1]."
        )
    bad = (groups < 0) | (groups >= n_groups)
    if bad.any():
        at = int(bad.argmax())
        raise ValueError(f"groups must be in 0..{n_groups - 1}, got {groups[at]} in row {first_row + at}.")
    return groups.astype(np.int64)


def _check_offset(offset: Any, cells: int, first_row: int) -> NDArray[np.float64]:
    offset = as_vector("offset", offset, cells)
    if offset.dtype.kind not in "fiu":
        raise TypeError(f"offset must hold real numbers, got dtype {offset.dtype}.")
    bad = ~np.isfinite(offset)
    if bad.any():
        at = int(bad.argmax())
        raise ValueError(
            f"offset must be finite, got {offset[at]} in row {first_row + at}. It is the logarithm of a size factor, "
            "which must be positive."
        )
    return offset.astype(np.float64)
