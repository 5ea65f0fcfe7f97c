"""What is not finite stops a fit: the site, parameters and rows at fault are named, the last finite state is kept."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormalMessenger
from pyro.optim.clipped_adam import ClippedAdam
from svi_cases import adam, data, normal_guide, normal_model, with_nan
from torch.distributions import constraints

from pyro_zilognormal.svi import BatchStream, DivergenceError, DivergenceReport, Minibatches, fit


def empty(*args):
    pass


def reported(model, guide, *args, validate=False, **settings):
    """The report of the error that a fit raises."""
    with pyro.validation_enabled(validate), pytest.raises(DivergenceError) as caught:
        fit(model, guide, *args, **{"steps": 20, **settings})
    report = caught.value.report
    assert str(report) in str(caught.value)
    assert all(torch.isfinite(value).all() for value in caught.value.result.params.values())
    return report


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("kind", ["whole", "minibatches", "stream"])
def test_a_nan_in_the_data_is_named_with_its_rows(kind, validate):
    x = with_nan(20, [4, 11])
    minibatches, stream = Minibatches(x, batch_size=7, plate="rows"), BatchStream(list(x.split(8)), plate="rows")
    report = reported(
        normal_model, normal_guide, {"whole": x, "minibatches": minibatches, "stream": stream}[kind], validate=validate
    )
    assert (report.what, report.site, report.part, report.cause) == ("loss", "x", "model", "its value is nan")
    assert report.rows in {"whole": [[4, 11]], "minibatches": [[4], [11], [4, 11]], "stream": [[]]}[kind]


def test_the_report_reads_well():
    report = DivergenceReport(3, "loss", "x", "model", "its value is nan", [4, 11], parameters=["loc"])
    assert str(report) == (
        "the loss of step 3 is not finite; site 'x' of the model: its value is nan; first rows at fault: "
        "[4, 11]; parameters not finite, or with such a gradient: ['loc']"
    )
    assert str(DivergenceReport(2, "update")).endswith(
        "step 2 is not finite; parameters not finite, or with such a gradient: none"
    )


def matrix(layout):
    """A model of a matrix whose rows are its first axis, its last, or around its event."""

    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        if layout == "event":
            with pyro.plate("rows", len(x)):
                pyro.sample("x", dist.Normal(loc, 1.0).expand([4]).to_event(1), obs=x)
        else:
            last = layout == "last"
            with pyro.plate("columns", 4, dim=-2 if last else -1), pyro.plate("rows", len(x), dim=-1 if last else -2):
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x.t() if last else x)

    return model


@pytest.mark.parametrize("layout", ["first", "last", "event"])
def test_rows_are_told_from_as_many_columns_by_their_plate(layout):
    x = torch.zeros(4, 4)
    x[3, 1] = math.inf
    report = reported(matrix(layout), empty, Minibatches(x, batch_size=4, plate="rows"))
    assert (report.rows, report.cause) == ([3], "its value is inf")
    # Of two plates of one size and without a name, neither is taken for that of the rows.
    assert reported(matrix(layout), empty, x).rows == ([3] if layout == "event" else [])


def test_data_outside_the_support_are_named():
    def model(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.LogNormal(pyro.param("m", torch.tensor(0.0)), 1.0), obs=x)

    x = data().abs()
    x[3] = -1.0
    for validate in (True, False):
        report = reported(model, empty, x, validate=validate)
        assert (report.site, report.rows, report.cause) == ("x", [3], "its log density is nan")


def without_plate(x):
    pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0).expand([len(x)]).to_event(1), obs=x)


def infinite_parameter(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("never", dist.Categorical(logits=torch.tensor([0.0, -math.inf])), obs=torch.zeros(len(x)))
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)


@pytest.mark.parametrize(("model", "rows"), [(without_plate, []), (infinite_parameter, [2])])
def test_the_right_site_is_named_and_rows_where_a_plate_tells_them(model, rows):
    report = reported(model, empty, with_nan(9, [2]))
    assert (report.site, report.rows, report.cause) == ("x", rows, "its value is nan")


def masked(kind):
    """A model that masks row 2."""

    def model(x, keep):
        loc = pyro.param("loc", torch.tensor(0.0))
        fn = dist.Normal(torch.where(keep, 0.0, math.nan) if kind == "parameter" else torch.zeros(len(x)), 1.0)
        with pyro.plate("rows", len(x)), pyro.poutine.mask(mask=keep):
            pyro.sample("x", fn.mask(keep) if kind == "distribution" else fn, obs=x)
            pyro.sample("y", dist.Normal(loc, 1.0), obs=x if kind == "gradient" else x.nan_to_num())

    return model


@pytest.mark.parametrize("kind", ["handler", "distribution", "parameter"])
def test_a_masked_row_is_not_blamed(kind):
    report = reported(masked(kind), empty, with_nan(9, [2, 6]), torch.arange(9) != 2)
    assert (report.site, report.rows, report.cause) == ("x", [6], "its value is nan")


def test_a_masked_row_that_spoils_the_gradient_is_named():
    # The masked NaN meets a gradient of 0, and their product is NaN: the loss is finite, the gradient is not.
    report = reported(masked("gradient"), empty, with_nan(9, [2]), torch.arange(9) != 2)
    assert (report.what, report.site, report.rows, report.parameters) == ("gradient", "y", [2], ["loc"])


def test_a_bad_gradient_with_a_good_loss_is_found():
    def model(x):
        m = pyro.param("m", torch.tensor(0.0))
        with pyro.plate("rows", len(x)):
            # sqrt has an infinite gradient at 0, which meets 0: NaN from row 5 alone.
            shift = torch.where(torch.arange(len(x)) == 5, (m * 0.0).sqrt(), m)
            pyro.sample("x", dist.Normal(shift, 1.0), obs=x)

    report = reported(model, empty, data())
    assert (report.what, report.site, report.parameters, report.rows) == ("gradient", "x", ["m"], [])
    assert report.cause == "the gradient of its log density is not finite"


def poison(name):
    def set_nan(run):
        if run.step == 2:
            with torch.no_grad():
                run.module.trainable()[name].fill_(math.nan)

    return set_nan


def correlated_guide(x):
    root = pyro.param("root", torch.eye(2))
    factor = torch.linalg.cholesky(root @ root.T + 0.01 * torch.eye(2))
    pyro.sample("loc", dist.MultivariateNormal(torch.zeros(2), scale_tril=factor))


def two_model(x):
    pyro.sample("loc", dist.Normal(0.0, 1.0).expand([2]).to_event(1))


def auxiliary_guide(x):
    mean = pyro.param("mean", torch.zeros(2))
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    both = pyro.sample("both", dist.Normal(mean, scale).to_event(1), infer={"is_auxiliary": True})
    pyro.sample("loc", dist.Delta(both[0]))


GUIDES = {  # model, guide, parameter, the site named, its cause
    "scale": (normal_model, normal_guide, "q_scale", "loc", "its parameter 'scale' is nan"),
    "location": (normal_model, normal_guide, "q_loc", "loc", "its parameter 'loc' is nan"),
    "auxiliary site": (normal_model, auxiliary_guide, "mean", "both", "its parameter 'loc' is nan"),
    "linear algebra": (two_model, correlated_guide, "root", None, "running model and guide again failed"),
}


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("kind", GUIDES)
def test_a_guide_site_and_its_parameter_are_named(kind, validate):
    model, guide, name, site, cause = GUIDES[kind]
    report = reported(model, guide, data(), callbacks=[poison(name)], validate=validate)
    assert (report.step, report.site, report.part) == (3, site, "guide" if site else None)
    assert cause in report.cause
    assert name in report.parameters


def test_a_nan_that_comes_by_chance_is_met_again():
    def guide(x):
        shift = torch.where(torch.rand(()) < 0.1, math.nan, 0.0)
        pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor(0.0)) + shift, 1.0))

    report = reported(normal_model, guide, data(), steps=200)
    assert (report.site, report.part, report.cause) == ("loc", "guide", "its parameter 'loc' is nan")


def test_guides_that_run_the_model_do_not_take_the_blame_for_the_data():
    report = reported(normal_model, AutoNormalMessenger(normal_model), with_nan(9, [2]))
    assert (report.site, report.part, report.rows) == ("x", "model", [2])


# --- the last finite state


@pytest.mark.parametrize("validate", [True, False])
def test_exploding_parameters_go_back_to_the_last_finite_state(validate):
    seen = []

    def remember(run):
        seen.append(run.params)
        if run.step == 6:
            run.optimizer.param_groups[0]["lr"] = 1e38

    with pyro.validation_enabled(validate), pytest.raises(DivergenceError) as caught:
        fit(normal_model, normal_guide, data(), steps=20, optimizer=adam, callbacks=[remember])
    result = caught.value.result
    # Step 7 began from the parameters after step 6, with a finite loss, and blew them up.
    assert (result.best_step, result.stop_reason, result.converged) == (6, "diverged", False)
    assert all(torch.equal(result.params[k], seen[5][k]) for k in seen[5])
    assert caught.value.report.step == 8
    assert all(math.isfinite(v) for v in result.losses[:7])


def test_clipped_adam_does_not_poison_the_parameters():
    # It clips a NaN to a NaN, and moves on.
    reported(normal_model, normal_guide, with_nan(9, 2), optimizer=ClippedAdam)


@pytest.mark.parametrize("validate", [True, False])
def test_parameters_that_the_last_step_blew_up_are_not_returned(validate):
    sgd = functools.partial(torch.optim.SGD, lr=1e38)
    with pyro.validation_enabled(validate), pytest.raises(DivergenceError, match="update of step 1") as caught:
        fit(normal_model, normal_guide, data(), steps=1, optimizer=sgd)
    assert "q_loc" in caught.value.report.parameters
    assert caught.value.result.params == {"q_loc": 0.0, "q_scale": 1.0}
    assert caught.value.result.stop_reason == "diverged"


def test_an_error_of_the_model_is_not_dressed_up():
    def model(x):
        normal_model(x)
        if len(calls) > 4:
            raise ValueError("my own mistake")
        calls.append(1)

    calls = []
    with pytest.raises(ValueError, match="my own mistake"):
        fit(model, normal_guide, data(), steps=20)


class Normed(torch.nn.Module):
    """A network whose running means a NaN in a batch would poison, as it would a sum that is replaced at each call."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(1)
        self.register_buffer("total", torch.zeros(()))
        self.scale = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        self.total = self.total + x.sum()
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(self.norm(x[:, None])[:, 0], self.scale.exp()), obs=x)


def test_a_bad_step_leaves_buffers_as_they_were():
    module, clean = Normed(), Normed()
    batches = BatchStream([data(5), data(5, 1), with_nan(5, 2)], plate="rows")
    fit(clean, empty, batches, steps=2)
    with pyro.validation_enabled(False), pytest.raises(DivergenceError) as caught:
        fit(module, empty, batches, steps=3)
    assert torch.equal(module.norm.running_mean, clean.norm.running_mean)
    assert torch.equal(module.total, clean.total)
    assert torch.equal(caught.value.result.values["buffer model.norm.running_var"], clean.norm.running_var)
