"""Formulas of columns of obs: which columns they name, quoted or not, and the matrices that formulaic makes of them.

A name that is no Python identifier is quoted, with backticks or as Q("...").
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_zilognormal.singlecell import errors
from pyro_zilognormal.singlecell.arguments import of_type
from pyro_zilognormal.singlecell.errors import ArgumentTypeError, SingleCellError, require

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


def _quoted(name: re.Match[str]) -> str | None:
    """Return the name that is quoted; None for a string or a word."""
    return ast.literal_eval(name["called"]) if name["called"] else name["ticked"]


@contextmanager
def _evaluating(text: str, said: str) -> Iterator[None]:
    """Raise whatever evaluating a formula raises as one line: a formula is code."""
    try:
        with np.errstate(all="ignore"):  # columns that are not finite are refused by name
            yield
    except Exception as error:
        raise SingleCellError(f"formula: {text!r} {said}: {errors.reason(error)}") from error


def parsed(text: str) -> Any:
    """Return a formula of one side as formulaic reads it: a list of its terms."""
    formulaic = require("formulaic")
    with _evaluating(text, "cannot be read"):
        # Formulaic does not know Q() within functions.
        found = formulaic.Formula(_NAME.sub(lambda name: f"`{_quoted(name)}`" if name["called"] else name[0], text))
    if not isinstance(found, formulaic.SimpleFormula):
        raise SingleCellError(f"formula: {text!r} has several sides or parts; needed one, such as '~ condition'")
    return found


class Formula:
    """A formula, fitted to columns of obs: ``frame`` has those that its ``text`` names.

    ``matrix``, float64 and of shape (cells, columns), has ``columns``. Of the columns of obs it uses the ``variables``,
    and takes those ``coded`` as categories.
    """

    def __init__(self, text: Any, obs: Any) -> None:
        if not isinstance(text, str):
            raise ArgumentTypeError(f"formula is a {type(text).__name__}; needed text, such as '~ condition'")
        self.text, terms = text, parsed(text)
        with _evaluating(text, "cannot be read"):
            required = {_root(name) for name in terms.required_variables}
        names = list(_NAME.finditer(text))
        quoted = {name for found in names if (name := _quoted(found)) is not None}
        named = quoted | ({found["word"] for found in names} & set(obs.columns))
        self.frame = obs[[]].assign(**{name: column(obs, name, "formula") for name in sorted(named)})
        for name in sorted(required - named - {_root(name) for name in quoted}):
            raise self._unknown(name, obs)
        with _evaluating(text, "does not fit adata.obs"):
            model_matrix = terms.get_model_matrix(self.frame, na_action="ignore")
        self._spec = spec = model_matrix.model_spec
        self.matrix = np.array(model_matrix, dtype=np.float64, order="C")
        self.columns = [str(name) for name in model_matrix.columns]
        sources = spec.variables_by_source  # formulaic knows no source of names with dots
        self.variables = sorted(self._own([*sources.get("data", ()), *sources.get(None, ())]))
        self.coded = self._own([name for factor in spec.factor_contrasts for name in spec.factor_variables[factor]])
        for name in sorted(self.coded):
            for level in self.frame[name].unique():
                if isinstance(level, str) and level.startswith("__"):  # its cells would be of the first level
                    raise SingleCellError(
                        f"formula: level {level!r} of obs[{name!r}] starts with two underscores, which formulaic keeps "
                        "for itself; rename it"
                    )

    def _own(self, names: Iterable[Any]) -> set[str]:
        """Return the columns among names, which may have attributes, such as age of age.abs."""
        columns = set(self.frame.columns)
        return {str(name) if str(name) in columns else _root(name) for name in names} & columns

    def rows(self, values: Any, numbers: set[str]) -> NDArray[np.float64]:
        """Return the rows of the matrix for a table of the variables' values; ``numbers`` need not be whole."""
        frame = values.astype({n: float if n in numbers else self.frame[n].dtype for n in values.columns})
        with _evaluating(self.text, "has no value at this condition, such as a spline beyond the cells"):
            return np.asarray(self._spec.get_model_matrix(frame), dtype=np.float64)

    def _unknown(self, name: str, obs: Any) -> SingleCellError:
        """Return the error for a name that obs does not have, which may be a part of one that has to be quoted."""
        for known in map(str, obs.columns):
            if not known.isidentifier() and known.startswith(name) and known in self.text:
                return SingleCellError(f"formula: {known!r} needs quotes in {self.text!r}: write `{known}`")
        return _no_column("formula", name, obs)


def _root(name: Any) -> str:
    """Return what stands before the first dot of a name."""
    return str(name).split(".")[0]


def _no_column(argument: str, name: str, obs: Any) -> SingleCellError:
    """Return the error for a column that obs does not have, or that its file holds but could not be read."""
    errors.check_readable(argument, f"obs[{name!r}]", obs)
    return errors.unknown(argument, name, "columns of adata.obs", obs.columns)


def column(obs: Any, name: str, argument: str) -> Any:
    """Return a column of adata.obs without unused categories."""
    if of_type(argument, name, str, "the name of a column of adata.obs") not in obs.columns:
        raise _no_column(argument, name, obs)
    values, said = obs[name], f"{argument}: obs[{name!r}]"
    if values.ndim > 1:
        raise SingleCellError(f"{argument}: obs has {values.shape[1]} columns named {name!r}; needed one")
    if values.isna().any():
        missing = np.flatnonzero(values.isna())
        raise SingleCellError(
            f"{said} is missing in {len(missing)} of {len(values)} cells, the first {obs.index[missing[0]]!r}; fill "
            f"it, or keep adata[adata.obs[{name!r}].notna()]"
        )
    if hasattr(values, "cat"):
        return values.cat.remove_unused_categories()
    if hasattr(values.dtype, "numpy_dtype"):  # pandas' nullable numbers
        values = values.astype(values.dtype.numpy_dtype)
    if values.dtype == object or str(values.dtype) in ("string", "str"):
        kinds = {type(value) for value in values}
        if all(issubclass(kind, str) for kind in kinds):
            return values.astype(object).map(str)  # formulaic does not code text as categories with every pandas
        if not all(issubclass(kind, bool | np.bool_) for kind in kinds):
            names = errors.listed(sorted(kind.__name__ for kind in kinds))
            raise SingleCellError(f"{said} holds objects of type {names}; needed text or numbers, as of astype(str)")
        values = values.astype(bool)
    if values.dtype.kind in "fc" and not np.isfinite(values.to_numpy()).all():
        raise SingleCellError(f"{said} holds infinite values; needed finite ones")
    if values.dtype.kind not in "biuf":
        raise SingleCellError(f"{said} is {values.dtype}; needed numbers or categories: convert it")
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
