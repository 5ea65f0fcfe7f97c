"""Names of genes, columns and levels that a terminal, a page, a picture or the command line could take for syntax."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from pyro_zilognormal.singlecell import HurdleDE, pl
from pyro_zilognormal.singlecell.cli import de, report
from pyro_zilognormal.singlecell.cli.main import join_contrasts
from pyro_zilognormal.singlecell.errors import printable
from pyro_zilognormal.singlecell.plots import literal
from tests.cli.cli_cases import ASKED, GENES, Ran, cells, file_of, run, undrawn

ODD = ["x$\\foo$", "\x1b[31mred\x07", "=cmd|' /C calc'!A0", "基因😀\n$\\frac{$"]
LEVELS = {"stim": "-TNF", "ctrl": "$\\frac{$"}


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, Path]:
    """A run on odd names of everything: an interaction, a pair of conditions and a difference of two pairs."""
    folder = tmp_path_factory.mktemp("odd")
    adata = cells()
    adata.var_names = ODD
    adata.obs["orig.ident"] = adata.obs["condition"].map(LEVELS).to_numpy()
    adata.obs["_dose µ"] = np.where(np.arange(60) % 4 < 2, "_high", "low")
    high, low = ((f"orig.ident=-TNF,_dose µ={d}", f"orig.ident=$\\frac{{$,_dose µ={d}") for d in ("_high", "low"))
    given = ("--formula", "~ `orig.ident` * Q('_dose µ')", "--contrast", *high, "--contrast", *high, "-", *low)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("error")  # no raw warning of matplotlib's
        patch.setattr(de, "_GENES_DRAWN", 2)
        patch.setattr(report, "_DPI", 40)
        ran = run("de", file_of(folder, adata), *given, "--steps", "10", "--donor", "donor", "--out", folder / "out")
    return ran, folder / "out"


def test_odd_names_go_through(odd: tuple[Ran, Path]) -> None:
    ran, out = odd
    assert ran.code == 0, ran
    assert not ran.problems
    table = pd.read_csv(out / "de.csv")
    assert set(table["variable"]) == set(ODD)
    assert len(table) == 8
    pair, difference = table["contrast"].unique()
    assert pair == "orig.ident=-TNF, _dose µ=_high vs orig.ident=$\\frac{$, _dose µ=_high"
    assert difference.startswith(f"({pair}) minus (")
    up = table.set_index(["contrast", "variable"]).log_fc
    assert up[pair, ODD[0]] > 3
    assert abs(up[difference, ODD[0]]) < 2
    assert len(json.loads((out / "metrics.json").read_text())["contrasts"]) == 2


def test_the_terminal_gets_no_control_characters(odd: tuple[Ran, Path]) -> None:
    said = odd[0].said
    assert all(line.isprintable() for line in said.splitlines())
    assert "\\x1b[31mred\\x07" in said
    assert "基因😀\\n" in said
    rows = [line for line in said.splitlines() if "to +" in line or "to -" in line]
    assert len(rows) == 8


def test_the_page_gets_no_control_characters(odd: tuple[Ran, Path]) -> None:
    text = (odd[1] / "report.html").read_text(encoding="utf-8")
    assert all(line.isprintable() for line in text.replace("\n", "").split())
    assert "\\x1b[31mred\\x07" in text
    assert text.count("<img") == 3 + 2 * 2


@pytest.mark.parametrize(
    "name", [*ODD, *LEVELS.values(), "_hidden", "$", "$$", "\\$", "a_b^c", "$x$ and \\$y\\$", "%", "\\"]
)
def test_pictures_show_names_as_they_are(name: str) -> None:
    """The pixels are those of the text without any mathematics."""
    drawn = []
    for text, settings in ((literal(name), {}), (printable(name), {"parse_math": False})):
        figure = Figure((3, 0.5), dpi=60)
        figure.text(0.05, 0.5, text, **settings)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph", UserWarning)
            drawn.append(_pixels(figure))
    np.testing.assert_array_equal(*drawn)


def test_a_condition_whose_name_starts_with_an_underscore_is_in_the_legend() -> None:
    adata = cells()
    adata.obs["_arm"] = adata.obs["condition"].to_numpy()
    fit = HurdleDE(adata, "~ _arm").fit(steps=10).gene_fits(["up"], ("_arm", "stim", "ctrl"))[0]
    amount = pl.gene(fit, Figure().subplots()).child_axes[1]
    legend = amount.get_legend()
    assert legend is not None
    assert [text.get_text()[:10] for text in legend.get_texts()] == ["_arm=stim:", "_arm=ctrl:"]


def test_pictures_that_fail_cost_no_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no\nluck")

    for broken in ("convergence", "volcano", "predictive", "gene"):
        monkeypatch.setattr(report.plots, broken, fail)
    monkeypatch.setattr(report, "_DPI", 20)
    monkeypatch.setattr(de, "_GENES_DRAWN", 2)
    ran = run("de", file_of(tmp_path), *ASKED, "--out", tmp_path / "out", "--quiet")
    assert ran.code == 0
    said = ran.problems.splitlines()
    assert len(said) == 3 + 2
    assert all(line.startswith("warning: the picture of ") and "RuntimeError: no\\nluck" in line for line in said)
    assert len(pd.read_csv(tmp_path / "out" / "de.csv")) == len(GENES)
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<img" not in text
    assert "could not be drawn" in text


# Arguments, and what is left of them: each contrast in one.
JOINED: dict[str, tuple[str, str]] = {
    "levels": ("--contrast c a b x.h5ad", "--contrast=c|a|b x.h5ad"),
    "a dash": ("x.h5ad --contrast c -TNF +TNF -x", "x.h5ad --contrast=c|-TNF|+TNF -x"),
    "dashes alone": ("--contrast c - -1", "--contrast=c|-|-1"),
    "conditions": ("--contrast c=a,d=1 c=b,d=1 x.h5ad", "--contrast=c=a,d=1|c=b,d=1 x.h5ad"),
    "a difference": ("--contrast c=a c=b - d=a d=b x.h5ad", "--contrast=c=a|c=b|-|d=a|d=b x.h5ad"),
    "too few": ("--contrast c a --out o", "--contrast=c|a --out o"),
    "none": ("--contrast --out o", "--contrast= --out o"),
    "two": ("--contrast c a b --contrast c b a", "--contrast=c|a|b --contrast=c|b|a"),
    "joined by the caller": ("--contrast=c", "--contrast=c"),
}


@pytest.mark.parametrize("case", JOINED)
def test_contrasts_are_joined(case: str) -> None:
    given, wanted = JOINED[case]
    assert join_contrasts(given.split()) == wanted.replace("|", "\0").split(" ")


def test_a_level_with_a_dash_and_one_without_are_the_same(tmp_path: Path) -> None:
    """Renaming levels changes nothing but names."""
    tables = []
    for levels in (LEVELS, {"stim": "b", "ctrl": "a"}):
        adata = cells()
        adata.obs["arm"] = pd.Categorical(adata.obs["condition"].map(levels), [levels["ctrl"], levels["stim"]])
        given = ("--contrast", "arm", levels["stim"], levels["ctrl"], "--formula", "~ arm", "--steps", "10", "--quiet")
        out = tmp_path / levels["stim"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(de, "draw", undrawn)
            assert run("de", *given, file_of(tmp_path, adata), "--out", out).code == 0
        tables.append(pd.read_csv(out / "de.csv").drop(columns="contrast"))
    pd.testing.assert_frame_equal(*tables)


def _pixels(figure: Figure) -> np.ndarray:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba")
    return np.frombuffer(buffer.getvalue(), np.uint8)
