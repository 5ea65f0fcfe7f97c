"""Pictures of differential expression: what is drawn, and where."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_zilognormal.singlecell import HurdleDE, SingleCellError, pl
from pyro_zilognormal.singlecell.predictive_check import inside
from tests.cli.cli_cases import cells

CONTRAST = ("condition", "stim", "ctrl")


@pytest.fixture(autouse=True)
def _no_screen() -> Any:
    with mpl.rc_context({"backend": "agg"}):
        yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture(scope="module")
def de() -> HurdleDE:
    return HurdleDE(cells(), "~ condition", donor="donor").fit(steps=10)


def _ax() -> Axes:
    return Figure(layout="constrained").subplots()


def _texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_a_volcano_shows_each_gene_once_and_names_the_called(de: HurdleDE) -> None:
    table, ax = de.test(CONTRAST), _ax()
    assert pl.volcano(table, ax) is ax
    drawn = np.concatenate([np.asarray(points.get_offsets()) for points in ax.collections])
    expected = np.column_stack([table.log_fc, table.log_fc.abs() / table.log_fc_sd])
    assert np.allclose(np.sort(drawn, axis=0), np.sort(expected, axis=0))
    assert sorted(_texts(ax)) == ["down", "up"]
    assert ax.get_xlabel() == "log2 fold change of the mean"
    assert ax.get_ylabel() == "|log2 fold change| / posterior sd"
    assert ax.get_title() == "condition: stim vs ctrl"
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["up (1)", "down (1)", "not called (2)"]


def test_a_volcano_takes_any_index_and_one_contrast(de: HurdleDE) -> None:
    both = de.test([CONTRAST, ("condition", "ctrl", "stim")])
    part = both[both["contrast"] == "condition: ctrl vs stim"]
    ax = pl.volcano(part, _ax())
    names = {text.get_text(): text.xy[0] for text in ax.texts}
    assert names["up"] < 0 < names["down"]
    with pytest.raises(SingleCellError, match="needed one: table"):
        pl.volcano(both, _ax())


@pytest.mark.parametrize(("quantity", "scale"), [("zero_fraction", "linear"), ("mean", "log"), ("sd_log", "linear")])
def test_a_predictive_check_marks_what_lies_outside(quantity: str, scale: str, de: HurdleDE) -> None:
    check = de.predictive_check(credible=0.99)
    assert inside(check, quantity).all()
    check.loc[check["variable"] == "same", quantity] = 1.5 * check[f"{quantity}_high"]
    ax = _ax()
    assert pl.predictive(check, quantity, ax, credible=0.99) is ax
    assert ax.get_xscale() == ax.get_yscale() == scale
    legend = ax.get_legend()
    assert legend is not None
    labels = {text.get_text() for text in legend.get_texts()}
    assert {"inside the 99 % interval (3)", "outside the 99 % interval (1)"} <= labels
    assert _texts(ax) == ["same"]
    assert ax.get_xlabel().startswith("observed")
    assert ax.get_ylabel().startswith("predicted")


def test_a_predictive_check_of_20000_genes_is_readable() -> None:
    """Few of those inside, chosen at random, and all that are outside, on top, if they are few."""
    rng, n = np.random.default_rng(1), 20_000
    observed = rng.random(n)
    off = np.where(np.arange(n) < 30, 0.2 + np.arange(n) / 1000, 0.0)
    check = pd.DataFrame({"variable": [f"g{i}" for i in range(n)], "zero_fraction": observed})
    for end, shift in (("predicted", 0.0), ("low", -0.05), ("high", 0.05)):
        check[f"zero_fraction_{end}"] = observed + off + shift
    ax = pl.predictive(check, "zero_fraction", _ax())
    inner, outer = (bars.lines[0] for bars in ax.containers)
    assert len(inner.get_xdata()) == 500
    assert scipy.stats.kstest(inner.get_xdata(), "uniform").pvalue > 0.001
    assert sorted(outer.get_xdata()) == sorted(observed[:30])
    assert outer.get_zorder() >= inner.get_zorder()
    assert ax.get_lines().index(outer) > ax.get_lines().index(inner)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]  # type: ignore[union-attr]
    assert texts[1:] == ["inside the 99 % interval (19970, 500 of them drawn)", "outside the 99 % interval (30)"]
    assert set(_texts(ax)) <= {f"g{i}" for i in range(20, 30)}  # the farthest

    check["zero_fraction"] -= 1
    ax = pl.predictive(check, "zero_fraction", _ax())
    assert [len(bars.lines[0].get_xdata()) for bars in ax.containers] == [500]


def test_a_predictive_check_of_something_else_is_refused(de: HurdleDE) -> None:
    with pytest.raises(SingleCellError, match="needed one of 'zero_fraction', 'mean', 'sd_log'"):
        pl.predictive(de.predictive_check(), "median", _ax())


def test_a_gene_shows_the_observed_values(de: HurdleDE) -> None:
    adata, fit = cells(), de.gene_fits(["down", "rare"], CONTRAST)[1]
    stim = (adata.obs["condition"] == "stim").to_numpy()
    for condition, chosen in zip(fit.conditions, (stim, ~stim), strict=True):
        seen = adata.X[chosen, 3]
        assert condition.cells == 30
        assert condition.zero_fraction == pytest.approx((seen == 0).mean())
        assert np.array_equal(condition.positive, seen[seen > 0])
    ax = _ax()
    assert pl.gene(fit, ax) is ax
    assert ax.get_title() == "rare"
    zeros, amount = ax.child_axes
    assert (zeros.get_ylabel(), zeros.get_xlabel()) == ("share of cells", "zeros")
    assert amount.get_xscale() == "log"
    assert amount.get_xlabel() == "positive values (linear scale)"


def test_the_fitted_density_of_a_gene_is_near_the_observed_values(de: HurdleDE) -> None:
    for condition in de.gene_fits(["same"], CONTRAST)[0].conditions:
        middle, low, high = condition.density
        assert np.trapezoid(middle, np.log10(condition.grid)) == pytest.approx(1, abs=0.02)
        assert (low <= middle).all()
        assert (middle <= high).all()
        mean = np.trapezoid(middle * np.log10(condition.grid), np.log10(condition.grid))
        assert mean == pytest.approx(np.log10(condition.positive).mean(), abs=0.1)
        zero, zero_low, zero_high = condition.zero_fitted
        assert zero_low < zero < zero_high
        assert zero == pytest.approx(condition.zero_fraction, abs=0.1)


@pytest.mark.parametrize("form", ["csr", "csc", "log1p", "offset", "kept"])
def test_a_gene_is_read_from_every_form_of_matrix(form: str) -> None:
    import scipy.sparse as sp

    adata, settings = cells(), {}
    if form == "log1p":
        adata.X, settings = np.log1p(adata.X), {"scale": "log1p"}
    elif form == "offset":
        offset = np.linspace(-0.5, 0.5, len(adata))
        adata.X, settings = adata.X * np.exp(offset)[:, None], {"offset": offset}
    elif form != "kept":
        adata.X = sp.csr_matrix(adata.X) if form == "csr" else sp.csc_matrix(adata.X)
    formula = "~ condition + age" if form == "kept" else "~ condition"
    values = HurdleDE(adata, formula, **settings).cells.genes([3, 0])
    np.testing.assert_allclose(values, cells().X[:, [3, 0]], rtol=1e-9)


def test_a_gene_never_seen_can_be_drawn(de: HurdleDE) -> None:
    x = cells().X
    x[:, 3] = 0
    silent = HurdleDE(cells(x), "~ condition").fit(steps=10)
    fit = silent.gene_fits(["rare"], CONTRAST)[0]
    ax = pl.gene(fit, _ax())
    ax.figure.draw_without_rendering()
    assert fit.conditions[0].zero_fraction == 1


def test_genes_that_cannot_be_drawn_are_refused(de: HurdleDE) -> None:
    with pytest.raises(SingleCellError, match="'upp' is not one of the genes"):
        de.gene_fits(["upp"], CONTRAST)
    with pytest.raises(SingleCellError, match="not been fitted"):
        HurdleDE(cells(), "~ condition").gene_fits(["up"], CONTRAST)


def losses(steps: int, excess: float, genes: int, noise: float = 0.0) -> Any:
    """A fit whose loss falls by ``excess`` posterior sds of one coefficient a gene, all of it in the first half."""
    fall = np.where(np.arange(steps) < steps // 2, genes * excess**2 / 2, 0.0)
    return SimpleNamespace(losses=1e4 + fall + noise * np.random.default_rng(0).normal(size=steps), steps=steps)


@pytest.mark.parametrize("steps", [10, 50, 200, 997])
@pytest.mark.parametrize("excess", [0.1, 1.0, 7.0])
def test_convergence_is_in_posterior_standard_deviations(steps: int, excess: float) -> None:
    ax = pl.convergence(losses(steps, excess, 300), 300, _ax())
    line = ax.get_lines()[0]
    x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    assert y[x < 0.45 * steps] == pytest.approx(excess, rel=1e-6)
    assert y[x > 0.6 * steps] == pytest.approx(0, abs=1e-6)
    assert x.max() <= steps
    assert ax.get_ylabel() == "distance from the end (posterior sd)"


def test_noise_of_the_loss_is_not_taken_for_a_distance() -> None:
    """Of fits that only fluctuate, the parts lie in the grey band; of one that still falls, not."""
    distance, band = pl.distance_from_end(losses(1000, 0.0, 200, noise=30.0), 200)
    assert (distance < band).all()
    assert band < 1
    distance, band = pl.distance_from_end(losses(1000, 3.0, 200, noise=30.0), 200)
    assert (distance[:4] > 2 * band).all()


def test_a_diverged_step_is_left_out() -> None:
    fit = losses(100, 1.0, 10)
    fit.losses[3] = np.nan
    assert np.isfinite(pl.distance_from_end(fit, 10)[0]).all()


def test_labels_never_overlap_and_the_first_come_first() -> None:
    ax = _ax()
    ax.scatter([0, 1, 0.5], [0, 1, 0.5])
    points = [(0.5, 0.5, f"gene{i}") for i in range(40)]
    written = pl.label_points(ax, points)
    assert written == [name for _, _, name in points[: len(written)]]
    assert 2 <= len(written) < 40
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_without_axes_a_new_figure_is_made(de: HurdleDE) -> None:
    assert isinstance(pl.volcano(de.test(CONTRAST)), Axes)
    assert isinstance(de.test(CONTRAST), pd.DataFrame)


def test_samples_show_each_donor_or_each_sample(de: HurdleDE) -> None:
    """Donors have cells in both conditions here; with the halves of one condition as donors, they have not."""
    paired = de.gene_fits(["up"], CONTRAST)[0]
    adata = cells()
    stim = (adata.obs["condition"] == "stim").to_numpy()
    for donor in ("d0", "d3"):
        chosen = (adata.obs["donor"] == donor).to_numpy()
        ratio = adata.X[chosen & stim, 0].mean() / adata.X[chosen & ~stim, 0].mean()
        (sample,) = (one for one in paired.samples if one.name == donor)
        assert sample.observed == pytest.approx(np.log2(ratio))
        assert sample.fitted[1] < sample.fitted[0] < sample.fitted[2]
        assert sample.fitted[0] == pytest.approx(4, abs=1)
    ax = _ax()
    assert pl.samples(paired, ax) is ax
    assert ax.get_xlabel() == "log2 fold change"
    assert [text.get_text() for text in ax.get_yticklabels()] == ["d0", "d1", "d2", "d3"]

    adata.obs["donor"] = adata.obs["donor"].astype(str) + adata.obs["condition"].astype(str)
    nested = HurdleDE(adata, "~ condition", donor="donor").fit(steps=10).gene_fits(["up"], CONTRAST)[0]
    ax = pl.samples(nested, _ax())
    assert ax.get_xlabel() == "log2 mean"
    assert [one.condition for one in nested.samples] == ["condition=stim"] * 4 + ["condition=ctrl"] * 4
    first = adata.X[(adata.obs["donor"] == "d0stim").to_numpy(), 0].mean()
    assert nested.samples[0].name == "d0stim"
    assert nested.samples[0].observed == pytest.approx(np.log2(first))
    assert nested.samples[0].fitted[1] < np.log2(first) < nested.samples[0].fitted[2]


def test_a_model_without_random_effects_has_no_samples() -> None:
    fit = HurdleDE(cells(), "~ condition").fit(steps=10).gene_fits(["up"], CONTRAST)[0]
    assert fit.samples == ()
    with pytest.raises(SingleCellError, match="up has no samples"):
        pl.samples(fit, _ax())
