"""Errors that name the argument, what came, what was needed and the fix, in one line."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any

_MOST_LISTED = 12
# The key of obs.attrs that holds why elements of a file cannot be read.
UNREADABLE = "unreadable"


class SingleCellError(ValueError):
    """Data or arguments that differential expression cannot use; one line names both and the fix."""

    def __str__(self) -> str:
        return printable(str(self.args[0]))


class UnknownNameError(SingleCellError, KeyError):
    """A column, level, layer or key that does not exist."""


class ArgumentTypeError(SingleCellError, TypeError):
    """An argument of another type than the one that is needed."""


class ScaleWarning(UserWarning):
    """Values that look as if they were on another scale than the given one."""


class DepthWarning(UserWarning):
    """Conditions or donors whose cells differ in depth, which the model does not know."""


def printable(text: str) -> str:
    r"""Return text with escapes for what a terminal would obey or not show: control characters, line ends, directions.

    Example:
        >>> printable("CD4\x1b[31m")
        'CD4\\x1b[31m'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: object) -> str:
    """Return a value as errors show it: as it is if that is short, else its type."""
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else f"a {type(value).__name__}"


def unknown(argument: str, came: object, what: str, known: Iterable[Any]) -> UnknownNameError:
    """Return the error for an unknown name, with the known names and the nearest of them."""
    names = [str(name) for name in known]
    near = difflib.get_close_matches(str(came), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UnknownNameError(f"{argument}: {shown(came)} is not one of the {what}: {listed(names)}{hint}")


def check_readable(argument: str, what: str, obs: Any) -> None:
    """Raise if an element of the file was left out, as it could not be read."""
    if what in (why := obs.attrs.get(UNREADABLE, {})):
        raise UnknownNameError(f"{argument}: {what} cannot be read: {why[what]}")


def reason(error: BaseException) -> str:
    """Return the first line of what an error of another package says."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)  # whose text is in quotes
    lines = text.strip().splitlines()
    return lines[0] if lines else type(error).__name__


def listed(names: Iterable[Any], most: int = _MOST_LISTED) -> str:
    """Return names in one line: the first ``most`` of them, and the number of the others."""
    names = [printable(str(name)) for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


def require(module: str) -> Any:
    """Import a module of the extra, or raise an ImportError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'differential expression needs {module}: pip install "pyro-zilognormal[singlecell]"', name=error.name
        ) from error
