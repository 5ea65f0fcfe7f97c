"""The figures of "How it is tested" are there, each with the command that draws it, and draw what they say."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, indented_and_inline
from tests.exactness import TOLERANCE
from tests.exactness_picture import PAGE, draw, rows

TESTING = ROOT / "docs" / "testing.md"
FIGURES = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", TESTING.read_text())


def test_there_are_figures() -> None:
    assert {"exactness.png", "score.png", "calibration.png"} == set(FIGURES)


@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_names_the_command_that_draws_it(figure: str) -> None:
    assert [code for code in indented_and_inline(TESTING) if f"--out docs/{figure}" in code]


def test_the_picture_of_errors_has_every_row_of_the_table_within_the_tolerance(tmp_path: Path) -> None:
    table = rows(PAGE.read_text())
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    assert len(table) == len(lines) - 2  # but for the head
    assert max(max(errors) for errors in table.values()) < TOLERANCE
    draw(table, tmp_path / "errors.png")
    assert (tmp_path / "errors.png").stat().st_size > 10_000
