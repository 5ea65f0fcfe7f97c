"""What is wrong with a file or a call, said in one line."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any

_MOST_LISTED = 12


class SingleCellError(ValueError):
    """Data or arguments that differential expression cannot work with; the message names both and a way out."""


class UnknownNameError(SingleCellError, KeyError):
    """A column, level, layer or key that is not there."""

    def __str__(self) -> str:
        return ValueError.__str__(self) if len(self.args) != 1 else str(self.args[0])


class ScaleWarning(UserWarning):
    """Values that look as if they were on another scale than the one given."""


def unknown(argument: str, came: object, what: str, known: Iterable[Any]) -> UnknownNameError:
    """Return the error for a name that is not among the known ones, with the nearest of them.

    Args:
        argument: which argument it came in.
        came: the name.
        what: what it should have been one of, such as "columns of adata.obs".
        known: these.
    """
    names = [str(name) for name in known]
    near = difflib.get_close_matches(str(came), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UnknownNameError(f"{argument}: {came!r} is not one of the {what}: {listed(names)}{hint}")


def listed(names: Iterable[Any]) -> str:
    """Return names in one line, the first dozen of them."""
    names = [str(name) for name in names]
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return (", ".join(names[:_MOST_LISTED]) or "none") + more


def require(module: str) -> Any:
    """Import a module of the extra, or raise an ImportError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'differential expression needs {module}: pip install "pyro-zilognormal[singlecell]"', name=error.name
        ) from error
