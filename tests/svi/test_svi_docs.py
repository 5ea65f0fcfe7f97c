"""The examples of docs/svi.md run as they are printed, in order."""

import re
from pathlib import Path

import matplotlib
import pyro
import torch

PAGE = Path(__file__).parents[2] / "docs" / "svi.md"


def test_the_examples_of_the_page_run():
    matplotlib.use("Agg")
    pyro.set_rng_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 7
    names = {"__name__": "page"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name} block {number}", "exec"), names)
    assert torch.is_tensor(names["table"])
    import matplotlib.pyplot as plt

    plt.close("all")


def test_the_page_lists_what_the_resume_tests_cover():
    from test_svi_resume import OPTIMIZERS, SCHEDULES

    text = PAGE.read_text()
    claimed = text.split("uninterrupted one with torch's")[1].split("\n\n")[0]
    names = set(re.findall(r"\b[A-Z]\w+", claimed)) - {"Pyro"}
    assert names == OPTIMIZERS.keys() | SCHEDULES.keys()
