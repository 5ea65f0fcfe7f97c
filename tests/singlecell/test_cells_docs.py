"""What docs/singlecell.md claims. Its examples are run with those of all pages, in tests/docs."""

import re
from pathlib import Path

from pyro_zilognormal.singlecell import COLUMNS

PAGE = Path(__file__).parents[2] / "docs" / "singlecell.md"


def test_the_page_tells_of_every_column() -> None:
    told = set(re.findall(r"`(\w+)`", PAGE.read_text()))
    assert set(COLUMNS) <= told
