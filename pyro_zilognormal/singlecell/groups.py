"""Groups of cells against others, as scanpy's rank_genes_groups asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyro_zilognormal.singlecell.errors import SingleCellError, require
from pyro_zilognormal.singlecell.variables import column, variable

REST = "rest"
# A column of this name is added to obs, in a copy of it.
_MEMBERS = "group_of_cells"


@dataclass(frozen=True, eq=False)
class OtherObs:
    """An AnnData with another table of the cells, of which nothing is copied."""

    adata: Any
    obs: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.adata, name)


@dataclass(frozen=True, eq=False)
class Question:
    """One fit and what to ask of it.

    Attributes:
        adata: of the cells.
        formula: of the fit.
        contrasts: by name.
    """

    adata: Any
    formula: str
    contrasts: dict[str, tuple[str, Any, Any]]


def questions(adata: Any, groupby: str, groups: Any, reference: Any) -> list[Question]:
    """Return the fits that compare groups of cells with a reference group or, each in a fit of its own, the rest.

    Args:
        adata: of the cells.
        groupby: the column of obs that holds the groups.
        groups: which to compare; "all" for all but the reference.
        reference: a group, or "rest" for all cells of other groups.

    Raises:
        UnknownNameError: no such column or group.
        SingleCellError: no group to compare, or the reference among them.
    """
    values = column(adata.obs, groupby, "groupby")
    factor = variable(values, coded=True)
    against = reference if reference == REST and REST not in map(str, factor.levels) else factor.level(reference)
    if isinstance(groups, str) and groups == "all":
        chosen = [level for level in factor.levels if level != against]
    else:
        chosen = [factor.level(g) for g in ([groups] if isinstance(groups, str) else groups)]
    if not chosen or against in chosen or len(set(chosen)) < len(chosen):
        raise SingleCellError(
            f"groups is {groups!r}, reference {reference!r}; needed groups other than the reference, each once"
        )
    if against != REST:
        contrasts = {f"{group} vs {against}": (_MEMBERS, group, against) for group in chosen}
        return [Question(_with_members(adata, values), f"~ C({_MEMBERS})", contrasts)]
    return [_one_against_rest(adata, values, group) for group in chosen]


def _one_against_rest(adata: Any, values: Any, group: Any) -> Question:
    members = (values == group).map({True: str(group), False: REST})
    order = require("pandas").CategoricalDtype([REST, str(group)])
    contrast = {f"{group} vs {REST}": (_MEMBERS, str(group), REST)}
    return Question(_with_members(adata, members.astype(order)), f"~ {_MEMBERS}", contrast)


def _with_members(adata: Any, members: Any) -> OtherObs:
    return OtherObs(adata, adata.obs.assign(**{_MEMBERS: members}))


def check_one_way(formula: Any, contrast: Any, groupby: Any, groups: Sequence[Any] | str, reference: Any) -> None:
    """Raise unless either formula and contrast are given, or groupby."""
    if groupby is None and (formula is None or contrast is None):
        raise SingleCellError(
            f"formula is {formula!r}, contrast {contrast!r}; needed both, such as '~ condition' and ('condition', "
            "'stim', 'ctrl'), or groupby, a column of adata.obs whose groups are compared"
        )
    if groupby is not None and (formula is not None or contrast is not None):
        raise SingleCellError(
            "groupby is given with a formula or a contrast; needed either: groupby makes both of groups and reference"
        )
    if groupby is None and (groups != "all" or reference != REST):
        raise SingleCellError("groups or reference is given without groupby; needed groupby, or a contrast")
