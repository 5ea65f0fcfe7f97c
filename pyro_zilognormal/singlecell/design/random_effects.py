"""Random effects: terms of a formula in the notation of lme4, and the level of each term that a cell has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_zilognormal.singlecell.design.design import Design, strata
from pyro_zilognormal.singlecell.design.formula import column, parsed, unquoted
from pyro_zilognormal.singlecell.errors import SingleCellError

# (left | right) that is no call of a function; both sides may hold calls, such as C(dose), and quoted names.
_NAME = r"`[^`]*`|\"[^\"]*\"|'[^']*'"
_SIDE = rf"((?:{_NAME}|[^()|`\"']|\((?:{_NAME}|[^()|`\"'])*\))*)"
_BAR = rf"(?<![\w.])\({_SIDE}\|\|?{_SIDE}\)"
# Relative to a vector: what rounding leaves of one outside the space that contains it.
_OUTSIDE = 1e-8


@dataclass(frozen=True, eq=False)
class RandomTerm:
    """A grouping of the cells whose levels have random effects, such as the donors: (1 | donor)."""

    columns: tuple[str, ...]  # of obs, whose combinations are the levels
    code: NDArray[np.int64]  # the level of each cell, from 0
    names: list[str]  # of the levels, in the order of the codes

    @classmethod
    def of(cls, obs: Any, columns: tuple[str, ...], argument: str = "formula") -> RandomTerm:
        """Return the term of some columns of obs."""
        values = [column(obs, name, argument) for name in columns]
        code, first = strata(values, len(obs))
        term = cls(columns, code, [":".join(str(v.iloc[cell]) for v in values) for cell in first])
        if len(term.names) == 1:
            only = term.names[0]
            if argument == "donor":
                raise SingleCellError(f"donor: obs[{term.name!r}] names one donor only, {only!r}; pass donor=None")
            raise SingleCellError(f"formula: {term} has one level only, {only!r}; needed two or more: leave it out")
        return term

    @property
    def name(self) -> str:
        """The columns in one word, such as donor:condition."""
        return ":".join(self.columns)

    def __str__(self) -> str:
        return f"(1 | {self.name})"

    def same_levels(self, other: RandomTerm) -> bool:
        """Return whether another term groups the cells in the same way."""
        both = strata([self.code, other.code], len(self.code))[1]
        return len(self.names) == len(other.names) == len(both)

    def check_confounding(self, design: Design, examples: NDArray[np.int64], donor: str | None) -> None:
        """Raise unless the levels differ in a way that the design does not explain."""
        # If the design explains each level it explains all combinations of them, and a random one only then.
        levels = np.random.default_rng(0).normal(size=len(self.names))[self.code[examples]]
        matrix = design.matrix[examples] / np.maximum(np.linalg.norm(design.matrix[examples], axis=0), 1e-300)
        outside = levels - matrix @ np.linalg.lstsq(matrix, levels, rcond=None)[0]
        if np.linalg.norm(outside) > _OUTSIDE * np.linalg.norm(levels):
            return
        said, fix = f"formula: the {len(self.names)} levels of {self}", f"a formula without {self}"
        if self.columns == (donor,):
            said = f"donor: the {len(self.names)} donors of obs[{donor!r}]"
            fix = "more donors a condition, or donor=None for conclusions about these cells alone"
        raise SingleCellError(
            f"{said} are confounded with {', '.join(design.variables)}: these explain the differences between levels, "
            f"so that the effects cannot be separated; needed {fix}"
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
    terms = [RandomTerm.of(obs, names, "donor" if names == (donor,) else "formula") for names in first.values()]
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
    """Return the groupings of (left | right): the terms of the right side, each with those of the left side."""
    groups = {str(term): tuple(map(_name, term.factors)) for term in parsed(right)}
    effects = [_categories(obs, term, f"({left} | {right})") for term in parsed(left)]
    intercept = groups.pop("1", None)  # a name such as sample-1, not in quotes, would take it away
    if not (left and effects and groups and intercept):
        raise SingleCellError(
            f"formula: ({left} | {right}) has no effect; needed 1 or a category left of the bar, a column right of it"
        )
    return [tuple(dict.fromkeys(group + effect)) for group in groups.values() for effect in effects]


def _categories(obs: Any, term: Any, said: str) -> tuple[str, ...]:
    """Return the columns of a category, or of an interaction of categories, left of a bar; none for 1."""
    if str(term) == "1":
        return ()
    for factor in term.factors:
        if factor.eval_method.value == "lookup" and column(obs, factor.expr, "formula").dtype.kind in "fiu":
            raise SingleCellError(
                f"formula: {said} is a random slope of the number {factor.expr}, which the model has not; needed 0, 1 "
                "or a category left of the bar, written C(...) if it holds numbers"
            )
    return tuple(map(_name, term.factors))


def _name(factor: Any) -> str:
    """Return the column of a factor, without the C() that formulas write around it."""
    if factor.eval_method.value == "lookup":
        return str(factor.expr)
    return unquoted(re.sub(r"^C\((.*)\)$", r"\1", factor.expr))
