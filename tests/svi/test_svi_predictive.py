"""Item 6 and 8: predictive checks that see what is wrong, and figures."""

import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from svi_cases import adam, data, normal_guide, normal_model

from pyro_zilognormal.svi import (
    EarlyStopping,
    Minibatches,
    PredictiveCheck,
    SkipBadSteps,
    fit,
    plot_loss,
    plot_predictive,
    posterior_predictive,
)

matplotlib.use("Agg")
ROWS, COLUMNS = 300, 4


def hurdle_model(rows, zeros):
    """Zeros with a known probability, else log-normal with unknown location."""

    def model(x):
        loc = pyro.param("loc", torch.zeros(COLUMNS))
        with pyro.plate("rows", rows, subsample_size=len(x), dim=-2), pyro.plate("columns", COLUMNS, dim=-1):
            pyro.sample("x", Hurdle(loc, zeros), obs=x)

    return model


class Hurdle(dist.TorchDistribution):
    """0 with probability zeros, else log-normal(loc, 1)."""

    arg_constraints = {}  # noqa: RUF012 - as torch has it
    support = dist.constraints.nonnegative

    def __init__(self, loc, zeros, validate_args=None):
        self.loc, self.zeros = loc, zeros
        super().__init__(loc.shape, validate_args=validate_args)

    def expand(self, shape, _instance=None):
        return Hurdle(self.loc.expand(shape), self.zeros)

    def sample(self, shape=()):
        shape = self._extended_shape(shape)
        positive = torch.rand(shape) >= self.zeros
        return torch.where(positive, dist.LogNormal(self.loc, 1.0).expand(shape).sample(), torch.zeros(shape))

    def log_prob(self, x):
        positive = dist.LogNormal(self.loc, 1.0).log_prob(torch.where(x > 0, x, torch.ones_like(x)))
        return torch.where(x > 0, positive + np.log1p(-self.zeros), torch.full_like(x, np.log(self.zeros)))


def empty(x):
    pass


@pytest.fixture(scope="module")
def x():
    torch.manual_seed(0)
    return Hurdle(torch.zeros(ROWS, COLUMNS), 0.4).sample()


def check(x, zeros, **settings):
    source = Minibatches(x, batch_size=64, plate="rows")
    result = fit(hurdle_model(ROWS, zeros), empty, source, steps=100, optimizer=adam)
    return posterior_predictive(result, source, **settings)["x"]


def test_a_right_model_passes_and_a_wrong_gate_is_seen(x):
    right, wrong = check(x, 0.4, draws=60), check(x, 0.2, draws=20)
    for statistic, tail in right.tail.items():
        assert ((tail > 0.005) & (tail < 0.995)).all(), statistic
    assert (wrong.tail["zero fraction"] == 0.0).all()
    assert (wrong.tail["mean"] > 0.95).all()


def test_statistics_of_the_data_are_those_of_numpy(x):
    found = check(x, 0.4, draws=2, quantiles=[0.5, 0.9]).observed
    assert list(found) == ["zero fraction", "mean", "quantile 0.5", "quantile 0.9"]
    table = x.double().numpy()
    np.testing.assert_allclose(found["zero fraction"], (table == 0).mean(0))
    np.testing.assert_allclose(found["mean"], table.mean(0))
    np.testing.assert_allclose(found["quantile 0.9"], np.quantile(table, 0.9, axis=0), rtol=1e-6)


def test_drawn_data_have_the_moments_of_the_law(x):
    found = check(x, 0.4, draws=200)
    zeros = found.replicated["zero fraction"]
    assert zeros.shape == (200, COLUMNS)
    error = (0.4 * 0.6 / ROWS / 200) ** 0.5
    assert ((zeros.mean(0) - 0.4).abs() < 5 * error).all()
    assert zeros.std() == pytest.approx((0.4 * 0.6 / ROWS) ** 0.5, rel=0.15)


@pytest.mark.parametrize("max_bytes", [1, 8 * ROWS * 2])
def test_columns_at_a_time_give_the_same(x, max_bytes):
    whole, parts = check(x, 0.4, draws=5), check(x, 0.4, draws=5, max_bytes=max_bytes)
    for name in whole.replicated:
        assert torch.equal(whole.replicated[name], parts.replicated[name])


def test_tail_is_the_share_of_larger_draws_with_half_of_ties(x):
    found = check(x, 0.4, draws=50)
    for name, drawn in found.replicated.items():
        seen = found.observed[name]
        expected = ((drawn > seen).double() + 0.5 * (drawn == seen).double()).mean(0)
        torch.testing.assert_close(found.tail[name], expected, rtol=0, atol=1e-12)


def test_one_global_draw_serves_all_batches():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 100.0))
        with pyro.plate("rows", 20, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(loc, 0.001), obs=x)

    def guide(x):
        pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor(0.0)), 100.0))

    source = Minibatches(data(), batch_size=7, plate="rows")
    found = posterior_predictive(fit(model, guide, source, steps=1), source, draws=10, quantiles=[0.0, 1.0])["x"]
    spread = found.replicated["quantile 1"] - found.replicated["quantile 0"]
    assert (spread < 0.02).all()
    assert found.replicated["mean"].std() > 10


@pytest.mark.parametrize("layout", ["vector", "rows last", "event"])
def test_rows_are_found_in_any_layout(layout):
    x = data(30).reshape(10, 3)

    def model(x):
        m = pyro.param("m", torch.zeros(3))
        if layout == "rows last":
            with pyro.plate("columns", 3, dim=-2), pyro.plate("rows", 10, dim=-1):
                pyro.sample("x", dist.Normal(m[:, None], 1.0), obs=x.t())
        elif layout == "event":
            with pyro.plate("rows", 10):
                pyro.sample("x", dist.Normal(m, 1.0).to_event(1), obs=x)
        else:
            with pyro.plate("rows", 10):
                pyro.sample("x", dist.Normal(m.sum(), 1.0), obs=x[:, 0])

    result = fit(model, empty, x, steps=1)
    mean = posterior_predictive(result, x, draws=2)["x"].observed["mean"]
    expected = x.mean(0)[:1] if layout == "vector" else x.mean(0)
    torch.testing.assert_close(mean.float(), expected)


def test_masked_sites_are_refused():
    def model(x):
        with pyro.plate("rows", len(x)), pyro.poutine.mask(mask=x > 0):
            pyro.sample("x", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0), obs=x)

    with pytest.raises(ValueError, match="site 'x' is masked"):
        posterior_predictive(fit(model, empty, data(), steps=1), data())


def test_a_model_without_data_is_refused():
    def model():
        pyro.sample("loc", dist.Normal(0.0, 1.0))

    def guide():
        pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))

    with pytest.raises(ValueError, match="observes no site"):
        posterior_predictive(fit(model, guide, steps=1))


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
    assert plot_loss(result, ax, window=20) is ax
    names = labels(ax)
    assert names == [
        "training",
        "training, mean of 20",
        "held out",
        f"step {result.best_step}, kept",
        "stopped: converged",
    ]
    lines = ax.get_lines()
    np.testing.assert_allclose(lines[0].get_ydata(), result.losses / 20)
    smooth = [result.losses[i : i + 20].mean() / 20 for i in range(len(result.losses) - 19)]
    np.testing.assert_allclose(lines[1].get_ydata(), smooth)
    assert lines[1].get_xdata()[0] == 20
    np.testing.assert_allclose(lines[2].get_ydata(), [v / 20 for _, v in result.held_out])
    assert lines[4].get_xdata()[0] == result.steps
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "loss per observation (nats)")


def test_the_loss_plot_copes_with_skipped_and_few_steps(ax):
    def bad(model, guide, x):
        count.append(1)
        loss = pyro.infer.Trace_ELBO().differentiable_loss(model, guide, x)
        return loss * float("nan") if len(count) == 2 else loss

    count = []
    result = fit(normal_model, normal_guide, data(), steps=3, loss=bad, callbacks=[SkipBadSteps()])
    lines = plot_loss(result, ax).get_lines()
    assert lines[1].get_ydata() == pytest.approx([np.nanmean(result.losses) / 20])


def test_the_predictive_plot_marks_misfits(x, ax):
    found = check(x, 0.2, draws=50)
    assert plot_predictive(found, ax=ax) is ax
    assert labels(ax) == ["tail probability outside 0.025 to 0.975 (4)"]
    points = ax.containers[0].lines[0]
    np.testing.assert_allclose(points.get_xdata(), found.observed["zero fraction"])
    np.testing.assert_allclose(points.get_ydata(), found.replicated["zero fraction"].quantile(0.5, 0))
    assert ax.get_ylabel() == "zero fraction of drawn data (median, 95 % interval)"
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
