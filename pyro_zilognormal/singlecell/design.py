"""The design that a formula makes of the cells, and what it can tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_zilognormal.singlecell.errors import SingleCellError, require, unknown
from pyro_zilognormal.singlecell.variables import column, variable

# Of a unit vector: what rounding makes of one in the space of the rows.
_OUTSIDE = 1e-8


class Design:
    """A formula and the matrix it makes of adata.obs.

    Attributes:
        formula: as given.
        matrix: float64, of shape (cells, columns); the first is 1.
        columns: names of the columns.
        variables: the columns of obs that the formula uses, by name.

    Args:
        formula: one side, as formulaic reads it: ``"~ condition + batch"``, ``"~ C(cluster)"``,
            ``"~ condition * center(age)"``.
        obs: the table of the cells.

    Raises:
        UnknownNameError: a variable that is no column of obs.
        SingleCellError: a formula that cannot be read, has no intercept, or whose variables cannot be used.
    """

    def __init__(self, formula: str, obs: Any) -> None:
        self.formula = formula
        parsed = _parse(formula)
        for name in sorted(parsed.required_variables):
            column(obs, name, "formula")
        frame = _frame(formula, obs)
        model_matrix = _materialise(formula, parsed, frame)
        self._spec = model_matrix.model_spec
        self._frame = frame.iloc[:1]
        self.columns = [str(name) for name in model_matrix.columns]
        self.variables = {name: variable(frame[name], name in _coded(self._spec)) for name in self._names()}
        self.matrix = np.asarray(model_matrix, dtype=np.float64)
        self._check()
        self._scale = column_lengths(self.matrix)
        self._basis = row_space(self.matrix / self._scale)

    @property
    def rank(self) -> int:
        """How many columns are independent."""
        return len(self._basis)

    def rows(self, conditions: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
        """Return the rows of the design for values of the variables; those left out have their defaults."""
        pandas = require("pandas")
        defaults = {name: v.default for name, v in self.variables.items()}
        frame = pandas.DataFrame([defaults | dict(c) for c in conditions])
        for name, like in self._frame[list(self.variables)].dtypes.items():
            frame[name] = frame[name].astype(like if self.variables[name].categorical else float)
        made = self._spec.get_model_matrix(frame) if self.variables else np.ones((len(conditions), 1))
        return np.asarray(made, dtype=np.float64)

    def level(self, name: str, came: Any) -> Any:
        """Return the value of a variable that is meant.

        Raises:
            UnknownNameError: no such variable or level.
        """
        if name not in self.variables:
            raise unknown("condition", name, f"variables of the formula {self.formula!r}", self.variables)
        return self.variables[name].level(came)

    def tells(self, row: NDArray[np.float64]) -> bool:
        """Return whether the cells determine a combination of the coefficients: it lies in the space of their rows."""
        scaled = row / self._scale
        outside = scaled - scaled @ self._basis.T @ self._basis
        return bool(np.linalg.norm(outside) <= _OUTSIDE * np.linalg.norm(scaled))

    def _names(self) -> list[str]:
        sources = self._spec.variables_by_source.get("data", ())
        return sorted({str(name) for name in sources} & set(self._frame.columns))

    def _check(self) -> None:
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


def _parse(formula: Any) -> Any:
    formulaic = require("formulaic")
    if not isinstance(formula, str):
        raise TypeError(f"formula is a {type(formula).__name__}; needed text, such as '~ condition'")
    try:
        parsed = formulaic.Formula(formula)
    except formulaic.errors.FormulaicError as error:
        raise SingleCellError(f"formula: {formula!r} cannot be read: {_first_line(error)}") from error
    if not isinstance(parsed, formulaic.SimpleFormula):
        raise SingleCellError(f"formula: {formula!r} has several sides or parts; needed one, such as '~ condition'")
    return parsed


def _frame(formula: str, obs: Any) -> Any:
    """Return the columns that the formula may use: those whose names stand in it somewhere."""
    names = [name for name in dict.fromkeys(obs.columns) if isinstance(name, str) and name in formula]
    return obs[[]].assign(**{name: _if_usable(obs, name) for name in names})


def _if_usable(obs: Any, name: str) -> Any:
    try:
        return column(obs, name, "formula")
    except SingleCellError:
        return obs[name]  # it may be the part of another name; if it is used, it is looked at again


def _materialise(formula: str, parsed: Any, frame: Any) -> Any:
    formulaic = require("formulaic")
    try:
        with np.errstate(all="ignore"):  # what is not finite is refused by name
            matrix = parsed.get_model_matrix(frame, na_action="ignore")
    except (formulaic.errors.FormulaicError, ValueError, TypeError) as error:
        raise SingleCellError(f"formula: {formula!r} does not fit adata.obs: {_first_line(error)}") from error
    for name in matrix.model_spec.variables_by_source.get("data", ()):
        column(frame, str(name), "formula")
    return matrix


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _coded(spec: Any) -> set[str]:
    """Return the variables that the formula takes as categories."""
    return {str(name) for factor in spec.factor_contrasts for name in spec.factor_variables[factor]}


def column_lengths(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the lengths of the columns, 1 for those of zeros: what makes columns of all units comparable."""
    lengths = np.linalg.norm(matrix, axis=0)
    return np.where(lengths > 0, lengths, 1.0)


def row_space(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an orthonormal basis of the space that the rows span, as rows."""
    triangle = np.linalg.qr(matrix, mode="r")
    _, sizes, basis = np.linalg.svd(triangle)
    most = sizes.max() * max(matrix.shape) * np.finfo(np.float64).eps
    return basis[: int((sizes > most).sum())]
