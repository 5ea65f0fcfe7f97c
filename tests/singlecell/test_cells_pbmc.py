"""Real blood cells: known markers of monocytes and T cells come out on top, with the right sign."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import pytest

from pyro_zilognormal.singlecell import HurdleDE, differential_expression
from tests.singlecell.cell_cases import MARKERS_DOWN, MARKERS_UP, pbmc

CONTRAST = ("lineage", "CD14+ Monocyte", "T cell")


@functools.cache
def table(donor: str | None = None) -> pd.DataFrame:
    de = HurdleDE(pbmc(), "~ lineage", donor=donor).fit(steps=20)
    return de.test(CONTRAST).set_index("variable")


def test_markers_are_called_with_the_right_sign() -> None:
    found = table().loc[[*MARKERS_UP, *MARKERS_DOWN]]
    assert found["is_de"].all()
    assert (found["lfsr"] == 0).all()
    assert (found.log_fc_low[list(MARKERS_UP)] > 1).all()
    assert (found.log_fc_high[list(MARKERS_DOWN)] < -1).all()


def test_markers_are_on_top() -> None:
    up = table()["log_fc"].sort_values(ascending=False).index.tolist()
    assert all(up.index(gene) < 25 for gene in MARKERS_UP)
    assert all(up[::-1].index(gene) < 25 for gene in MARKERS_DOWN)


def test_observed_columns_are_those_of_the_cells() -> None:
    adata, found = pbmc(), table()
    chosen = {"test": adata.obs["lineage"] == "CD14+ Monocyte", "ref": adata.obs["lineage"] == "T cell"}
    for name, mask in chosen.items():
        x = pd.DataFrame(adata[mask.to_numpy()].X, columns=adata.var_names, dtype=float)[list(found.index)]
        np.testing.assert_allclose(found[f"mean_{name}"], x.mean(), rtol=1e-6)
        np.testing.assert_allclose(found[f"detection_{name}"], (x > 0).mean())
        assert (found[f"n_{name}"] == mask.sum()).all()


def test_scales_agree() -> None:
    genes = ["LYZ", "CD3D", "FTL", "NKG7", "ABI1"]
    linear, logged = pbmc(genes), pbmc(genes)
    logged.X = np.log1p(linear.X.astype(float))
    one, other = (
        differential_expression(a, "~ lineage", CONTRAST, scale=s, steps=20, copy=True)
        for a, s in ((linear, "linear"), (logged, "log1p"))
    )
    pd.testing.assert_frame_equal(one, other, rtol=1e-6)


@pytest.mark.slow
def test_wells_as_donors_change_little() -> None:
    """The wells are of one donor, so that there is next to nothing between them."""
    one, other = table(), table("well").loc[table().index]
    assert np.corrcoef(one["log_fc"], other["log_fc"])[0, 1] > 0.98
