"""The reference names every public name once."""

from __future__ import annotations

import importlib
import pkgutil
import re
from types import ModuleType

import pytest

import pyro_zilognormal
from tests.docs.pages import ROOT

PAGES = sorted((ROOT / "docs" / "api").glob("*.md"))
_DIRECTIVE = re.compile(r"^\.\. (?:(currentmodule)|auto(?:class|exception|function|data)):: (\S+)", re.MULTILINE)


def public_modules() -> list[ModuleType]:
    """The modules that list their public names."""
    found = pkgutil.walk_packages(pyro_zilognormal.__path__, "pyro_zilognormal.")
    names = ["pyro_zilognormal", *(m.name for m in found if not any(p.startswith("_") for p in m.name.split(".")))]
    return [module for module in map(importlib.import_module, names) if hasattr(module, "__all__")]


def documented(text: str) -> list[str]:
    """The full names that the directives of a page document."""
    module, names = "", []
    for current, name in _DIRECTIVE.findall(text):
        if current:
            module = name
        else:
            names.append(name if name.startswith("pyro_zilognormal.") else f"{module}.{name}")
    return names


NAMES = [name for page in PAGES for name in documented(page.read_text())]


def resolve(name: str) -> object:
    """Return the object of this full name, or None."""
    module, _, member = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), member, None)
    except ImportError:
        return None


def test_every_documented_name_exists_and_is_documented_once() -> None:
    found = [resolve(name) for name in NAMES]
    assert not [name for name, one in zip(NAMES, found, strict=True) if one is None]
    assert len(NAMES) == len({id(one) for one in found})


@pytest.mark.parametrize("module", public_modules(), ids=lambda module: module.__name__)
def test_no_public_name_is_missing(module: ModuleType) -> None:
    known = {id(resolve(name)) for name in NAMES}
    missing = [name for name in module.__all__ if id(getattr(module, name)) not in known]
    assert not missing, f"put them into a page of docs/api: {missing}"


def test_all_pages_are_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    assert [page.name for page in PAGES if f"\napi/{page.stem}\n" not in index] == []
