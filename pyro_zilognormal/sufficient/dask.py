"""The reduction on Dask: every block becomes the statistics of the groups it has, which are merged in a tree.

The tree depends on the chunks alone, so that the result is the same to the last bit on threads, processes and clusters.
"""

import importlib
import warnings
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from pyro_zilognormal.sufficient.rows import as_matrix, what
from pyro_zilognormal.sufficient.statistics import Floats, add_cells, added

BRANCHES = 8  # results merged at a time; a worker holds about as many for each level of the tree


class Part(NamedTuple):
    """Statistics of the groups that some cells have; memory holds no group that a block lacks."""

    groups: NDArray[np.int64]  # ascending
    value: Floats  # of shape (5 or more, groups, columns), in the order of SufficientStatistics; what follows is summed

    def __add__(self, other: Any) -> "Part":
        groups = np.union1d(self.groups, other.groups)
        return Part(groups, added(self.spread(groups), other.spread(groups)))

    def spread(self, groups: NDArray[np.int64]) -> Floats:
        """Return the values for ascending groups that include all of its own; 0 for the others."""
        if len(groups) == len(self.groups):
            return self.value
        out = np.zeros((len(self.value), len(groups), self.value.shape[2]))
        out[:, np.searchsorted(groups, self.groups)] = self.value
        return out


def small(groups: NDArray[np.int64], n_groups: int) -> NDArray[Any]:
    """Return groups in as few bytes as they need: they travel to the workers."""
    return groups.astype(np.min_scalar_type(n_groups - 1))


def gathered(parts: Sequence[Part], n_groups: int) -> Floats:
    """Return the values of all groups, from one part for each chunk of columns."""
    return np.concatenate([part.spread(np.arange(n_groups)) for part in parts], 2)


def reduced(
    block: Any, first: tuple[int, int], groups: NDArray[Any], offset: Floats | None = None, numbers: int = 5
) -> Part:
    """Return so many statistics of a block, see `add_cells`."""
    present, local = np.unique(groups, return_inverse=True)
    total = np.zeros((numbers, len(present), block.shape[1]))
    add_cells(total, as_matrix(block, *first), local, offset)
    return Part(present, total)


def fold(array: Any, each: Callable[..., Any], *vectors: NDArray[Any] | None) -> list[Any]:
    """Compute something of each block, and add it up over all rows, both on the workers.

    Args:
        array: a dask array of shape (cells, columns), of known chunks.
        each: a function of (block, (first row, first column), a piece of each vector).
        vectors: arrays of shape (cells,), which are cut like the rows; None is left out.

    Returns:
        The sum for each chunk of columns.
    """
    entries = _entries(array, each, vectors)
    with warnings.catch_warnings():
        # The groups of the cells travel with the graph: unlike scattered data, they survive the death of a worker.
        warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
        return list(require("dask").compute(*map(_tree, entries.T)))


def _entries(array: Any, each: Callable[..., Any], vectors: Sequence[NDArray[Any] | None]) -> NDArray[Any]:
    """Return the ``dask.delayed`` objects of all blocks; each is loaded and reduced in one task."""
    rows, columns = (np.cumsum((0, *sizes)).tolist() for sizes in array.chunks)
    # Part of each block's task: pieces of vectors that are dask arrays would be as many tasks again.
    arguments = {
        (i, j): [(first, column), *(v[first:last] for v in vectors if v is not None)]
        for i, (first, last) in enumerate(pairwise(rows))
        for j, column in enumerate(columns[:-1])
    }
    entries = require("dask.array").blockwise(
        _entry,
        "ij",
        array,
        "ij",
        require("dask.layers").ArrayValuesDep(array.chunks, arguments),
        "ij",
        each=require("dask").delayed(each, traverse=False),  # one entry of the graph: it may hold large arrays
        align_arrays=False,
        name=f"entry-{uuid4()}",
        adjust_chunks={"i": lambda _: 1, "j": lambda _: 1},
        dtype=object,
        meta=np.empty((0, 0), object),
    )
    delayed: NDArray[Any] = entries.to_delayed()
    return delayed


def _entry(block: Any, arguments: Sequence[Any], each: Callable[..., Any]) -> NDArray[Any]:
    """Return what `each` returns, in a matrix of one object."""
    entry = np.empty((1, 1), object)
    entry[0, 0] = each(block, *arguments)
    return entry


def _tree(parts: Sequence[Any]) -> Any:
    merge = require("dask").delayed(_merged)
    while True:
        parts = [merge(list(parts[i : i + BRANCHES])) for i in range(0, len(parts), BRANCHES)]
        if len(parts) == 1:
            return parts[0]


def _merged(parts: Sequence[Any]) -> Any:
    return reduce(lambda a, b: a + b, (part.item() if isinstance(part, np.ndarray) else part for part in parts))


def is_dask(matrix: Any) -> bool:
    """Whether a matrix is a dask array, found out without importing dask."""
    return hasattr(matrix, "__dask_graph__") and hasattr(matrix, "to_delayed")


def check(array: Any) -> None:
    """Raise unless this is a dask array of two dimensions, in chunks of known sizes."""
    if not is_dask(array) or array.ndim != 2:
        raise TypeError(f"array must be a dask.array.Array of shape (cells, columns), got {what(array)}.")
    check_chunks(array)


def check_chunks(array: Any) -> None:
    """Raise ValueError if the sizes of the chunks of a dask array are not known."""
    if np.isnan(array.shape).any():
        needed = "needed chunks of known sizes, to number the cells: call its compute_chunk_sizes()"
        raise ValueError(f"the dask array has shape {array.shape}; {needed}, which computes it once")


def require(module: str) -> Any:
    """Import a module of Dask, or raise an ImportError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        text = f'the reduction on Dask needs {module}: pip install "pyro-zilognormal[dask]"'
        raise ModuleNotFoundError(text, name=error.name) from error
