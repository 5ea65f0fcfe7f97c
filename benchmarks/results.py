"""Tables in markdown, and the marked places in a page that are written from what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

BEGIN, END = "<!-- measured: {} -->", "<!-- end of {} -->"


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def quoted(path: Path, mark: str) -> str:
    """The text between two marks of a page.

    Raises:
        ValueError: the page lacks them.
    """
    _, _, rest = path.read_text().partition(BEGIN.format(mark) + "\n")
    text, end, _ = rest.partition(END.format(mark))
    if not end:
        raise ValueError(f"{path} lacks {BEGIN.format(mark)} or {END.format(mark)}; put them where the text belongs.")
    return text.removesuffix("\n")


def quote(path: Path, mark: str, text: str) -> None:
    """Put a text between two marks of a page."""
    begin, end = BEGIN.format(mark) + "\n", END.format(mark)
    old = quoted(path, mark)
    page = path.read_text()
    path.write_text(page.replace(begin + (old + "\n" if old else "") + end, f"{begin}{text}\n{end}"))
