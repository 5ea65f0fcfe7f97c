"""The benchmark on cells with donors: true ratios are true, the moderated t is limma's, measures count right."""

from __future__ import annotations

import json
import pathlib
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks"))
import donors
import donors_data
import donors_measures
import donors_methods
import donors_page
import donors_r


def parameters(genes: int = 60, donor_sd: float = 0.1) -> donors_data.Parameters:
    rng = np.random.default_rng(1)
    rate = 10 ** rng.uniform(-3, -2, genes)
    return donors_data.Parameters(
        rate, np.full(genes, 0.4), np.full(genes, donor_sd), rng.normal(0, 0.4, 500), (7.5, 0.1)
    )


DESIGNS: dict[str, dict[str, Any]] = {
    "nested": {},
    "paired": {"donors": 6, "paired": True},
    "unequal": {"cells": (20, 500)},
    "depth": {"depth_ratio": 2.0},
    "null": {"changed": 0.0},
}


@pytest.mark.parametrize("design", DESIGNS)
def test_a_design_is_what_its_name_says(design: str) -> None:
    cells = donors_data.simulate(parameters(), 3, genes=50, **DESIGNS[design])
    assert cells.counts.shape == (len(cells.depth), len(cells.genes))
    assert cells.paired == (design == "paired")
    assert len(np.unique(cells.donor)) == (6 if cells.paired else 8)
    ratio = cells.depth[cells.stim].mean() / cells.depth[~cells.stim].mean()
    assert ratio == pytest.approx(2 if design == "depth" else 1, rel=0.3)
    assert cells.log2_fc is not None
    assert (cells.log2_fc == 0).all() == (design == "null")


@pytest.mark.parametrize("design", DESIGNS)
def test_the_true_ratio_is_that_of_expected_normalised_counts(design: str) -> None:
    """With hardly any noise between donors and many cells, the observed ratio is the true one."""
    base = parameters(40, 1e-6)
    quiet = donors_data.Parameters(
        base.rate * 50, np.full(40, 0.01), base.donor_sd, base.log_depth, base.donor_log_depth
    )
    options = {"cells": (2000, 2000), "changed": 0.5} | DESIGNS[design]
    cells = donors_data.simulate(quiet, 0, **options)
    rate = cells.counts / cells.depth[:, None]
    observed = np.log2(rate[cells.stim].mean(0) / rate[~cells.stim].mean(0))
    np.testing.assert_allclose(observed, cells.log2_fc, atol=0.05)


def test_fitting_finds_the_parameters_that_made_the_cells() -> None:
    made = parameters(300)
    cells = donors_data.simulate(made, 0, donors=40, cells=(100, 100), changed=0.0, genes=300)
    assert cells.donor is not None
    found = donors_data.fit_parameters(cells.counts, cells.depth, cells.donor)
    place = [int(name[1:]) for name in cells.genes]
    assert np.median(np.log(found.rate / made.rate[place])) == pytest.approx(0, abs=0.05)
    assert np.median(found.dispersion) == pytest.approx(0.4, rel=0.1)
    assert found.log_depth.std() == pytest.approx(0.4, rel=0.1)
    assert found.donor_log_depth == pytest.approx((7.5, 0.1), abs=0.05)
    assert np.quantile(found.donor_sd, [0.5, 0.9]) == pytest.approx([0.12, 0.3], abs=0.01)


def test_the_published_simulator_has_the_published_means_and_true_ratios() -> None:
    cells = donors_data.simulate_zimmerman(0, donors=200, cells=100, genes=20)
    assert cells.counts.shape[1] == 20
    assert cells.counts.mean(0).min() > 5
    observed = np.log2(cells.counts[cells.stim].mean(0) / cells.counts[~cells.stim].mean(0))
    np.testing.assert_allclose(observed, cells.log2_fc, atol=0.2)


def write_kang(folder: pathlib.Path) -> None:
    """Write files with the layout of the real ones."""
    cells = donors_data.simulate(parameters(), 0, cells=(40, 60), changed=0.0, genes=60)
    for name, condition in (("kang_control_donors", "ctrl"), ("kang_stimulated", np.where(cells.stim, "stim", "ctrl"))):
        obs = pd.DataFrame({"donor": cells.donor, "cell_type": donors_data.TYPES[0], "condition": condition})
        obs.index = obs.index.astype(str)
        data = anndata.AnnData(
            scipy.sparse.csr_matrix(cells.counts.astype(float)), obs, pd.DataFrame(index=cells.genes)
        )
        data.write_h5ad(folder / f"{name}.h5ad")


@pytest.mark.parametrize("design", donors_data.REAL)
def test_real_cells_are_labelled_as_the_design_says(design: str, tmp_path: pathlib.Path) -> None:
    write_kang(tmp_path)
    cells = donors_data.REAL[design][1](tmp_path, donors_data.TYPES[0], 0)
    assert cells.log2_fc is None
    if design == "few":
        assert (cells.donor, cells.stim.sum(), len(cells.stim)) == (None, 5, 240)
    else:
        assert cells.donor is not None
        assert cells.paired == (design == "pairs")
        assert len(np.unique(cells.donor)) == (4 if design == "pairs" else 8)


def test_splits_are_all_different_and_never_turned_round(tmp_path: pathlib.Path) -> None:
    write_kang(tmp_path)
    sides = [donors_data.null_split(tmp_path, donors_data.TYPES[0], i).stim for i in range(35)]
    assert len({tuple(side) for side in sides} | {tuple(~side) for side in sides}) == 70


COUNTS = (
    (2, 1, 1, 13, 3, 0),
    (29, 24, 22, 26, 21, 15),
    (51, 82, 71, 18, 55, 23),
    (169, 185, 150, 182, 189, 121),
    (451, 253, 250, 129, 71, 221),
    (807, 924, 904, 846, 868, 923),
    (23, 13, 24, 42, 7, 42),
    (41, 35, 151, 78, 20, 9),
    (230, 244, 252, 232, 248, 257),
    (11, 9, 13, 5, 8, 11),
    (62, 125, 16, 11, 1, 22),
    (103, 133, 129, 116, 102, 117),
)
DEPTH = (9000.0, 15000.0, 12000.0, 20000.0, 11000.0, 14000.0)
# logFC, CI.L and P.Value of limma 3.54: voom with these library sizes, lmFit, eBayes, topTable. The prior has 56
# degrees of freedom without pairs, and infinitely many with pairs.
LIMMA = {
    "nested": (
        (
            0.5651029512,
            -0.5555398731,
            -1.608316274,
            -0.3379331535,
            -1.415679292,
            -0.3095443333,
            -0.1389615248,
            -1.34997413,
            -0.2961232414,
            -0.9225758899,
            -3.038033361,
            -0.4551917434,
        ),
        (
            -2.221547468,
            -2.526322482,
            -3.259929934,
            -1.119195896,
            -2.267303651,
            -1.050398136,
            -2.139048595,
            -3.131745541,
            -1.135853952,
            -2.51523662,
            -4.728204076,
            -1.234660197,
        ),
        (
            0.6852809881,
            0.5735088578,
            0.05606530287,
            0.3887955839,
            0.001616387896,
            0.4050255241,
            0.8894860038,
            0.1342268481,
            0.4817345899,
            0.2498986547,
            0.0007206161203,
            0.2461218236,
        ),
    ),
    "paired": (
        (
            0.5415686063,
            -0.6541158414,
            -1.447331637,
            -0.3843102537,
            -1.51401654,
            -0.3046668466,
            0.0001852535806,
            -1.976260306,
            -0.3053830104,
            -0.6931711639,
            -2.963179296,
            -0.4256868705,
        ),
        (
            -2.271507524,
            -2.021870859,
            -2.930973288,
            -1.516120662,
            -2.812437765,
            -1.529664927,
            -1.722789801,
            -3.618881583,
            -1.579894478,
            -2.637235785,
            -4.990141418,
            -1.544073016,
        ),
        (
            0.6946298289,
            0.3334702204,
            0.05541896677,
            0.4901645626,
            0.02415824667,
            0.612428965,
            0.9998247761,
            0.02040639645,
            0.6254310158,
            0.4689240967,
            0.005957366288,
            0.4398044993,
        ),
    ),
}


@pytest.mark.parametrize("design", LIMMA)
def test_the_moderated_t_is_that_of_limma(design: str) -> None:
    """Each sample is one cell here."""
    donor = np.array(["a", "b", "c", "a", "b", "c"] if design == "paired" else list("abcdef"))
    cells = donors_data.Cells(np.array(COUNTS).T, np.array(DEPTH), np.arange(6) >= 3, donor, np.arange(12).astype(str))
    table = donors_methods.moderated_t(cells)
    for name, limma in zip(("log2_fc", "low", "p"), LIMMA[design], strict=True):
        np.testing.assert_allclose(table[name], limma, rtol=1e-6)


def test_r_is_given_samples_or_cells() -> None:
    donor = np.array(list("aabbcc"))
    cells = donors_data.Cells(np.array(COUNTS).T, np.array(DEPTH), donor == "c", donor, np.arange(12).astype(str))
    counts, about = donors_r.sums(cells)
    np.testing.assert_array_equal(counts[:, 0], [3, 14, 3])
    assert about.to_dict("list") == {"donor": ["a", "b", "c"], "stim": [0, 0, 1], "depth": [24000, 32000, 25000]}
    values, about = donors_r.logarithms(cells)
    np.testing.assert_allclose(values[0, 0], np.log2(1 + 2 * 13000 / 9000))
    assert about["stim"].tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("design", ["nested", "depth", "few"])
def test_methods_in_r_are_left_out_where_it_is_missing(design: str, monkeypatch: pytest.MonkeyPatch) -> None:
    donors_r.version.cache_clear()
    monkeypatch.setattr(donors_r.shutil, "which", lambda name: None)
    assert not set(donors.applicable(design, 0)) & set(donors_r.PACKAGES)
    donors_r.version.cache_clear()


def measured() -> pd.DataFrame:
    """Four genes: found, found with the wrong sign, called for nothing, and missed."""
    rows = {"order": [4, 3, 2, 1.0], "p": [0.001, 0.01, 0.02, 0.5], "called": [True, True, True, False]}
    rows |= {
        "called_delta": [True] * 4,
        "log2_fc": [1, -1, 0.5, 0.1],
        "low": [0.5, -2, 0.2, -1],
        "high": [1.5, -0.5, 1, 1.2],
    }
    return pd.DataFrame(rows, index=list("abcd"))


def test_measures_of_four_genes() -> None:
    found = donors_measures.against_truth(measured(), np.array([1.2, 1, 0, 1.0]))
    assert found["false"] == 2
    assert found["fdp"] == pytest.approx(2 / 3)
    assert found["tpr"] == found["power"] == pytest.approx(1 / 3)
    assert found["type1"] == 1
    assert found["coverage"] == 0.5
    assert found["coverage_called"] == pytest.approx(1 / 3)
    assert found["mcc"] == pytest.approx(-1 / 3)


def test_nothing_called_and_nothing_changed() -> None:
    table = measured().assign(called=False)
    found = donors_measures.against_truth(table, np.zeros(4))
    assert (found["fdp"], found["mcc"]) == (0, 0)
    assert np.isnan([found["tpr"], found["power"], found["coverage_called"]]).all()


def record() -> dict[str, Any]:
    """A record of two sets of each design, in which ours is worse than all others."""
    results: dict[str, Any] = {}
    for design in [*donors_data.SIMULATED, *donors_data.REAL]:
        for method in donors_methods.METHODS:
            worse = method == "ours"
            one = {"genes": 400, "calls": 3 if worse else 0, "calls_delta": 2 if worse else 0, "seconds": 9 + 9 * worse}
            if design in donors_data.SIMULATED:
                shares = dict.fromkeys(
                    ("tpr", "power", "mcc", "mcc_p", "coverage", "coverage_called"), 0.95 - 0.1 * worse
                )
                one |= {"false": 1, "fdp": 0.05 + 0.1 * worse, "type1": 0.05 + 0.1 * worse} | shares
            elif design == "interferon":
                one |= {"known": 7 - worse, "ranks": [1, 2, 3, 4, 5, 6, 31], "close": 0.96 - 0.1 * worse}
                one |= {"close_sure": one["close"], "holds": one["close"]}
            results |= {f"{design}/{i}/{method}": one for i in range(2)}
    return {"results": results, "about": {"torch": "2"}}


def test_every_missed_bar_and_every_lost_comparison_is_named() -> None:
    found = donors_page.by_design(record()["results"])
    assert {met for *_, met in donors_page.bars(found)} == {"**missed**"}
    page = donors_page.page(record())
    for what, *_ in donors_page.bars(found):
        assert f"- Bar missed: {what}:" in page
    for design in found:
        assert f"\n- {design}: CPU s: ours 18.00; pydeseq2 9.00" in page
    peers = ", ".join(f"{method} 5.0" for method in donors_page.PEERS)
    assert f"- nested: false of calls, %: ours 15.0; {peers}." in page


def test_a_run_that_is_not_finished_has_a_page() -> None:
    some = record()
    some["results"] = {k: v for k, v in some["results"].items() if k.startswith(("paired/", "few/"))}
    page = donors_page.page(some)
    assert "measured here: nested 0, paired 2," in page
    assert page.count("\n## ") == 5  # the bars, two designs, losses, what is simulated


def test_a_method_that_is_as_good_as_the_best_loses_nothing() -> None:
    same = record()
    for key in list(same["results"]):
        same["results"][key] = same["results"][key.rpartition("/")[0] + "/moderated t"]
    found = donors_page.by_design(same["results"])
    assert list(donors_page.losses(found)) == []
    missed = [what for what, *_, met in donors_page.bars(found) if met != "met"]
    assert missed == [
        "power over designs, above the best pseudobulk of each",
        "interferon, CD14 monocytes: the 7 genes",
        "interferon, CD4 T cells: the 7 genes",
    ]


def test_a_run_that_was_stopped_goes_on(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_kang(tmp_path)
    out, page = tmp_path / "out.json", tmp_path / "page.md"
    kept = {
        f"{'/'.join(filter(None, [d, t, str(i)]))}/{m}": {}
        for d, t, i in donors.pieces(1, None)
        for m in donors_methods.METHODS
    }
    missing = "zimmerman/0/moderated t"
    out.write_text(json.dumps({"results": {k: v for k, v in kept.items() if k != missing}}))
    monkeypatch.setattr(
        sys, "argv", ["donors.py", str(tmp_path), "--sets", "1", "--only", "zimmerman", "--out", str(out)]
    )
    monkeypatch.setattr(donors, "ProcessPoolExecutor", lambda jobs, _: ThreadPoolExecutor(jobs))
    monkeypatch.setattr(donors_page, "PAGE", page)
    monkeypatch.setattr(donors_page, "page", lambda record: "written")
    monkeypatch.setattr(donors, "PACKAGES", ("numpy",))
    donors.main()
    results = json.loads(out.read_text())["results"]
    assert set(results) == set(kept)
    assert results[missing]["calls"] > 0
    assert page.read_text() == "written"


def test_the_page_is_written_from_the_record() -> None:
    record = json.loads((pathlib.Path(donors.__file__).parent / "donors.json").read_text())
    assert donors_page.page(record) == donors_page.PAGE.read_text()
