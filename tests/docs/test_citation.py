"""CITATION.cff is what the Citation File Format 1.2 asks for, and of this version."""

from typing import Any

import pytest
import yaml

import pyro_zilognormal
from tests.docs.pages import ROOT

# Of the schema of 1.2.0: what must be there, and what may be there with its type.
REQUIRED = {"cff-version", "message", "title", "authors"}
TYPES = {"abstract": str, "version": str, "license": str, "type": str, "keywords": list, "title": str, "message": str}


@pytest.fixture(scope="module")
def cited() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_has_what_the_format_requires(cited: dict[str, Any]) -> None:
    assert cited.keys() >= REQUIRED
    assert cited.keys() <= REQUIRED | TYPES.keys()
    assert cited["cff-version"] == "1.2.0"
    assert cited["type"] == "software"
    for name, kind in TYPES.items():
        assert isinstance(cited[name], kind), name


def test_authors_are_entities_with_a_name(cited: dict[str, Any]) -> None:
    assert [set(author) for author in cited["authors"]] == [{"name"}]


def test_keywords_are_distinct_words(cited: dict[str, Any]) -> None:
    assert all(isinstance(word, str) for word in cited["keywords"])
    assert len(cited["keywords"]) == len(set(cited["keywords"]))


def test_is_of_this_version_and_licence(cited: dict[str, Any]) -> None:
    assert cited["version"] == pyro_zilognormal.__version__
    assert f"license = {cited['license']}\n" in (ROOT / "setup.cfg").read_text()
