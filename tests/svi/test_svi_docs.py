"""The examples in docstrings run as they are printed, and what docs/svi.md claims of resuming is tested."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from test_svi_resume import PAIRS

import pyro_zilognormal.svi as svi

MODULES = [m.name for m in pkgutil.iter_modules(svi.__path__, "pyro_zilognormal.svi.")]
PAGE = Path(__file__).parents[2] / "docs" / "svi.md"


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_public_names_are_documented_and_sorted():
    assert sorted(svi.__all__) == sorted(set(svi.__all__))
    assert all(getattr(svi, name).__doc__ for name in svi.__all__)


def test_the_page_lists_what_the_resume_tests_cover():
    claimed = PAGE.read_text().split("uninterrupted one with torch's")[1].split("\n\n")[0]
    names = set(re.findall(r"\b[A-Z]\w+", claimed)) - {"Pyro"}
    assert names == {name for pair in PAIRS for name in pair[::2]}
