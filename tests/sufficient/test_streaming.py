"""Matrices larger than memory: rows by slices, memmaps, one pass, bounded memory."""

import pathlib
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from pyro_zilognormal import SufficientStatistics, row_chunks
from pyro_zilognormal.sufficient import rows as _cells
from tests.sufficient.cases import CELLS, GROUP, GROUPS, OFFSET, OnDisk, X, assert_same, expected


@pytest.mark.parametrize("make", [np.asarray, sp.csr_array, sp.csr_matrix, sp.csc_array], ids=str)
@pytest.mark.parametrize("rows", [None, 1, 50])
def test_anything_with_a_shape_and_slices(make: Any, rows: int | None) -> None:
    disk = OnDisk(make(X))
    stats = SufficientStatistics.from_chunks(row_chunks(disk, GROUP, OFFSET, rows=rows), GROUPS)
    assert_same(stats.value, expected(X, GROUP, GROUPS, OFFSET))
    assert disk.most <= (rows or CELLS)
    assert_same(SufficientStatistics.from_cells(disk, GROUP, GROUPS, OFFSET).value, stats.value)


def test_blocks_are_the_matrix_in_order() -> None:
    for matrix in (X, sp.csr_array(X), sp.coo_array(X)):
        blocks = list(row_chunks(matrix, GROUP, OFFSET, rows=33))
        assert [len(groups) for _, groups, _ in blocks] == [33, 33, 33, 21]
        dense = [block.toarray() if sp.issparse(block) else block for block, _, _ in blocks]
        assert np.array_equal(np.concatenate(dense), X)
        assert np.array_equal(np.concatenate([groups for _, groups, _ in blocks]), GROUP)
        assert np.array_equal(np.concatenate([offset for _, _, offset in blocks]), OFFSET)


def test_arguments_are_checked_before_the_first_block_is_asked_for() -> None:
    with pytest.raises(ValueError, match="groups"):
        row_chunks(X, GROUP[:-1])


def test_memmaps(tmp_path: pathlib.Path) -> None:
    dense = np.memmap(tmp_path / "x", dtype=np.float64, mode="w+", shape=X.shape)
    dense[:] = X
    csr = sp.csr_array(X)
    for name in ("data", "indices", "indptr"):
        getattr(csr, name).tofile(tmp_path / name)
    arrays = [
        np.memmap(tmp_path / name, dtype=getattr(csr, name).dtype, mode="r") for name in ("data", "indices", "indptr")
    ]
    mapped = sp.csr_array(tuple(arrays), shape=X.shape)
    assert np.shares_memory(mapped.data, arrays[0])
    for matrix in (dense, mapped):
        for rows in (None, 17):
            stats = SufficientStatistics.from_chunks(row_chunks(matrix, GROUP, OFFSET, rows=rows), GROUPS)
            assert_same(stats.value, expected(X, GROUP, GROUPS, OFFSET))


def test_a_csr_is_sliced_without_a_copy_of_the_whole() -> None:
    """Blocks of a twentieth of 80 MB are read in less than a fifth of it."""
    csr = big_csr(20_000, 500)
    tracemalloc.start()
    try:
        for block, _, _ in row_chunks(csr, rows=1000):
            assert block.shape == (1000, 5000)
        assert tracemalloc.get_traced_memory()[1] < 16e6
    finally:
        tracemalloc.stop()


def big_csr(rows: int, each: int) -> sp.csr_array:
    """5,000 columns, and as many values in each row as asked for."""
    indices = np.tile(np.arange(each, dtype=np.int32) * (5000 // each), rows)
    return sp.csr_array((np.ones(rows * each, np.float32), indices, np.arange(rows + 1) * each), shape=(rows, 5000))


def peak(chunks: Iterator[Any]) -> int:
    tracemalloc.start()
    try:
        SufficientStatistics.from_chunks(chunks, 3)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_memory_does_not_grow_with_the_number_of_chunks(kind: str) -> None:
    rng = np.random.default_rng(0)

    def chunks(number: int) -> Iterator[Any]:
        for _ in range(number):
            x = rng.random((400, 500))
            yield (x if kind == "dense" else sp.csr_array(x)), rng.integers(0, 3, 400)

    few, many = peak(chunks(3)), peak(chunks(30))
    assert many < 1.1 * few
    assert many < 12 * 400 * 500 * 8


def test_blocks_hold_about_as_many_values_as_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cells, "VALUES_A_BLOCK", 50_000)
    empty, full = sp.csr_array((20_000, 5000)), big_csr(5000, 100)
    uneven = sp.vstack([empty, full, empty, full], format="csr")
    for matrix in (np.ones((5000, 100)), full, uneven):
        sizes = [getattr(block, "nnz", block.size) for block, _, _ in row_chunks(matrix)]
        assert max(sizes) == 50_000
        assert len(sizes) <= 20
    # From disk the density is guessed from the last block, and never below a sixteenth.
    read = [block for block, _, _ in row_chunks(OnDisk(full))]
    assert [block.shape[0] for block in read[:2]] == [10, 160]
    assert all(block.nnz == 16_000 for block in read[1:-1])
    assert sum(block.shape[0] for block in read) == 5000


def test_a_row_that_fills_a_block_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cells, "VALUES_A_BLOCK", 3)
    for matrix in (X, sp.csr_array(X), OnDisk(sp.csr_array(X))):
        stats = SufficientStatistics.from_cells(matrix, GROUP, GROUPS, OFFSET)
        assert_same(stats.value, expected(X, GROUP, GROUPS, OFFSET))


def test_pieces_within_a_chunk_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyro_zilognormal.sufficient import statistics as _reduction

    for piece in (1, 10, 100):
        monkeypatch.setattr(_reduction, "PIECE", piece)
        for matrix in (X, sp.csr_array(X)):
            stats = SufficientStatistics.from_cells(matrix, GROUP, GROUPS, OFFSET)
            assert_same(stats.value, expected(X, GROUP, GROUPS, OFFSET))
