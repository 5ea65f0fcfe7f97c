"""The examples of docs/singlecell.md run as they are printed, in order."""

import re
from pathlib import Path

from pyro_zilognormal.singlecell import COLUMNS

PAGE = Path(__file__).parents[2] / "docs" / "singlecell.md"


def test_the_examples_of_the_page_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name} block {number}", "exec"), names)


def test_the_page_tells_of_every_column() -> None:
    told = set(re.findall(r"`(\w+)`", PAGE.read_text()))
    assert set(COLUMNS) <= told
