"""The examples of docs/speed.md run as they are printed, in order."""

import pathlib
import re

import pyro

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "speed.md"


def test_the_examples_of_the_page_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    pyro.set_rng_seed(0)
    names: dict = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    assert len(names["result"].losses) == 100
    assert names["by_cell"].shape == (700,)
