"""Sums of the log density over sparse data, at a cost that grows with the stored values alone."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_zilognormal import _checks
from pyro_zilognormal._blocks import lift
from pyro_zilognormal._density import log_density
from pyro_zilognormal.distribution import ZeroInflatedLogNormal


def log_prob_sum(law: ZeroInflatedLogNormal, value: Any, dim: int | None = None) -> Tensor:
    r"""What `law.log_prob(value).sum(dim)` would be with a dense value, without making it dense.

    .. math:: \sum_{x > 0} \log p(x) + \sum_{x = 0} \log \pi

    The first sum goes over the stored values. The second is one logarithm for each entry of the gate times the number
    of its zeros. Only where gate and result together vary along both dimensions (a gate of the full shape; one a
    column, summed over columns) is it a pass over all entries of the matrix, with little work for each.

    Args:
        law: of a batch_shape that broadcasts to the shape of the value, without `.to_event()` or `.mask()`.
        value: x, a scipy CSR matrix or array, or a torch tensor of layout sparse_csr, of shape (rows, columns).
        dim: the dimension to sum over: 0 for the sum of each column, 1 for that of each row, None for all.

    Returns:
        The sums, of shape (columns,), (rows,) or (); differentiable in the parameters.

    Raises:
        TypeError: another kind of law or value.
        ValueError: shapes that do not fit, entries stored twice, another dim, or, with validation, a negative or NaN
            value.

    Example:
        >>> import torch
        >>> from pyro_zilognormal import ZeroInflatedLogNormal
        >>> from scipy.sparse import csr_array
        >>> x = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]])
        >>> law = ZeroInflatedLogNormal(torch.zeros(3), 1.0, torch.tensor([0.0, 0.0, 2.0]))
        >>> log_prob_sum(law, csr_array(x.numpy()), dim=0)
        tensor([-2.3052, -3.2386, -0.2539])
        >>> law.log_prob(x).sum(0)
        tensor([-2.3052, -3.2386, -0.2539])
    """
    entries = _entries(law, value)
    if dim not in (None, 0, 1):
        raise ValueError(f"log_prob_sum: dim must be 0, 1 or None, got {dim!r}.")
    loc, scale, gate = law._law()
    wide = entries.values.to(torch.promote_types(entries.values.dtype, loc.dtype))
    at = entries.at
    stored = log_density(wide, at(loc), at(scale), type(gate)(at(gate.tensor)))  # type: ignore[call-arg]
    total = entries.sum(stored, dim) + entries.sum_elsewhere(gate.log_zero, dim)
    return total.to(torch.promote_types(law._loc.dtype, entries.values.dtype))


class _Entries(NamedTuple):
    """The stored entries of a matrix."""

    rows: Tensor
    columns: Tensor
    values: Tensor
    shape: tuple[int, int]

    @property
    def flat(self) -> Tensor:
        """Their indices in the flattened matrix."""
        return self.rows * self.shape[1] + self.columns

    def at(self, tensor: Tensor) -> Tensor:
        """What a tensor that broadcasts to the matrix is there."""
        grid = lift(tensor, 2)
        high, wide = (length != 1 for length in grid.shape)
        if not high and not wide:
            return grid.reshape(())
        index = self.flat if high and wide else self.rows if high else self.columns
        return grid.reshape(-1).index_select(0, index)

    def sum(self, numbers: Tensor, dim: int | None) -> Tensor:
        """The sums of a number for each of them, in double precision: torch adds up indexed sums one by one."""
        if dim is None:
            return numbers.sum(dtype=torch.float64)
        index = self.rows if dim else self.columns
        return numbers.new_zeros(self.shape[1 - dim], dtype=torch.float64).index_add(0, index, numbers.double())

    def sum_elsewhere(self, tensor: Tensor, dim: int | None) -> Tensor:
        """The sums of a tensor that broadcasts to the matrix over all other entries."""
        grid = lift(tensor, 2)
        axes = {axis for axis, length in enumerate(grid.shape) if length != 1} | (set() if dim is None else {1 - dim})
        if len(axes) == 2:
            others = grid.expand(self.shape).reshape(-1).index_fill(0, self.flat, 0).view(self.shape)
            return others.sum() if dim is None else others.sum(dim)
        counts = self._count_elsewhere(*axes).to(tensor.dtype)
        # Where nothing is left out the tensor may be infinite.
        sums = torch.where(counts > 0, counts * grid.reshape(-1), 0)
        return sums.sum() if dim is None else sums

    def _count_elsewhere(self, axis: int | None = None) -> Tensor:
        """The number of all other entries in each index of an axis, or in all."""
        if axis is None:
            return torch.tensor(math.prod(self.shape) - len(self.values), device=self.values.device)
        index = self.columns if axis else self.rows
        return self.shape[1 - axis] - torch.bincount(index, minlength=self.shape[axis])


def _entries(law: ZeroInflatedLogNormal, value: Any) -> _Entries:
    if not isinstance(law, ZeroInflatedLogNormal):
        raise TypeError(
            f"log_prob_sum: law must be a ZeroInflatedLogNormal, got {type(law).__name__}. "
            "Pass the law itself, without .to_event() or .mask()."
        )
    pointers, columns, values = _read(value, law._loc.device)
    if len(value.shape) != 2:
        raise ValueError(f"log_prob_sum: value must be a matrix, got shape {tuple(value.shape)}.")
    _checks.check_floating("value", values)
    _checks.check_expands("batch_shape", law.batch_shape, torch.Size(value.shape))
    if law._validate_args:
        _checks.check_values("value", values, 0, math.inf, "in the support, >= 0")
    rows = torch.repeat_interleave(pointers.diff(), output_size=len(values))
    entries = _Entries(rows, columns.long(), values, tuple(value.shape))
    _check_distinct(entries)
    return entries


def _read(value: Any, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Row pointers, columns and values of a CSR matrix of either kind."""
    if isinstance(value, Tensor) and value.layout == torch.sparse_csr:
        if value.device != device:
            raise ValueError(f"log_prob_sum: value is on {value.device}, the law on {device}. Move it with .to(...).")
        return value.crow_indices(), value.col_indices(), value.values()
    if getattr(value, "format", None) == "csr":
        arrays = (value.indptr, value.indices, value.data)
        return tuple(torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in arrays)  # type: ignore[return-value]
    kind = f"a tensor of layout {value.layout}" if isinstance(value, Tensor) else type(value).__name__
    raise TypeError(
        f"log_prob_sum: value must be a scipy CSR matrix or a torch tensor of layout sparse_csr, got {kind}. "
        "Convert it with .tocsr() or .to_sparse_csr(); for dense data use log_prob."
    )


def _check_distinct(entries: _Entries) -> None:
    flat = entries.flat
    if not (flat[1:] > flat[:-1]).all() and len(flat.unique()) < len(flat):
        raise ValueError(
            "log_prob_sum: value stores some entries more than once. Add them up first, with .sum_duplicates()."
        )
