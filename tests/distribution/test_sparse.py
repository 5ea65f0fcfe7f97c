"""Sums over CSR data against the same of the dense data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor

from pyro_zilognormal import ZeroInflatedLogNormal as ZILN

ROWS, COLUMNS = 7, 5
SHAPES = {
    "full": ((ROWS, COLUMNS),) * 3,
    "per column": ((COLUMNS,),) * 3,
    "per row": ((ROWS, 1),) * 3,
    "numbers": ((), (), ()),
    "mu full": ((ROWS, COLUMNS), (COLUMNS,), (1, COLUMNS)),
    "zero part full": ((COLUMNS,), (), (ROWS, COLUMNS)),
    "each its own": ((COLUMNS,), (ROWS, COLUMNS), (ROWS, 1)),
}
dims = pytest.mark.parametrize("dim", [None, 0, 1])


def torch_csr(dense: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR", UserWarning)
        return dense.to_sparse_csr()


KINDS: dict[str, Callable[[Tensor], Any]] = {
    "scipy matrix": lambda x: scipy.sparse.csr_matrix(x.numpy()),
    "scipy array": lambda x: scipy.sparse.csr_array(x.numpy()),
    "torch": torch_csr,
}


def values() -> Tensor:
    """An empty row, an empty column, a row without zeros; both ends of the positive numbers."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(ROWS, COLUMNS, generator=generator).exp().double()
    x[torch.rand(ROWS, COLUMNS, generator=generator) < 0.6] = 0
    x[:, 1], x[2], x[4] = 0, 0, torch.tensor([1.0, 1e-300, 1e300, 0.3, 2.0], dtype=torch.float64)
    return x


def parameters(shapes: tuple[tuple[int, ...], ...], probs: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    mu, scale, zero = (torch.randn(s, generator=generator).double() for s in shapes)
    return [t.requires_grad_() for t in (mu, scale.exp(), zero.sigmoid() if probs else 3 * zero)]


def assert_as_dense(d: ZILN, x: Tensor, sparse: Any, dim: int | None, leaves: list[Tensor]) -> None:
    dense = d.log_prob(x)
    expected, actual = dense.sum() if dim is None else dense.sum(dim), d.log_prob_sum(sparse, dim)
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    weights = torch.linspace(0.5, 2, expected.numel()).double().reshape(expected.shape)
    pairs = zip(*(torch.autograd.grad((weights * t).sum(), leaves) for t in (actual, expected)), strict=True)
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("probs", [False, True], ids=["zi_logits", "zi_probs"])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients(shapes: Any, probs: bool, kind: str) -> None:
    leaves = parameters(shapes, probs)
    d = ZILN(*leaves[:2], **{"zi_probs" if probs else "zi_logits": leaves[2]})
    for dim in (None, 0, 1):
        assert_as_dense(d, values(), KINDS[kind](values()), dim, leaves)
        assert_as_dense(d.expand((ROWS, COLUMNS)), values(), KINDS[kind](values()), dim, leaves)


@dims
@pytest.mark.parametrize("shape", [(COLUMNS,), (ROWS, COLUMNS)], ids=["per column", "full"])
def test_zero_parts_at_the_ends(shape: tuple[int, ...], dim: int | None) -> None:
    """pi = 0 is no obstacle where no value is zero; where one is, the sum is -inf."""
    x = values()
    never = (x > 0).all(0) if len(shape) == 1 else x > 0
    always = (x == 0).all(0) if len(shape) == 1 else x == 0
    logits = torch.where(never, -math.inf, torch.where(always, math.inf, 0.3)).double().requires_grad_()
    assert torch.isfinite(ZILN(0.0, 1.0, logits).log_prob_sum(KINDS["torch"](x)))
    assert_as_dense(ZILN(0.0, 1.0, logits), x, KINDS["torch"](x), dim, [logits])
    assert_as_dense(ZILN(0.0, 1.0, -logits), x, KINDS["torch"](x), dim, [logits])


@dims
def test_stored_zeros_are_zeros(dim: int | None) -> None:
    x = values()
    sparse = scipy.sparse.csr_array(x.numpy() + (x.numpy() == 0) * 1.0)
    sparse.data[:] = x.numpy().reshape(-1)
    assert sparse.nnz == x.numel()
    leaves = parameters(SHAPES["mu full"], False)
    assert_as_dense(ZILN(*leaves), x, sparse, dim, leaves)


@pytest.mark.parametrize("odd", [-1.0, math.inf, math.nan])
def test_odd_values_are_as_in_log_prob(odd: float) -> None:
    x = values()
    x[4, 3] = odd
    unchecked = ZILN(0.0, 1.0, torch.zeros(COLUMNS).double(), validate_args=False)
    expected = unchecked.log_prob(x).sum(0)
    actual = unchecked.log_prob_sum(scipy.sparse.csr_array(x.numpy()), 0)
    torch.testing.assert_close(actual, expected, equal_nan=True)
    if odd != math.inf:
        with pytest.raises(ValueError, match=r"Expected value argument value .* in the support"):
            ZILN(0.0, 1.0, 0.0, validate_args=True).log_prob_sum(scipy.sparse.csr_array(x.numpy()))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (4, 3)])
def test_nothing_stored(shape: tuple[int, int]) -> None:
    empty = scipy.sparse.csr_array(shape)
    d = ZILN(torch.zeros(shape[1]).double(), 1.0, torch.zeros(shape[1]).double())
    dense = d.log_prob(torch.zeros(shape).double())
    torch.testing.assert_close(d.log_prob_sum(empty), dense.sum())
    for dim in (0, 1):
        torch.testing.assert_close(d.log_prob_sum(empty, dim), dense.sum(dim))


def test_columns_in_any_order_and_read_only_arrays() -> None:
    sparse = scipy.sparse.csr_array((np.array([1.0, 2.0, 3.0]), np.array([2, 0, 1]), np.array([0, 2, 3])), (2, 3))
    for array in (sparse.data, sparse.indices, sparse.indptr):
        array.flags.writeable = False
    d = ZILN(torch.arange(3.0).double(), 1.0, 0.5)
    expected = d.log_prob(torch.tensor(sparse.toarray())).sum(0)
    torch.testing.assert_close(d.log_prob_sum(sparse, 0), expected)


def test_precision_is_that_of_parameters_and_value_together() -> None:
    sparse = scipy.sparse.csr_array(values().float().numpy())
    assert ZILN(torch.zeros(COLUMNS), 1.0, 0.0).log_prob_sum(sparse).dtype == torch.float32
    assert ZILN(torch.zeros(COLUMNS).double(), 1.0, 0.0).log_prob_sum(sparse).dtype == torch.float64
    many = scipy.sparse.csr_array(np.full((100_000, 1), 1.7, dtype=np.float32))
    d = ZILN(torch.tensor([0.3]), 0.7, 1.5)
    one = d.log_prob(torch.tensor([1.7])).item()
    assert d.log_prob_sum(many, 0).item() == pytest.approx(100_000 * one, rel=1e-6)


def _twice() -> Any:
    return scipy.sparse.csr_matrix((np.ones(2), np.array([1, 1]), np.array([0, 2])), (1, 3))


def _beyond() -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse", UserWarning)
        return torch.sparse_csr_tensor([0, 1], [3], [1.0], (1, 3), check_invariants=False)


PER_COLUMN = ZILN(0.0, 1.0, torch.zeros(COLUMNS))
BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: PER_COLUMN.log_prob_sum(values()),
        TypeError,
        r"scipy CSR matrix or .*got a tensor of layout torch\.strided",
    ),
    (
        lambda: PER_COLUMN.log_prob_sum(scipy.sparse.csc_array(values().numpy())),
        TypeError,
        r"got csc_array.*\.tocsr\(\)",
    ),
    (lambda: PER_COLUMN.log_prob_sum(values().numpy()), TypeError, "got ndarray"),
    (lambda: PER_COLUMN.log_prob_sum(KINDS["torch"](values()), -1), ValueError, "dim must be 0, 1 or None, got -1"),
    (
        lambda: PER_COLUMN.log_prob_sum(KINDS["torch"](values()[:, 1:])),
        ValueError,
        r"batch_shape \(5,\), target \(7, 4\)",
    ),
    (lambda: PER_COLUMN.log_prob_sum(KINDS["torch"](values()[None])), ValueError, r"a matrix, got shape \(1, 7, 5\)"),
    (lambda: PER_COLUMN.log_prob_sum(scipy.sparse.csr_array(np.eye(5, dtype=bool))), TypeError, "value must be .*bool"),
    (lambda: ZILN(0.0, 1.0, 0.0).log_prob_sum(_twice()), ValueError, r"more than once.*\.sum_duplicates\(\)"),
    (lambda: ZILN(0.0, 1.0, 0.0).log_prob_sum(_beyond()), ValueError, "columns 3 to 3, but 3 columns"),
    (
        lambda: PER_COLUMN.log_prob_sum(KINDS["torch"](values()).to("meta")),
        ValueError,
        r"value is on meta, the parameters on cpu\. Move",
    ),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD, ids=[words for *_, words in BAD])
def test_bad_calls(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
