"""What the command line writes and says, and with which exit code it ends."""

from __future__ import annotations

import errno
import html.parser
import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

from pyro_zilognormal.models.hurdle import fit as fit_module
from pyro_zilognormal.singlecell import COLUMNS, HurdleDE
from pyro_zilognormal.singlecell.cli import de
from pyro_zilognormal.singlecell.cli.report import fingerprint
from pyro_zilognormal.svi.checkpoint import locked
from tests.cli.cli_cases import ASKED, GENES, Ran, cells, file_of, run, undrawn

FILES = {"de.csv", "metrics.json", "loss.png", "volcano.png", "predictive.png", "report.html", "fit.ckpt"}


def test_it_writes_its_files_and_nothing_else(done: tuple[Ran, Path]) -> None:
    ran, out = done
    assert ran.code == 0, ran
    assert {file.name for file in out.iterdir()} == FILES
    assert all((out / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("loss", "volcano", "predictive"))


def test_the_table_has_all_columns_and_the_right_signs(done: tuple[Ran, Path]) -> None:
    table = pd.read_csv(done[1] / "de.csv")
    assert tuple(table.columns) == tuple(COLUMNS)
    assert len(table) == 2 * len(GENES)
    first = table[table["contrast"] == "condition: stim vs ctrl"].set_index("variable")
    assert first.is_de.to_dict() == {"up": True, "down": True, "same": False, "rare": False}
    assert first.log_fc["up"] > 3
    assert first.log_fc["down"] < -3
    assert not table.isna().any().any()


def test_metrics_say_what_made_it_and_how_it_ended(done: tuple[Ran, Path]) -> None:
    found = json.loads((done[1] / "metrics.json").read_text())
    assert set(found) == {
        *("versions", "input", "settings", "contrasts", "convergence", "predictive_check", "seconds", "warnings")
    }
    assert {"pyro-zilognormal", "torch", "pyro-ppl", "anndata"} <= set(found["versions"])
    settings = found["settings"]
    assert settings["formula"] == "~ condition"
    assert (settings["donor"], settings["seed"], settings["steps"], settings["n_cells"]) == ("donor", 0, 10, 60)
    assert [(c["up"], c["down"], c["n_test"], c["n_ref"]) for c in found["contrasts"]] == [(1, 1, 30, 30)] * 2
    assert found["convergence"]["converged"] is True
    assert found["predictive_check"]["genes"] == len(GENES)
    assert set(found["seconds"]) == {"read", "fit", "summarise"}


def test_the_fingerprint_is_of_what_is_fitted(done: tuple[Ran, Path]) -> None:
    known = json.loads((done[1] / "metrics.json").read_text())["input"]["fingerprint"]
    renamed = cells()
    renamed.var_names = [*GENES[:3], "other"]
    for adata, same in ((cells(), True), (cells(cells().X * 1.01), False), (renamed, False)):
        assert (fingerprint(HurdleDE(adata, "~ condition", donor="donor")) == known) is same


class _Page(html.parser.HTMLParser):
    """Notes what a page would load, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.images, self.text = 0, ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.images += tag == "img"
        assert tag != "img" or found.get("alt")
        targets = [str(found[name]) for name in ("src", "href", "data", "srcset") if name in found]
        self.loads += [target for target in targets if not target.startswith("#")]  # those go to the page itself

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_needs_nothing_else(done: tuple[Ran, Path]) -> None:
    text = (done[1] / "report.html").read_text(encoding="utf-8")
    page = _Page(text)
    assert page.images == 3 + 6  # three genes of each contrast
    assert len(page.loads) == page.images
    assert all(target.startswith("data:image/png;base64,") for target in page.loads)
    assert "url(" not in text
    assert "@import" not in text


def test_the_report_answers_its_questions(done: tuple[Ran, Path]) -> None:
    text = " ".join(_Page((done[1] / "report.html").read_text(encoding="utf-8")).text.split())
    for part in ("Question", "Results", "Diagnostics", "Columns of de.csv", "Metadata"):
        assert part in text
    assert (
        "stim against ctrl: 2 of 4 genes change. 1 gene is higher in stim: up. 1 gene is lower in stim: down." in text
    )
    assert "The fit converged" in text
    assert "lie inside the 99% interval" in text
    assert "with random effects (1 | donor) + (1 | donor:condition)" in text
    assert "random effects (1 | donor) of 4 levels, (1 | donor:condition) of 8 levels; so few levels" in text
    assert "They agree on all genes." in text
    assert re.search(r"\d-fold up", text)
    assert re.search(r"\d-fold down", text)
    assert "99 % interval" in text
    assert "posterior standard deviations: as far as one coefficient of each gene" in text
    assert "each donor's own log2 fold change" in text
    assert "Can the results be used? Yes, with caution:" in text
    assert all(column in text and meaning in text for column, meaning in COLUMNS.items())
    assert "None" not in text
    assert "nan" not in text.lower().split()


def test_it_says_what_it_found(done: tuple[Ran, Path]) -> None:
    said, out = done[0].said, done[1]
    assert "60 cells x 4 genes, ~ condition" in said
    assert "condition: stim vs ctrl: 2 of 4 genes change by more than 0.25 log2 units" in said
    assert "converged" in said
    assert f"open {out / 'report.html'} first" in said
    rows = [line for line in said.splitlines() if line.startswith("  ")]
    assert len({len(line) for line in rows}) == 1  # aligned
    assert not done[0].problems


def test_it_takes_layers_offsets_and_covariates_and_any_names_of_genes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(de, "draw", undrawn)
    adata = cells()
    adata.obs["size"] = (adata.obs["age"] - 50) / 50
    adata.var_names = ["<script>alert(1)</script>", "$a_b$", "γ", "rare"]
    options = {"--layer": "counts", "--offset": "size", "--formula": "~ condition + age"}
    given = [word for option in options.items() for word in option]
    ran = run("de", file_of(tmp_path, adata), *ASKED, *given, "--out", tmp_path / "out", "--quiet")
    assert ran == Ran(0, "", "")
    settings = json.loads((tmp_path / "out" / "metrics.json").read_text())["settings"]
    assert all(settings[name.removeprefix("--")] == value for name, value in options.items())
    called = pd.read_csv(tmp_path / "out" / "de.csv").set_index("variable").is_de
    assert called[["<script>alert(1)</script>", "$a_b$"]].all()
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize(("strict", "code"), [((), 0), (("--strict",), 3)])
def test_not_converged_warns_and_is_3_when_strict(
    strict: tuple[str, ...], code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fit_module, "_converged", lambda losses, negligible: False)
    x = cells().X
    x[x > 0] = 1 + 0.1 * x[x > 0] / x.max()  # looks logged
    monkeypatch.setattr(de, "draw", undrawn)
    path, out = file_of(tmp_path, cells(x) if strict else None), tmp_path / "out"
    out.mkdir()
    (out / "de.csv").write_text("of an earlier run")
    ran = run("de", path, *ASKED, "--scale", "linear", "--device", "cpu", "--quiet", "--out", out, *strict)
    assert ran.code == code
    *others, last = ran.problems.splitlines()
    assert last == "warning: the fit has not converged in 10 steps; use more --steps"
    assert {file.name for file in out.iterdir()} == FILES
    assert "of an earlier run" not in (out / "de.csv").read_text()
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "did not converge in 10 steps" in text
    warned = json.loads((out / "metrics.json").read_text())["warnings"]
    assert [f"warning: {text}" for text in warned] == others
    assert sum(one.startswith("scale is 'linear', but adata.X looks logged") for one in warned) == len(strict)
    assert ("looks logged" in text) is bool(strict)


def test_help_names_every_option() -> None:
    ran = run("de", "--help")
    assert ran.code == 0
    options = ("--formula", "--contrast", "--donor", "--layer", "--use-raw", "--scale", "--detection-threshold")
    options += (
        "--delta",
        "--fdr",
        "--max-error",
        "--out",
        "--seed",
        "--steps",
        "--device",
        "--resume",
        "--strict",
        "--quiet",
    )
    assert all(option in ran.said for option in options)


# The cells, the arguments, and what is said of a condition that is too small.
FEW: dict[str, tuple[Callable[[], anndata.AnnData], tuple[str, ...], str]] = {
    "cells": (lambda: cells()[:12].copy(), (), "fewer than 10 cells (6 against 6): add cells"),
    "one donor against three": (
        lambda: cells(donor=["s" if i % 2 else f"c{i // 2 % 3}" for i in range(60)]),
        ("--donor", "donor"),
        "cells of one sample only, such as one donor: add donors",
    ),
}


@pytest.mark.parametrize("case", FEW)
def test_conditions_that_are_too_small_are_told_with_the_remedy(
    case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(de, "draw", undrawn)
    made, more, says = FEW[case]
    ran = run("de", file_of(tmp_path, made()), *ASKED, *more, "--out", tmp_path / "out")
    assert ran.code == 0, ran
    assert f"caution: no gene can be called, as a condition has {says}, or compare other conditions" in ran.said
    assert says in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "0 of 4 genes change" in ran.said


def test_the_scale_that_is_told_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(de, "draw", undrawn)
    ran = run("de", file_of(tmp_path, cells(np.floor(cells().X) + 1)), *ASKED, "--out", tmp_path / "out")
    assert "scale: counts, as all values are whole numbers\n" in ran.said
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "counts, as all values are whole numbers" in text
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["settings"]["scale"] == "counts"


def test_a_second_run_into_a_folder_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path, out = file_of(tmp_path), tmp_path / "out"
    out.mkdir()
    with locked(out / "run.lock", "the folder"):
        before = sorted(out.iterdir())
        ran = run("de", path, *ASKED, "--quiet", "--out", out)
        assert sorted(out.iterdir()) == before
    assert ran.code == 2
    assert len(ran.problems.splitlines()) == 1
    assert f"out: {str(out)!r} is in use by process {os.getpid()} on {socket.gethostname()}" in ran.problems


def test_a_full_disk_is_told_with_the_folder_and_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(de, "draw", lambda results: ({}, {}, []))
    path, out = file_of(tmp_path), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(de, "html", full)
        ran = run("de", path, *ASKED, "--quiet", "--out", out)
    assert (ran.code, ran.said, ran.problems.count("\n")) == (1, "", 1)
    says = rf"No space left on device after [1-9]\d+ bytes of results; fit\.ckpt is whole: .* with --resume: '{out}'"
    assert re.search(says, ran.problems)
    assert [file.name for file in out.iterdir()] == ["fit.ckpt"]
    assert run("de", path, *ASKED, "--quiet", "--out", out, "--resume").code == 0


def test_folders_and_files_of_others_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(de, "draw", undrawn)
    path, out = file_of(tmp_path), tmp_path / "out"
    (out / ".writing").mkdir(parents=True)
    (out / ".writing" / "mine").write_text("mine")
    (tmp_path / "victim").write_text("precious")
    for name in ("fit.ckpt.new", "fit.ckpt.new.partial"):
        (out / name).symlink_to(tmp_path / "victim")
    left = out / ".pyro-zilognormal-writing"
    left.mkdir()  # as a run leaves behind that is killed while it writes
    assert run("de", path, *ASKED, "--quiet", "--out", out).code == 0
    assert (out / ".writing" / "mine").read_text() == "mine"
    assert (tmp_path / "victim").read_text() == "precious"
    assert not left.exists()
    assert not list(out.glob("*.lock"))


def test_links_are_followed_only_when_asked_for(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    with h5py.File(path, "a") as file:
        file["uns/more"] = h5py.SoftLink("/var")
    ran = run("de", path, *ASKED, "--out", tmp_path / "out")
    assert (ran.code, len(ran.problems.splitlines())) == (2, 1)
    assert "holds a link, 'uns/more', which may reach other files; if you trust it, pass --follow-links" in ran.problems
    assert not (tmp_path / "out").exists()
