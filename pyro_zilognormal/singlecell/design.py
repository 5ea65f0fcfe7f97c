"""The design matrix of a formula, conditions and contrasts, and whether the cells determine them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_zilognormal.models import Condition
from pyro_zilognormal.singlecell.errors import SingleCellError, listed, require, unknown

# The column of the zero part's design that holds the depth of cells, centred.
LOG_DEPTH = "log depth"
# Relative to a vector: the part outside the row space that rounding leaves of one inside it.
_OUTSIDE = 1e-8


@dataclass(frozen=True, eq=False)
class Contrast:
    """A comparison of two conditions.

    Attributes:
        name: its name in tables.
        test: the condition in the numerator of the fold change.
        reference: the condition in the denominator.
    """

    name: str
    test: Condition
    reference: Condition

    @property
    def column(self) -> str | None:
        """The one variable in which the conditions differ, if there is one."""
        ends = self.test.levels, self.reference.levels
        differing = [name for name in {**ends[0], **ends[1]} if ends[0].get(name) != ends[1].get(name)]
        return differing[0] if len(differing) == 1 else None

    @property
    def labels(self) -> tuple[str, str]:
        """The two conditions in a word each, by their levels alone where one variable is given."""
        ends = self.test, self.reference
        alone = all([*end.levels] == [self.column] for end in ends)
        test, reference = (str(*end.levels.values()) if alone else end.name for end in ends)
        return test, reference


@dataclass(frozen=True, eq=False)
class Variable:
    """A column of obs that a formula uses."""

    name: str
    values: Any  # a pandas Series over cells, without missing values and unused categories
    levels: tuple[Any, ...]  # in their order; of a number only if it has two values, else none
    default: Any  # the first level of a category, the mean of a number
    categorical: bool  # whether the formula codes it as a category

    @classmethod
    def of(cls, values: Any, coded: bool) -> Variable:
        """Return the variable of a column; ``coded`` says that the formula takes its numbers as categories."""
        category = hasattr(values, "cat")
        levels = tuple(values.cat.categories if category else np.sort(values.unique()).tolist())
        if len(levels) < 2:
            raise SingleCellError(
                f"formula: obs[{values.name!r}] has one value only, {levels[0]!r}; needed two levels or more to compare"
            )
        if not category and values.dtype.kind in "fiu" and not coded:
            return cls(values.name, values, levels if len(levels) == 2 else (), float(values.mean()), False)
        return cls(values.name, values, levels, levels[0], True)

    def level(self, given: Any) -> Any:
        """Return the level that is meant; a number may be given as text."""
        if self.categorical:
            found = [v for v in self.levels if v == given] or [v for v in self.levels if str(v) == str(given)]
            if len(found) != 1:
                raise unknown(self.name, given, f"levels of obs[{self.name!r}]", self.levels)
            return found[0]
        try:
            number = float(given)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise SingleCellError(f"{self.name}: got {given!r}; needed a finite number, as obs[{self.name!r}] holds")
        return number


def column(obs: Any, name: str, argument: str) -> Any:
    """Return a column of adata.obs without unused categories."""
    if name not in obs.columns:
        raise unknown(argument, name, "columns of adata.obs", obs.columns)
    values = obs[name]
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
    if values.dtype.kind in "Mm":
        raise SingleCellError(f"{argument}: obs[{name!r}] holds times; needed numbers or categories: convert it")
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


class Design:
    """A formula, the matrix it makes of adata.obs, and the conditions and contrasts that the cells determine.

    Attributes:
        formula: that of the fixed effects.
        matrix: float64, of shape (cells, columns); the first column is 1.
        columns: names of the columns.
        zero_matrix: that of the zero part: ``matrix``, and the log depth of the cells where it explains zeros.
        zero_columns: names of its columns.
        variables: the columns of obs that the formula uses, by name.
    """

    def __init__(self, formula: str, obs: Any) -> None:
        self.formula = formula
        frame, model_matrix = _materialise(formula, obs)
        self._spec = spec = model_matrix.model_spec
        self._dtypes = frame.dtypes
        self.columns = [str(name) for name in model_matrix.columns]
        coded = {str(name) for factor in spec.factor_contrasts for name in spec.factor_variables[factor]}
        used = sorted(map(str, spec.variables_by_source.get("data", ())))
        self.variables = {name: Variable.of(frame[name], name in coded) for name in used}
        self.matrix = np.asarray(model_matrix, dtype=np.float64)
        self._check_matrix()
        self.zero_matrix, self.zero_columns = self.matrix, self.columns
        self._lengths = _column_lengths(self.matrix)
        self._basis = _row_space(self.matrix / self._lengths)

    @property
    def rank(self) -> int:
        """The number of independent columns."""
        return len(self._basis)

    def add_depth(self, log_depth: NDArray[np.float64]) -> None:
        """Let the centred log depth of the cells explain zeros, unless it is 0 in all of them."""
        if log_depth.any():
            self.zero_matrix = np.column_stack([self.matrix, log_depth])
            self.zero_columns = [*self.columns, LOG_DEPTH]

    @property
    def has_depth(self) -> bool:
        """Whether the zero part has a column for the depth of cells."""
        return len(self.zero_columns) > len(self.columns)

    def estimable(self, row: NDArray[np.float64]) -> bool:
        """Return whether the cells determine a combination of the coefficients: it lies in the matrix's row space."""
        scaled = row / self._lengths
        outside = scaled - scaled @ self._basis.T @ self._basis
        return bool(np.linalg.norm(outside) <= _OUTSIDE * np.linalg.norm(scaled))

    def condition(self, levels: Mapping[str, Any]) -> Condition:
        """Return the row of the design for some levels; other variables have their defaults."""
        found = {name: self._variable(name).level(given) for name, given in levels.items()}
        (row,) = self._rows([found])
        if not self.estimable(row):
            raise SingleCellError(
                f"condition: {_words(found)} is not estimable: no cells determine it in {self.formula!r}; needed a "
                "combination that cells have, or a formula without that interaction"
            )
        return self._condition(row, found)

    def contrast(self, column: str, test: Any, reference: Any, name: str | None = None) -> Contrast:
        """Return the contrast of two levels of a variable."""
        variable = self._variable(column)
        if not variable.levels:
            raise SingleCellError(
                f"contrast: obs[{column!r}] holds numbers, so {self.formula!r} has one slope for it and no levels; "
                f"write C({column}) in the formula to compare levels, or give two conditions, cond({column}=...)"
            )
        levels = [variable.level(given) for given in (test, reference)]
        for level, given in zip(levels, (test, reference), strict=True):
            if level not in variable.levels:  # a number other than the two
                raise unknown("contrast", given, f"values of obs[{column!r}]", variable.levels)
        # The conditions need not be estimable, as long as their difference is.
        ends = [{column: level} for level in levels]
        conditions = (self._condition(row, end) for row, end in zip(self._rows(ends), ends, strict=True))
        return self._checked(Contrast(name or f"{column}: {levels[0]} vs {levels[1]}", *conditions))

    def pair(self, test: Condition, reference: Condition, name: str | None = None) -> Contrast:
        """Return the contrast of two conditions; see :meth:`contrast`."""
        return self._checked(Contrast(name or f"{test.name} vs {reference.name}", test, reference))

    def contrasts(self, given: Any) -> list[Contrast]:
        """Return the contrasts that an argument names."""
        if isinstance(given, Mapping):
            found = [self._one(c, str(name)) for name, c in given.items()]
        else:
            found = [self._one(c) for c in (given if isinstance(given, list) else [given])]
        names = [c.name for c in found]
        if not found or len(set(names)) < len(names):
            raise SingleCellError(f"contrast: got {listed(names)}; needed at least one, and each once")
        return found

    def _one(self, given: Any, name: str | None = None) -> Contrast:
        if isinstance(given, Contrast):
            return replace(given, name=name or given.name)
        parts = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else ()
        if len(parts) == 2 and all(isinstance(part, Condition) for part in parts):
            return self.pair(*parts, name)
        if len(parts) == 3 and isinstance(parts[0], str):
            return self.contrast(*parts, name)
        raise TypeError(
            f"contrast is {given!r}; needed (column, test level, reference level), such as ('condition', 'stim', "
            "'ctrl'), or a pair of conditions, such as (de.cond(...), de.cond(...)); several go in a list"
        )

    def _variable(self, name: str) -> Variable:
        if name not in self.variables:
            raise unknown("condition", name, f"variables of the formula {self.formula!r}", self.variables)
        return self.variables[name]

    def _rows(self, conditions: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
        """Return the rows of the design for values of the variables; missing ones have their defaults."""
        defaults = {name: v.default for name, v in self.variables.items()}
        frame = require("pandas").DataFrame([{**defaults, **c} for c in conditions])
        for name, variable in self.variables.items():
            frame[name] = frame[name].astype(self._dtypes[name] if variable.categorical else float)
        return np.asarray(self._spec.get_model_matrix(frame), dtype=np.float64)

    def _condition(self, row: NDArray[np.float64], levels: Mapping[str, Any]) -> Condition:
        """Return the condition of a row: a cell of mean depth."""
        return Condition(row, np.append(row, 0.0) if self.has_depth else row, row, levels)

    def _checked(self, contrast: Contrast) -> Contrast:
        difference = contrast.test.design - contrast.reference.design
        if not difference.any():
            raise SingleCellError(
                f"contrast: {contrast.name!r} compares a condition with itself; needed two that differ"
            )
        if not self.estimable(difference):
            raise SingleCellError(
                f"contrast: {contrast.name!r} is not estimable from {self.formula!r}: its columns are not independent "
                f"(rank {self.rank} of {len(self.columns)}); leave out a variable that another one determines"
            )
        self._check_interactions(contrast, difference)
        return contrast

    def _check_interactions(self, contrast: Contrast, difference: NDArray[np.float64]) -> None:
        """Raise if the contrast depends on a variable that neither condition gives."""
        ends = contrast.test.levels, contrast.reference.levels
        for name, variable in self.variables.items():
            if any(name in levels for levels in ends):
                continue
            others = variable.levels if variable.categorical else (variable.default + 1.0,)
            above, below = (self._rows([{**levels, name: other} for other in others]) for levels in ends)
            if np.abs(above - below - difference).max() > 1e-9 * np.abs(difference).max():
                raise SingleCellError(
                    f"contrast: {contrast.name!r} depends on {name}, with which it interacts in {self.formula!r}; "
                    f"needed the value of {name}: a pair of conditions, cond({_words(ends[0])}, {name}=...)"
                )

    def _check_matrix(self) -> None:
        if not (self.matrix[:, :1] == 1).all() or self.matrix.shape[1] == 0:
            raise SingleCellError(
                f"formula: {self.formula!r} has no intercept; needed one, without '0 +' and '- 1': contrasts compare "
                "any two levels all the same"
            )
        if not np.isfinite(self.matrix).all():
            at = self.columns[int(np.argmax(~np.isfinite(self.matrix).all(0)))]
            raise SingleCellError(
                f"formula: {at!r} is not finite in all cells; needed finite values: check its argument"
            )


def _words(levels: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in levels.items()) or "the reference"


def _materialise(formula: Any, obs: Any) -> tuple[Any, Any]:
    """Return the columns of obs that the formula names, and its model matrix."""
    formulaic = require("formulaic")
    if not isinstance(formula, str):
        raise TypeError(f"formula is a {type(formula).__name__}; needed text, such as '~ condition'")
    try:
        parsed = formulaic.Formula(formula)
    except formulaic.errors.FormulaicError as error:
        raise SingleCellError(f"formula: {formula!r} cannot be read: {_first_line(error)}") from error
    if not isinstance(parsed, formulaic.SimpleFormula):
        raise SingleCellError(f"formula: {formula!r} has several sides or parts; needed one, such as '~ condition'")
    # Formulaic does not count arguments of its stateful functions, such as center(age), among required variables.
    words = {name: rf"(?<![\w.'\"]){re.escape(name)}(?![\w('\"])" for name in obs.columns if isinstance(name, str)}
    named = {name for name, word in words.items() if re.search(word, formula)} | parsed.required_variables
    frame = obs[[]].assign(**{name: column(obs, name, "formula") for name in sorted(named)})
    try:
        with np.errstate(all="ignore"):  # columns that are not finite are refused by name
            return frame, parsed.get_model_matrix(frame, na_action="ignore")
    except (formulaic.errors.FormulaicError, ValueError, TypeError) as error:
        raise SingleCellError(f"formula: {formula!r} does not fit adata.obs: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _column_lengths(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the lengths of the columns, which make columns of all units comparable; 1 for those of zeros."""
    lengths = np.linalg.norm(matrix, axis=0)
    return np.where(lengths > 0, lengths, 1.0)


def _row_space(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an orthonormal basis of the space that the rows span, as rows."""
    _, sizes, basis = np.linalg.svd(np.linalg.qr(matrix, mode="r"))
    tolerance = sizes.max() * max(matrix.shape) * np.finfo(np.float64).eps
    return basis[: int((sizes > tolerance).sum())]


def strata(columns: Sequence[Any], cells: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the combinations of values that cells have."""
    codes = [require("pandas").factorize(c, sort=True)[0] for c in columns]
    table = np.stack([*codes, np.zeros(cells, np.int64)], 1)
    _, first, which = np.unique(table, axis=0, return_index=True, return_inverse=True)
    return which.reshape(-1).astype(np.int64), first
