"""The demonstration finds what is known of monocytes and T cells."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from tests.cli.cli_cases import Ran


def test_known_markers_are_found_with_the_right_sign(demo: tuple[Ran, Path]) -> None:
    assert demo[0].code == 0, demo[0]
    table = pd.read_csv(demo[1] / "de.csv").set_index("variable")
    assert len(table) == 200
    up, down = ["LYZ", "S100A8", "S100A9", "CST3", "FCN1"], ["CD3D", "CD3E", "IL32", "NKG7"]
    assert table.is_de[up + down].all()
    assert (table.log_fc_low[up] > 1).all()
    assert (table.log_fc_high[down] < -1).all()
    assert {"LYZ", "CST3", "FCN1", "CD3D", "IL32"} <= set(table.index[:40])


def test_parts_sum_to_the_whole(demo: tuple[Ran, Path]) -> None:
    table = pd.read_csv(demo[1] / "de.csv")
    parts = table.log_fc_detection + table.log_fc_abundance + table.log_fc_dispersion
    assert (table.log_fc - parts).abs().max() < 1e-9


def test_the_fit_reproduces_the_cells(demo: tuple[Ran, Path]) -> None:
    found = json.loads((demo[1] / "metrics.json").read_text())
    assert found["convergence"]["converged"]
    assert found["predictive_check"]["zero_fraction_inside"] >= 0.98
    assert found["predictive_check"]["mean_inside"] >= 0.98
    assert found["predictive_check"]["sd_log_inside"] >= 0.98


def test_fold_changes_are_the_observed_ratios_where_spreads_differ(demo: tuple[Ran, Path]) -> None:
    table = pd.read_csv(demo[1] / "de.csv").set_index("variable")
    seen = table[(table.detection_test > 0.5) & (table.detection_ref > 0.5)]
    observed = np.log2(seen.mean_test / seen.mean_ref)
    assert abs(table.log_fc["FTL"] - 2.81) < 0.1  # its values spread twice as much in T cells
    assert table.dispersion_fc_high["FTL"] < -0.5
    assert table.log_fc_dispersion["FTL"] < -0.1
    assert (seen.log_fc - observed).abs().mean() < 0.1
    assert ((seen.log_fc_low < observed) & (observed < seen.log_fc_high)).mean() > 0.9


def test_markers_stand_at_the_top_of_their_side(demo: tuple[Ran, Path]) -> None:
    """As the README and docs/singlecell.md say."""
    table = pd.read_csv(demo[1] / "de.csv").set_index("variable")
    up, down = {"LYZ", "S100A8", "S100A9", "CST3", "FCN1"}, {"CD3D", "CD3E", "IL32", "NKG7"}
    assert up <= set(table.log_fc.nlargest(25).index)
    assert down <= set(table.index[table.is_de & (table.log_fc < 0)][:20])  # the most certain first


def test_it_prints_what_the_readme_shows(demo: tuple[Ran, Path]) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    shown = readme.split("```text\n")[1].split("\n```")[0].splitlines()
    assert sum(bool(re.match(r"^  \S+ +[+-][\d.]+ +[+-][\d.]+ to [+-][\d.]+", line)) for line in shown) == 4
    printed = iter(demo[0].said.splitlines())
    for line in shown:  # in this order, to the last digit
        assert line in printed, line


def test_it_prints_the_most_certain_genes(demo: tuple[Ran, Path]) -> None:
    assert "pbmc68k_reduced: 321 cells x 200 genes" in demo[0].said
    assert all(gene in demo[0].said for gene in ("FCN1", "CST3", "LYZ"))
