"""The lossless reduction of cells to the sufficient statistics of groups.

For fixed parameters the ZILN is an exponential family: cells that share (mu, scale, zi_logits) enter the likelihood
through five numbers. The likelihood of these costs as much for a million cells as for a thousand.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_zilognormal.sufficient.distribution import GroupedZeroInflatedLogNormal
from pyro_zilognormal.sufficient.rows import as_array, as_matrix, as_vector, positives, row_chunks, stored

Floats = NDArray[np.float64]
Columns = NDArray[np.intp]
PIECE = 1 << 17  # values summed at a time, so that they and the sums of one group fit the processor's cache


@dataclass(frozen=True, eq=False)
class SufficientStatistics:
    r"""The sufficient statistics of the ZILN in each group of cells and each column.

    With y = log x - offset over the positive values of a group in a column,

    .. math::
        \text{mean} = \frac{1}{n_\text{pos}} \sum y, \qquad \text{m2} = \sum (y - \text{mean})^2

    ``a + b`` and ``sum(parts)`` are the statistics of disjoint sets of cells together.

    Args:
        n_zero: number of zeros; float64 of shape (groups, columns), as all five.
        n_pos: number of positive values.
        mean: mean of y; 0 where n_pos = 0.
        m2: sum of squared deviations of y from its mean; 0 where n_pos < 2.
        offset_sum: sum of the offsets of the positive values.

    Raises:
        TypeError: a field is not a float64 tensor.
        ValueError: the fields differ in shape or do not have two dimensions.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
        >>> stats = SufficientStatistics.from_cells(x, groups=[0, 0, 1])
        >>> stats.n_zero.tolist(), stats.n_pos.tolist()
        ([[1.0, 0.0], [1.0, 1.0]], [[1.0, 2.0], [0.0, 0.0]])
    """

    n_zero: Tensor
    n_pos: Tensor
    mean: Tensor
    m2: Tensor
    offset_sum: Tensor

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, tensor in given.items():
            if not isinstance(tensor, Tensor) or tensor.dtype != torch.float64:
                got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise TypeError(f"{name} must be a float64 tensor, got {got}.")
        shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
        if len(set(shapes.values())) > 1 or self.n_zero.dim() != 2:
            raise ValueError(f"fields must all have one shape (groups, columns), got {shapes}.")

    @classmethod
    def from_cells(
        cls, x: Any, groups: Any = None, n_groups: int | None = None, offset: Any = None
    ) -> "SufficientStatistics":
        """Reduce a matrix of cells.

        Args:
            x: dense tensor, numpy array or scipy sparse matrix of shape (cells, columns), nonnegative and finite.
                CSR is never made dense; other sparse formats are converted to CSR. Stored zeros are zeros, and
                duplicates are summed.
            groups: the group of each cell, whole numbers in 0..n_groups - 1 of shape (cells,); None for one group.
            n_groups: number of groups; by default the largest in groups plus 1.
            offset: log size factor of each cell, of shape (cells,); None for zeros.

        Raises:
            TypeError: an argument has a wrong type or dtype.
            ValueError: a value is negative, NaN or infinite (the error names row and column), or groups or offset
                have a wrong shape or hold a bad value.

        Example:
            >>> SufficientStatistics.from_cells(np.array([[0.0], [1.0], [np.e]])).mean.item()
            0.5
        """
        if n_groups is None:
            n_groups = 1 if groups is None else _count_groups(groups)
        return cls.from_chunks(row_chunks(x, groups, offset), n_groups)

    @classmethod
    def from_chunks(cls, chunks: Iterable[Any], n_groups: int) -> "SufficientStatistics":
        """Reduce a stream of cells in one pass, with one chunk in memory at a time.

        Args:
            chunks: iterable of (x, groups) or (x, groups, offset), each as in :meth:`from_cells`. :func:`row_chunks`
                makes one from a matrix on disk.
            n_groups: number of groups.

        Raises:
            TypeError: an argument has a wrong type or dtype.
            ValueError: there is no chunk, the chunks differ in their columns, or :meth:`from_cells` would refuse one;
                errors count rows from the first row of the first chunk.

        Example:
            >>> chunks = [(torch.tensor([[0.0]]), [0]), (torch.tensor([[1.0], [1.0]]), [1, 1])]
            >>> SufficientStatistics.from_chunks(chunks, n_groups=2).n_pos.tolist()
            [[0.0], [2.0]]
        """
        _check_n_groups(n_groups)
        total, row = None, 0
        for chunk in chunks:
            x, groups, offset = _check_chunk(chunk, int(n_groups), row)
            total = np.zeros((5, n_groups, x.shape[1])) if total is None else total
            if x.shape[1] != total.shape[2]:
                raise ValueError(f"chunks must have the same columns, got {total.shape[2]}, then {x.shape[1]}.")
            add_cells(total, x, groups, offset)
            row += x.shape[0]
        if total is None:
            raise ValueError("chunks is empty; needed at least one (x, groups), to know the number of columns.")
        return cls(*torch.from_numpy(total))

    @classmethod
    def from_dask(
        cls, array: Any, groups: Any = None, n_groups: int | None = None, offset: Any = None
    ) -> "SufficientStatistics":
        """Reduce a dask array, by the scheduler in use: threads, processes, or the cluster of an active Client.

        Each block is reduced where it is computed, and the statistics are merged in a tree. A block that is lost with
        its worker is computed anew. The extra ``[dask]`` has what this needs.

        Args:
            array: a ``dask.array.Array`` of shape (cells, columns), in chunks of rows, of columns or both, whose blocks
                are numpy arrays or scipy sparse matrices, as in :meth:`from_cells`; as ``dask.array.from_zarr`` and
                ``anndata.experimental.read_lazy`` make them. A worker holds about one block for each of its threads.
            groups, n_groups, offset: as in :meth:`from_cells`, in memory.

        Raises:
            TypeError: array is no dask array, or an argument has a wrong type or dtype.
            ValueError: the sizes of the chunks are unknown, or :meth:`from_cells` would refuse the cells.
            ModuleNotFoundError: dask is missing.

        Example:
            >>> import dask.array
            >>> x = dask.array.from_array(np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 0.0]]), chunks=(2, 1))
            >>> SufficientStatistics.from_dask(x, groups=[0, 1, 1]).n_pos.tolist()
            [[0.0, 1.0], [2.0, 1.0]]
        """
        from pyro_zilognormal.sufficient import dask

        dask.check(array)
        if n_groups is None:
            n_groups = 1 if groups is None else _count_groups(groups)
        _check_n_groups(n_groups)
        cells = array.shape[0]
        groups = _check_groups(groups, cells, n_groups, 0)
        offset = None if offset is None else _check_offset(offset, cells, 0)
        parts = dask.fold(array, dask.reduced, dask.small(groups, n_groups), offset)
        return cls(*torch.from_numpy(dask.gathered(parts, n_groups)))

    @classmethod
    def from_value(cls, value: Tensor) -> "SufficientStatistics":
        """Split a tensor of shape (groups, columns, 5), the inverse of :attr:`value`.

        Raises:
            TypeError: value is not a floating-point tensor.
            ValueError: value has another shape, or entries outside the support, such as a negative count.
        """
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"value must be a floating-point tensor, got {type(value).__name__}.")
        if value.dim() != 3 or value.shape[2] != 5:
            raise ValueError(f"value must have shape (groups, columns, 5), got {tuple(value.shape)}.")
        bad = ~GroupedZeroInflatedLogNormal.support.check(value)
        if bad.any():
            at = tuple(bad.nonzero()[0].tolist())
            raise ValueError(
                f"value must hold (n_zero, n_pos, mean, m2, offset_sum), got {value[at].tolist()} at group {at[0]}, "
                f"column {at[1]}, which no cells have."
            )
        return cls(*value.double().unbind(-1))

    @property
    def value(self) -> Tensor:
        """All five in the order of the fields, of shape (groups, columns, 5), as `pyro.sample` observes them.

        Each of the five is contiguous in memory, which makes log_prob faster.
        """
        return torch.stack(self._fields()).movedim(0, -1)

    def regroup(self, groups: Any, n_groups: int | None = None) -> "SufficientStatistics":
        """Merge groups into larger ones.

        Args:
            groups: the new group of each group, whole numbers in 0..n_groups - 1.
            n_groups: number of new groups; by default the largest in groups plus 1.

        Returns:
            The statistics of the new groups, equal to those of their cells to rounding.

        Raises:
            TypeError: groups holds no whole numbers.
            ValueError: groups has a wrong shape or holds a bad value.

        Example:
            >>> x = np.array([[0.0], [1.0], [np.e], [2.0]])
            >>> SufficientStatistics.from_cells(x, [0, 1, 2, 2]).regroup([0, 0, 1]).n_pos.tolist()
            [[1.0], [2.0]]
        """
        n_groups = _count_groups(groups) if n_groups is None else n_groups
        into = _check_groups(groups, len(self.n_zero), n_groups, 0)
        given = torch.stack(self._fields()).numpy(force=True)
        return SufficientStatistics(*torch.from_numpy(regrouped(given, into, n_groups)))

    def __add__(self, other: Any) -> "SufficientStatistics":
        if not isinstance(other, SufficientStatistics):
            return NotImplemented
        own, others = tuple(self.n_zero.shape), tuple(other.n_zero.shape)
        if own != others:
            raise ValueError(f"statistics add up over the same groups and columns only, got shapes {own} and {others}.")
        merged = merge(self._fields()[1:4], other._fields()[1:4])
        return SufficientStatistics(self.n_zero + other.n_zero, *merged, self.offset_sum + other.offset_sum)

    def __radd__(self, other: Any) -> "SufficientStatistics":
        return self if isinstance(other, int) and other == 0 else NotImplemented  # where sum() starts

    def __repr__(self) -> str:
        groups, columns = self.n_zero.shape
        cells = int((self.n_zero + self.n_pos)[:, :1].sum())
        return f"SufficientStatistics({cells} cells in {groups} groups, {columns} columns)"

    def _fields(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]


def merge(a: Any, b: Any) -> tuple[Any, Any, Any]:
    """Return the (n_pos, mean, m2) of two disjoint sets of values together; of tensors or numpy arrays.

    References:
        T. F. Chan, G. H. Golub and R. J. LeVeque (1983), "Algorithms for computing the sample variance", The
        American Statistician 37.
    """
    n_pos, delta = a[0] + b[0], b[1] - a[1]
    share = b[0] / n_pos.clip(min=1)
    return n_pos, a[1] + delta * share, a[2] + b[2] + delta * delta * (a[0] * share)


def added(a: Any, b: Any) -> Any:
    """Return the statistics, (5 or more, ...), of disjoint sets of cells together; what follows the five is summed."""
    total = a + b
    total[1:4] = merge(a[1:4], b[1:4])
    return total


def regrouped(value: Floats, into: NDArray[np.int64], n_groups: int) -> Floats:
    """Merge the groups of statistics, (5 or more, groups, columns), into larger ones."""
    total = np.zeros((len(value), n_groups, value.shape[2]))
    for group, part in zip(into, value.swapaxes(0, 1), strict=True):
        total[:, group] = added(total[:, group], part)
    return total


def add_cells(total: Floats, x: Any, groups: NDArray[np.int64], offset: Floats | None) -> None:
    """Add a matrix from `as_matrix` to the statistics of its groups, (5 or 7, groups, columns), in place.

    Of seven, the last two are the sums of the values without their offsets, and of the cubes of their logarithms.
    """
    columns = total.shape[2]
    total[0] += np.bincount(groups, minlength=total.shape[1])[:, None]
    for group, column, value, y, offsets in _pieces(x, groups, offset):
        if len(total) == 7:
            total[5, group] += _sums(column, value if offsets is None else value * np.exp(-offsets), columns)
            total[6, group] += _sums(column, y * y * y, columns)
        found = _moments(column, y, columns)
        total[0, group] -= found[0]
        total[1:4, group] = merge(total[1:4, group], found)
        if offsets is not None:
            total[4, group] += _sums(column, offsets, columns)


def _pieces(
    x: Any, groups: NDArray[np.int64], offset: Floats | None
) -> Iterator[tuple[int, Columns, Floats, Floats, Floats | None]]:
    """Yield (group, columns, x, log x - offset, offsets) of the positive values, at most about PIECE at a time."""
    if (groups[1:] < groups[:-1]).any():
        order = np.argsort(groups, kind="stable")
        x, groups, offset = x[order], groups[order], None if offset is None else offset[order]
    rows = max(1, PIECE * len(groups) // max(1, stored(x).size))
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    for first, last in pairwise([*starts, len(groups)]):
        for start in range(first, last, rows):
            part = slice(start, min(start + rows, last))
            per_row, column, stored_values = positives(x, part)
            value = stored_values.astype(np.float64, copy=False)
            y, offsets = np.log(value), None
            if offset is not None:
                offsets = np.repeat(offset[part], per_row)
                y -= offsets
            yield groups[first], column.astype(np.intp, copy=False), value, y, offsets


def _moments(column: Columns, y: Floats, columns: int) -> tuple[Floats, Floats, Floats]:
    """Return (n_pos, mean, m2) of the values y in each column, in two passes; y is overwritten.

    One of a column's values is subtracted first, so that equal values have m2 = 0 exactly.
    """
    count, shift = np.bincount(column, minlength=columns).astype(np.float64), np.zeros(columns)
    shift[column] = y
    y -= shift[column]
    mean = _sums(column, y, columns) / count.clip(min=1)
    y -= mean[column]
    y *= y
    return count, shift + mean, _sums(column, y, columns)


def _sums(column: Columns, y: Floats, columns: int) -> Floats:
    return np.bincount(column, y, columns).astype(np.float64, copy=False)  # without values numpy returns integers


def _check_chunk(chunk: Any, n_groups: int, first_row: int) -> tuple[Any, NDArray[np.int64], Floats | None]:
    if not isinstance(chunk, tuple | list) or len(chunk) not in (2, 3):
        raise TypeError(f"a chunk must be (x, groups) or (x, groups, offset), got {type(chunk).__name__}.")
    x, groups, offset = (*chunk, None) if len(chunk) == 2 else chunk
    x = as_matrix(x, first_row)
    groups = _check_groups(groups, x.shape[0], n_groups, first_row)
    return x, groups, None if offset is None else _check_offset(offset, x.shape[0], first_row)


def _check_n_groups(n_groups: Any) -> None:
    if isinstance(n_groups, bool) or not isinstance(n_groups, int | np.integer) or n_groups < 1:
        raise ValueError(f"n_groups must be a whole number of at least 1, got {n_groups!r}.")


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
        said = f"offset must be finite, got {offset[at]} in row {first_row + at}"
        raise ValueError(f"{said}. It is the logarithm of a size factor, which must be positive.")
    return offset.astype(np.float64)


def _count_groups(groups: Any) -> int:
    array = as_array(groups)
    return max(1, int(array.max()) + 1) if array.size and array.dtype.kind in "iu" else 1  # from_chunks refuses others
