"""Item 8: figures of losses and predictive checks."""

import matplotlib
import numpy as np
import pyro
import pytest
import torch
from svi_cases import adam, data, normal_guide, normal_model
from test_svi_predictive import check, hurdle_data

from pyro_zilognormal.svi import (
    DivergenceError,
    EarlyStopping,
    PredictiveCheck,
    fit,
    plot_loss,
    plot_predictive,
    posterior_predictive,
)

matplotlib.use("Agg")


@pytest.fixture
def ax():
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_the_loss_plot_shows_what_there_is(ax):
    stop = EarlyStopping(data(seed=4), every=10, patience=2)
    result = fit(normal_model, normal_guide, data(), steps=2000, optimizer=adam, callbacks=[stop])
    assert plot_loss(result, ax, window=10) is ax
    names = labels(ax)
    assert names == [
        "training",
        "training, mean of 10",
        "held out",
        f"step {result.best_step}, kept",
        "stopped: converged",
    ]
    lines = ax.get_lines()
    np.testing.assert_allclose(lines[0].get_ydata(), result.losses / 20)
    smooth = [result.losses[i : i + 10].mean() / 20 for i in range(len(result.losses) - 9)]
    np.testing.assert_allclose(lines[1].get_ydata(), smooth)
    assert lines[1].get_xdata()[0] == 10
    np.testing.assert_allclose(lines[2].get_ydata(), [v / 20 for _, v in result.held_out])
    assert lines[4].get_xdata()[0] == result.steps
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "loss per row (nats)")


def test_the_loss_plot_copes_with_few_steps_and_a_divergence(ax):
    def bad(model, guide, x):
        count.append(1)
        loss = pyro.infer.Trace_ELBO().differentiable_loss(model, guide, x)
        return loss * float("nan") if len(count) == 2 else loss

    count = []
    with pytest.raises(DivergenceError) as caught:
        fit(normal_model, normal_guide, data(), steps=8, loss=bad)
    lines = plot_loss(caught.value.result, ax).get_lines()
    np.testing.assert_array_equal(lines[0].get_ydata(), caught.value.result.losses / 20)
    assert np.isfinite(lines[0].get_ydata()).tolist() == [True, False]


def test_the_predictive_plot_marks_misfits(ax):
    found = check(hurdle_data(), 0.2, draws=50)
    assert plot_predictive(found, ax=ax) is ax
    assert labels(ax) == ["tail probability outside 0.025 to 0.975 (4)"]
    points = ax.containers[0].lines[0]
    np.testing.assert_allclose(points.get_xdata(), found.observed["zero fraction"])
    np.testing.assert_allclose(points.get_ydata(), found.replicated["zero fraction"].quantile(0.5, 0))
    assert ax.get_ylabel() == "zero fraction of replicated data (median, 95 % interval)"
    assert ax.get_title() == "x, 4 columns"
    with pytest.raises(ValueError, match="statistic is 'median'; the check holds"):
        plot_predictive(found, "median")


def written(observed, low, high):
    """A check whose drawn data lie evenly between two values."""
    drawn = torch.stack([torch.linspace(a, b, 41, dtype=torch.float64) for a, b in zip(low, high, strict=True)], 1)
    seen = torch.tensor(observed, dtype=torch.float64)
    tail = torch.where(seen.isnan(), seen, (drawn > seen).double().mean(0))
    return PredictiveCheck("y", {"mean": seen}, {"mean": drawn}, {"mean": tail})


@pytest.mark.parametrize(
    ("check", "scale"),
    [
        (written([0.1, 5.0], [0.05, 4.0], [0.2, 9.0]), "log"),
        (written([1.0, 5.0], [0.8, 4.0], [1.2, 6.0]), "linear"),
        (written([0.0, 5.0], [0.0, 4.0], [0.1, 6.0]), "linear"),
        (written([-1.0, 50.0], [-2.0, 40.0], [0.0, 60.0]), "linear"),
    ],
)
def test_the_predictive_plot_takes_a_scale_that_shows_all_columns(check, scale, ax):
    plot_predictive(check, "mean", ax)
    assert (ax.get_xscale(), ax.get_yscale()) == (scale, scale)


def test_the_predictive_plot_leaves_out_what_has_no_tail_probability(ax):
    plot_predictive(written([1.0, float("nan")], [0.0, 0.0], [3.0, 3.0]), "mean", ax)
    assert labels(ax) == ["tail probability within 0.025 to 0.975 (1)"]


def test_plots_make_their_own_axes():
    import matplotlib.pyplot as plt

    result = fit(normal_model, normal_guide, data(), steps=3)
    first, second = (
        plot_loss(result),
        plot_predictive(posterior_predictive(result, data(), draws=5)["x"], "mean"),
    )
    assert first is not second
    plt.close("all")
