"""Formulas of columns of obs: which columns they name, quoted or not, and the matrices that formulaic makes of them.

A name that is no Python identifier is quoted, with backticks or as Q("..."). Formulaic sees an alias for it, so that
dots and all other signs are parts of names.
"""

from __future__ import annotations

import ast
import keyword
import re
import unicodedata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_zilognormal.singlecell.errors import (
    ArgumentTypeError,
    SingleCellError,
    check_readable,
    listed,
    require,
    unknown,
)

_STRING = r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\""
# A quoted name, or a string, which may hold backticks.
_QUOTED = re.compile(rf"\bQ\(\s*(?P<called>{_STRING})\s*\)|`(?P<ticked>[^`]*)`|{_STRING}")
# A word that is no attribute and no function.
_WORD = re.compile(rf"{_STRING}|(?<![\w.])([^\W\d]\w*)(?!\w|\s*\()")


def unquoted(name: str) -> str:
    """Return the name of a column without the quotes that formulas write around it.

    Example:
        >>> unquoted(" `orig.ident` "), unquoted("Q('a b')"), unquoted("donor")
        ('orig.ident', 'a b', 'donor')
    """
    found = _QUOTED.fullmatch(name.strip())
    return name.strip() if found is None else _name(found) or name.strip()


def _name(quoted: re.Match[str]) -> str | None:
    """Return the name that is quoted; None for a string."""
    return ast.literal_eval(quoted["called"]) if quoted["called"] else quoted["ticked"]


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
        aliased, self._alias = _with_aliases(text, obs)
        try:
            parsed = formulaic.Formula(aliased)
            simple = isinstance(parsed, formulaic.SimpleFormula)
            required = {_root(name) for name in parsed.required_variables} if simple else set()
        except Exception as error:  # what stands in a formula is code, which can raise anything
            raise SingleCellError(f"formula: {text!r} cannot be read: {self._said(error)}") from error
        if not simple:
            raise SingleCellError(f"formula: {text!r} has several sides or parts; needed one, such as '~ condition'")
        own = {alias: name for name, alias in self._alias.items()}
        named = {word[1] for word in _WORD.finditer(aliased) if word[1] in obs.columns} | own.keys()
        for name in sorted(required - named):
            raise self._unknown(name, obs)
        frame = obs[[]].assign(**{name: column(obs, own.get(name, name), "formula") for name in sorted(named)})
        model_matrix = self._evaluate(lambda: parsed.get_model_matrix(frame, na_action="ignore"))
        self._spec, self._dtypes = model_matrix.model_spec, frame.dtypes
        self.frame = frame.rename(columns=own)
        self.matrix = np.array(model_matrix, dtype=np.float64, order="C")
        self.columns = [self._own(str(name)) for name in model_matrix.columns]
        used = {_root(name) for name in self._spec.variables_by_source.get("data", ())} & set(frame.columns)
        coded = {_root(name) for f in self._spec.factor_contrasts for name in self._spec.factor_variables[f]}
        self.variables = sorted(own.get(name, name) for name in used)
        self.coded = {own.get(name, name) for name in coded & used}
        self._check_levels()

    def rows(self, values: Any, numbers: set[str]) -> NDArray[np.float64]:
        """Return the rows of the matrix for a table of the variables' values; ``numbers`` need not be whole."""
        frame = values.rename(columns=self._alias)
        plain = {self._alias.get(name, name) for name in numbers}
        for name in frame.columns:
            frame[name] = frame[name].astype(float if name in plain else self._dtypes[name])
        said = "has no value at this condition, such as a spline beyond the cells"
        return np.asarray(self._evaluate(lambda: self._spec.get_model_matrix(frame), said), dtype=np.float64)

    def _evaluate(self, make: Any, said: str = "does not fit adata.obs") -> Any:
        try:
            with np.errstate(all="ignore"):  # columns that are not finite are refused by name
                return make()
        except Exception as error:  # as above
            raise SingleCellError(f"formula: {self.text!r} {said}: {self._said(error)}") from error

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
            return _no_column("formula", self._own(name), obs)
        return SingleCellError(f"formula: {whole[0]!r} needs quotes in {self.text!r}: write `{whole[0]}`")

    def _own(self, text: str) -> str:
        """Return text with the columns' own names for their aliases."""
        for name, alias in self._alias.items():
            text = text.replace(alias, name)
        return text

    def _said(self, error: Exception) -> str:
        lines = self._own(str(error)).strip().splitlines()
        return lines[0] if lines else type(error).__name__


def _with_aliases(text: str, obs: Any) -> tuple[str, dict[str, str]]:
    """Return a formula with an alias for each quoted name, and the aliases by name."""
    start = "quoted_"
    alias: dict[str, str] = {}
    columns = obs.columns
    while any(str(name).startswith(start) for name in columns) or start in text:
        start = f"_{start}"

    def replace(name: str) -> str:
        if name not in columns:
            raise _no_column("formula", name, obs)
        return alias.setdefault(name, f"{start}{len(alias)}_")

    def quoted(found: re.Match[str]) -> str:
        name = _name(found)
        return found[0] if name is None else replace(name)

    def bare(found: re.Match[str]) -> str:  # Python reads a micro sign as the Greek letter, and class as itself
        word = found[1]
        odd = word in columns and (keyword.iskeyword(word) or unicodedata.normalize("NFKC", word) != word)
        return replace(word) if odd else found[0]

    return _WORD.sub(bare, _QUOTED.sub(quoted, text)), alias


def _root(name: Any) -> str:
    """Return the variable of a name with attributes, such as age of age.abs."""
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
