"""Tables in markdown, and RESULTS.md, of which each benchmark writes the section that is its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

BEGIN, END = "<!-- measured: {} -->", "<!-- end of {} -->"


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def section(path: Path, title: str, text: str) -> None:
    """Put a text between the marks of its title in a file, which are added at the end if they are not there."""
    begin, end = BEGIN.format(title), END.format(title)
    before = path.read_text() if path.exists() else "# Results\n"
    if begin not in before:
        before += f"\n## {title}\n\n{begin}\n{end}\n"
    head, rest = before.split(begin)
    tail = rest.split(end)[1]
    path.write_text(f"{head}{begin}\n{text}\n{end}{tail}")
