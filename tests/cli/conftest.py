"""The runs that the tests of the command line look at, once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.cli_cases import ASKED, Ran, file_of, run


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, Path]:
    """A run of two contrasts with donors, and its folder."""
    folder = tmp_path_factory.mktemp("done")
    out = folder / "deep" / "out"
    more = ("--contrast", "condition", "ctrl", "stim", "--donor", "donor")
    return run("de", file_of(folder), *ASKED, *more, "--out", out), out


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, Path]:
    """The demonstration as the README runs it, and its folder."""
    out = tmp_path_factory.mktemp("demo") / "out"
    return run("demo", "--out", out), out
