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
from pyro_zilognormal.singlecell.arguments import of_type
from pyro_zilognormal.singlecell.design.formula import Formula
from pyro_zilognormal.singlecell.errors import ArgumentTypeError, SingleCellError, listed, require, shown, unknown

# Relative to a vector: the part outside the row space that rounding leaves of one inside it.
_OUTSIDE = 1e-8


@dataclass(frozen=True, eq=False)
class Contrast:
    """A comparison of two conditions, or the difference of two such comparisons.

    Attributes:
        name: its name in tables.
        test: the condition in the numerator of the fold change.
        reference: the condition in the denominator.
        minus: the comparison whose log fold change is subtracted, for a difference of two.
    """

    name: str
    test: Condition
    reference: Condition
    minus: Contrast | None = None

    @property
    def ends(self) -> tuple[Condition, ...]:
        """Test and reference, and those of the comparison that is subtracted."""
        return (self.test, self.reference) + (self.minus.ends if self.minus else ())

    @property
    def direction(self) -> NDArray[np.float64]:
        """The combination of coefficients that is the change of the log mean."""
        own = np.asarray(self.test.design) - np.asarray(self.reference.design)
        return own - self.minus.direction if self.minus else own

    @property
    def column(self) -> str | None:
        """The one variable in which the conditions differ, if there is one."""
        ends = self.test.levels, self.reference.levels
        differing = [name for name in {**ends[0], **ends[1]} if ends[0].get(name) != ends[1].get(name)]
        return differing[0] if len(differing) == 1 and not self.minus else None

    @property
    def labels(self) -> tuple[str, str]:
        """The two conditions, or comparisons, in a word each, by their levels alone where one variable is given."""
        if self.minus:
            test, reference = (f"{c.test.name} vs {c.reference.name}" for c in (self, self.minus))
            return test, reference
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
    def of(cls, values: Any, coded: bool, cells: NDArray[np.int64] | None = None) -> Variable:
        """Return the variable of a column, whose numbers the formula may take as categories (``coded``)."""
        category = hasattr(values, "cat")
        levels = tuple(values.cat.categories if category else np.sort(values.unique()).tolist())
        if len(levels) < 2:
            found = f"has one value only, {levels[0]!r}" if levels else "holds no cell"
            raise SingleCellError(f"formula: obs[{values.name!r}] {found}; needed two levels or more to compare")
        if category or coded or values.dtype.kind not in "fiu":
            return cls(values.name, values, levels, levels[0], True)
        mean = float(np.average(values, weights=cells))
        return cls(values.name, values, levels if len(levels) == 2 else (), mean, False)

    def level(self, given: Any) -> Any:
        """Return the level that is meant; a number may be given as text."""
        pandas = require("pandas")
        if not pandas.api.types.is_scalar(given) or pandas.isna(given):
            raise ArgumentTypeError(f"{self.name}: got {shown(given)}; needed one level of obs[{self.name!r}]")
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


class Design:
    """A formula, the matrix it makes of adata.obs, and the conditions and contrasts that the cells determine.

    Args:
        formula: of the columns of obs.
        obs: a row for each cell, or for each group of cells.
        cells: the number of cells in each group.

    Attributes:
        matrix: float64, of shape (cells, columns); the first column is 1.
        zero_matrix: that of the zero part: ``matrix``, and the log depth of the cells where it explains zeros.
        rank: the number of independent columns.
        variables: the columns of obs that the formula uses, by name.
    """

    def __init__(self, formula: str, obs: Any, cells: NDArray[np.int64] | None = None) -> None:
        self._formula = parsed = Formula(formula, obs)
        self.formula, self.columns, self.matrix = parsed.text, parsed.columns, parsed.matrix
        self.variables = {n: Variable.of(parsed.frame[n], n in parsed.coded, cells) for n in parsed.variables}
        self._check_matrix(len(self.matrix) if cells is None else int(cells.sum()))
        self.zero_matrix, self._space = self.matrix, RowSpace(self.matrix)
        self.rank = len(self._space.basis)

    def _check_matrix(self, cells: int) -> None:
        said = f"formula: {self.formula!r}"
        if not (self.matrix[:, :1] == 1).all() or self.matrix.shape[1] == 0:
            raise SingleCellError(f"{said} has no intercept; needed one: contrasts compare any two levels all the same")
        if len(self.columns) >= cells:
            raise SingleCellError(
                f"{said} has {len(self.columns)} coefficients for {cells} cells; needed fewer: leave out variables "
                "that name single cells"
            )
        if not np.isfinite(self.matrix).all():
            name = self.columns[int(np.argmin(np.isfinite(self.matrix).all(0)))]
            raise SingleCellError(f"formula: {name!r} is not finite in all cells; needed finite values")

    def add_depth(self, log_depth: NDArray[np.float64]) -> None:
        """Let the centred log depth of the cells explain zeros, unless it is 0 in all of them."""
        if log_depth.any():
            self.zero_matrix = np.column_stack([self.matrix, log_depth])

    @property
    def has_depth(self) -> bool:
        """Whether the zero part has a column for the depth of cells."""
        return self.zero_matrix is not self.matrix

    # --- Conditions

    def condition(self, levels: Mapping[str, Any]) -> Condition:
        """Return the row of the design for some levels; other variables have their defaults."""
        found = {name: self._variable(name).level(given) for name, given in levels.items()}
        (condition,) = self.conditions([found])
        if self._space.coordinates(condition.design) is None:
            raise SingleCellError(
                f"condition: {_words(found)!r} is not estimable: no cells determine it in {self.formula!r}; needed a "
                "combination that cells have, or a formula without that interaction"
            )
        return condition

    def conditions(self, each: Sequence[Mapping[str, Any]]) -> list[Condition]:
        """Return conditions of cells of mean depth, as given; other variables have their defaults."""
        rows, more = self._rows(each), [0.0] * self.has_depth
        return [Condition(row, np.append(row, more), row, own) for row, own in zip(rows, each, strict=True)]

    def _rows(self, conditions: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
        defaults = {name: v.default for name, v in self.variables.items()}
        frame = require("pandas").DataFrame([{**defaults, **c} for c in conditions])
        return self._formula.rows(frame, {name for name, v in self.variables.items() if not v.categorical})

    def _variable(self, name: str) -> Variable:
        if name not in self.variables:
            raise unknown("condition", name, f"variables of the formula {self.formula!r}", self.variables)
        return self.variables[name]

    # --- Contrasts

    def contrast(self, column: str, test: Any, reference: Any, name: str | None = None) -> Contrast:
        """Return the contrast of two levels of a variable."""
        variable = self._variable(of_type("contrast: column", column, str, "a variable of the formula"))
        if not variable.levels:
            raise SingleCellError(
                f"contrast: obs[{column!r}] holds numbers, so {self.formula!r} has one slope for it and no levels; "
                f"write C({column}) in the formula to compare levels, or compare '{column}=1' with '{column}=0'"
            )
        levels = [variable.level(given) for given in (test, reference)]
        for level, given in zip(levels, (test, reference), strict=True):
            if level not in variable.levels:  # a number other than the two
                raise unknown("contrast", given, f"values of obs[{column!r}]", variable.levels)
        # The conditions need not be estimable, as long as their difference is.
        above, below = self.conditions([{column: level} for level in levels])
        return self._checked(Contrast(name or f"{column}: {levels[0]} vs {levels[1]}", above, below))

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
            return self._checked(replace(given, name=name or given.name))
        parts = tuple(given) if isinstance(given, list | tuple) else ()
        if len(parts) == 3 and isinstance(parts[0], str):
            return self.contrast(*parts, name)
        if len(parts) == 2 and all(map(_is_condition, parts)):
            test, reference = map(self._condition_of, parts)
            return self._checked(Contrast(name or f"{test.name} vs {reference.name}", test, reference))
        if len(parts) == 2 and all(isinstance(part, Contrast | tuple | list) for part in parts):
            first, second = map(self._one, parts)
            if first.minus or second.minus:
                raise SingleCellError("contrast: got a difference of differences; needed one of two contrasts")
            name = name or f"({first.name}) minus ({second.name})"
            return self._checked(replace(first, name=name, minus=second))
        raise ArgumentTypeError(
            f"contrast is {shown(given)}; needed (column, test level, reference level), such as ('condition', 'stim', "
            "'ctrl'), or a pair of conditions, such as ('condition=stim,dose=high', 'condition=ctrl,dose=high'), or a "
            "pair of such contrasts for their difference; several go in a list"
        )

    def _condition_of(self, given: Condition | Mapping[str, Any] | str) -> Condition:
        """Return a condition that is given as such, as levels, or as text such as "condition=stim,dose=high"."""
        if isinstance(given, Condition):
            if np.shape(given.design) != (len(self.columns),):
                raise SingleCellError(f"contrast: {given.name} is a condition of another formula than {self.formula!r}")
            return given
        return self.condition(given if isinstance(given, Mapping) else self._levels_of(given))

    def _levels_of(self, text: str) -> dict[str, str]:
        """Return the levels of text such as "condition=stim,dose=high"; other commas and equals signs are of levels."""
        names = "|".join(re.escape(name) for name in sorted(self.variables, key=len, reverse=True))
        parts = re.split(rf",(?=\s*(?:{names})=)", text)
        pairs = [(m[1], m[2]) for part in parts if (m := re.fullmatch(rf"(?s)\s*({names})=(.*)", part))]
        if len(pairs) < len(parts):
            raise unknown("contrast", text.split("=")[0], f"variables of the formula {self.formula!r}", self.variables)
        if len(dict(pairs)) < len(pairs):
            raise SingleCellError(f"contrast: {text!r} names a variable twice; needed one level of each")
        return dict(pairs)

    def _checked(self, contrast: Contrast) -> Contrast:
        difference, said = contrast.direction, f"contrast: {contrast.name!r}"
        if len(difference) != len(self.columns):
            raise SingleCellError(f"{said} is of another formula than {self.formula!r}")
        if not difference.any():
            raise SingleCellError(f"{said} compares a condition with itself; needed two that differ")
        if self._space.coordinates(difference) is None:
            raise SingleCellError(
                f"{said} is not estimable from {self.formula!r}: its columns are not independent (rank {self.rank} of "
                f"{len(self.columns)}); leave out a variable that another one determines"
            )
        for name, variable in self.variables.items():
            if not any(name in end.levels for end in contrast.ends):
                self._check_interaction(contrast, variable)
        return contrast

    def _check_interaction(self, contrast: Contrast, variable: Variable) -> None:
        """Raise if a contrast depends on a variable that none of its conditions gives."""
        # The ends of a number's range: a spline has no values beyond them.
        others = variable.levels if variable.categorical else (variable.values.min(), variable.values.max())
        above, below, *more = (
            self._rows([{**end.levels, variable.name: other} for other in others]) for end in contrast.ends
        )
        difference, changes = contrast.direction, above - below - (more[0] - more[1] if more else 0)
        if np.abs(changes - difference).max() > 1e-9 * np.abs(difference).max():
            test, reference = (f"'{_words({**end.levels, variable.name: '...'})}'" for end in contrast.ends[:2])
            raise SingleCellError(
                f"contrast: {contrast.name!r} depends on {variable.name}, with which it interacts in {self.formula!r}; "
                f"needed the value of {variable.name} in a pair of conditions, ({test}, {reference}), or the "
                "difference of two such pairs"
            )


def _is_condition(given: Any) -> bool:
    return isinstance(given, Condition | Mapping) or (isinstance(given, str) and "=" in given)


def _words(levels: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={level}" for name, level in levels.items()) or "the reference"


class RowSpace:
    """The space that the rows of a matrix span: the combinations of coefficients that it determines.

    ``basis`` is orthonormal, as rows, of the rows divided by ``lengths``, which make columns of all units comparable.
    """

    def __init__(self, matrix: NDArray[np.float64]) -> None:
        lengths = np.linalg.norm(matrix, axis=0)
        self.lengths = np.where(lengths > 0, lengths, 1.0)
        _, sizes, basis = np.linalg.svd(np.linalg.qr(matrix / self.lengths, mode="r"))
        tolerance = sizes.max() * max(matrix.shape) * np.finfo(np.float64).eps
        self.basis = basis[: int((sizes > tolerance).sum())]

    def coordinates(self, row: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Return a row in the basis, or None if it does not lie in the space."""
        scaled = row / self.lengths
        inside = self.basis @ scaled
        outside = scaled - inside @ self.basis
        return inside if np.linalg.norm(outside) <= _OUTSIDE * np.linalg.norm(scaled) else None


def strata(columns: Sequence[Any], cells: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the combinations of values that cells have."""
    codes = [require("pandas").factorize(c, sort=True)[0] for c in columns]
    table = np.stack([*codes, np.zeros(cells, np.int64)], 1)
    _, first, which = np.unique(table, axis=0, return_index=True, return_inverse=True)
    return which.reshape(-1).astype(np.int64), first
