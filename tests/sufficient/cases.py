"""Cells in every form, and what they reduce to by definition."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from pyro_zilognormal import SufficientStatistics

CELLS, COLUMNS, GROUPS = 120, 7, 5


def draw(seed: int = 0, cells: int = CELLS, columns: int = COLUMNS) -> np.ndarray:
    """Cells by columns: log-normal with zeros, a silent column, one of a single value, one of equal values."""
    rng = np.random.default_rng(seed)
    x = np.exp(rng.normal(1.0, 2.0, (cells, columns))) * (rng.random((cells, columns)) < 0.4)
    x[:, 0], x[:, 1] = 0.0, 0.0
    x[3, 1] = 2.5
    x[:, 2] = np.where(x[:, 2] > 0, 0.1, 0.0)
    return x


X = draw()
GROUP = np.random.default_rng(1).integers(0, GROUPS - 1, CELLS)  # the last group has no cell
FIRST = "in row {}, column {}[.]".format(*np.argwhere(X > 0)[0])
OFFSET = np.random.default_rng(2).normal(0.0, 0.7, CELLS)


def expected(x: np.ndarray, groups: np.ndarray, n_groups: int, offset: np.ndarray | None = None) -> torch.Tensor:
    """The value of the statistics by their definition, in extended precision and two passes."""
    offset = np.zeros(len(x)) if offset is None else offset
    out = np.zeros((n_groups, x.shape[1], 5))
    for k in range(n_groups):
        for j in range(x.shape[1]):
            own, of_own = x[groups == k, j], offset[groups == k]
            inside = own > 0
            y = (np.log(own[inside]) - of_own[inside]).astype(np.longdouble)
            mean = y.mean() if y.size else 0.0
            out[k, j] = (~inside).sum(), inside.sum(), mean, ((y - mean) ** 2).sum(), of_own[inside].sum()
    return torch.from_numpy(out)


def assert_same(value: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-12) -> None:
    """Counts equal; mean within the tolerance of a standard deviation or of itself, m2 and offset_sum relatively."""
    assert value.dtype == torch.float64
    assert torch.equal(value[..., :2], other[..., :2])
    n_pos, mean, m2 = other[..., 1], other[..., 2], other[..., 3]
    spread = (m2 / n_pos.clamp(min=1)).sqrt() + mean.abs()
    assert ((value[..., 2] - mean).abs() <= tolerance * spread).all()
    # A mean off by eps |mean| moves m2 by n (eps |mean|)^2, so that much is allowed where values all but agree.
    noise = n_pos * (tolerance * mean).square() + tolerance * mean.abs() * (n_pos * m2).sqrt()
    assert ((value[..., 3] - m2).abs() <= tolerance * m2 + noise).all()
    torch.testing.assert_close(value[..., 4], other[..., 4], rtol=tolerance, atol=10 * tolerance)


def with_stored_zeros(x: np.ndarray) -> sp.csr_array:
    """A CSR that stores every entry, the zeros too."""
    rows, columns = np.indices(x.shape)
    csr = sp.csr_array((x.ravel(), (rows.ravel(), columns.ravel())), shape=x.shape)
    assert csr.nnz == x.size
    return csr


def with_duplicates(x: np.ndarray) -> sp.csr_array:
    """A CSR whose entries are stored as halves, one of them out of order, and one as a sum with a negative part."""
    csr = sp.csr_array(x)
    data = np.stack([csr.data / 2, csr.data / 2], 1).ravel()
    indices = np.stack([csr.indices, csr.indices], 1).ravel()
    data[:2] += np.array([-10.0, 10.0]) * data[0]
    for start, stop in zip(2 * csr.indptr[:-1], 2 * csr.indptr[1:], strict=True):
        data[start:stop], indices[start:stop] = data[start:stop][::-1].copy(), indices[start:stop][::-1].copy()
    out = sp.csr_array((data, indices, 2 * csr.indptr), shape=x.shape)
    assert not out.has_canonical_format
    return out


class OnDisk:
    """What an HDF5 dataset or a backed sparse matrix offers: a shape, and rows by slices; it counts what is read."""

    def __init__(self, matrix: Any) -> None:
        self.matrix, self.shape, self.most = matrix, matrix.shape, 0

    def __getitem__(self, rows: slice) -> Any:
        assert isinstance(rows, slice)
        assert rows.step is None
        self.most = max(self.most, rows.stop - rows.start)
        return self.matrix[rows]


def padded(x: np.ndarray) -> np.ndarray:
    """A view with gaps in both directions."""
    wide = np.full((2 * x.shape[0], 3 * x.shape[1]), -1.0)
    wide[::2, ::3] = x
    return wide[::2, ::3]


@dataclass(frozen=True)
class Form:
    name: str
    make: Callable[[np.ndarray], Any]
    keeps: type = np.float64  # what its values are rounded to


FORMS = [
    Form("array", lambda x: x),
    Form("Fortran order", np.asfortranarray),
    Form("gaps", padded),
    Form("negative strides", lambda x: x[::-1, ::-1].copy()[::-1, ::-1]),
    Form("matrix", lambda x: x.view(np.matrix)),
    Form("big-endian", lambda x: x.astype(">f8")),
    Form("float32 array", lambda x: x.astype(np.float32), np.float32),
    Form("float16 array", lambda x: x.astype(np.float16), np.float16),
    Form("whole numbers", lambda x: x.astype(np.int32), np.int32),
    Form("unsigned", lambda x: x.astype(np.uint16), np.uint16),
    Form("booleans", lambda x: x > 0, np.bool_),
    Form("tensor", torch.from_numpy),
    Form("float32 tensor", lambda x: torch.from_numpy(x).float(), np.float32),
    Form("tensor of strides", lambda x: torch.from_numpy(np.ascontiguousarray(x.T)).T),
    Form("csr_array", sp.csr_array),
    Form("csr_matrix", sp.csr_matrix),
    Form("float32 csr", lambda x: sp.csr_array(x.astype(np.float32)), np.float32),
    Form("int64 indices", lambda x: sp.csr_array((sp.csr_array(x).data, *map(np.int64, ij(x))), shape=x.shape)),
    Form("csc", sp.csc_array),
    Form("coo", sp.coo_matrix),
    Form("lil", sp.lil_array),
    Form("stored zeros", with_stored_zeros),
    Form("duplicates, unsorted", with_duplicates),
]


def ij(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The indices and indptr of x as a CSR."""
    csr = sp.csr_array(x)
    return csr.indices, csr.indptr


def from_cells(x: Any = X, groups: Any = GROUP, n_groups: int | None = None, offset: Any = None) -> Any:
    return SufficientStatistics.from_cells(x, groups, n_groups, offset)
