"""The pages in Markdown, what is in them, and how to run a page as its reader would.

    python -m tests.docs.pages docs/choosing.md

runs the python of a page in the folder of the page, which draws its pictures anew.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import matplotlib
import pyro
import torch

ROOT = Path(__file__).parents[2]
FOLDERS = (".", "docs", "docs/api", "benchmarks", "tutorials")
PAGES = sorted(page for folder in FOLDERS for page in (ROOT / folder).glob("*.md"))
LANGUAGES = {"python", "bash", "text", "{eval-rst}", "{toctree}"}
_FENCE = re.compile(r"^```(.*?)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"(?<=\n\n)(?:    .*\n)+")
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


def name_of(page: Path) -> str:
    """The page as the repository calls it."""
    return page.relative_to(ROOT).as_posix()


def languages(page: Path) -> set[str]:
    """What the fences of the page say they hold."""
    return {language.strip() for language, _ in _FENCE.findall(page.read_text())}


def blocks(page: Path, language: str) -> list[str]:
    """What the fences of a language hold, in order."""
    return [code for found, code in _FENCE.findall(page.read_text()) if found.strip() == language]


def indented_and_inline(page: Path) -> list[str]:
    """Lines of indented blocks, and the code within sentences."""
    prose = _FENCE.sub("", page.read_text())
    lines = [line.strip() for block in _INDENTED.findall(prose) for line in block.splitlines()]
    return lines + [" ".join(span.split()) for span in _SPAN.findall(_INDENTED.sub("", prose))]


def run(page: Path) -> dict[str, Any]:
    """Run the python of the page in order, in one namespace, and return that."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names: dict[str, Any] = {"__name__": "page"}
    pyro.clear_param_store()
    with torch.random.fork_rng():
        pyro.set_rng_seed(0)
        for number, block in enumerate(blocks(page, "python"), start=1):
            exec(compile(block, f"{name_of(page)}, block {number}", "exec"), names)
    plt.close("all")
    return names


if __name__ == "__main__":
    import os

    torch.set_num_threads(1)
    for argument in sys.argv[1:]:
        path = Path(argument).resolve()
        os.chdir(path.parent)
        run(path)
