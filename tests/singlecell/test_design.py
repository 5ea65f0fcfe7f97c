"""Designs, conditions and contrasts: their rows, and whether the cells determine them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from pyro_zilognormal.singlecell import HurdleDE, SingleCellError
from pyro_zilognormal.singlecell.design.design import Design, strata
from tests.singlecell.cell_cases import experiment, frame

SIX = pd.DataFrame(
    {
        "group": ["b", "a", "c", "b", "a", "c"],
        "sex": pd.Categorical(["m", "f", "m", "f", "m", "f"], categories=["m", "f", "x"]),
        "number": [1.0, 2.0, 3.0, 4.0, 5.0, 9.0],
        "code": [10, 20, 10, 20, 30, 30],
        "flag": [True, False, True, False, True, True],
        "a b": list("xyxyxy"),
    },
    index=list("pqrstu"),
)


@pytest.mark.parametrize(
    ("formula", "levels", "row"),
    [
        ("~ group", {}, [1, 0, 0]),
        ("~ group", {"group": "c"}, [1, 0, 1]),
        ("~ group + sex", {"sex": "f"}, [1, 0, 0, 1]),
        ("~ group + number", {"group": "b"}, [1, 1, 0, 4]),
        ("~ group + number", {"number": 7}, [1, 0, 0, 7]),
        ("~ group + number", {"number": "7"}, [1, 0, 0, 7]),
        ("~ center(number)", {"number": 7}, [1, 3]),
        ("~ np.log(number)", {"number": np.e}, [1, 1]),
        ("~ C(code)", {"code": 30}, [1, 0, 1]),
        ("~ C(code)", {"code": "30"}, [1, 0, 1]),
        ("~ code", {"code": 30}, [1, 30]),
        ("~ flag", {"flag": True}, [1, 1]),
        ("~ flag", {"flag": "True"}, [1, 1]),
        ("~ flag", {}, [1, 0]),
        ("~ `a b`", {"a b": "y"}, [1, 1]),
        ("~ C(group, contr.treatment('c'))", {"group": "a"}, [1, 1, 0]),
        ("~ C(group, contr.treatment('c'))", {}, [1, 1, 0]),
        ("~ sex * number", {"sex": "f", "number": 2}, [1, 1, 2, 2]),
        ("group", {"group": "b"}, [1, 1, 0]),
    ],
)
def test_rows(formula: str, levels: dict[str, Any], row: list[float]) -> None:
    condition = Design(formula, SIX).condition(levels)
    np.testing.assert_allclose(condition.design, row, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["string", "category", object])
def test_text_of_every_dtype(dtype: Any) -> None:
    obs = SIX.astype({"group": dtype})
    if dtype is object:
        obs["group"] = [np.str_(g) for g in obs["group"]]
    np.testing.assert_array_equal(Design("~ group", obs).matrix, Design("~ group", SIX).matrix)


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "int8", "float32"])
def test_numbers_of_every_dtype(dtype: Any) -> None:
    design = Design("~ number", SIX.astype({"number": dtype}))
    np.testing.assert_array_equal(design.matrix[:, 1], SIX["number"])
    assert design.condition({"number": 2.5}).design.tolist() == [1, 2.5]


def test_the_order_of_categories_is_kept_and_unused_ones_are_left_out() -> None:
    design = Design("~ sex", SIX)
    assert design.columns == ["Intercept", "sex[T.f]"]
    assert design.variables["sex"].levels == ("m", "f")


def test_any_level_can_be_the_reference() -> None:
    design = Design("~ group", SIX)
    contrast = design.contrast("group", "b", "c")
    np.testing.assert_array_equal(contrast.test.design - contrast.reference.design, [0, 1, -1])
    assert contrast.name == "group: b vs c"


def test_two_numbers_are_levels() -> None:
    contrast = Design("~ number", SIX.assign(number=[0, 1] * 3)).contrast("number", "1", 0)
    np.testing.assert_array_equal(contrast.test.design - contrast.reference.design, [0, 1])


def test_a_redundant_column_does_not_forbid_what_is_estimable() -> None:
    design = Design("~ group + sex + nested", SIX.assign(nested=SIX["sex"].astype(str)))
    design.contrast("group", "b", "a")
    with pytest.raises(SingleCellError, match="not estimable"):
        design.contrast("sex", "f", "m")


def test_estimability_does_not_depend_on_units() -> None:
    for unit in (1e-9, 1.0, 1e9):
        design = Design("~ group + number", SIX.assign(number=SIX["number"] * unit + 1000 * unit))
        assert design.rank == 4
        design.contrast("group", "b", "a")


def test_interactions_are_compared_at_given_values() -> None:
    design = Design("~ sex * number", SIX)
    (pair,) = design.contrasts(tuple(design.condition({"sex": s, "number": 2}) for s in "fm"))
    np.testing.assert_allclose(pair.test.design - pair.reference.design, [0, 1, 0, 2])
    assert pair.column == "sex"
    assert pair.name == "sex=f, number=2.0 vs sex=m, number=2.0"


def test_a_variable_without_interaction_need_not_be_given() -> None:
    design = Design("~ group + sex * number", pd.concat([SIX, SIX]))
    design.contrast("group", "b", "a")


def test_contrasts_come_in_many_ways() -> None:
    design = Design("~ group", SIX)
    one = ("group", "b", "a")
    conditions = tuple(design.condition({"group": g}) for g in "cb")
    found = design.contrasts([one, conditions, design.contrast("group", "c", "a", name="mine")])
    assert [c.name for c in found] == ["group: b vs a", "group=c vs group=b", "mine"]
    assert [c.name for c in design.contrasts({"first": one, "second": conditions})] == ["first", "second"]
    assert [c.name for c in design.contrasts(one)] == ["group: b vs a"]
    assert [c.name for c in design.contrasts([list(one)])] == ["group: b vs a"]


def test_strata_are_the_combinations_that_cells_have() -> None:
    obs = frame()
    de = HurdleDE(experiment(), "~ condition + sex", donor="donor")
    rows = obs[["condition", "sex", "donor"]].drop_duplicates()
    assert len(de.data.design) == len(rows) == 16 // 2
    assert de.settings["n_rows"] == len(rows)
    assert de.cells.count.sum() == 160
    of_cell, examples = strata([obs["condition"], obs["donor"]], 160)
    for cell, stratum in enumerate(of_cell):
        assert (obs[["condition", "donor"]].iloc[cell] == obs[["condition", "donor"]].iloc[examples[stratum]]).all()


def test_names_of_cells_need_not_be_unique() -> None:
    twice = SIX.set_axis(["p"] * 6)
    np.testing.assert_array_equal(Design("~ group + number", twice).matrix, Design("~ group + number", SIX).matrix)
