"""Formulas of columns of obs: which columns they name, quoted or not, and the matrices that formulaic makes of them.

A name that is no Python identifier is quoted, with backticks or as Q("...").
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_zilognormal.singlecell.errors import (
    ArgumentTypeError,
    SingleCellError,
    check_readable,
    listed,
    reason,
    require,
    unknown,
)

_STRING = r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\""
# A quoted name, a string, or a word that is no attribute and no function.
_NAME = re.compile(
    rf"\bQ\(\s*(?P<called>{_STRING})\s*\)|`(?P<ticked>[^`]*)`|{_STRING}|(?<![\w.])(?P<word>[^\W\d]\w*)(?!\w|\s*\()"
)


def unquoted(name: str) -> str:
    """Return the name of a column without the quotes that formulas write around it.

    Example:
        >>> unquoted(" `orig.ident` "), unquoted("Q('a b')"), unquoted("donor")
        ('orig.ident', 'a b', 'donor')
    """
    found = _NAME.fullmatch(name.strip())
    return (found and _quoted(found)) or name.strip()


def _with_ticks(formula: str) -> str:
    """Return a formula with backticks in place of Q(), which formulaic does not know within functions."""
    return _NAME.sub(lambda found: f"`{_quoted(found)}`" if found["called"] else found[0], formula)


def _quoted(name: re.Match[str]) -> str | None:
    """Return the name that is quoted; None for a string or a word."""
    return ast.literal_eval(name["called"]) if name["called"] else name["ticked"]


class Formula:
    """A formula, fitted to columns of obs.

    Attributes:
        text: as it was given.
        frame: the columns of obs that it names, by their own names.
        matrix: its model matrix, float64, of shape (cells, columns).
        columns: the names of the matrix's columns.
        variables: the names of the columns of obs that it uses.
        coded: those of them that it takes as categories.
    """

    def __init__(self, text: Any, obs: Any) -> None:
        formulaic = require("formulaic")
        if not isinstance(text, str):
            raise ArgumentTypeError(f"formula is a {type(text).__name__}; needed text, such as '~ condition'")
        self.text = text
        try:
            parsed = formulaic.Formula(_with_ticks(text))
            simple = isinstance(parsed, formulaic.SimpleFormula)
            required = {_root(name) for name in parsed.required_variables} if simple else set()
        except Exception as error:  # what stands in a formula is code, which can raise anything
            raise SingleCellError(f"formula: {text!r} cannot be read: {reason(error)}") from error
        if not simple:
            raise SingleCellError(f"formula: {text!r} has several sides or parts; needed one, such as '~ condition'")
        names = list(_NAME.finditer(text))
        quoted = {name for found in names if (name := _quoted(found)) is not None}
        for name in sorted(quoted - set(obs.columns)):
            raise _no_column("formula", name, obs)
        named = quoted | ({found["word"] for found in names} & set(obs.columns))
        for name in sorted(required - named - {_root(name) for name in quoted}):
            raise self._unknown(name, obs)
        self.frame = obs[[]].assign(**{name: column(obs, name, "formula") for name in sorted(named)})
        model_matrix = self._evaluate(lambda: parsed.get_model_matrix(self.frame, na_action="ignore"))
        self._spec = spec = model_matrix.model_spec
        self.matrix = np.array(model_matrix, dtype=np.float64, order="C")
        self.columns = [str(name) for name in model_matrix.columns]
        sources = spec.variables_by_source  # formulaic knows no source of names with dots
        self.variables = sorted(self._own([*sources.get("data", ()), *sources.get(None, ())]))
        self.coded = self._own([name for factor in spec.factor_contrasts for name in spec.factor_variables[factor]])
        self._check_levels()

    def _own(self, names: Iterable[Any]) -> set[str]:
        """Return the columns among names, which may have attributes, such as age of age.abs."""
        columns = set(self.frame.columns)
        return {str(name) if str(name) in columns else _root(name) for name in names} & columns

    def rows(self, values: Any, numbers: set[str]) -> NDArray[np.float64]:
        """Return the rows of the matrix for a table of the variables' values; ``numbers`` need not be whole."""
        frame = values.astype({n: float if n in numbers else self.frame[n].dtype for n in values.columns})
        said = "has no value at this condition, such as a spline beyond the cells"
        return np.asarray(self._evaluate(lambda: self._spec.get_model_matrix(frame), said), dtype=np.float64)

    def _evaluate(self, make: Any, said: str = "does not fit adata.obs") -> Any:
        try:
            with np.errstate(all="ignore"):  # columns that are not finite are refused by name
                return make()
        except Exception as error:  # as above
            raise SingleCellError(f"formula: {self.text!r} {said}: {reason(error)}") from error

    def _check_levels(self) -> None:
        """Raise for a level that formulaic would leave out in silence, so that its cells were of the first level."""
        for name in sorted(self.coded):
            for level in self.frame[name].unique():
                if isinstance(level, str) and level.startswith("__"):
                    raise SingleCellError(
                        f"formula: level {level!r} of obs[{name!r}] starts with two underscores, which formulaic keeps "
                        "for itself; rename it"
                    )

    def _unknown(self, name: str, obs: Any) -> SingleCellError:
        """Return the error for a name that obs does not have, which may be a part of one that has to be quoted."""
        odd = [str(known) for known in obs.columns if not str(known).isidentifier()]
        whole = [known for known in odd if known.startswith(name) and known in self.text]
        if not whole:
            return _no_column("formula", name, obs)
        return SingleCellError(f"formula: {whole[0]!r} needs quotes in {self.text!r}: write `{whole[0]}`")


def _root(name: Any) -> str:
    """Return what stands before the first dot of a name."""
    return str(name).split(".")[0]


def _no_column(argument: str, name: str, obs: Any) -> SingleCellError:
    """Return the error for a column that obs does not have, or that its file holds but could not be read."""
    check_readable(argument, f"obs[{name!r}]", obs)
    return unknown(argument, name, "columns of adata.obs", obs.columns)


def column(obs: Any, name: str, argument: str) -> Any:
    """Return a column of adata.obs without unused categories."""
    if not isinstance(name, str):
        raise ArgumentTypeError(f"{argument} is {name!r}; needed the name of a column of adata.obs")
    if name not in obs.columns:
        raise _no_column(argument, name, obs)
    values = obs[name]
    if values.ndim > 1:
        raise SingleCellError(f"{argument}: obs has {values.shape[1]} columns named {name!r}; needed one")
    if values.isna().any():
        missing = np.flatnonzero(values.isna())
        raise SingleCellError(
            f"{argument}: obs[{name!r}] is missing in {len(missing)} of {len(values)} cells, the first "
            f"{obs.index[missing[0]]!r}; fill it, or keep adata[adata.obs[{name!r}].notna()]"
        )
    if hasattr(values, "cat"):
        return values.cat.remove_unused_categories()
    if str(values.dtype) in ("string", "str"):  # formulaic does not code them as categories with every pandas
        return values.astype(object)
    if hasattr(values.dtype, "numpy_dtype"):  # pandas' nullable numbers
        values = values.astype(values.dtype.numpy_dtype)
    if values.dtype == object:
        return _one_type(values, argument)
    if values.dtype.kind in "fc" and not np.isfinite(values.to_numpy()).all():
        raise SingleCellError(f"{argument}: obs[{name!r}] holds infinite values; needed finite ones")
    if values.dtype.kind not in "biuf":
        raise SingleCellError(f"{argument}: obs[{name!r}] is {values.dtype}; needed numbers or categories: convert it")
    return values


def grouping(obs: Any, name: str, argument: str) -> Any:
    """Return a column of adata.obs that names groups of cells, such as donors, not single cells."""
    values = column(obs, name, argument)
    if 2 * (levels := values.nunique()) > len(values) > 0:
        raise SingleCellError(
            f"{argument}: obs[{name!r}] has {levels} levels in {len(values)} cells; needed a column that names groups "
            "of cells, such as donors, two cells or more in each on average"
        )
    return values


def _one_type(values: Any, argument: str) -> Any:
    """Return a column of Python objects as text or booleans."""
    for kind in (str, bool | np.bool_):
        if all(isinstance(value, kind) for value in values):
            return values.map(str) if kind is str else values.astype(bool)
    kinds = sorted({type(value).__name__ for value in values})
    raise SingleCellError(
        f"{argument}: obs[{values.name!r}] holds objects of type {listed(kinds)}; needed one of text, categories or "
        f"numbers: adata.obs[{values.name!r}].astype(str)"
    )
