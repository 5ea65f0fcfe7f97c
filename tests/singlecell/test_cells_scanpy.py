"""Results as scanpy reads them, field by field: names, types, order, and the parameters that its plots look at."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pyro_zilognormal.singlecell import differential_expression, to_scanpy
from tests.singlecell.cell_cases import GENES, experiment
from tests.singlecell.scanpy_reader import FIELDS, groups, plotted, rank_genes_groups_df


def done() -> tuple[dict, pd.DataFrame]:
    adata = experiment()
    contrasts = [("donor", d, "ctrl0") for d in ("ctrl1", "stim0")]
    table = differential_expression(adata, "~ donor", contrasts, steps=10)
    to_scanpy(adata)
    return adata.uns["rank_genes_groups"], table


def test_the_table_that_scanpy_makes() -> None:
    found, table = done()
    assert groups(found) == ["ctrl1", "stim0"]
    for group in groups(found):
        read = rank_genes_groups_df(found, group)
        assert list(read.columns) == [*FIELDS, "pct_nz_group", "pct_nz_reference"]
        ours = table[table["contrast"] == f"donor: {group} vs ctrl0"].set_index("variable").loc[list(read["names"])]
        wanted = {
            "logfoldchanges": ours["log_fc"],
            "scores": ours["log_fc"] / ours["log_fc_sd"],
            "pvals": ours["lfsr"],
            "pvals_adj": ours["expected_fdr"],
            "pct_nz_group": ours["detection_test"],
            "pct_nz_reference": ours["detection_ref"],
        }
        for name, values in wanted.items():
            np.testing.assert_allclose(read[name], values, rtol=1e-6, err_msg=name)
        assert sorted(read["names"]) == sorted(GENES)
    both = rank_genes_groups_df(found, None)
    assert both["group"].tolist() == ["ctrl1"] * 6 + ["stim0"] * 6


def test_what_its_plot_looks_at() -> None:
    found, _ = done()
    shown = plotted(found, 4)
    assert [title for title, _, _ in shown.values()] == ["ctrl1 vs. ctrl0", "stim0 vs. ctrl0"]
    for _, _, genes in shown.values():
        scores = [score for _, score in genes]
        assert scores == sorted(scores, reverse=True)
        assert all(isinstance(name, str) for name, _ in genes)
    assert {"groupby", "reference", "method", "use_raw", "corr_method"} <= set(found["params"])
