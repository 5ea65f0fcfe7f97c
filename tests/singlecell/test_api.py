"""The names that users of scanpy and pertpy look for, and their order and defaults."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from pyro_zilognormal.singlecell import COLUMNS, HurdleDE, differential_expression, pl

NAMED = {
    "donor": None,
    "groupby": None,
    "groups": "all",
    "reference": "rest",
    "layer": None,
    "use_raw": False,
    "scale": None,
    "offset": None,
    "detection_threshold": 0,
    "delta": 0.25,
    "fdr": 0.05,
    "max_error": 0.2,
    "credible": 0.99,
    "key_added": "ziln_de",
    "copy": False,
    "seed": 0,
    "device": "cpu",
}


def test_the_one_call() -> None:
    parameters = inspect.signature(differential_expression).parameters
    plain = [n for n, p in parameters.items() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert plain == ["adata", "formula", "contrast"]
    assert {name: parameters[name].default for name in NAMED} == NAMED
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in NAMED)


def test_the_verbs_of_pertpy() -> None:
    assert {"fit", "cond", "contrast"} <= {name for name, _ in inspect.getmembers(HurdleDE, inspect.isfunction)}
    contrast = inspect.signature(HurdleDE.contrast)
    contrast.bind(None, column="condition", baseline="ctrl", group_to_compare="stim")
    with pytest.raises(TypeError):  # the tuple of a contrast has the test level first
        contrast.bind(None, "condition", "ctrl", "stim")
    shared = set(inspect.signature(HurdleDE).parameters) & set(NAMED)
    assert {"donor", "layer", "use_raw", "scale", "offset", "detection_threshold", "device"} <= shared
    assert all(inspect.signature(HurdleDE).parameters[name].default == NAMED[name] for name in shared)


def test_columns_are_described_in_one_place() -> None:
    """The page, and the docstring of ``HurdleDE.test``, have the rows of COLUMNS; tests/cli looks at the report."""
    page = (Path(__file__).parents[2] / "docs" / "singlecell.md").read_text()
    rows = "".join(f"| `{name}` | {meaning} |\n" for name, meaning in COLUMNS.items())
    assert rows in page, f"the table of the page should be\n{rows}"
    doc = str(HurdleDE.test.__doc__)
    places = [doc.index(f"- ``{name}``: {meaning}\n") for name, meaning in COLUMNS.items()]
    assert places == sorted(places)
    assert "COLUMNS" not in doc


def test_intervals_are_of_one_probability_everywhere() -> None:
    """In Python, on the command line and in pictures alike."""
    calls = [HurdleDE.test, HurdleDE.predict, HurdleDE.predictive_check, HurdleDE.gene_fits, pl.predictive]
    assert {inspect.signature(call).parameters["credible"].default for call in [*calls, differential_expression]} == {
        0.99
    }
    assert "99 %" in COLUMNS["log_fc_low"]
