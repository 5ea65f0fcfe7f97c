"""Columns of adata.obs as the variables of a formula: their levels, their usual values, what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_zilognormal.singlecell.errors import SingleCellError, listed, require, unknown


@dataclass(frozen=True, eq=False)
class Variable:
    """A column that a formula uses.

    Attributes:
        name: of the column.
        values: of the cells, a pandas Series without missing values or unused categories.
        levels: in their order, of a category; of a number with two values; else none.
        default: the first level of a category, the mean of a number.
        categorical: whether the formula takes it as a category.
    """

    name: str
    values: Any
    levels: tuple[Any, ...]
    default: Any
    categorical: bool

    def level(self, came: Any) -> Any:
        """Return the level that is meant, which may be written as text.

        Raises:
            UnknownNameError: there is no such level.
            SingleCellError: a number that is not finite.
        """
        if not self.categorical:
            return self._number(came)
        found = [level for level in self.levels if level == came] or [v for v in self.levels if str(v) == str(came)]
        if len(found) != 1:
            raise unknown(self.name, came, f"levels of obs[{self.name!r}]", self.levels)
        return found[0]

    def _number(self, came: Any) -> float:
        try:
            number = float(came)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise SingleCellError(f"{self.name}: got {came!r}; needed a finite number, as obs[{self.name!r}] holds")
        return number

    def cells(self, level: Any) -> NDArray[np.bool_]:
        """Return which cells have a level."""
        return np.asarray(self.values == level)


def column(obs: Any, name: str, argument: str) -> Any:
    """Return a column of adata.obs without unused categories.

    Args:
        obs: the table of the cells.
        name: of the column.
        argument: which argument named it.

    Raises:
        UnknownNameError: there is no such column.
        SingleCellError: missing values in it, values of several kinds, or two columns of that name.
    """
    if name not in obs.columns:
        raise unknown(argument, name, "columns of adata.obs", obs.columns)
    values = obs[name]
    if values.ndim != 1:
        raise SingleCellError(f"{argument}: adata.obs has several columns {name!r}; needed one: rename them")
    if values.isna().any():
        missing = np.flatnonzero(values.isna())
        raise SingleCellError(
            f"{argument}: obs[{name!r}] is missing in {len(missing)} of {len(values)} cells, the first "
            f"{obs.index[missing[0]]!r}; fill it, or keep adata[adata.obs[{name!r}].notna()]"
        )
    return _tidy(values, argument)


def _tidy(values: Any, argument: str) -> Any:
    if hasattr(values, "cat"):
        return values.cat.remove_unused_categories()
    if str(values.dtype) in ("string", "str"):  # which formulaic does not take for categories in every pandas
        return values.astype(object)
    if hasattr(values.dtype, "numpy_dtype"):  # pandas' own numbers, which can be missing and here are not
        values = values.astype(values.dtype.numpy_dtype)
    if values.dtype == object:
        return _plain(values, argument)
    if values.dtype.kind in "fc" and not np.isfinite(values.to_numpy()).all():
        raise SingleCellError(f"{argument}: obs[{values.name!r}] holds infinite values; needed finite ones")
    if values.dtype.kind in "Mm":
        raise SingleCellError(f"{argument}: obs[{values.name!r}] holds times; needed numbers or categories: convert it")
    return values


def _plain(values: Any, argument: str) -> Any:
    """Return a column of Python objects as one of text or of booleans."""
    for kind in (str, bool | np.bool_):
        if all(isinstance(value, kind) for value in values):
            return values.map(str) if kind is str else values.astype(bool)
    kinds = sorted({type(value).__name__ for value in values})
    raise SingleCellError(
        f"{argument}: obs[{values.name!r}] holds objects of type {listed(kinds)}; needed one of text, categories or "
        f"numbers: adata.obs[{values.name!r}].astype(str)"
    )


def variable(values: Any, coded: bool) -> Variable:
    """Return the variable of a column.

    Args:
        values: the column.
        coded: whether the formula takes numbers in it as categories.

    Raises:
        SingleCellError: the same value in all cells.
    """
    category = hasattr(values, "cat")
    levels = tuple(values.cat.categories if category else np.sort(values.unique()).tolist())
    if len(levels) < 2:
        raise SingleCellError(
            f"formula: obs[{values.name!r}] has one value only, {levels[0]!r}; needed two levels or more to compare"
        )
    if not category and values.dtype.kind in "fiu" and not coded:
        return Variable(values.name, values, levels if len(levels) == 2 else (), float(values.mean()), False)
    return Variable(values.name, values, levels, levels[0], True)


def strata(columns: Sequence[Any], cells: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the combinations of values that cells have.

    Args:
        columns: each a Series of the cells.
        cells: how many there are.

    Returns:
        The combination of each cell, from 0, and a cell of each combination.
    """
    pandas = require("pandas")
    codes = [pandas.factorize(c, sort=True)[0] for c in columns]
    table = np.stack([*codes, np.zeros(cells, np.int64)], 1)
    _, first, which = np.unique(table, axis=0, return_index=True, return_inverse=True)
    return which.reshape(-1).astype(np.int64), first
