"""The examples of docs/hurdle.md run as they are printed."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "hurdle.md"


def test_the_examples_of_the_page_run():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 1
    names = {"__name__": "page"}
    exec(compile(blocks[0], PAGE.name, "exec"), names)
    assert names["result"].converged
