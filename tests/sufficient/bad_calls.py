"""Calls of the reduction that must end in an error, and the words it must hold."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from pyro_zilognormal import SufficientStatistics, row_chunks
from tests.sufficient.cases import FIRST, GROUP, GROUPS, OFFSET, X, from_cells, with_duplicates


@dataclass(frozen=True)
class Bad:
    name: str
    call: Callable[[], Any]
    error: type[Exception]
    words: str


def with_value(value: float, row: int, column: int) -> np.ndarray:
    x = X.copy()
    x[row, column] = value
    return x


def from_chunks(*chunks: Any, n_groups: Any = GROUPS) -> Any:
    return SufficientStatistics.from_chunks(iter(chunks), n_groups)


def in_parts(x: Any, **kwargs: Any) -> Any:
    return SufficientStatistics.from_chunks(row_chunks(x, GROUP, rows=50, **kwargs), GROUPS)


def entry(*statistics: float) -> torch.Tensor:
    return torch.tensor(statistics, dtype=torch.double).reshape(1, 1, -1)


def fields(**changed: Any) -> Any:
    zeros = {name: torch.zeros(2, 3).double() for name in ("n_zero", "n_pos", "mean", "m2", "offset_sum")}
    return SufficientStatistics(**{**zeros, **changed})


def group_of(row: int, value: Any) -> np.ndarray:
    groups = GROUP.copy()
    groups[row] = value
    return groups


def offset_of(row: int, value: float) -> np.ndarray:
    offset = OFFSET.copy()
    offset[row] = value
    return offset


def bad_values() -> Iterator[Bad]:
    kinds: dict[str, Callable[[np.ndarray], Any]] = {"array": np.asarray, "csr": sp.csr_array, "tensor": torch.tensor}
    for shown, value in {"-1.0": -1.0, "nan": math.nan, "inf": math.inf, "-inf": -math.inf, "-1e-300": -1e-300}.items():
        for kind, make in kinds.items():
            words = rf"got {shown} in row 87, column 4"
            yield Bad(
                f"{shown}, {kind}", lambda m=make, v=value: from_cells(m(with_value(v, 87, 4))), ValueError, words
            )
            yield Bad(
                f"{shown}, {kind}, in parts",
                lambda m=make, v=value: in_parts(m(with_value(v, 87, 4))),
                ValueError,
                words,
            )


BAD = [
    *bad_values(),
    Bad(
        "the first of two", lambda: from_cells(with_value(-1, 9, 2) - with_value(0, 9, 2) + X * 0), ValueError, "row 9"
    ),
    Bad("duplicates below 0", lambda: from_cells(-with_duplicates(X)), ValueError, FIRST),
    Bad("a list", lambda: from_cells([[1.0]], None), TypeError, r"\(cells, columns\), got list"),
    Bad("one dimension", lambda: from_cells(X[0], None), TypeError, r"ndarray of shape \(7,\)"),
    Bad("three dimensions", lambda: from_cells(X[None], None), TypeError, r"of shape \(1, 120, 7\)"),
    Bad("a chunk of one dimension", lambda: from_chunks((X[0], [0] * 7)), TypeError, r"x must be .* \(7,\)"),
    Bad("strings", lambda: from_cells(X.astype(str)), TypeError, "real numbers, got dtype <U"),
    Bad("complex", lambda: from_cells(X.astype(complex)), TypeError, "complex128"),
    Bad("complex csr", lambda: from_cells(sp.csr_array(X.astype(complex))), TypeError, "complex128"),
    Bad("objects", lambda: from_cells(X.astype(object)), TypeError, "object"),
    Bad("masked array", lambda: from_cells(np.ma.masked_equal(X, 0.0)), TypeError, "MaskedArray"),
    Bad("sparse tensor", lambda: from_cells(torch.from_numpy(X).to_sparse()), TypeError, r"torch\.sparse_coo of shape"),
    Bad("gradient", lambda: from_cells(torch.from_numpy(X).requires_grad_()), ValueError, r"x\.detach\(\)"),
    Bad(
        "groups too short",
        lambda: from_cells(groups=GROUP[1:]),
        ValueError,
        r"groups must have shape \(120,\).*\(119,\)",
    ),
    Bad("groups of two dimensions", lambda: from_cells(groups=GROUP[:, None]), ValueError, r"got \(120, 1\)"),
    Bad("one number as groups", lambda: from_cells(groups=3), ValueError, r"groups must have shape .* got \(\)"),
    Bad(
        "fractional groups",
        lambda: from_cells(groups=GROUP + 0.0),
        TypeError,
        "groups must hold whole numbers.*float64",
    ),
    Bad("labels", lambda: from_cells(groups=GROUP.astype(str)), TypeError, "return_inverse=True"),
    Bad("boolean groups", lambda: from_cells(groups=GROUP > 0), TypeError, "got dtype bool"),
    Bad("negative group", lambda: from_cells(groups=group_of(30, -1)), ValueError, r"in 0\.\.3, got -1 in row 30"),
    Bad("all groups negative", lambda: from_cells(groups=-1 - GROUP), ValueError, r"in 0\.\.0, got -"),
    Bad("group too large", lambda: from_cells(n_groups=3), ValueError, r"groups must be in 0\.\.2, got 3 in row"),
    Bad("group in a part", lambda: in_parts_of(group_of(70, 9)), ValueError, r"in 0\.\.4, got 9 in row 70"),
    Bad(
        "no groups", lambda: from_cells(n_groups=0), ValueError, "n_groups must be a whole number of at least 1, got 0"
    ),
    Bad("half a group", lambda: from_chunks((X, GROUP), n_groups=2.5), ValueError, r"n_groups .* got 2\.5"),
    Bad("n_groups True", lambda: from_chunks((X, GROUP), n_groups=True), ValueError, "n_groups .* got True"),
    Bad("offset too short", lambda: from_cells(offset=OFFSET[1:]), ValueError, r"offset must have shape \(120,\)"),
    Bad("one offset", lambda: from_cells(offset=0.5), ValueError, r"offset must have shape .* got \(\)"),
    Bad(
        "NaN offset",
        lambda: from_cells(offset=offset_of(60, math.nan)),
        ValueError,
        "offset must be finite, got nan in row 60",
    ),
    Bad(
        "infinite offset",
        lambda: in_parts(X, offset=offset_of(60, -math.inf)),
        ValueError,
        "got -inf in row 60.*size factor",
    ),
    Bad("offset of strings", lambda: from_cells(offset=OFFSET.astype(str)), TypeError, "offset must hold real numbers"),
    Bad("no chunk", from_chunks, ValueError, "chunks is empty"),
    Bad("chunk not a pair", lambda: from_chunks(X), TypeError, r"\(x, groups\) or \(x, groups, offset\), got ndarray"),
    Bad("chunk of four", lambda: from_chunks((X, GROUP, OFFSET, 1)), TypeError, "got tuple"),
    Bad("other columns", lambda: from_chunks((X, GROUP), (X[:, 1:], GROUP)), ValueError, "same columns, got 7, then 6"),
    Bad("no rows a block", lambda: row_chunks(X, GROUP, rows=0), ValueError, "rows must be a whole number .* got 0"),
    Bad("rows as float", lambda: row_chunks(X, GROUP, rows=2.0), ValueError, r"got 2\.0"),  # type: ignore[arg-type]
    Bad("no matrix", lambda: row_chunks(None), TypeError, "got NoneType"),
    Bad("blocks for other groups", lambda: row_chunks(X, GROUP[1:]), ValueError, "groups must have shape"),
    Bad("value of four", lambda: SufficientStatistics.from_value(entry(1, 2, 3, 4)), ValueError, r"got \(1, 1, 4\)"),
    Bad("value of one dimension", lambda: SufficientStatistics.from_value(torch.zeros(5)), ValueError, r"got \(5,\)"),
    Bad("value as array", lambda: SufficientStatistics.from_value(np.zeros((1, 1, 5))), TypeError, "got ndarray"),  # type: ignore[arg-type]
    Bad(
        "whole value", lambda: SufficientStatistics.from_value(torch.zeros(1, 1, 5).int()), TypeError, "floating-point"
    ),
    *[
        Bad(
            f"value {bad}",
            lambda b=bad: SufficientStatistics.from_value(entry(*b)),
            ValueError,
            "group 0, column 0, which",
        )
        for bad in [
            (-1, 0, 0, 0, 0),
            (0, -1, 0, 0, 0),
            (0.5, 0, 0, 0, 0),
            (0, 2.5, 0, 1, 0),
            (1, 2, 0, -1, 0),
            (1, 0, 3, 0, 0),
            (1, 0, 0, 3, 0),
            (1, 1, 0, 3, 0),
            (1, 0, 0, 0, 3),
            (math.nan, 0, 0, 0, 0),
            (1, 2, math.inf, 1, 0),
            (1, 2, 0, math.nan, 0),
            (1, 2, 0, 1, -math.inf),
            (math.inf, 2, 0, 1, 0),
        ]
    ],
    Bad(
        "field of float32",
        lambda: fields(mean=torch.zeros(2, 3)),
        TypeError,
        "mean must be a float64 tensor, got torch.float32",
    ),
    Bad("field as array", lambda: fields(m2=np.zeros((2, 3))), TypeError, "m2 must be a float64 tensor, got ndarray"),
    Bad("field of another shape", lambda: fields(n_pos=torch.zeros(2, 1).double()), ValueError, r"'n_pos': \(2, 1\)"),
    Bad("unlike statistics", lambda: from_cells() + from_cells(n_groups=9), ValueError, r"\(4, 7\) and \(9, 7\)"),
    Bad("sum with a number", lambda: from_cells() + 1, TypeError, "unsupported operand"),
    Bad("sum from 1", lambda: sum([from_cells()], 1), TypeError, "unsupported operand"),
]


def in_parts_of(groups: np.ndarray) -> Any:
    return SufficientStatistics.from_chunks(row_chunks(X, groups, rows=50), GROUPS)
