"""Tables: every column against a computation of its own from the draws and the cells, and against the truth."""

from __future__ import annotations

import functools
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from pyro_zilognormal import ZeroInflatedLogNormal
from pyro_zilognormal.models import cell_parameters
from pyro_zilognormal.models.hurdle import fit
from pyro_zilognormal.singlecell import COLUMNS, Condition, HurdleDE, differential_expression
from pyro_zilognormal.singlecell.moderated_t import compare_samples
from pyro_zilognormal.singlecell.predictive_check import summarise
from tests.singlecell.cell_cases import GENES, STEPS, STIM, experiment, fitted, frame, values

PARTS = ["log_fc_detection", "log_fc_abundance", "log_fc_dispersion"]
# Columns that are NaN without random effects.
TESTED = ["pval", "padj"]


def distribution(de: HurdleDE, condition: Condition) -> ZeroInflatedLogNormal:
    cell = cell_parameters(de.draws, condition)
    return ZeroInflatedLogNormal(cell.mu, cell.scale, cell.zi_logits)


def changes(de: HurdleDE) -> np.ndarray:
    """Draws of the log2 ratio of means, from the distribution's own mean."""
    means = [distribution(de, de.cond(condition=c)).mean for c in ("stim", "ctrl")]
    return (means[0] / means[1]).log2().numpy()


@pytest.mark.parametrize("donor", [None, "donor"])
def test_every_column(donor: str | None) -> None:
    de = fitted(donor)
    table = de.test(STIM, delta=0.5, fdr=0.1, max_error=0.3, credible=0.8).set_index("variable").loc[list(GENES)]
    assert ["variable", *table.columns] == list(COLUMNS)
    drawn = changes(de)
    np.testing.assert_allclose(table["log_fc"], drawn.mean(0), rtol=1e-9)
    np.testing.assert_allclose(table["log_fc_sd"], drawn.std(0, ddof=1), rtol=1e-9)
    np.testing.assert_allclose(table[["log_fc_low", "log_fc_high"]], np.quantile(drawn, [0.1, 0.9], 0).T, rtol=1e-9)
    np.testing.assert_allclose(table[PARTS].sum(axis=1), drawn.mean(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(table["prob_up"], (drawn > 0).mean(0))
    zero = 0.05 * math.sqrt(2) / math.log(2)  # 5 sds of the difference of two spikes of 0.01, in log2
    np.testing.assert_allclose(table["lfsr"], 1 - np.maximum((drawn > zero).mean(0), (drawn < -zero).mean(0)))
    np.testing.assert_allclose(table["prob_de"], (np.abs(drawn) > 0.5).mean(0))
    error = 1 - np.maximum((drawn > 0.5).mean(0), (drawn < -0.5).mean(0))
    fdr = [error[error <= e].mean() for e in error]
    np.testing.assert_allclose(table["expected_fdr"], fdr, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(table["error"], error)
    ends = [distribution(de, de.cond(condition=c)) for c in ("stim", "ctrl")]
    detected, middle = (ends[0].prob_positive / ends[1].prob_positive).numpy(), (ends[0].loc - ends[1].loc).numpy()
    for name, rises in (("detection", detected > 1), ("abundance", middle > 0)):
        np.testing.assert_allclose(table[f"{name}_lfsr"], 1 - np.maximum(rises.mean(0), (~rises).mean(0)))
    sigma = (ends[0].scale / ends[1].scale).log2().numpy()
    np.testing.assert_allclose(table["dispersion_fc"], sigma.mean(0), rtol=1e-9)
    wanted = np.quantile(sigma, [0.1, 0.9], 0).T
    np.testing.assert_allclose(table[["dispersion_fc_low", "dispersion_fc_high"]], wanted, rtol=1e-9)
    np.testing.assert_allclose(table["dispersion_lfsr"], 1 - np.maximum((sigma > 0).mean(0), (sigma < 0).mean(0)))
    posterior = (np.array(fdr) <= 0.1) & (error <= 0.3)
    if donor is None:
        assert table[TESTED].isna().all(axis=None)
        assert table["is_de"].tolist() == posterior.tolist()
    else:
        (contrast,) = de.cells.design.contrasts(STIM)
        pval = compare_samples(de.cells, contrast).pval
        np.testing.assert_array_equal(table["pval"], pval)
        np.testing.assert_allclose(table["padj"], scipy.stats.false_discovery_control(pval))
        assert table["is_de"].tolist() == (posterior & (table["padj"] <= 0.1)).tolist()
    for name, level in (("test", "stim"), ("ref", "ctrl")):
        x = values()[frame()["condition"] == level]
        np.testing.assert_allclose(table[f"detection_{name}"], (x > 0).mean(0))
        np.testing.assert_allclose(table[f"mean_{name}"], x.mean(0), rtol=1e-9)
        assert (table[f"n_{name}"] == 80).all()
    assert (table["contrast"] == "condition: stim vs ctrl").all()
    assert (table["status"] == "ok").all()


def test_types_are_plain() -> None:
    table = fitted().test(STIM)
    kinds = {name: table[name].dtype.kind for name in COLUMNS}
    assert {k for k, kind in kinds.items() if kind == "O"} == {"variable", "contrast", "status", "predictive_check"}
    assert {k for k, kind in kinds.items() if kind == "i"} == {"n_test", "n_ref"}
    assert kinds["is_de"] == "b"
    assert all(kind in "Oibf" for kind in kinds.values())


def test_the_truth_is_found() -> None:
    table = fitted().test(STIM).set_index("variable")
    open_, closed = (1 / (1 + math.exp(-v)) for v in (1.5, -1.5))
    truth = {"up": 3.0, "down": -3.0, "seen": math.log2(open_ / closed)} | dict.fromkeys(("same", "often", "rare"), 0.0)
    for gene, change in truth.items():
        assert abs(table.log_fc[gene] - change) < 3 * table.log_fc_sd[gene], gene
    assert set(table.index[table.is_de]) == {"up", "down", "seen"}
    assert abs(table.log_fc_detection["up"]) < 3 * 0.2
    assert table.log_fc_detection["seen"] > 1


def test_the_most_certain_gene_is_first() -> None:
    table = fitted().test(STIM)
    assert table["expected_fdr"].is_monotonic_increasing
    by_sign = fitted().test(STIM, delta=0)
    assert by_sign["lfsr"].is_monotonic_increasing
    assert by_sign["expected_fdr"].is_monotonic_increasing
    certain = by_sign[by_sign["lfsr"] == 0]
    assert len(certain) >= 2
    assert certain[["log_fc_low", "log_fc_high"]].abs().min(axis=1).is_monotonic_decreasing


def test_a_contrast_turned_round() -> None:
    there, back = (fitted().test(c).set_index("variable") for c in (STIM, ("condition", "ctrl", "stim")))
    back = back.loc[there.index]
    np.testing.assert_allclose(there["dispersion_fc"], -back["dispersion_fc"], rtol=1e-9)
    assert (there["predictive_check"] == back["predictive_check"]).all()
    np.testing.assert_allclose(there["log_fc"], -back["log_fc"], rtol=1e-9)
    np.testing.assert_allclose(there["log_fc_low"], -back["log_fc_high"], rtol=1e-9)
    np.testing.assert_allclose(there["detection_test"], back["detection_ref"])
    np.testing.assert_allclose(there["lfsr"], back["lfsr"])


def test_several_contrasts_of_one_fit_are_those_one_by_one() -> None:
    de = fitted(None, "~ condition + sex")
    sex = ("sex", "m", "f")
    both = de.test({"a": STIM, "b": (de.cond(sex="m"), de.cond(sex="f"))})
    assert both["contrast"].tolist() == ["a"] * 6 + ["b"] * 6
    for name, contrast in (("a", STIM), ("b", sex)):
        alone = de.test(contrast).drop(columns="contrast")
        part = both[both["contrast"] == name].drop(columns="contrast").reset_index(drop=True)
        pd.testing.assert_frame_equal(part, alone, check_exact=True)


def test_a_pair_of_conditions_is_its_column() -> None:
    de = fitted()
    pair = (de.cond(condition="stim"), de.cond(condition="ctrl"))
    drop = ["contrast"]
    pd.testing.assert_frame_equal(de.test(pair).drop(columns=drop), de.test(STIM).drop(columns=drop), check_exact=True)
    assert de.test(pair)["contrast"][0] == "condition=stim vs condition=ctrl"


def test_donors_that_differ_make_less_sure() -> None:
    adata = experiment()
    number = adata.obs["donor"].str[-1].astype(int)  # of four in each condition
    adata.X = adata.X * np.array([0.6, 1.6, 1.3, 0.8])[number][:, None]
    cells, donors = (
        HurdleDE(adata, "~ condition", donor=d).fit(steps=STEPS).test(STIM).set_index("variable").log_fc_sd
        for d in (None, "donor")
    )
    assert (donors[["up", "down", "often"]] > 1.2 * cells[["up", "down", "often"]]).all()


@functools.cache
def silent() -> HurdleDE:
    x, stim = values(), (frame()["condition"] == "stim").to_numpy()
    x[:, 3] = 0
    x[:, 4] = np.where(x[:, 4] == 0, 1.5, x[:, 4])
    x[:, 5] = 0
    x[[3, 100], 5] = 2.0, 2.5
    x[stim, 0] = 0
    return HurdleDE(experiment(x=x), "~ condition + sex").fit(steps=STEPS)


def test_genes_that_say_little() -> None:
    table = silent().test(STIM).set_index("variable")
    status = {"up": "ok", "down": "ok", "seen": "ok", "same": "all_zero", "often": "all_positive"}
    assert table["status"].to_dict() == status | {"rare": "too_few_positive"}
    numbers = table.drop(columns=["contrast", "status", "predictive_check", "log_skewness", *TESTED]).astype(float)
    assert np.isfinite(numbers).all(axis=None)
    assert table.log_fc["up"] < -3  # silent in one condition, and often positive in the other
    assert table.is_de["up"]
    for gene in ("same", "rare"):
        assert table.log_fc_low[gene] < 0 < table.log_fc_high[gene]
        assert not table.is_de[gene]
        assert table.lfsr[gene] > 0.05


def test_nothing_is_called_in_genes_without_a_positive_value() -> None:
    table = silent().test(STIM, delta=0, fdr=0.999, max_error=1).set_index("variable")
    assert not table.is_de["same"]
    assert table.is_de["rare"]


def test_conditions_that_no_cell_is_in() -> None:
    de = fitted(None, "~ condition + age")
    table = de.test((de.cond(age=60), de.cond(age=40))).set_index("variable")
    assert (table["n_test"] == 0).all()
    assert table[["detection_test", "mean_ref"]].isna().all(axis=None)
    assert np.isfinite(table["log_fc"]).all()
    assert (table["status"] == "ok").all()
    assert (table["predictive_check"] == "no_cells").all()
    assert (table.log_fc.abs() < 4 * table.log_fc_sd).all()  # age does nothing
    assert de.test(STIM).set_index("variable").is_de[["up", "down", "seen"]].all()


def test_one_call_is_the_object() -> None:
    adata = experiment()
    table = differential_expression(adata, "~ condition", STIM, steps=STEPS)
    pd.testing.assert_frame_equal(table, fitted().test(STIM), check_exact=True)


def test_seeds_change_the_draws_and_global_state_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    de = HurdleDE(experiment(), "~ condition").fit(steps=STEPS, seed=1)
    other = de.test(STIM)
    de.predict(de.cond())
    de.predictive_check()
    assert torch.equal(torch.get_rng_state(), before)
    first = fitted().test(STIM)
    assert not other["log_fc"].equals(first["log_fc"])
    both = (t.set_index("variable").loc[list(GENES)] for t in (first, other))
    a, b = both
    assert ((a.log_fc - b.log_fc).abs() < 6 * a.log_fc_sd * math.sqrt(2 / 1000) + 0.05 * a.log_fc_sd).all()


@pytest.mark.parametrize("credible", [0.5, 0.99])
def test_summaries_are_quantiles_of_the_draws(credible: float) -> None:
    values = torch.randn(1000, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = torch.tensor([0.5, (1 - credible) / 2, (1 + credible) / 2], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(summarise(values, credible)), torch.quantile(values, levels, dim=0))


def test_the_first_draws_have_random_effects_and_genes_their_own() -> None:
    de = fitted("donor")
    draws = de.draws
    assert de.draws is draws
    assert {len(value) for value in draws.values()} == {1000}
    some = de._draw_genes([4, 1], 200)
    assert {name: len(some[name]) for name in set(some) - set(draws)} == {"random": 200, "zero_random": 200}
    for name, value in draws.items():
        assert torch.equal(some[name], value if name == "zero_slope" else value[:, [4, 1]]), name


def test_a_table_does_not_depend_on_the_genes_drawn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random numbers differ, so that summaries agree within the error of 1,000 draws of 50 hyperparameters."""
    whole = fitted("donor").test(STIM).set_index("variable").loc[list(GENES)]
    monkeypatch.setattr(fit, "_NUMBERS_A_BLOCK", 1)
    de = HurdleDE(experiment(), "~ condition", donor="donor").fit(steps=STEPS)
    table = de.test(STIM).set_index("variable").loc[list(GENES)]
    assert ((table["log_fc"] - whole["log_fc"]).abs() < 0.4 * whole["log_fc_sd"]).all()
    np.testing.assert_allclose(table["log_fc"], changes(de).mean(0), rtol=1e-9)
