"""Random effects of a formula and of donors: the level of each cell, written by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from pyro_zilognormal.singlecell import HurdleDE, SingleCellError
from pyro_zilognormal.singlecell.design.design import Design, strata
from pyro_zilognormal.singlecell.design.random_effects import RandomTerm, random_terms, split_formula
from tests.singlecell.cell_cases import experiment, frame

EIGHT = pd.DataFrame(
    {
        "condition": list("cccctttt"),
        "nested": list("aabbccdd"),  # donors of one condition each
        "paired": list("pqpqpqpq"),  # donors of both
        "partly": list("aabbaacc"),  # a in both
        "batch": pd.Categorical(list("xxyyxxyy"), categories=["z", "y", "x"]),
        "dose": [1, 1, 2, 3, 1, 1, 2, 3],
        "treated": [0, 0, 0, 0, 1, 1, 1, 1],
        "age": np.linspace(20, 60, 8),
        "a b": list("abababab"),
    },
    index=list("12345678"),
)
NESTED = {"nested": [0, 0, 1, 1, 2, 2, 3, 3]}
PAIRED = {"paired": [0, 1, 0, 1, 0, 1, 0, 1]}
SAMPLE = {"paired:condition": [0, 2, 0, 2, 1, 3, 1, 3]}
BATCH = {"batch": [1, 1, 0, 0, 1, 1, 0, 0]}

# Formula, donor, and the levels of each term.
TERMS: dict[str, tuple[str, str | None, dict[str, list[int]]]] = {
    "none": ("~ condition", None, {}),
    "nested": ("~ condition", "nested", NESTED),
    "paired": ("~ condition", "paired", PAIRED | SAMPLE),
    "paired, a number of two values": (
        "~ treated",
        "paired",
        PAIRED | {"paired:treated": SAMPLE["paired:condition"]},
    ),
    "some paired": (
        "~ condition",
        "partly",
        {"partly": [0, 0, 1, 1, 0, 0, 2, 2], "partly:condition": [0, 0, 2, 2, 1, 1, 3, 3]},
    ),
    "two variables vary": (
        "~ condition + batch",
        "paired",
        PAIRED | {"paired:batch:condition": [2, 6, 0, 4, 3, 7, 1, 5]},
    ),
    "one of two varies": ("~ condition + batch", "nested", NESTED),
    "a number varies": ("~ condition + age", "paired", PAIRED | SAMPLE),
    "as lme4": ("~ condition + (1 | nested)", None, NESTED),
    "without spaces": ("~condition+(1|nested)", None, NESTED),
    "first": ("~ (1 | nested) + condition", None, NESTED),
    "interaction": ("~ condition + (1 | paired:batch)", None, {"paired:batch": [1, 3, 0, 2, 1, 3, 0, 2]}),
    "slash": ("~ condition + (1 | batch/nested)", None, BATCH | {"batch:nested": [2, 2, 0, 0, 3, 3, 1, 1]}),
    "slope": ("~ condition + (condition | paired)", None, PAIRED | SAMPLE),
    "slope with 1": ("~ condition + (1 + condition | paired)", None, PAIRED | SAMPLE),
    "slope with 0": ("~ condition + (0 + condition | paired)", None, SAMPLE),
    "slope less 1": ("~ condition + (condition - 1 | paired)", None, SAMPLE),
    "product of slopes": (
        "~ condition + (0 + condition * batch | paired)",
        None,
        SAMPLE | {"paired:batch": [1, 3, 0, 2, 1, 3, 0, 2], "paired:condition:batch": [1, 5, 0, 4, 3, 7, 2, 6]},
    ),
    "slope without correlation": ("~ condition + (condition || paired)", None, PAIRED | SAMPLE),
    "slope of a number as category": (
        "~ condition + (0 + C(dose) | paired)",
        None,
        {"paired:dose": [0, 2, 1, 3, 0, 2, 1, 3]},
    ),
    "two slopes": (
        "~ condition + (condition + batch | paired)",
        None,
        PAIRED | SAMPLE | {"paired:batch": [1, 3, 0, 2, 1, 3, 0, 2]},
    ),
    "backticks": ("~ condition + (1 | `a b`)", None, {"a b": [0, 1, 0, 1, 0, 1, 0, 1]}),
    "donor and formula": ("~ condition + (1 | batch)", "paired", PAIRED | BATCH | SAMPLE),
    "the same twice": ("~ condition + (1 | batch:paired) + (1 | paired:batch)", None, {"batch:paired": None}),
    "the same as the donor": ("~ condition + (1 | nested)", "nested", NESTED),
    "coarse to fine": ("~ condition + (1 | nested) + (1 | batch)", None, BATCH | NESTED),
    "of one partition": ("~ condition + (1 | nested) + (1 | batch:nested)", None, NESTED),
}


def terms_of(formula: str, donor: str | None, obs: Any = EIGHT) -> tuple[list[RandomTerm], list[str]]:
    fixed, bars = split_formula(formula)
    return random_terms(obs, Design(fixed, obs), donor, bars)


@pytest.mark.parametrize("case", TERMS)
def test_levels(case: str) -> None:
    formula, donor, wanted = TERMS[case]
    terms, _ = terms_of(formula, donor)
    assert [term.name for term in terms] == list(wanted)
    for term, code in zip(terms, wanted.values(), strict=True):
        if code is not None:
            assert term.code.tolist() == code
        assert len(term.names) == term.code.max() + 1
        assert [term.names[level] for level in term.code] == [
            ":".join(str(EIGHT[name].iloc[cell]) for name in term.columns) for cell in range(8)
        ]


def test_a_term_of_the_levels_of_another_is_left_out() -> None:
    _, left_out = terms_of("~ condition + (1 | nested) + (1 | batch:nested)", None)
    assert left_out == ["(1 | batch:nested): its levels are those of (1 | nested)"]


@pytest.mark.parametrize(
    ("formula", "fixed"),
    [
        ("~ condition + (1 | donor)", "~ condition"),
        ("~ (1 | donor) + condition", "~ condition"),
        ("~ condition + (1 | donor) + C(batch) + (batch | donor)", "~ condition + C(batch)"),
        ("~ C(group, contr.treatment('c')) + np.log(age)", "~ C(group, contr.treatment('c')) + np.log(age)"),
        ("~ condition + (C(dose) | donor)", "~ condition"),
        ("~ (1 | donor)", "~"),
    ],
)
def test_fixed_effects_are_what_is_left_of_a_formula(formula: str, fixed: str) -> None:
    assert " ".join(split_formula(formula)[0].split()) == fixed


# Donors of eight cells of two conditions, and whether their effects can be separated from the conditions'.
DONORS = {
    "nested": (list("aabbccdd"), True),
    "crossed": (list("abababab"), True),
    "one a condition": (list("aaaabbbb"), False),
    "two in one condition": (list("aabbcccc"), True),
}


@pytest.mark.parametrize("how", DONORS)
@pytest.mark.parametrize("as_argument", [True, False])
def test_confounding(how: str, as_argument: bool) -> None:
    donor, separable = DONORS[how]
    obs = EIGHT.assign(donor=donor)
    design = Design("~ condition", obs)
    formula, argument = ("~ condition", "donor") if as_argument else ("~ condition + (1 | donor)", None)
    terms, _ = terms_of(formula, argument, obs)
    _, examples = strata([obs["condition"], obs["donor"]], 8)
    if separable:
        for term in terms:
            term.check_confounding(design, examples, argument)
    else:
        with pytest.raises(SingleCellError, match="confounded with condition"):
            terms[0].check_confounding(design, examples, argument)


def test_confounding_does_not_depend_on_units() -> None:
    for unit in (1e-9, 1.0, 1e9):
        obs = EIGHT.assign(age=EIGHT["age"] * unit)
        for formula, separable in (("~ condition + age", True), ("~ condition + age + nested", False)):
            term = RandomTerm.of(obs, ("nested",))
            if separable:
                term.check_confounding(Design(formula, obs), np.arange(8), None)
            else:
                with pytest.raises(SingleCellError, match="confounded with age, condition, nested"):
                    term.check_confounding(Design(formula, obs), np.arange(8), None)


def test_factors_of_the_data_are_the_terms() -> None:
    obs = frame()
    adata = experiment()
    adata.obs["patient"] = patient = np.tile(list("pqrs"), 40)
    de = HurdleDE(adata, "~ condition + (1 | sex)", donor="patient")
    assert de.settings["random_effects"] == ["(1 | sex)", "(1 | patient)", "(1 | patient:condition)"]
    assert de.settings["random_effects_left_out"] == []
    assert (de.settings["donor"], de.settings["n_donors"], de.settings["n_rows"]) == ("patient", 4, 8)
    assert de.settings["formula"] == "~ condition + (1 | sex)"
    assert de.data.levels == (2, 4, 8)
    assert de.cells.terms[2].names[:2] == ["p:ctrl", "p:stim"]
    by_hand = [np.unique(v, return_inverse=True)[1] for v in (obs["sex"], patient, patient + obs["condition"])]
    np.testing.assert_array_equal(de.data.factors[de.cells.row].numpy(), np.stack(by_hand, 1))
    assert HurdleDE(adata, "~ condition").settings["random_effects"] == []
    assert HurdleDE(adata, "~ condition").settings["n_donors"] == 0
