"""Calls of the reduction that must end in an error, and the words it must hold."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from pyro_zilognormal import SufficientStatistics, row_chunks
from tests.sufficient.cases import FIRST, GROUP, GROUPS, OFFSET, X, from_cells, with_duplicates

Bad = tuple[str, Callable[[], Any], type[Exception], str]  # name, call, error and words of its message


VALUE, TYPE = ValueError, TypeError
from_value = SufficientStatistics.from_value


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
            for how, reduce in {"": from_cells, ", in parts": in_parts}.items():
                x = make(with_value(value, 87, 4))
                words = rf"got {shown} in row 87, column 4"
                yield f"{shown}, {kind}{how}", lambda x=x, reduce=reduce: reduce(x), VALUE, words


BAD: list[Bad] = [
    *bad_values(),
    ("the first of two", lambda: from_cells(with_value(-1, 9, 2) - with_value(0, 9, 2) + X * 0), VALUE, "row 9"),
    ("duplicates below 0", lambda: from_cells(-with_duplicates(X)), VALUE, FIRST),
    ("a list", lambda: from_cells([[1.0]], None), TYPE, r"\(cells, columns\), got list"),
    ("one dimension", lambda: from_cells(X[0], None), TYPE, r"ndarray of shape \(7,\)"),
    ("three dimensions", lambda: from_cells(X[None], None), TYPE, r"of shape \(1, 120, 7\)"),
    ("a chunk of one dimension", lambda: from_chunks((X[0], [0] * 7)), TYPE, r"x must be .* \(7,\)"),
    ("strings", lambda: from_cells(X.astype(str)), TYPE, "real numbers, got dtype <U"),
    ("complex", lambda: from_cells(X.astype(complex)), TYPE, "complex128"),
    ("complex csr", lambda: from_cells(sp.csr_array(X.astype(complex))), TYPE, "complex128"),
    ("objects", lambda: from_cells(X.astype(object)), TYPE, "object"),
    ("masked array", lambda: from_cells(np.ma.masked_equal(X, 0.0)), TYPE, "MaskedArray"),
    ("sparse tensor", lambda: from_cells(torch.from_numpy(X).to_sparse()), TYPE, r"torch\.sparse_coo of shape"),
    ("gradient", lambda: from_cells(torch.from_numpy(X).requires_grad_()), VALUE, r"x\.detach\(\)"),
    ("groups too short", lambda: from_cells(groups=GROUP[1:]), VALUE, r"groups must have shape \(120,\).*\(119,\)"),
    ("groups of two dimensions", lambda: from_cells(groups=GROUP[:, None]), VALUE, r"got \(120, 1\)"),
    ("one number as groups", lambda: from_cells(groups=3), VALUE, r"groups must have shape .* got \(\)"),
    ("fractional groups", lambda: from_cells(groups=GROUP + 0.0), TYPE, "groups must hold whole numbers.*float64"),
    ("labels", lambda: from_cells(groups=GROUP.astype(str)), TYPE, "return_inverse=True"),
    ("boolean groups", lambda: from_cells(groups=GROUP > 0), TYPE, "got dtype bool"),
    ("negative group", lambda: from_cells(groups=group_of(30, -1)), VALUE, r"in 0\.\.3, got -1 in row 30"),
    ("all groups negative", lambda: from_cells(groups=-1 - GROUP), VALUE, r"in 0\.\.0, got -"),
    ("group too large", lambda: from_cells(n_groups=3), VALUE, r"groups must be in 0\.\.2, got 3 in row"),
    ("group in a part", lambda: in_parts_of(group_of(70, 9)), VALUE, r"in 0\.\.4, got 9 in row 70"),
    ("no groups", lambda: from_cells(n_groups=0), VALUE, "n_groups must be a whole number of at least 1, got 0"),
    ("half a group", lambda: from_chunks((X, GROUP), n_groups=2.5), VALUE, r"n_groups .* got 2\.5"),
    ("n_groups True", lambda: from_chunks((X, GROUP), n_groups=True), VALUE, "n_groups .* got True"),
    ("offset too short", lambda: from_cells(offset=OFFSET[1:]), VALUE, r"offset must have shape \(120,\)"),
    ("one offset", lambda: from_cells(offset=0.5), VALUE, r"offset must have shape .* got \(\)"),
    (
        "NaN offset",
        lambda: from_cells(offset=offset_of(60, math.nan)),
        VALUE,
        "offset must be finite, got nan in row 60",
    ),
    ("infinite offset", lambda: in_parts(X, offset=offset_of(60, -math.inf)), VALUE, "got -inf in row 60.*size factor"),
    ("offset of strings", lambda: from_cells(offset=OFFSET.astype(str)), TYPE, "offset must hold real numbers"),
    ("no chunk", from_chunks, VALUE, "chunks is empty"),
    ("chunk not a pair", lambda: from_chunks(X), TYPE, r"\(x, groups\) or \(x, groups, offset\), got ndarray"),
    ("chunk of four", lambda: from_chunks((X, GROUP, OFFSET, 1)), TYPE, "got tuple"),
    ("other columns", lambda: from_chunks((X, GROUP), (X[:, 1:], GROUP)), VALUE, "same columns, got 7, then 6"),
    ("no rows a block", lambda: row_chunks(X, GROUP, rows=0), VALUE, "rows must be a whole number .* got 0"),
    ("rows as float", lambda: row_chunks(X, GROUP, rows=2.0), VALUE, r"got 2\.0"),  # type: ignore[arg-type]
    ("no matrix", lambda: row_chunks(None), TYPE, "got NoneType"),
    ("blocks for other groups", lambda: row_chunks(X, GROUP[1:]), VALUE, "groups must have shape"),
    ("value of four", lambda: from_value(entry(1, 2, 3, 4)), VALUE, r"got \(1, 1, 4\)"),
    ("value of one dimension", lambda: from_value(torch.zeros(5)), VALUE, r"got \(5,\)"),
    ("value as array", lambda: from_value(np.zeros((1, 1, 5))), TYPE, "got ndarray"),  # type: ignore[arg-type]
    ("whole value", lambda: from_value(torch.zeros(1, 1, 5).int()), TYPE, "floating-point"),
    *[
        (f"value {bad}", lambda b=bad: from_value(entry(*b)), VALUE, "group 0, column 0, which")
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
    (
        "field of float32",
        lambda: fields(mean=torch.zeros(2, 3)),
        TYPE,
        "mean must be a float64 tensor, got torch.float32",
    ),
    ("field as array", lambda: fields(m2=np.zeros((2, 3))), TYPE, "m2 must be a float64 tensor, got ndarray"),
    ("field of another shape", lambda: fields(n_pos=torch.zeros(2, 1).double()), VALUE, r"'n_pos': \(2, 1\)"),
    ("unlike statistics", lambda: from_cells() + from_cells(n_groups=9), VALUE, r"\(4, 7\) and \(9, 7\)"),
    ("sum with a number", lambda: from_cells() + 1, TYPE, "unsupported operand"),
    ("sum from 1", lambda: sum([from_cells()], 1), TYPE, "unsupported operand"),
]


def in_parts_of(groups: np.ndarray) -> Any:
    return SufficientStatistics.from_chunks(row_chunks(X, groups, rows=50), GROUPS)
