"""Whether a command that a page shows could be run: what it names exists, and its options are known.

Nothing is run. The command line of the package is parsed by its own parser; scripts and modules must exist, and have
the long options they are given in their source.
"""

from __future__ import annotations

import configparser
import contextlib
import importlib.util
import io
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from pyro_zilognormal.singlecell.cli import main as cli
from tests.docs.pages import ROOT

STARTS = ("python ", "pip ", "pyro-zilognormal ", "bash ")
_FIXED = {"python -m venv .venv", ". .venv/bin/activate", "ruff check .", "ruff format --check .", "mypy"}
_PYTEST_OPTIONS = {"-q", "-n", "auto", "--doctest-modules"}


def commands(text: str) -> list[str]:
    """The single commands of a block."""
    lines = text.replace("\\\n", " ").splitlines()
    return [part.strip() for line in lines for part in re.split(r"&&|;", line.split(" #")[0]) if part.strip()]


def problem(command: str) -> str | None:
    """What is wrong with a command, or None."""
    if command in _FIXED:
        return None
    for start, check in _CHECKS.items():
        if command == start or command.startswith(start + " "):
            return check(shlex.split(command.removeprefix(start)))
    return "no check knows it: see tests/docs/shell.py"


def _package(arguments: list[str]) -> str | None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            cli.make_parser().parse_args(arguments)
        except SystemExit as stop:
            return said.getvalue() if stop.code else None
    return None


def _pip(arguments: list[str]) -> str | None:
    rest = iter(arguments)
    for argument in rest:
        if argument == "-c":
            if not (ROOT / next(rest)).exists():
                return "no such constraints"
        elif argument != "-e" and (wrong := _requirement(argument)):
            return wrong
    return None


def _requirement(text: str) -> str | None:
    found = re.fullmatch(r"(\.|pyro-zilognormal)(?:\[([\w,]+)\])?", text)
    if not found:
        return f"{text} is not this package"
    unknown = set(filter(None, (found[2] or "").split(","))) - _config().options("options.extras_require")
    return f"no extra {unknown}" if unknown else None


class _Config(configparser.ConfigParser):
    def options(self, section: str) -> set[str]:  # type: ignore[override]
        return set(super().options(section))


def _config() -> _Config:
    config = _Config()
    config.read(ROOT / "setup.cfg")
    return config


def _pytest(arguments: list[str]) -> str | None:
    rest = iter(arguments)
    for argument in rest:
        if argument == "-m":
            if f"{next(rest)}:" not in _config()["tool:pytest"]["markers"]:
                return "no such marker"
        elif argument not in _PYTEST_OPTIONS and not (ROOT / argument).exists():
            return f"no {argument}"
    return None


def _module(arguments: list[str]) -> str | None:
    spec = importlib.util.find_spec(arguments[0])
    return _source(Path(spec.origin or ""), arguments[1:]) if spec else f"no module {arguments[0]}"


def _script(arguments: list[str]) -> str | None:
    return _source(ROOT / arguments[0], arguments[1:])


def _source(file: Path, arguments: list[str]) -> str | None:
    if not file.is_file():
        return f"no {file}"
    options = {a.split("=")[0] for a in arguments if a.startswith("--")}
    unknown = {o for o in options if f'"{o}"' not in file.read_text()}
    return f"{file.name} has no {unknown}" if unknown else None


def _as_in_ci(start: str) -> Callable[[list[str]], str | None]:
    def check(arguments: list[str]) -> str | None:
        command = f"{start} {shlex.join(arguments)}"
        return None if command in (ROOT / ".ci" / "run").read_text() else "not the command of .ci/run"

    return check


_CHECKS: dict[str, Callable[[list[str]], str | None]] = {
    "pyro-zilognormal": _package,
    "pip install": _pip,
    "python -m pip install": _pip,
    "python -m pytest": _pytest,
    "python -m sphinx": _as_in_ci("python -m sphinx"),
    "python -m": _module,
    "python": _script,
    "bash": _script,
}
