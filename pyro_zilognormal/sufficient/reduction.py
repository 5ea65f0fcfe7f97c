"""Cells to statistics of groups, and their merging."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_zilognormal.sufficient.rows import as_matrix, as_vector, count_values, positives

Floats = NDArray[np.float64]
Columns = NDArray[np.intp]
PIECE = 1 << 17  # values summed at a time: these, and the sums of one group, fit the processor's cache
HEAVY = 64  # times as many new values as known ones, and their sums are taken about their own mean


def merge(a: Tensor, b: Tensor) -> Tensor:
    """The statistics, stacked as (5, groups, columns), of two sets of cells together, by Chan's formula.

    References:
        T. F. Chan, G. H. Golub and R. J. LeVeque (1983), "Algorithms for computing the sample variance", The
        American Statistician 37.
    """
    n_pos, delta = a[1] + b[1], b[2] - a[2]
    share = b[1] / n_pos.clamp(min=1)
    m2 = a[3] + b[3] + delta * delta * (a[1] * share)
    return torch.stack([a[0] + b[0], n_pos, a[2] + delta * share, m2, a[4] + b[4]])


def reduce_chunks(chunks: Iterable[Any], n_groups: int) -> Tensor:
    """The statistics, stacked as (5, groups, columns), of a stream of (x, groups) or (x, groups, offset)."""
    total, cells, row = None, np.zeros((n_groups, 1)), 0
    for chunk in chunks:
        x, groups, offset = _unpack(chunk)
        x = as_matrix(x, row)
        groups = _check_groups(groups, x.shape[0], n_groups, row)
        offset = None if offset is None else _check_offset(offset, x.shape[0], row)
        total = np.zeros((5, n_groups, x.shape[1])) if total is None else total
        if x.shape[1] != total.shape[2]:
            raise ValueError(f"chunks must have the same columns, got {total.shape[2]}, then {x.shape[1]}.")
        for group, column, y, offsets in _by_group(x, groups, offset):
            _absorb(total[1:4, group], column, y)
            if offsets is not None:
                total[4, group] += _sums(column, offsets, x.shape[1])
        cells[:, 0] += np.bincount(groups, minlength=n_groups)
        row += x.shape[0]
    if total is None:
        raise ValueError("chunks is empty; needed at least one (x, groups), to know the number of columns.")
    total[0] = cells - total[1]
    return torch.from_numpy(total)


def _by_group(x: Any, groups: NDArray[np.int64], offset: Floats | None) -> Iterator[tuple[int, Columns, Floats, Any]]:
    """The positive values of one group after the other, in pieces: their columns, log x - offset, and offsets."""
    if (groups[1:] < groups[:-1]).any():
        order = np.argsort(groups, kind="stable")
        x, groups, offset = x[order], groups[order], None if offset is None else offset[order]
    rows = max(1, PIECE * len(groups) // max(1, count_values(x)))
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    for first, last in pairwise([*starts, len(groups)]):
        for start in range(first, last, rows):
            part = slice(start, min(start + rows, last))
            per_row, column, value = positives(x, part)
            y, offsets = np.log(value.astype(np.float64)), None
            if offset is not None:
                offsets = np.repeat(offset[part], per_row)
                y -= offsets
            yield groups[first], column.astype(np.intp, copy=False), y, offsets


def _absorb(total: Floats, column: Columns, y: Floats) -> None:
    """Add the logarithms y of one group to its (n_pos, mean, m2), of shape (3, columns), in place.

    Sums are taken about the mean so far, which costs one pass and few digits: the error of m2 grows by a factor of
    1 + (new values) / (known ones). Where nothing is known a value of the column stands in for the mean, so that equal
    values have m2 = 0 exactly; where the new ones are many more, a second pass takes them about their own mean.
    """
    known, mean, _ = total
    columns = len(known)
    count = np.bincount(column, minlength=columns)
    shift = _start(known, mean, column, y)
    y -= shift[column]
    first = _sums(column, y, columns)
    heavy = count > HEAVY * np.maximum(known, 1)
    if heavy.any():
        move = np.where(heavy, first / np.maximum(count, 1), 0)
        y -= move[column]
        shift += move
        first = _sums(column, y, columns)
    y *= y
    _combine(total, shift, count, first, _sums(column, y, columns))


def _start(known: Floats, mean: Floats, column: Columns, y: Floats) -> Floats:
    """The mean so far; in columns that have none, one of the values if there are any."""
    if known.all():
        return mean.copy()
    shift = np.zeros_like(mean)
    shift[column] = y
    return np.where(known > 0, mean, shift)


def _combine(total: Floats, shift: Floats, count: Columns, first: Floats, second: Floats) -> None:
    """Add `count` values whose distances from `shift` sum to `first`, and squared to `second`."""
    known, mean, m2 = total
    old = mean - shift
    first += known * old
    every = np.maximum(known + count, 1)
    m2 += second + known * old * old - first * first / every
    mean[:] = shift + first / every
    known += count


def _sums(column: Columns, y: Floats, columns: int) -> Floats:
    return np.bincount(column, y, columns).astype(np.float64, copy=False)  # of nothing, numpy counts in integers


def _unpack(chunk: Any) -> tuple[Any, Any, Any]:
    if not isinstance(chunk, tuple | list) or len(chunk) not in (2, 3):
        raise TypeError(f"a chunk must be (x, groups) or (x, groups, offset), got {type(chunk).__name__}.")
    return (*chunk, None) if len(chunk) == 2 else tuple(chunk)


def _check_groups(groups: Any, cells: int, n_groups: int, first_row: int) -> NDArray[np.int64]:
    if groups is None:
        return np.zeros(cells, np.int64)
    groups = as_vector("groups", groups, cells)
    if groups.dtype.kind not in "iu" and groups.size:
        raise TypeError(
            f"groups must hold whole numbers, got dtype {groups.dtype}. For labels, pass "
            "numpy.unique(labels, return_inverse=True)[1]."
        )
    bad = (groups < 0) | (groups >= n_groups)
    if bad.any():
        at = int(bad.argmax())
        raise ValueError(f"groups must be in 0..{n_groups - 1}, got {groups[at]} in row {first_row + at}.")
    return groups.astype(np.int64)


def _check_offset(offset: Any, cells: int, first_row: int) -> Floats:
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
