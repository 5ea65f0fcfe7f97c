"""Donors, whose effects are random: who they are, and whether they can be told from the design."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_zilognormal.singlecell.design import Design, column_lengths, row_space
from pyro_zilognormal.singlecell.errors import SingleCellError, require
from pyro_zilognormal.singlecell.variables import column


@dataclass(frozen=True, eq=False)
class Donors:
    """The donor of each cell.

    Attributes:
        name: of the column of obs.
        values: the column.
        code: of each cell, from 0.
        names: of the donors, in the order of the codes.
    """

    name: str
    values: Any
    code: NDArray[np.int64]
    names: list[str]


def find_donors(obs: Any, name: str, design: Design) -> Donors:
    """Return the donors of the cells.

    Args:
        obs: the table of the cells.
        name: the column that names them.
        design: what else explains the cells.

    Raises:
        UnknownNameError: no such column.
        SingleCellError: missing names, one donor only, or donors that are confounded with the design.
    """
    values = column(obs, name, "donor")
    code, names = require("pandas").factorize(values, sort=True)
    if len(names) < 2:
        raise SingleCellError(f"donor: obs[{name!r}] names one donor only, {names[0]!r}; pass donor=None")
    code = code.astype(np.int64)
    if name in design.variables:
        raise SingleCellError(f"donor: {name!r} is in the formula {design.formula!r} too; needed it in one of them")
    return Donors(name, values, code, [str(n) for n in names])


def check_confounding(design: Design, donors: Donors, examples: NDArray[np.int64]) -> None:
    """Raise unless donors differ in ways that the design does not explain: there is nothing else to see them by.

    Args:
        design: what else explains the cells.
        donors: of the cells.
        examples: a cell of each combination of variables and donor.
    """
    who = np.eye(len(donors.names))[donors.code[examples]]
    both = np.column_stack([design.matrix[examples], who])
    if len(row_space(both / column_lengths(both))) > design.rank:
        return
    raise SingleCellError(
        f"donor: the {len(donors.names)} donors of obs[{donors.name!r}] are confounded with "
        f"{', '.join(design.variables)}: no two donors share a condition and none has several, so donors and "
        "conditions cannot be told apart; needed more donors a condition, or donor=None for conclusions about these "
        "cells alone"
    )
