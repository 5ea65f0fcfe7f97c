"""A cube: the table of the cells, whatever is appended or selected, and one clear line for what cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pytest
import torch

from pyro_zilognormal.singlecell import (
    HurdleDE,
    SingleCellError,
    differential_expression,
    extend_cube,
    reduce,
)
from tests.singlecell.cube_cases import BY, CUBE, FAST, STIM, cells, compare, same

pytestmark = [
    pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning"),
    pytest.mark.filterwarnings("ignore::pyro_zilognormal.singlecell.DepthWarning"),
]

# --- The table is that of the cells

# Formula, donor, arguments of the reduction, and of the fit.
GOOD: dict[str, tuple[str, str | None, dict[str, Any], dict[str, Any]]] = {
    "counts": ("~ condition", "donor", {}, {}),
    "bins of depth": ("~ condition", "donor", {}, {"depth": "auto"}),
    "a number and a type": ("~ condition + dose + cell_type", None, {}, {"depth": "auto"}),
    "nested effects": ("~ condition * cell_type + (1 | donor:cell_type)", "donor", {}, {}),
    "logarithms": ("~ condition", "donor", {"scale": "log1p", "depth": "umis"}, {"depth": "umis"}),
    "an offset": ("~ condition + C(dose)", None, {"offset": "size", "scale": "linear", "depth": None}, {}),
    "a threshold": ("~ condition", None, {"detection_threshold": 0.7}, {}),
}


def both(name: str) -> tuple[HurdleDE, HurdleDE]:
    """Read a cube, and its cells."""
    formula, donor, of_cells, of_fit = GOOD[name]
    adata = cells(counts=of_cells.get("scale") != "log1p")
    cube = reduce(adata, [*BY, "dose"], **of_cells)
    more = {key: value for key, value in of_cells.items() if key != "depth"} | of_fit
    draws = FAST["draws"]
    return HurdleDE(cube, formula, donor=donor, draws=draws, **of_fit), HurdleDE(
        adata, formula, donor=donor, draws=draws, **more
    )


@pytest.mark.parametrize("name", GOOD)
def test_what_is_fitted_is_that_of_the_cells(name: str) -> None:
    cube, wanted = both(name)
    for field in ("value", "design", "zero_design", "scale_design", "factors", "offset"):
        torch.testing.assert_close(getattr(cube.data, field), getattr(wanted.data, field), rtol=1e-12, atol=1e-12)
    for field in ("totals", "cubes", "count"):
        np.testing.assert_allclose(getattr(cube.cells, field), getattr(wanted.cells, field), rtol=1e-12, atol=1e-12)
    assert cube.settings == wanted.settings
    assert cube.cond().levels == wanted.cond().levels
    np.testing.assert_allclose(cube.cond().design, wanted.cond().design, rtol=1e-14)


@pytest.mark.parametrize("name", ["bins of depth", "a number and a type"])
def test_the_table_is_that_of_the_cells(name: str) -> None:
    cube, wanted = (de.fit(steps=FAST["steps"]) for de in both(name))
    compare(cube.test(STIM), wanted.test(STIM))
    ends = [cube.cond(condition=level) for level in ("stim", "ctrl")]
    compare(cube.predict(*ends, quantiles=[0.5, 0.9]), wanted.predict(*ends, quantiles=[0.5, 0.9]))
    compare(cube.predictive_check(*ends), wanted.predictive_check(*ends))


def test_a_selected_level_gives_the_table_of_its_cells() -> None:
    adata = cells()
    cube = reduce(adata, BY, depth_within="cell_type")
    found = differential_expression(
        cube.select(cell_type="B"), "~ condition", STIM, donor="donor", depth="auto", **FAST
    )
    own = adata[adata.obs["cell_type"] == "B"].copy()
    wanted = differential_expression(own, "~ condition", STIM, donor="donor", depth="auto", copy=True, **FAST)
    # Size factors are relative to the median of all cells, not to that of the level.
    unit = np.median(own.X.sum(1)) / np.median(adata.X.sum(1))
    assert unit != 1
    for name in ("mean_test", "mean_ref"):
        found[name] *= unit
    compare(found, wanted)


# --- Cells that come later


def test_cells_reduced_in_parts_are_those_reduced_together() -> None:
    adata = cells()
    half = np.random.default_rng(1).random(adata.n_obs) < 0.5
    parts = [adata[half].copy(), adata[~half, ::-1].copy()]  # genes stand in another order
    same(reduce(parts, BY), reduce(adata, BY), rtol=1e-12)
    donors = adata.obs["donor"].isin(["d0", "d3"])
    first, then = adata[~donors].copy(), adata[donors].copy()
    cube = reduce(first, BY)
    more = cube.append(reduce(then, like=cube))
    assert more.cells.sum() == adata.n_obs
    assert more.settings == cube.settings
    # Without bins and size factors, which are those of the first part, nothing depends on the order.
    plain = {"scale": "linear", "offset": "size", "depth": None}
    one = reduce(first, BY, **plain)
    same(one.append(reduce(then, like=one)), reduce(adata, BY, **plain), rtol=1e-12)
    assert one.append(reduce(then, like=one)).obs["donor"].cat.categories.tolist() == [f"d{i}" for i in range(6)]


def test_cells_are_not_counted_twice_unless_asked() -> None:
    adata = cells()
    cube = reduce(adata, BY)
    again = reduce(adata[:100].copy(), like=cube)
    with pytest.raises(SingleCellError, match="groups of donor:cell_type:condition are in the cube already: d0:T:ctrl"):
        cube.append(again)
    both = cube.append(again, merge=True)
    assert (len(both.cells), both.cells.sum()) == (len(cube.cells), 580)
    wanted = reduce([adata, adata[:100].copy()], like=cube)
    same(both, wanted, rtol=1e-12)


def test_new_levels_have_bins_of_their_own() -> None:
    adata = cells()
    kind = adata.obs["cell_type"] == "B"
    cube = reduce(adata[~kind].copy(), BY, depth_within="cell_type")
    more = cube.append(reduce(adata[kind].copy(), like=cube))
    assert list(cube.settings["edges"]) == ["T"]
    assert more.settings["edges"] == reduce(adata, BY, depth_within="cell_type").settings["edges"]


# --- What cannot be used


def _odd(**columns: Any) -> anndata.AnnData:
    adata = cells()
    adata.obs = adata.obs.assign(**columns)
    return adata


def _empty() -> anndata.AnnData:
    adata = cells()
    adata.X[7] = 0
    return adata


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "no key": (lambda: reduce(cells(), []), r"by is \[\]; needed one or more columns"),
    "an unknown key": (
        lambda: reduce(cells(), ["donr"]),
        "by: 'donr' is not .* did you mean 'donor'",
    ),
    "a key twice": (lambda: reduce(cells(), ["donor", "donor"]), "each once"),
    "a key of a cube's name": (lambda: reduce(_odd(n_cells=1), ["n_cells"]), "'n_cells' is the name of a column that"),
    "missing levels": (lambda: reduce(_odd(donor=np.nan), ["donor"]), r"by: obs\['donor'\] is missing in 480 of 480"),
    "a level a cell": (
        lambda: reduce(cells(), ["umis"]),
        "480 groups of 480 cells; needed groups of two",
    ),
    "no cells": (lambda: reduce([], BY), "adata is an empty list"),
    "a cube of a cube": (lambda: reduce(CUBE, BY), "adata is a cube already"),
    "no AnnData": (lambda: reduce(cells().obs, BY), "needed an AnnData"),
    "a cell without counts": (lambda: reduce(_empty(), BY), "needed a number > 0, which 1 of 480 cells have not"),
    "other genes": (lambda: reduce([cells(), cells()[:, 2:].copy()], BY), "genes differ: 2 .* g0, g1; needed the same"),
    "two scales": (lambda: reduce([cells(), cells(counts=False)], BY, scale=None), "scale"),
    "two depths": (
        lambda: reduce([_odd(total_counts=1.0), cells()], BY, scale="linear", offset="size"),
        "depth: the inputs have .*'None', 'total_counts'",
    ),
    "within another column": (lambda: reduce(cells(), BY, depth_within="dose"), "depth_within: 'dose' is not one of"),
    "within, without depth": (
        lambda: reduce(cells(), BY, depth=None, depth_within="donor"),
        "depth_within is given, but the depth",
    ),
    "counts with an offset": (lambda: reduce(cells(), BY, scale="counts", offset="size"), "offset is given with scale"),
    "another scale for a cube": (
        lambda: HurdleDE(CUBE, "~ condition", scale="log1p"),
        "scale is 'log1p', but",
    ),
    "an array for a cube": (lambda: HurdleDE(CUBE, "~ condition", offset=np.zeros(480)), "offset is a ndarray, but"),
    "another depth": (lambda: HurdleDE(CUBE, "~ condition", depth="umis"), "has the depth 'total counts'"),
    "an array of offsets": (lambda: reduce(cells(), BY, offset=np.zeros(480)), "needed the name of a column of obs"),
    "no bins": (
        lambda: HurdleDE(reduce(cells(), BY, depth=None), "~ condition", depth="auto"),
        "the cube has no bins; needed reduce",
    ),
    "no key of the formula": (lambda: HurdleDE(CUBE, "~ dose"), "formula: 'dose' is not one of the columns"),
    "a mean over cells": (
        lambda: HurdleDE(reduce(cells(), [*BY, "dose"]), "~ condition + center(dose)"),
        "takes means or quantiles over cells",
    ),
    "a spline of cells": (
        lambda: HurdleDE(reduce(cells(), [*BY, "dose"]), "~ condition + poly(dose, 2)"),
        "takes means or quantiles over cells",
    ),
    "an unknown level": (lambda: CUBE.select(cell_type="b"), "cell_type: 'b' is not one of the levels"),
    "no group": (lambda: CUBE.select(donor="d0", condition="stim"), "no group has"),
    "other keys": (
        lambda: CUBE.append(reduce(cells(), "donor")),
        "by: the cube has the keys donor, cell_type, ",
    ),
    "another unit": (lambda: CUBE.append(reduce(cells(seed=1), BY)), "differs: .* needed cells that are reduced as"),
    "like, by other keys": (lambda: reduce(cells(), "donor", like=CUBE), "by is 'donor', but the cube has the keys"),
    "like, on another scale": (lambda: reduce(cells(), like=CUBE, scale="linear"), "scale is 'linear', but the cells"),
    "extending nothing": (lambda: extend_cube("/nowhere/cube.zarr", cells()), "path is '/nowhere/cube.zarr'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_refused(name: str) -> None:
    call, says = BAD[name]
    with pytest.raises(SingleCellError, match=says) as refused:
        call()
    assert "\n" not in str(refused.value)


def test_a_cube_has_no_cells_to_draw() -> None:
    de = HurdleDE(CUBE, "~ condition", draws=100).fit(steps=10)
    with pytest.raises(SingleCellError, match="adata is a cube, which has no single cells to draw genes of"):
        de.gene_fits(["g0"], STIM)


def test_a_design_is_refused_only_if_it_depends_on_the_numbers_of_cells() -> None:
    cube = reduce(cells(), [*BY, "dose"], depth=None)
    for formula in ("~ np.log(dose + 1)", "~ dose**2", "~ C(dose)", "~ I(dose > 0):condition"):
        HurdleDE(cube, f"{formula} + cell_type")
