"""All code of all pages is run, all commands are checked, and all that is linked exists."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.docs import shell
from tests.docs.pages import LANGUAGES, PAGES, ROOT, blocks, indented_and_inline, languages, name_of, run

WITH_PYTHON = [page for page in PAGES if "python" in languages(page)]


def _readme(names: dict[str, Any]) -> None:
    losses, draws = names["losses"], names["draws"]
    assert sum(losses[-20:]) < sum(losses[:20])
    assert draws["x"].shape == (100, 2, 200, 5)
    lyz = list(names["cells"].genes).index("LYZ")
    assert draws["zero_effects"].mean(0)[0, lyz, 0] < -2  # detected in nearly all monocytes


def _speed(names: dict[str, Any]) -> None:
    assert names["by_cell"].shape == (700,)


def _hurdle(names: dict[str, Any]) -> None:
    assert names["result"].converged


# What must hold when a page has run, beyond what it asserts itself.
AFTERWARDS: dict[str, Callable[[dict[str, Any]], None]] = {
    "README.md": _readme,
    "docs/speed.md": _speed,
    "docs/hurdle.md": _hurdle,
}


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_the_python_of_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run(page)
    AFTERWARDS.get(name_of(page), lambda names: None)(names)
    drawn = {file.name for file in tmp_path.glob("*.png")}
    shown = {Path(target).name for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text())}
    assert drawn <= shown, "the page draws pictures that it does not show"


def test_what_is_looked_for_is_on_a_page() -> None:
    assert AFTERWARDS.keys() <= set(map(name_of, WITH_PYTHON))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_code_escapes(page: Path) -> None:
    assert languages(page) <= LANGUAGES
    for line in indented_and_inline(page):
        assert not line.startswith((">>>", "import ", "from pyro")), f"put {line!r} into a block of python"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_of_the_page_could_be_run(page: Path) -> None:
    text = [*blocks(page, "bash"), *(c for c in indented_and_inline(page) if c.startswith(shell.STARTS))]
    problems = {command: shell.problem(command) for block in text for command in shell.commands(block)}
    assert not {command: wrong for command, wrong in problems.items() if wrong}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_pictures_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


GOOD = [
    "pyro-zilognormal demo --out out",
    'pip install -c constraints.txt -e ".[test]"',
    "python -m pytest -m slow tests/calibration",
    "python -m tests.calibration.ranks --replicates 3 --out a.png --json b.json",
    "python benchmarks/density.py",
    "bash .ci/run",
]
BAD = [
    "pyro-zilognormal demo --outt out",
    'pip install ".[tset]"',
    "pip install something-else",
    "python -m pytest -m slwo",
    "python -m pytest tests/nowhere",
    "python -m tests.nowhere",
    "python -m tests.calibration.ranks --nothing",
    "python benchmarks/nowhere.py",
    "python -m sphinx docs nowhere",
    "curl https://pyro.ai",
]


@pytest.mark.parametrize("command", GOOD)
def test_good_commands(command: str) -> None:
    assert shell.problem(command) is None


@pytest.mark.parametrize("command", BAD)
def test_bad_commands(command: str) -> None:
    assert shell.problem(command)


def test_every_page_is_on_the_site_or_named_here() -> None:
    built = (ROOT / "docs" / "conf.py").read_text()
    for page in PAGES:
        folder = page.parent.relative_to(ROOT).as_posix()
        assert f'"{folder}/*.md"' in built or f'"{page.name}"' in built, f"{name_of(page)} is not in include_patterns"
