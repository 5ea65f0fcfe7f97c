"""Calls and their columns, on made-up draws: no fit is needed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_zilognormal.models import Condition
from pyro_zilognormal.singlecell import COLUMNS, Contrast
from pyro_zilognormal.singlecell.cli.report import Diagnostic, _calls, folds, of_contrast, verdict
from pyro_zilognormal.singlecell.files.io import Arm
from pyro_zilognormal.singlecell.moderated_t import SampleTest
from pyro_zilognormal.singlecell.results import Calls, adjust, contrast_table, observed_columns, posterior_columns

DRAWS = 1000
CALLS = Calls(delta=0.25, fdr=0.05, max_error=0.2, credible=0.95, negligible=0.1)
CONTRAST = Contrast("b vs a", Condition([1.0, 1.0]), Condition([1.0, 0.0]))
NAN = math.nan


def draws(log2_fc: Any, sd: Any = 0.05, log_sigma: Any = 0.0) -> dict[str, torch.Tensor]:
    """Draws of genes whose log2 fold change is Normal, and whose log sigma changes."""
    log2_fc = torch.as_tensor(log2_fc, dtype=torch.float64)
    noise = torch.as_tensor(sd) * torch.randn(DRAWS, len(log2_fc), generator=torch.Generator().manual_seed(0)).double()
    zeros = torch.zeros(DRAWS, len(log2_fc), 1, dtype=torch.float64)
    return {
        "intercept": zeros,
        "effects": ((log2_fc + noise) * math.log(2)).unsqueeze(-1),
        "zero_intercept": zeros,
        "zero_effects": zeros + 0.5,
        "zero_slope": torch.ones(DRAWS, 1, 1, dtype=torch.float64),
        "log_sigma": torch.cat([zeros - 0.5, zeros + torch.as_tensor(log_sigma).reshape(-1, 1)], -1),
    }


def arm(genes: int, cells: int = 100, positive: int = 50) -> Arm:
    return Arm(cells, np.full(genes, positive), np.full(genes, float(2 * positive)))


def table(drawn: dict[str, torch.Tensor], pval: Any = NAN, calls: Calls = CALLS, **changed: Any) -> pd.DataFrame:
    genes = drawn["intercept"].shape[1]
    names = [f"g{gene}" for gene in range(genes)]
    pval = np.broadcast_to(np.asarray(pval, dtype=float), genes).copy()
    samples = SampleTest(changed.pop("log_fc", np.full(genes, NAN)), changed.pop("se", np.full(genes, NAN)), pval)
    outside = {name: np.zeros(genes, dtype=bool) for name in ("zero_fraction", "mean", "sd_log")}
    arms = changed.pop("arms", (arm(genes), arm(genes), arm(genes, 200, 100)))
    contrast = changed.pop("contrast", CONTRAST)
    columns = {"variable": names, "log_skewness": np.full(genes, NAN)} | posterior_columns(drawn, contrast, calls)
    columns |= observed_columns(arms[:-1], arms[-1], changed.pop("few_samples", False))
    found = contrast_table(columns, contrast, arms[:-1], samples, changed.pop("outside", outside), calls)
    assert not changed
    assert list(found.columns) == list(COLUMNS)
    return found.set_index("variable").loc[names]


# Log2 fold change, its sd and its p-value, and whether the gene is called. 20 certain genes stand beside it, so that
# one more is always within the expected false discovery rate.
GOOD: dict[str, tuple[float, float, float]] = {
    "certain and significant": (2, 0.1, 1e-6),
    "down": (-2, 0.1, 1e-6),
    "no p-value": (2, 0.1, NAN),
    "error just below": (0.25 + 1.0, 1.0, 1e-6),
}
BAD: dict[str, tuple[float, float, float]] = {
    "no change": (0, 0.1, 0.5),
    "change of no interest": (0.2, 0.02, 1e-6),
    "error above": (0.25 + 0.6, 1.0, 1e-6),
    "not significant": (2, 0.1, 0.2),
    "significant before it is adjusted": (2, 0.1, 0.051),
    "significant alone": (0, 0.1, 1e-6),
    "large in both directions": (0, 5, NAN),
}


@pytest.mark.parametrize("what", [*GOOD, *BAD])
def test_a_call_needs_all_of_them(what: str) -> None:
    change, sd, p = (GOOD | BAD)[what]
    change, sd, p = (torch.tensor([3.0] * 20 + [v], dtype=torch.float64) for v in (change, sd, p))
    sd[:20], p[:20] = 0.1, 1e-8
    found = table(draws(change, sd), p.numpy())
    assert found["is_de"].iloc[:20].all()
    assert found["is_de"].iloc[20] == (what in GOOD)


def test_the_largest_error_is_an_argument() -> None:
    change, sd = torch.tensor([3.0] * 40 + [0.85]), torch.tensor([0.1] * 40 + [1.0])
    for max_error, called in ((0.2, False), (0.5, True)):
        found = table(draws(change, sd), calls=dataclasses.replace(CALLS, max_error=max_error))
        assert found["error"].iloc[40] == pytest.approx(0.27, abs=0.05)
        assert found["expected_fdr"].iloc[40] < 0.05
        assert found["is_de"].iloc[40] == called


def test_nothing_that_is_silent_is_called() -> None:
    silent = arm(1, positive=0)
    found = table(draws([3.0]), arms=(silent, silent, silent), calls=dataclasses.replace(CALLS, fdr=0.999))
    assert found["status"].iloc[0] == "all_zero"
    assert not found["is_de"].iloc[0]


# Cells and positive values of both arms, whether samples are few, and the status.
STATUS: dict[str, tuple[tuple[int, int], tuple[int, int], bool]] = {
    "ok": ((10, 5), (200, 9), False),
    "few_cells": ((9, 5), (200, 9), False),
    "all_positive": ((20, 20), (30, 30), False),
    "too_few_positive": ((9, 1), (200, 1), False),
    "all_zero": ((9, 0), (200, 0), True),
}


@pytest.mark.parametrize("status", STATUS)
def test_status(status: str) -> None:
    *arms, few = STATUS[status]
    sides = [arm(1, *given) for given in arms]
    found = table(draws([0.0]), arms=(*sides, arm(1, 999, 99)), few_samples=few)
    assert found["status"].iloc[0] == status


@pytest.mark.parametrize("few", [False, True])
def test_nothing_is_called_from_few_samples(few: bool) -> None:
    found = table(draws([3.0]), few_samples=few)
    assert found["status"].tolist() == ["few_cells" if few else "ok"]
    assert found["is_de"].tolist() == [not few]


def test_parts_add_up() -> None:
    found = table(draws([1.0, -2.0], 0.3, [0.4, -0.2]))
    parts = found[["log_fc_detection", "log_fc_abundance", "log_fc_dispersion"]]
    np.testing.assert_allclose(parts.sum(axis=1), found["log_fc"], rtol=1e-9)
    sigma = np.exp(np.array([[-0.1, -0.5], [-0.7, -0.5]]))
    np.testing.assert_allclose(found["dispersion_fc"], np.log2(sigma[:, 0] / sigma[:, 1]), rtol=1e-3)
    wanted = (sigma[:, 0] ** 2 - sigma[:, 1] ** 2) / (2 * math.log(2))
    np.testing.assert_allclose(found["log_fc_dispersion"], wanted, rtol=1e-3)
    assert (found["dispersion_lfsr"] == 0).all()
    # P(X > 0) is sigmoid(-z), where z is 0 at the reference and 0.5 - 1 x the log change in the other condition.
    change = (draws([1.0, -2.0], 0.3)["effects"].squeeze(-1) - 0.5).sigmoid() / 0.5
    np.testing.assert_allclose(found["log_fc_detection"], change.log2().mean(0), rtol=1e-9)


def test_p_values_are_adjusted_over_those_that_are_known() -> None:
    adjusted = adjust(np.array([0.01, NAN, 0.04, 0.03]))
    np.testing.assert_allclose(adjusted, [0.03, NAN, 0.04, 0.04])
    assert np.isnan(adjust(np.array([NAN, NAN]))).all()


# The interval is about -0.1 to 0.1: observed log2 ratio, its standard error, positive values an arm, and the verdict.
OBSERVED = {
    "inside": (0.05, 0.01, 50, "ok"),
    "outside by its noise": (0.6, 0.3, 50, "ok"),
    "outside": (0.6, 0.1, 50, "log_fc"),
    "outside on the other side": (-0.6, 0.1, 50, "log_fc"),
    "few values": (0.6, 0.1, 4, "ok"),
    "unknown": (NAN, NAN, 50, "ok"),
}


@pytest.mark.parametrize("what", OBSERVED)
def test_an_interval_that_excludes_the_observed_ratio_is_flagged(what: str) -> None:
    ratio, se, positive, word = OBSERVED[what]
    arms = (arm(1, positive=positive), arm(1, positive=positive), arm(1, 200, 99))
    found = table(draws([0.0]), log_fc=np.array([ratio]), se=np.array([se]), arms=arms)
    assert found["predictive_check"].iloc[0] == word


def test_what_does_not_fit_is_named() -> None:
    outside = {name: np.array([name != "mean", False]) for name in ("zero_fraction", "mean", "sd_log")}
    known = {"log_fc": np.array([9.0, 9.0]), "se": np.array([0.1, 0.1])}
    found = table(draws([0.0, 0.0]), outside=outside, **known)
    assert found["predictive_check"].tolist() == ["zero_fraction+sd_log+log_fc", "log_fc"]
    assert (table(draws([0.0]), outside=None)["predictive_check"] == "no_cells").all()


@pytest.mark.parametrize(
    ("converged", "unfit", "passed", "said"),
    [
        (True, 0.19, True, "Yes: "),
        (True, 0.19, False, "Yes, with caution"),
        (True, 0.2, True, "No: 20% of the genes"),
        (False, 0.0, True, "No: the fit did not converge"),
    ],
)
def test_the_verdict(converged: bool, unfit: float, passed: bool, said: str) -> None:
    numbers = {"convergence": {"converged": converged}, "contrasts": [{"unfit": 0.0}, {"unfit": unfit}]}
    assert verdict([Diagnostic(True, ""), Diagnostic(passed, "")], numbers).startswith(said)


@pytest.mark.parametrize(
    ("log_fc", "said"),
    [(2.0, "4-fold up"), (-2.0, "4-fold down"), (-0.5, "1.41-fold down"), (1e-9, "1-fold up"), (-1e4, "inf-fold down")],
)
def test_a_ratio_below_one_is_a_fold_down(log_fc: float, said: str) -> None:
    assert folds(log_fc) == said


def test_genes_called_with_an_interval_around_zero_are_less_sure() -> None:
    """20 certain genes, one whose error is 0.15, and one that is not called."""
    change, sd = torch.tensor([3.0] * 20 + [1.3, 0.1]).double(), torch.tensor([0.1] * 20 + [1.0, 1.0])
    found = table(draws(change, sd))
    assert found["is_de"].tolist() == [True] * 21 + [False]
    calls = _calls(found.reset_index(), {"fdr": 0.05, "max_error": 0.2})
    assert calls["around_zero"] == ["g20"]
    for up, passed in ((21, True), (1, False)):
        (diagnostic,) = (one for one in of_contrast(calls | {"up": up}) if "less sure are 1 gene (g20)" in one.text)
        assert diagnostic.passed is passed


def test_genes_that_more_cells_express_are_named_though_not_called() -> None:
    """By turns: switched off, more so, a little less often, nobody knows, and switched off but called."""
    found = draws([0.0, 0.0, 0.0, 0.0, 3.0])
    noise = torch.randn(DRAWS, 1, generator=torch.Generator().manual_seed(1)).double()
    effects = torch.tensor([3.0, 4.0, 0.5, 0.0, 9.0]) + noise * torch.tensor([0.0, 0.0, 0.0, 10.0, 0.0])
    found["zero_effects"] = effects.unsqueeze(-1)
    rows = table(found)
    assert rows["is_de"].tolist() == [False] * 4 + [True]
    for status, names in (("ok", ["g1", "g0"]), ("few_cells", [])):
        calls = _calls(rows.reset_index().assign(status=status), {"fdr": 0.05, "max_error": 0.2})
        assert calls["switched"] == names
    said = [one.text for one in of_contrast(calls | {"switched": ["g1"]})]
    assert any("not called, are 1 gene (g1)" in text for text in said)
