"""Cells become the statistics of their definition, whatever their form, chunks and order."""

import copy
import dataclasses
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from pyro_zilognormal import SufficientStatistics, row_chunks
from tests.sufficient.bad_calls import BAD
from tests.sufficient.cases import (
    CELLS,
    COLUMNS,
    FORMS,
    GROUP,
    GROUPS,
    OFFSET,
    Form,
    X,
    assert_same,
    expected,
    from_cells,
    with_duplicates,
    with_stored_zeros,
)


@pytest.mark.parametrize("rows", [None, 1, 37, CELLS, 1000])
@pytest.mark.parametrize("offset", [None, OFFSET], ids=["plain", "offset"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_every_form_reduces_to_the_definition(form: Form, offset: np.ndarray | None, rows: int | None) -> None:
    chunks = row_chunks(form.make(X), GROUP, offset, rows=rows)
    stats = SufficientStatistics.from_chunks(chunks, GROUPS)
    assert_same(stats.value, expected(X.astype(form.keeps).astype(float), GROUP, GROUPS, offset))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_from_cells_is_the_same_and_leaves_its_cells_alone(form: Form) -> None:
    cells = form.make(X)
    before = copy.deepcopy(cells)
    groups, offset = GROUP.copy(), OFFSET.copy()
    stats = SufficientStatistics.from_cells(cells, groups, GROUPS, offset)
    assert_same(stats.value, expected(X.astype(form.keeps).astype(float), GROUP, GROUPS, OFFSET))
    assert np.array_equal(groups, GROUP)
    assert np.array_equal(offset, OFFSET)
    if sp.issparse(cells) and cells.format == "csr":
        for name in ("data", "indices", "indptr"):
            assert np.array_equal(getattr(cells, name), getattr(before, name)), name
    elif not sp.issparse(cells):
        assert (np.asarray(cells) == np.asarray(before)).all()


@pytest.mark.parametrize(("call", "error", "words"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_bad_call(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        call()
    assert type(caught.value) is error


def test_the_names_of_bad_calls_differ() -> None:
    assert len({bad[0] for bad in BAD}) == len(BAD) >= 80


@pytest.mark.parametrize(
    "groups",
    [GROUP.tolist(), torch.from_numpy(GROUP), GROUP.astype(np.int8), GROUP.astype(np.uint64), np.asfortranarray(GROUP)],
    ids=["list", "tensor", "int8", "uint64", "fortran"],
)
def test_groups_in_every_form(groups: object) -> None:
    stats = from_cells(groups=groups, offset=torch.from_numpy(OFFSET))
    assert stats.n_zero.shape == (GROUPS - 1, COLUMNS)  # as many as the largest says
    assert_same(stats.value, expected(X, GROUP, GROUPS - 1, OFFSET))


def test_without_groups_all_cells_are_one_group() -> None:
    assert_same(from_cells(groups=None).value, expected(X, np.zeros(CELLS, int), 1))
    assert from_cells(groups=None, n_groups=3).n_zero.shape == (3, COLUMNS)


def test_bfloat16_and_half_tensors() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        x = torch.from_numpy(X).to(dtype)
        assert_same(from_cells(x).value, expected(x.double().numpy(), GROUP, GROUPS - 1))


@pytest.mark.parametrize("make", [np.asarray, sp.csr_array, torch.from_numpy], ids=["array", "csr", "tensor"])
def test_no_cells_and_no_columns(make) -> None:
    empty = from_cells(make(np.zeros((0, 3))), [], 2)
    assert torch.equal(empty.value, torch.zeros(2, 3, 5).double())
    assert_same((empty + empty).value, empty.value)
    assert from_cells(make(np.zeros((4, 0))), [0, 1, 0, 1]).n_zero.shape == (2, 0)


def test_the_smallest_and_largest_numbers() -> None:
    x = np.array([5e-324, 1e-310, 2.3e-308, 1e-30, 1.0, 1e30, 1.79e308])[:, None]
    assert_same(from_cells(x, None).value, expected(x, np.zeros(7, int), 1))
    assert_same(from_cells(sp.csr_array(x), None).value, expected(x, np.zeros(7, int), 1))


@pytest.mark.parametrize("value", [0.1, 1.0, 1e-300, np.pi, 1e300])
@pytest.mark.parametrize("offset", [None, np.full(1000, 0.3)])
def test_equal_values_have_no_spread_at_all(value: float, offset: np.ndarray | None) -> None:
    chunks = row_chunks(np.full((1000, 1), value), None, offset, rows=300)
    stats = SufficientStatistics.from_chunks(chunks, 1)
    assert stats.m2.item() == 0.0
    assert stats.mean.item() == np.log(value) - (0.0 if offset is None else 0.3)
    assert (stats + stats).m2.item() == 0.0


HARD = {
    "large mean": lambda rng: np.exp(600 + 1e-3 * rng.normal(size=20_000)),
    "an outlier first": lambda rng: np.exp(np.r_[500.0, rng.normal(size=19_999)]),
    "an outlier last": lambda rng: np.exp(np.r_[rng.normal(size=19_999), -500.0]),
    "a trend": lambda rng: np.exp(np.linspace(-300, 300, 20_000)),
    "a few, then many elsewhere": lambda rng: np.exp(np.r_[rng.normal(size=3), 50 + 0.01 * rng.normal(size=19_997)]),
    "two levels": lambda rng: np.exp(np.r_[np.full(10_000, -40.0), np.full(10_000, 40.0)]),
}


@pytest.mark.parametrize("rows", [None, 1, 7, 1000])
@pytest.mark.parametrize("name", HARD)
def test_hard_sequences_keep_their_digits(name: str, rows: int | None) -> None:
    x = HARD[name](np.random.default_rng(3))[: None if rows != 1 else 2000, None]
    stats = SufficientStatistics.from_chunks(row_chunks(x, None, rows=rows), 1)
    assert_same(stats.value, expected(x, np.zeros(len(x), int), 1))


@pytest.mark.parametrize("few", [1, 2, 3, 50])
def test_a_few_values_then_many_in_one_chunk(few: int) -> None:
    """The many are summed about their own mean, and the few taken along."""
    x = HARD["a few, then many elsewhere"](np.random.default_rng(3))[:, None]
    chunks = [(x[:few], None), (x[few:], None), (x[:few], None)]
    everything = np.concatenate([x for x, _ in chunks])
    stats = SufficientStatistics.from_chunks(chunks, 1)
    assert_same(stats.value, expected(everything, np.zeros(len(everything), int), 1))


def test_m2_is_never_negative() -> None:
    """Also where values differ by their last digits alone."""
    rng = np.random.default_rng(8)
    for _ in range(200):
        x = np.exp(rng.normal()) * (1 + 2.2e-16 * rng.integers(-3, 4, (rng.integers(2, 200), 50)))
        stats = SufficientStatistics.from_chunks(row_chunks(x, None, rows=int(rng.integers(1, 80))), 1)
        assert (stats.m2 >= 0).all()
        assert ((stats + stats).m2 >= 0).all()


def test_the_oracle_sees_lost_digits() -> None:
    """The textbook one-pass variance fails where ours passes: the tolerance can fail."""
    x = HARD["large mean"](np.random.default_rng(3))[:, None]
    right = expected(x, np.zeros(len(x), int), 1)
    y, wrong = np.log(x), right.clone()
    wrong[..., 3] = float((y * y).sum() - y.sum() ** 2 / len(y))
    with pytest.raises(AssertionError):
        assert_same(wrong, right)


def test_many_values_in_one_bin_keep_their_digits() -> None:
    x = np.exp(np.random.default_rng(4).normal(3.0, 1.0, (1_000_000, 1)))
    assert_same(from_cells(x, None).value, expected(x, np.zeros(len(x), int), 1))


def test_an_offset_is_a_size_factor() -> None:
    """log x - offset is the logarithm of x / exp(offset)."""
    scaled = from_cells(X / np.exp(OFFSET)[:, None], n_groups=GROUPS).value
    ours = from_cells(offset=OFFSET, n_groups=GROUPS).value
    assert_same(torch.cat([ours[..., :4], 0 * ours[..., 4:]], -1), scaled, 1e-11)


def parts(seed: int, pieces: int) -> list[SufficientStatistics]:
    pick = np.random.default_rng(seed).integers(0, pieces, CELLS)
    return [from_cells(sp.csr_array(X[pick == i]), GROUP[pick == i], GROUPS, OFFSET[pick == i]) for i in range(pieces)]


@pytest.mark.parametrize("pieces", [1, 2, 3, 10, 200])
@pytest.mark.parametrize("seed", range(5))
def test_merging_in_any_order_is_one_pass(seed: int, pieces: int) -> None:
    once, todo, rng = from_cells(n_groups=GROUPS, offset=OFFSET).value, parts(seed, pieces), random.Random(seed)
    assert_same(sum(todo).value, once)  # type: ignore[union-attr]
    assert_same(sum(reversed(todo)).value, once)  # type: ignore[union-attr]
    while len(todo) > 1:  # a random tree
        a, b = (todo.pop(rng.randrange(len(todo))) for _ in range(2))
        todo.append(a + b)
    assert_same(todo[0].value, once)


def test_merging_is_associative_and_commutative_and_has_a_zero() -> None:
    a, b, c = parts(0, 3)
    zero = from_cells(X[:0], [], GROUPS)
    assert_same(((a + b) + c).value, (a + (b + c)).value)
    assert_same((a + b).value, (b + a).value)
    assert torch.equal((a + zero).value, a.value)
    assert torch.equal((zero + a).value, a.value)
    assert torch.equal(sum([a]).value, a.value)  # type: ignore[union-attr]


def test_merging_far_apart_means_keeps_the_digits() -> None:
    rng = np.random.default_rng(5)
    low, high = np.exp(-300 + 1e-2 * rng.normal(size=(50, 1))), np.exp(300 + 1e-2 * rng.normal(size=(5000, 1)))
    both = np.concatenate([low, high])
    merged = from_cells(low, None) + from_cells(high, None)
    assert_same(merged.value, expected(both, np.zeros(len(both), int), 1))


def test_the_order_of_cells_does_not_matter() -> None:
    order = np.random.default_rng(6).permutation(CELLS)
    shuffled = from_cells(sp.csr_array(X[order]), GROUP[order], GROUPS, OFFSET[order])
    assert_same(shuffled.value, from_cells(n_groups=GROUPS, offset=OFFSET).value)


def test_value_goes_there_and_back() -> None:
    stats = from_cells(offset=OFFSET)
    value = stats.value
    assert value.shape == (GROUPS - 1, COLUMNS, 5)
    assert value[..., 2].is_contiguous()  # what log_prob reads
    back = SufficientStatistics.from_value(value)
    for i, field in enumerate(dataclasses.fields(stats)):
        assert torch.equal(getattr(back, field.name), getattr(stats, field.name))
        assert torch.equal(value[..., i], getattr(stats, field.name))
    assert SufficientStatistics.from_value(value.float()).n_pos.dtype == torch.float64
    value.zero_()
    assert stats.n_zero.sum() > 0  # a value is a copy


def test_statistics_are_frozen_and_can_be_stored() -> None:
    stats = from_cells()
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.mean = stats.m2
    for again in (pickle.loads(pickle.dumps(stats)), copy.deepcopy(stats)):
        assert torch.equal(again.value, stats.value)
    assert repr(stats) == "SufficientStatistics(120 cells in 4 groups, 7 columns)"


def test_a_buffer_that_is_filled_again_does_not_reach_into_the_result() -> None:
    def chunks():
        buffer = np.empty((40, COLUMNS))
        for start in range(0, CELLS, 40):
            buffer[:] = X[start : start + 40]
            yield buffer, GROUP[start : start + 40]
        buffer[:] = -1

    assert_same(SufficientStatistics.from_chunks(chunks(), GROUPS).value, expected(X, GROUP, GROUPS))


def test_chunks_may_be_of_any_kind_and_some_without_offset() -> None:
    def chunks():
        yield X[:30], GROUP[:30]
        yield [sp.coo_array(X[30:60]), GROUP[30:60].tolist(), None]
        yield with_stored_zeros(X[60:90]), torch.from_numpy(GROUP[60:90]), OFFSET[60:90]
        yield with_duplicates(X[90:]), GROUP[90:], OFFSET[90:]

    offset = np.where(np.arange(CELLS) < 60, 0.0, OFFSET)
    assert_same(SufficientStatistics.from_chunks(chunks(), GROUPS).value, expected(X, GROUP, GROUPS, offset))


def test_more_columns_than_any_dense_matrix_could_have() -> None:
    """A million by a hundred thousand would be 800 GB dense."""
    data, i, j = np.array([1.0, np.e, 2.0]), np.array([5, 7, 999_999]), np.array([3, 3, 99_999])
    x = sp.csr_array((data, (i, j)), shape=(1_000_000, 100_000))
    stats = from_cells(x, None)
    assert stats.n_pos.sum() == 3
    assert stats.n_zero[0, 0] == 1_000_000
    assert stats.n_zero[0, 3] == 999_998
    assert stats.mean[0, 3] == 0.5
    assert stats.mean[0, 99_999] == np.log(2.0)
