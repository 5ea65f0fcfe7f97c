"""Sums of the log density over sparse data, at a cost that grows with the stored values alone."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_zilognormal.density.entries import Entries
from pyro_zilognormal.density.reference import outside
from pyro_zilognormal.distribution.validation import check_expands, check_floating, check_values, surely_between
from pyro_zilognormal.distribution.ziln import ZeroInflatedLogNormal
from pyro_zilognormal.numerics.normal import HALF_LOG_2PI
from pyro_zilognormal.numerics.zero_part import Gate


def log_prob_sum(law: ZeroInflatedLogNormal, value: Any, dim: int | None = None) -> Tensor:
    r"""What `law.log_prob(value).sum(dim)` would be with a dense value, without making it dense.

    .. math:: \sum_{x > 0} \log p(x) + \sum_{x = 0} \log \pi

    The first sum goes over the stored values. What does not depend on x, as log pi of a column, is computed once and
    multiplied by how often it counts. Only where the gate and the result together vary along both dimensions (a gate
    of the full shape; or one a column, and the sums of rows) the second sum is a pass over all entries of the matrix.

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
    if not isinstance(law, ZeroInflatedLogNormal):
        raise TypeError(
            f"log_prob_sum: law must be a ZeroInflatedLogNormal, got {type(law).__name__}. "
            "Pass the law itself, without .to_event() or .mask()."
        )
    if dim not in (None, 0, 1):
        raise ValueError(f"log_prob_sum: dim must be 0, 1 or None, got {dim!r}.")
    stored = _read(law, value)
    loc, scale, gate = law._law()
    total = stored.sum_elsewhere(gate.log_zero, dim) + _sum_of_stored(stored, loc, scale, gate, dim)
    return total.to(torch.promote_types(law._loc.dtype, stored.values.dtype))


def _sum_of_stored(stored: Entries, loc: Tensor, scale: Tensor, gate: Gate, dim: int | None) -> Tensor:
    x, odd = stored, None
    if not _all_positive(x):
        inside = (x.values > 0) & (x.values < math.inf)
        x, odd = stored.pick(inside), stored.pick(~inside)
    log_x = x.values.to(torch.promote_types(x.values.dtype, loc.dtype)).log()
    z = (log_x - x.at(loc)) / x.at(scale)
    total = x.sum_of(_log_positive(gate), gate.tensor, dim) - x.sum_of(torch.log, scale, dim)
    total = total - x.sum(log_x + z * z / 2 + HALF_LOG_2PI, dim)
    return total if odd is None else total + odd.sum(outside(odd.values), dim)


def _log_positive(gate: Gate) -> Callable[[Tensor], Tensor]:
    """log P(X > 0) as a function of (a part of) the tensor of the gate."""
    kind: Any = type(gate)
    return lambda tensor: kind(tensor).log_positive


def _read(law: ZeroInflatedLogNormal, value: Any) -> Entries:
    """The entries that are not zero, checked."""
    pointers, columns, values = _arrays(value, law._loc.device)
    if len(value.shape) != 2:
        raise ValueError(f"log_prob_sum: value must be a matrix, got shape {tuple(value.shape)}.")
    check_floating("value", values)
    check_expands("batch_shape", law.batch_shape, torch.Size(value.shape))
    entries = Entries(pointers.diff().long(), columns, values, tuple(value.shape))
    _check_indices(entries, known=getattr(value, "has_canonical_format", False))
    if law._validate_args:
        check_values("value", values, 0, math.inf, "in the support, >= 0")
    return entries if _all_positive(entries) else entries.pick(values != 0)


def _all_positive(entries: Entries) -> bool:
    return surely_between(0, entries.values, math.inf, closed=False)


def _arrays(value: Any, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Row pointers, columns and values of a CSR matrix of either kind."""
    if isinstance(value, Tensor) and value.layout == torch.sparse_csr:
        if value.device != device:
            raise ValueError(f"log_prob_sum: value is on {value.device}, the law on {device}. Move it with .to(...).")
        return value.crow_indices(), value.col_indices(), value.values()
    if getattr(value, "format", None) == "csr":
        native = (np.require(a, None, ["C", "W"]) for a in (value.indptr, value.indices, value.data))
        pointers, columns, values = (torch.from_numpy(a).to(device) for a in native)
        return pointers, columns, values
    kind = f"a tensor of layout {value.layout}" if isinstance(value, Tensor) else type(value).__name__
    raise TypeError(
        f"log_prob_sum: value must be a scipy CSR matrix or a torch tensor of layout sparse_csr, got {kind}. "
        "Convert it with .tocsr() or .to_sparse_csr(); for dense data use log_prob."
    )


def _check_indices(entries: Entries, *, known: bool) -> None:
    """Raise ValueError for columns beyond the matrix and, unless it is known to have none, entries stored twice."""
    width = entries.shape[1]
    if len(entries.columns) and not surely_between(0, entries.columns, width - 1, closed=True):
        first, last = (int(extreme) for extreme in entries.columns.aminmax())
        raise ValueError(f"log_prob_sum: value has entries in columns {first} to {last}, but {width} columns.")
    if known or (entries.flat.diff() > 0).all():
        return
    if len(entries.flat.unique()) < len(entries.flat):
        raise ValueError(
            "log_prob_sum: value stores some entries more than once. Add them up first, with .sum_duplicates()."
        )
