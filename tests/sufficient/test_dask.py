"""The reduction on Dask is that of one pass: any chunks and blocks, any scheduler, and a worker that dies."""

from __future__ import annotations

import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from distributed import Client, LocalCluster

from pyro_zilognormal import SufficientStatistics
from pyro_zilognormal.sufficient.dask import BRANCHES, Part, fold
from tests.sufficient.bad_calls import group_of, offset_of, with_value
from tests.sufficient.cases import (
    CELLS,
    COLUMNS,
    GROUP,
    GROUPS,
    OFFSET,
    X,
    assert_same,
    draw,
    expected,
    with_duplicates,
    with_stored_zeros,
)

CHUNKS: dict[str, tuple[Any, Any]] = {
    "one": (CELLS, COLUMNS),
    "rows": (50, COLUMNS),
    "columns": (CELLS, 3),
    "both": (50, 3),
    "uneven": ((1, 60, 0, 59), (2, 5)),
    "few cells": (7, COLUMNS),
}
BLOCKS: dict[str, Callable[[np.ndarray], Any]] = {
    "dense": np.asarray,
    "columns first": np.asfortranarray,
    "csr_matrix": sp.csr_matrix,
    "csr_array": sp.csr_array,
    "csc_matrix": sp.csc_matrix,
    "stored zeros": with_stored_zeros,
    "float32": lambda x: sp.csr_array(x.astype(np.float32)),
}


def blocked(x: np.ndarray, chunks: Any, make: Callable[[np.ndarray], Any] = np.asarray) -> Any:
    """A dask array whose blocks are made of pieces of a matrix."""
    return da.from_array(x, chunks=chunks).map_blocks(make, meta=np.zeros((0, 0), x.dtype))


def from_dask(array: Any, groups: Any = GROUP, n_groups: int | None = GROUPS, offset: Any = None) -> torch.Tensor:
    return SufficientStatistics.from_dask(array, groups, n_groups, offset).value


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("block", BLOCKS)
def test_any_blocks_in_any_chunks_reduce_to_the_definition(block: str, chunks: Any) -> None:
    x = X.astype(np.float32).astype(float) if block == "float32" else X
    with dask.config.set(scheduler="synchronous"):
        value = from_dask(blocked(x, chunks, BLOCKS[block]), offset=OFFSET)
    assert_same(value, expected(x, GROUP, GROUPS, OFFSET))


def test_duplicates_within_a_block_are_summed() -> None:
    assert_same(from_dask(blocked(X, (50, COLUMNS), with_duplicates)), expected(X, GROUP, GROUPS))


def test_a_deep_tree_is_the_one_pass() -> None:
    """Blocks of a few groups each, merged over three levels."""
    x, cells = draw(3, 700, 4), 700
    groups = np.sort(np.random.default_rng(0).integers(0, 300, cells))
    assert cells > 3 * BRANCHES**2
    value = from_dask(blocked(x, (3, 4), sp.csr_matrix), groups, 300)
    assert_same(value, SufficientStatistics.from_cells(x, groups, 300).value)


def test_groups_are_counted_and_may_be_left_out() -> None:
    array = blocked(X, (50, 3))
    assert_same(from_dask(array, None, None), expected(X, np.zeros(CELLS, int), 1))
    assert from_dask(array, GROUP, None).shape == (GROUPS - 1, COLUMNS, 5)
    assert_same(from_dask(array, torch.from_numpy(GROUP)), expected(X, GROUP, GROUPS))
    assert_same(from_dask(array, da.from_array(GROUP, chunks=7)), expected(X, GROUP, GROUPS))


@pytest.mark.parametrize("shape", [(0, 3), (4, 0)])
def test_no_cells_and_no_columns(shape: tuple[int, int]) -> None:
    value = from_dask(da.zeros(shape, chunks=(2, 2)), np.zeros(shape[0], int), 2)
    assert_same(value, expected(np.zeros(shape), np.zeros(shape[0], int), 2))


def test_a_part_holds_the_groups_that_a_block_has() -> None:
    def groups_of(block: Any, first: tuple[int, int], groups: np.ndarray) -> Part:
        return Part(np.unique(groups), np.full((5, len(np.unique(groups)), block.shape[1]), float(first[0])))

    (part,) = fold(blocked(X, (60, COLUMNS)), groups_of, np.repeat([7, 900], 60))
    assert part.groups.tolist() == [7, 900]
    assert part.value.shape == (5, 2, COLUMNS)
    assert part.value[0].tolist() == [[0.0] * COLUMNS, [60.0] * COLUMNS]


# Calls that the one pass refuses too, in the same words.
REFUSED: dict[str, tuple[Any, Any, Any, Any]] = {
    **{f"{v}": (with_value(v, 87, 4), GROUP, GROUPS, None) for v in (-1.0, np.nan, np.inf, -np.inf, -1e-300)},
    "labels": (X, GROUP.astype(str), None, None),
    "fractions": (X, GROUP + 0.5, None, None),
    "groups too short": (X, GROUP[1:], GROUPS, None),
    "a negative group": (X, group_of(70, -1), GROUPS, None),
    "a group too large": (X, group_of(70, 9), GROUPS, None),
    "no groups": (X, GROUP, 0, None),
    "n_groups True": (X, GROUP, True, None),
    "offset too short": (X, GROUP, GROUPS, OFFSET[1:]),
    "NaN offset": (X, GROUP, GROUPS, offset_of(60, np.nan)),
    "complex": (X.astype(complex), GROUP, GROUPS, None),
}


@pytest.mark.parametrize("make", [np.asarray, sp.csr_matrix], ids=["dense", "csr"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_one_pass_refuses_is_refused_in_the_same_words(name: str, make: Any) -> None:
    x, *others = REFUSED[name]
    with pytest.raises((TypeError, ValueError)) as one_pass:
        SufficientStatistics.from_cells(make(x), *others)
    with pytest.raises(one_pass.type) as on_dask:
        SufficientStatistics.from_dask(blocked(x, (50, 3), make), *others)
    assert str(on_dask.value) == str(one_pass.value)


def test_what_is_no_dask_array_is_refused() -> None:
    for wrong, words in (
        (X, r"got ndarray of shape \(120, 7\)"),
        (da.zeros(3), r"of shape \(3,\)"),
        (None, "NoneType"),
    ):
        with pytest.raises(TypeError, match=rf"array must be a dask\.array\.Array of shape .* {words}"):
            SufficientStatistics.from_dask(wrong)


def test_chunks_of_unknown_size_are_refused_until_they_are_computed() -> None:
    array = da.from_array(X, chunks=(50, 3))
    some = array[da.from_array(GROUP > 0, chunks=50)]
    with pytest.raises(ValueError, match=r"needed chunks of known sizes.*compute_chunk_sizes\(\)"):
        from_dask(some, GROUP[GROUP > 0])
    value = from_dask(some.compute_chunk_sizes(), GROUP[GROUP > 0])
    assert_same(value, expected(X[GROUP > 0], GROUP[GROUP > 0], GROUPS))


def test_a_missing_dask_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    array = blocked(X, (50, 3))
    monkeypatch.setitem(sys.modules, "dask.array", None)
    with pytest.raises(ModuleNotFoundError, match=r'needs dask\.array: pip install "pyro-zilognormal\[dask\]"'):
        from_dask(array)


class Blockwise:
    """What ``soma_array.read().blockwise(axis=0)`` of TileDB-SOMA offers."""

    def __init__(self, x: np.ndarray, obs_joinids: np.ndarray, size: int) -> None:
        self.x, self.obs_joinids, self.size = x, obs_joinids, size

    def scipy(self) -> Iterator[tuple[sp.csr_matrix, tuple[np.ndarray, np.ndarray]]]:
        """Yield (matrix, (ids of its cells, ids of its genes)); the rows of the matrix are counted from 0."""
        for start in range(0, len(self.x), self.size):
            rows = slice(start, start + self.size)
            yield sp.csr_matrix(self.x[rows]), (self.obs_joinids[rows], np.arange(self.x.shape[1]))


def test_blocks_of_tiledb_soma() -> None:
    """As docs/scaling.md shows it; the ids of a query's cells have gaps, and need not ascend."""
    obs_joinids = np.random.default_rng(0).choice(10_000, CELLS, replace=False)
    obs, reader = pd.DataFrame({"soma_joinid": obs_joinids, "donor_id": GROUP}), Blockwise(X, obs_joinids, size=50)
    groups = obs.set_index("soma_joinid").groupby(["donor_id"], observed=True).ngroup()
    chunks = ((x, groups.loc[ids].to_numpy()) for x, (ids, _) in reader.scipy())
    stats = SufficientStatistics.from_chunks(chunks, n_groups=groups.max() + 1)
    assert_same(stats.value, expected(X, GROUP, GROUPS - 1))


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Two processes of one thread each."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as connected,
    ):
        yield connected


def test_all_schedulers_give_the_same_bits(client: Client) -> None:
    array = blocked(X, (9, 3), sp.csr_matrix)
    on_cluster = from_dask(array, offset=OFFSET)
    for scheduler in ("threads", "synchronous"):
        with dask.config.set(scheduler=scheduler):
            assert torch.equal(from_dask(array, offset=OFFSET), on_cluster)
    assert_same(on_cluster, expected(X, GROUP, GROUPS, OFFSET))
    with pytest.raises(ValueError, match=r"got -1\.0 in row 87, column 4"):
        from_dask(blocked(with_value(-1, 87, 4), (9, 3)))


def test_large_groups_travel_without_a_warning(client: Client) -> None:
    cells = 1_500_000  # 12 MB of offsets
    offset, groups = np.linspace(-1, 1, cells), np.arange(cells) % 300
    stats = SufficientStatistics.from_dask(da.ones((cells, 1), chunks=(500_000, 1)), groups, 300, offset)
    assert stats.n_pos.sum() == cells
    np.testing.assert_allclose(stats.offset_sum[:, 0], np.bincount(groups, offset), rtol=1e-9, atol=1e-9)


def test_a_worker_that_is_killed_loses_nothing(client: Client, tmp_path: pathlib.Path) -> None:
    """The worker that comes to the middle of the cells dies, with the statistics that it holds."""
    flag, kill = tmp_path / "killed", int(signal.SIGKILL)

    def deadly(block: np.ndarray, block_info: Any) -> np.ndarray:
        if block_info[0]["chunk-location"][0] == 20 and not flag.exists():
            flag.write_text(str(os.getpid()))
            os.kill(os.getpid(), kill)
        return block

    array = da.from_array(X, chunks=(3, COLUMNS)).map_blocks(deadly, dtype=float, meta=np.zeros((0, 0)))
    before = set(client.run(os.getpid).values())
    value = from_dask(array, offset=OFFSET)
    assert int(flag.read_text()) in before - set(client.run(os.getpid).values())
    assert_same(value, expected(X, GROUP, GROUPS, OFFSET))


def test_the_graph_that_travels_is_small() -> None:
    """A task for each block, which loads and reduces it; a group takes a byte."""

    def load(block_info: Any = None) -> sp.csr_matrix:
        (start, stop), _ = block_info[None]["array-location"]
        return sp.csr_matrix((stop - start, 4))

    sent: list[dict[Any, Any]] = []

    def watching(graph: Any, keys: Any, **options: Any) -> Any:
        sent.append(dict(graph.__dask_graph__()))
        return dask.get(sent[0], keys)

    sizes = (1000,) * 40
    array = da.map_blocks(load, chunks=(sizes, (4,)), dtype=float, meta=sp.csr_matrix((0, 0)))
    with dask.config.set(scheduler=watching):
        from_dask(array, np.zeros(40_000, int), 200)
    (graph,) = sent
    assert len(graph) < 3 * len(sizes)
    assert len(cloudpickle.dumps(graph)) < 100_000
