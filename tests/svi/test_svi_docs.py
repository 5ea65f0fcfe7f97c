"""What docs/svi.md claims. Its examples are run with those of all pages, in tests/docs."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "svi.md"


def test_the_page_lists_what_the_resume_tests_cover():
    from test_svi_checkpoint import PAIRS

    text = PAGE.read_text()
    claimed = text.split("uninterrupted one with torch's")[1].split("\n\n")[0]
    names = set(re.findall(r"\b[A-Z]\w+", claimed)) - {"Pyro"}
    assert names == {name for pair in PAIRS for name in pair[::2]}
