"""What is compared with what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyro_zilognormal.models import Condition
from pyro_zilognormal.singlecell.design import Design
from pyro_zilognormal.singlecell.errors import SingleCellError, listed, unknown
from pyro_zilognormal.singlecell.variables import Variable


@dataclass(frozen=True, eq=False)
class CellCondition(Condition):
    """A row of the design, and the values of the variables that it stands for.

    Attributes:
        levels: the values that were asked for, by variable; the others have their defaults.
    """

    levels: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Say it in words."""
        return ", ".join(f"{k}={v}" for k, v in self.levels.items()) or "reference"

    def __sub__(self, other: CellCondition) -> tuple[CellCondition, CellCondition]:
        """Return the pair of this condition and a reference, as ``cond(...) - cond(...)`` in pertpy."""
        return self, other


@dataclass(frozen=True, eq=False)
class Contrast:
    """A comparison of two conditions.

    Attributes:
        name: what it is called in tables.
        test: the condition above.
        reference: the condition below.
        column: the one variable in which they differ, if there is one.
    """

    name: str
    test: CellCondition
    reference: CellCondition
    column: str | None = None


def make_condition(design: Design, levels: Mapping[str, Any]) -> CellCondition:
    """Return the condition of some values of the variables, the others at their defaults."""
    found = {name: design.level(name, came) for name, came in levels.items()}
    row = design.rows([found])[0]
    if not design.tells(row):
        raise SingleCellError(
            f"condition: {_words(found)} is not estimable: no cells determine it in {design.formula!r}; needed a "
            "combination that cells have, or a formula without that interaction"
        )
    return CellCondition(row, None, found)


def make_contrast(design: Design, column: str, test: Any, reference: Any, name: str | None = None) -> Contrast:
    """Return the contrast of two levels of a column."""
    if column not in design.variables:
        design.level(column, test)  # raises
    variable = design.variables[column]
    if not variable.levels:
        raise SingleCellError(
            f"contrast: obs[{column!r}] holds numbers, so {design.formula!r} has one slope for it and no levels; write "
            f"C({column}) in the formula to compare levels, or give two conditions, cond({column}=...)"
        )
    levels = [_known(variable, came) for came in (test, reference)]
    words = f"{column}: {levels[0]} vs {levels[1]}"
    above, below = (_loose_condition(design, {column: level}) for level in levels)
    return _checked(design, Contrast(name or words, above, below, column))


def _known(variable: Variable, came: Any) -> Any:
    level = variable.level(came)
    if level not in variable.levels:
        raise unknown("contrast", came, f"values of obs[{variable.name!r}]", variable.levels)
    return level


def make_pair(design: Design, test: CellCondition, reference: CellCondition, name: str | None = None) -> Contrast:
    """Return the contrast of two conditions."""
    names = {*test.levels, *reference.levels}
    differing = [k for k in sorted(names) if test.levels.get(k) != reference.levels.get(k)]
    column = differing[0] if len(differing) == 1 else None
    return _checked(design, Contrast(name or f"{test.name} vs {reference.name}", test, reference, column))


def parse_contrasts(design: Design, given: Any) -> list[Contrast]:
    """Return the contrasts that an argument names.

    Args:
        design: of the cells.
        given: a :class:`Contrast`, (column, test level, reference level), a pair of conditions, a list of
            such, or a dict of such with names.

    Raises:
        TypeError: something else.
        SingleCellError: what :func:`make_contrast` refuses, no contrast or two of one name.
    """
    if isinstance(given, Mapping):
        found = [_one(design, c, str(name)) for name, c in given.items()]
    elif isinstance(given, list):
        found = [_one(design, c) for c in given]
    else:
        found = [_one(design, given)]
    names = [c.name for c in found]
    if not found or len(set(names)) < len(names):
        raise SingleCellError(f"contrast: got {listed(names)}; needed at least one, and each once")
    return found


def _one(design: Design, given: Any, name: str | None = None) -> Contrast:
    if isinstance(given, Contrast):
        return given if name is None else Contrast(name, given.test, given.reference, given.column)
    if isinstance(given, Sequence) and len(given) == 2 and all(isinstance(c, CellCondition) for c in given):
        test, reference = given
        return make_pair(design, test, reference, name)
    if isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 3 and isinstance(given[0], str):
        column, test, reference = given
        return make_contrast(design, column, test, reference, name)
    raise TypeError(
        f"contrast is {given!r}; needed (column, test level, reference level), such as ('condition', 'stim', 'ctrl'), "
        "or a pair of conditions, such as (de.cond(...), de.cond(...)); several go in a list"
    )


def _loose_condition(design: Design, levels: Mapping[str, Any]) -> CellCondition:
    """Return a condition which need not be estimable itself, as only its difference from another is asked for."""
    return CellCondition(design.rows([levels])[0], None, levels)


def _checked(design: Design, contrast: Contrast) -> Contrast:
    difference = contrast.test.design - contrast.reference.design
    if not difference.any():
        raise SingleCellError(f"contrast: {contrast.name!r} compares a condition with itself; needed two that differ")
    if not design.tells(difference):
        raise SingleCellError(
            f"contrast: {contrast.name!r} is not estimable from {design.formula!r}: its columns are not independent "
            f"(rank {design.rank} of {len(design.columns)}); leave out a variable that another one determines"
        )
    _check_interactions(design, contrast, difference)
    return contrast


def _check_interactions(design: Design, contrast: Contrast, difference: np.ndarray) -> None:
    """Raise if the contrast depends on a variable of which neither condition says anything."""
    for name, variable in design.variables.items():
        if name in contrast.test.levels or name in contrast.reference.levels:
            continue
        others = variable.levels if variable.categorical else (variable.default + 1.0,)
        ends = [design.rows([dict(c.levels) | {name: v} for v in others]) for c in (contrast.test, contrast.reference)]
        if np.abs(ends[0] - ends[1] - difference).max() > _close(difference):
            raise SingleCellError(
                f"contrast: {contrast.name!r} depends on {name}, with which it interacts in {design.formula!r}; needed "
                f"the value of {name}: a pair of conditions, cond({_words(contrast.test.levels)}, {name}=...)"
            )


def _close(difference: np.ndarray) -> float:
    return 1e-9 * float(np.abs(difference).max())


def _words(levels: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in levels.items()) or "the reference"
