"""Random effects: terms of a formula in the notation of lme4, and the level of each term that a cell has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_zilognormal.singlecell.design.design import Design, strata
from pyro_zilognormal.singlecell.design.formula import column, unquoted
from pyro_zilognormal.singlecell.errors import SingleCellError

# (left | right) that is no call of a function; both sides may hold calls, such as C(dose), and quoted names.
_NAME = r"`[^`]*`|\"[^\"]*\"|'[^']*'"
_SIDE = rf"((?:{_NAME}|[^()|`\"']|\((?:{_NAME}|[^()|`\"'])*\))*)"
_BAR = rf"(?<![\w.])\({_SIDE}\|\|?{_SIDE}\)"
# Relative to a vector: what rounding leaves of one outside the space that contains it.
_OUTSIDE = 1e-8


@dataclass(frozen=True, eq=False)
class RandomTerm:
    """A grouping of the cells whose levels have random effects, such as the donors: (1 | donor).

    Attributes:
        columns: the columns of obs whose combinations are the levels.
        code: the level of each cell, int64, from 0.
        names: the names of the levels, in the order of the codes.
    """

    columns: tuple[str, ...]
    code: NDArray[np.int64]
    names: list[str]

    @classmethod
    def of(cls, obs: Any, columns: tuple[str, ...], argument: str = "formula") -> RandomTerm:
        """Return the term of some columns of obs."""
        values = [column(obs, name, argument) for name in columns]
        code, first = strata(values, len(obs))
        names = [":".join(str(v.iloc[cell]) for v in values) for cell in first]
        term = cls(columns, code, names)
        if len(names) > 1:
            return term
        if argument == "donor":
            raise SingleCellError(f"donor: obs[{term.name!r}] names one donor only, {names[0]!r}; pass donor=None")
        raise SingleCellError(f"formula: {term} has one level only, {names[0]!r}; needed two or more: leave it out")

    @property
    def name(self) -> str:
        """The columns in one word, such as donor:condition."""
        return ":".join(self.columns)

    def __str__(self) -> str:
        return f"(1 | {self.name})"

    def same_levels(self, other: RandomTerm) -> bool:
        """Return whether another term groups the cells in the same way."""
        if len(self.names) != len(other.names):
            return False
        return len(strata([self.code, other.code], len(self.code))[1]) == len(self.names)

    def check_confounding(self, design: Design, examples: NDArray[np.int64], donor: str | None) -> None:
        """Raise unless the levels differ in a way that the design does not explain."""
        # If the design explains each level it explains all combinations of them, and a random one only then.
        levels = np.random.default_rng(0).normal(size=len(self.names))[self.code[examples]]
        matrix = design.matrix[examples] / np.maximum(np.linalg.norm(design.matrix[examples], axis=0), 1e-300)
        outside = levels - matrix @ np.linalg.lstsq(matrix, levels, rcond=None)[0]
        if np.linalg.norm(outside) > _OUTSIDE * np.linalg.norm(levels):
            return
        variables, number = ", ".join(design.variables), len(self.names)
        if self.columns == (donor,):
            raise SingleCellError(
                f"donor: the {number} donors of obs[{donor!r}] are confounded with {variables}: no two donors share a "
                "condition and none has several, so their effects cannot be separated; needed more donors a "
                "condition, or donor=None for conclusions about these cells alone"
            )
        raise SingleCellError(
            f"formula: the {number} levels of {self} are confounded with {variables}: the other columns of the "
            f"formula explain them, so their effects cannot be separated; needed a formula without {self}"
        )


def split_formula(formula: Any) -> tuple[Any, list[tuple[str, str]]]:
    """Return the formula of the fixed effects, and both sides of the bar of each random effect.

    Example:
        >>> split_formula("~ condition + (1 | batch/donor)")
        ('~ condition', [('1', 'batch/donor')])
    """
    if not isinstance(formula, str):  # Formula says what is needed
        return formula, []
    bars = [(left.strip(), right.strip()) for left, right in re.findall(_BAR, formula)]
    return (re.sub(rf"\+\s*{_BAR}|{_BAR}\s*\+?", "", formula).strip(), bars) if bars else (formula, [])


def random_terms(
    obs: Any, design: Design, donor: str | None, bars: Sequence[tuple[str, str]]
) -> tuple[list[RandomTerm], list[str]]:
    """Return the terms of the random effects, coarse to fine, and in words those whose levels are another's.

    They are those of the column of donors, if there is one, and of the bars of :func:`split_formula`.
    """
    wanted = [] if donor is None else _of_donor(obs, design, donor)
    wanted += [columns for left, right in bars for columns in _of_bar(obs, left, right)]
    first: dict[frozenset[str], tuple[str, ...]] = {}
    for columns in wanted:  # a:b is b:a
        first.setdefault(frozenset(columns), columns)
    arguments = ["donor" if columns == (donor,) else "formula" for columns in first.values()]
    terms = [RandomTerm.of(obs, columns, said) for columns, said in zip(first.values(), arguments, strict=True)]
    kept: list[RandomTerm] = []
    left_out = []
    for term in sorted(terms, key=lambda t: len(t.names)):
        same = next((other for other in kept if term.same_levels(other)), None)
        if same is None:
            kept.append(term)
        else:
            left_out.append(f"{term}: its levels are those of {same}")
    return kept, left_out


def _of_donor(obs: Any, design: Design, donor: str) -> list[tuple[str, ...]]:
    """Return (1 | donor), and (1 | donor:condition) if some donor has cells in several conditions."""
    values = column(obs, donor, "donor")
    if donor in design.variables:
        raise SingleCellError(f"donor: {donor!r} is in the formula {design.formula!r} too; needed it in one of them")
    varying = [
        name
        for name, variable in design.variables.items()
        if variable.levels and len(strata([values, variable.values], len(obs))[1]) > values.nunique()
    ]
    return [(donor,), (donor, *varying)] if varying else [(donor,)]


def _of_bar(obs: Any, left: str, right: str) -> list[tuple[str, ...]]:
    """Return the groupings of (left | right): a/b is a and a:b, and a category on the left adds itself to each."""
    parts = [tuple(map(_bare, _split(part, ":"))) for part in _split(right, "/")]
    groups = [tuple(name for part in parts[: k + 1] for name in part) for k in range(len(parts))]
    slopes = [term.strip() for term in _split(left, "+")]
    effects: list[tuple[str, ...]] = [] if "0" in slopes else [()]
    effects += [_categories(obs, slope, f"({left} | {right})") for slope in slopes if slope not in ("0", "1")]
    if not effects:
        raise SingleCellError(f"formula: ({left} | {right}) has no effect; needed 1 or a category left of the bar")
    return [tuple(dict.fromkeys(group + effect)) for group in groups for effect in effects]


def _categories(obs: Any, slope: str, term: str) -> tuple[str, ...]:
    """Return the columns of a category, or interaction of categories, left of a bar."""
    written_names = _split(slope, ":")
    names = tuple(map(_bare, written_names))
    for name, written in zip(names, written_names, strict=True):
        number = slope.isdecimal() or column(obs, name, "formula").dtype.kind in "fiu"
        if number and not written.strip().startswith("C("):
            raise SingleCellError(
                f"formula: {term} is a random slope of the number {name}, which the model has not; needed 0, 1 or a "
                "category left of the bar, written C(...) if it holds numbers"
            )
    return names


def _split(text: str, sign: str) -> list[str]:
    """Split text at a sign that stands outside of quotes."""
    hidden = re.sub(_NAME, lambda name: name[0].replace(sign, "\0"), text)
    return [part.replace("\0", sign) for part in hidden.split(sign)]


def _bare(name: str) -> str:
    """Return the name of a column without the quotes and C() that formulas write around it."""
    return unquoted(re.sub(r"^C\((.*)\)$", r"\1", name.strip()))
