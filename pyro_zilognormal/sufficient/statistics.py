"""The lossless reduction of cells to groups.

For fixed parameters the ZILN is an exponential family: cells that share (mu, scale, zi_logits) enter the likelihood
through five numbers alone. With them, a likelihood costs as much for a million cells as for a thousand.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_zilognormal.sufficient.distribution import GroupedZeroInflatedLogNormal
from pyro_zilognormal.sufficient.reduction import merge, reduce_chunks
from pyro_zilognormal.sufficient.rows import as_array, row_chunks

__all__ = ["GroupedZeroInflatedLogNormal", "SufficientStatistics", "row_chunks"]


@dataclass(frozen=True, eq=False)
class SufficientStatistics:
    r"""What the cells of each group say about the ZILN of each column, without loss.

    With y = log x - offset over the positive values of a group in a column,

    .. math::
        \text{mean} = \frac{1}{n_\text{pos}} \sum y, \qquad \text{m2} = \sum (y - \text{mean})^2

    Statistics of disjoint sets of cells add up: ``a + b`` and ``sum(parts)`` are the statistics of all their cells.

    Args:
        n_zero: number of zeros, float64 of shape (groups, columns), as all five.
        n_pos: number of positive values.
        mean: mean of y; 0 where n_pos = 0.
        m2: sum of squared deviations of y from its mean; 0 where n_pos < 2.
        offset_sum: sum of the offsets of the positive values.

    Raises:
        TypeError: a field that is not a float64 tensor.
        ValueError: fields of different shapes or not of two dimensions.

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
        for name, field in self._fields().items():
            if not isinstance(field, Tensor) or field.dtype != torch.float64:
                came = field.dtype if isinstance(field, Tensor) else type(field).__name__
                raise TypeError(f"{name} must be a float64 tensor, got {came}.")
        shapes = {name: tuple(field.shape) for name, field in self._fields().items()}
        if len(set(shapes.values())) > 1 or self.n_zero.dim() != 2:
            raise ValueError(f"fields must all have one shape (groups, columns), got {shapes}.")

    @classmethod
    def from_cells(
        cls, x: Any, groups: Any = None, n_groups: int | None = None, offset: Any = None
    ) -> "SufficientStatistics":
        """Reduce cells that are at hand.

        Args:
            x: dense tensor, numpy array or scipy sparse matrix of shape (cells, columns), nonnegative and finite.
                CSR is never made dense; other sparse formats are converted to CSR. Stored zeros are zeros, and
                duplicates are summed.
            groups: the group of each cell, whole numbers in 0..n_groups - 1 of shape (cells,); None for one group.
            n_groups: number of groups; by default the largest in groups plus 1.
            offset: log size factor of each cell, of shape (cells,); None for zeros.

        Raises:
            TypeError: an argument of a wrong type or dtype.
            ValueError: a negative, NaN or infinite value (the error names row and column), or groups or offset of
                a wrong shape or with a bad value.

        Example:
            >>> SufficientStatistics.from_cells(np.array([[0.0], [1.0], [np.e]])).mean.item()
            0.5
        """
        if n_groups is None:
            n_groups = 1 if groups is None else _count_groups(groups)
        return cls.from_chunks(row_chunks(x, groups, offset), n_groups)

    @classmethod
    def from_chunks(cls, chunks: Iterable[Any], n_groups: int) -> "SufficientStatistics":
        """Reduce a stream of cells in one pass, holding one chunk at a time.

        Args:
            chunks: iterable of (x, groups) or (x, groups, offset), each as in :meth:`from_cells`. :func:`row_chunks`
                makes one from a matrix on disk.
            n_groups: number of groups.

        Raises:
            TypeError: an argument of a wrong type or dtype.
            ValueError: no chunk at all, chunks of different columns, or what :meth:`from_cells` refuses; errors count
                rows from the first of the first chunk.

        Example:
            >>> chunks = [(torch.tensor([[0.0]]), [0]), (torch.tensor([[1.0], [1.0]]), [1, 1])]
            >>> SufficientStatistics.from_chunks(chunks, n_groups=2).n_pos.tolist()
            [[0.0], [2.0]]
        """
        if isinstance(n_groups, bool) or not isinstance(n_groups, int | np.integer) or n_groups < 1:
            raise ValueError(f"n_groups must be a whole number of at least 1, got {n_groups!r}.")
        return cls(*reduce_chunks(chunks, int(n_groups)))

    @classmethod
    def from_value(cls, value: Tensor) -> "SufficientStatistics":
        """The statistics that `value`, of shape (groups, columns, 5), holds.

        Raises:
            TypeError: something that is not a floating-point tensor.
            ValueError: another shape, or entries that no cells have, such as a negative count.
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

        In memory each of the five is contiguous, which makes log_prob faster.
        """
        return torch.stack(list(self._fields().values())).movedim(0, -1)

    def __add__(self, other: Any) -> "SufficientStatistics":
        if not isinstance(other, SufficientStatistics):
            return NotImplemented
        if self.n_zero.shape != other.n_zero.shape:
            raise ValueError(
                "statistics add up over the same groups and columns only, got shapes "
                f"{tuple(self.n_zero.shape)} and {tuple(other.n_zero.shape)}."
            )
        return SufficientStatistics(*merge(*(torch.stack(list(s._fields().values())) for s in (self, other))))

    def __radd__(self, other: Any) -> "SufficientStatistics":
        return self if isinstance(other, int) and other == 0 else NotImplemented  # where sum() starts

    def __repr__(self) -> str:
        groups, columns = self.n_zero.shape
        cells = int((self.n_zero + self.n_pos)[:, :1].sum())
        return f"SufficientStatistics({cells} cells in {groups} groups, {columns} columns)"

    def _fields(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _count_groups(groups: Any) -> int:
    array = as_array(groups)
    return max(1, int(array.max()) + 1) if array.size and array.dtype.kind in "iu" else 1  # others are refused later
