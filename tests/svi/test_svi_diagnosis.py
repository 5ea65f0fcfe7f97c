"""Item 5: the site, the parameters and the rows that a NaN comes from."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from svi_cases import adam, data, normal_guide, normal_model, with_nan
from torch.distributions import constraints

from pyro_zilognormal.svi import DivergenceError, Minibatches, fit


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("batch_size", [None, 3, 7])
def test_a_nan_in_the_data_is_named_with_its_rows(batch_size, validate):
    x = with_nan(20, [4, 11])
    source = x if batch_size is None else Minibatches(x, batch_size=batch_size, plate="rows")
    with pyro.validation_enabled(validate), pytest.raises(DivergenceError) as caught:
        fit(normal_model, normal_guide, source, steps=20, optimizer=adam)
    report = caught.value.report
    assert (report.site, report.part) == ("x", "model")
    assert set(report.rows) <= {4, 11}
    assert report.rows
    if batch_size is None:
        assert report.rows == [4, 11]
    assert "its value is nan" in report.cause
    assert f"first offending rows: {report.rows}" in str(caught.value)


def test_a_row_of_a_matrix_is_named():
    x = data(30).reshape(10, 3)
    x[7, 1] = math.inf

    def model(x):
        loc = pyro.param("loc", torch.zeros(3))
        with pyro.plate("rows", len(x), dim=-2), pyro.plate("columns", 3, dim=-1):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    with pyro.validation_enabled(False), pytest.raises(DivergenceError, match=r"rows: \[7\]"):
        fit(model, lambda x: None, x, steps=3)
    with pyro.validation_enabled(False), pytest.raises(DivergenceError, match=r"rows: \[7\]"):
        fit(vector_model, lambda x: None, x, steps=3)


def vector_model(x):
    loc = pyro.param("loc", torch.zeros(3))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def test_data_outside_the_support_are_named():
    def model(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.LogNormal(pyro.param("m", torch.tensor(0.0)), 1.0), obs=x)

    x = data().abs()
    x[3] = -1.0
    with pytest.raises(DivergenceError, match=r"site 'x' of the model: .*rows: \[3\]"):
        fit(model, lambda x: None, x, steps=3)


def test_a_guide_site_and_its_parameter_are_named():
    def guide(x):
        loc = pyro.param("q_loc", torch.tensor(0.0))
        scale = pyro.param("q_scale", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("loc", dist.Normal(loc, scale))

    def poison(run):
        if run.step == 3:
            with torch.no_grad():
                run.objective.trainable()["q_scale"].fill_(math.nan)

    for validate in (True, False):
        with pyro.validation_enabled(validate), pytest.raises(DivergenceError) as caught:
            fit(normal_model, guide, data(), steps=9, callbacks=[poison])
        report = caught.value.report
        assert (report.site, report.part) == ("loc", "guide")
        assert "parameter 'scale'" in report.cause
        assert "q_scale" in report.parameters


def test_linear_algebra_that_fails_on_a_nan_is_diagnosed():
    def guide(x):
        root = pyro.param("root", torch.eye(2))
        factor = torch.linalg.cholesky(root @ root.T + 0.01 * torch.eye(2))
        pyro.sample("loc", dist.MultivariateNormal(torch.zeros(2), scale_tril=factor))

    def model(x):
        pyro.sample("loc", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    def poison(run):
        if run.step == 2:
            with torch.no_grad():
                run.objective.trainable()["root"].fill_(math.nan)

    with pytest.raises(DivergenceError, match=r"not finite, or with such a gradient: \['root'\]") as caught:
        fit(model, guide, data(), steps=9, callbacks=[poison])
    assert torch.isfinite(caught.value.result.params["root"]).all()


def test_a_bad_gradient_with_a_good_loss_is_found():
    def model(x):
        m = pyro.param("m", torch.tensor(0.0))
        with pyro.plate("rows", len(x)):
            # sqrt has an infinite gradient at 0, which meets 0 elsewhere: NaN from row 5 alone
            shift = torch.where(torch.arange(len(x)) == 5, (m * 0.0).sqrt(), m)
            pyro.sample("x", dist.Normal(shift, 1.0), obs=x)

    with pytest.raises(DivergenceError) as caught:
        fit(model, lambda x: None, data(), steps=3)
    report = caught.value.report
    assert (report.what, report.site, report.parameters) == ("gradient", "x", ["m"])
    assert "gradient of its log density" in report.cause
    assert report.rows == [5]


def masked(kind):
    """A row that is masked holds a NaN, and another that is not masked one too."""

    def model(x, keep):
        loc = pyro.param("loc", torch.tensor(0.0))
        law = dist.Normal(torch.zeros(len(x)) if kind != "parameter" else torch.where(keep, 0.0, math.nan), 1.0)
        law = law.mask(keep) if kind == "law" else law
        with pyro.plate("rows", len(x)), pyro.poutine.mask(mask=keep):
            pyro.sample("x", law, obs=x)
            pyro.sample("y", dist.Normal(loc, 1.0), obs=x.nan_to_num() if kind != "other" else x)

    return model


@pytest.mark.parametrize(("kind", "site"), [("handler", "x"), ("law", "x"), ("parameter", "x"), ("other", "x")])
def test_a_masked_row_is_not_blamed(kind, site):
    x = with_nan(9, [2, 6])
    keep = torch.arange(9) != 2
    with pyro.validation_enabled(False), pytest.raises(DivergenceError) as caught:
        fit(masked(kind), lambda *args: None, x, keep, steps=3)
    report = caught.value.report
    assert (report.site, report.rows) == (site, [6])
    assert "value is nan" in report.cause


def test_a_masked_row_that_spoils_the_gradient_is_named():
    # A masked NaN meets a gradient of 0, and their product is NaN: the loss is finite, the gradient is not.
    x = with_nan(9, [2])
    keep = torch.arange(9) != 2

    def model(x, keep):
        with pyro.plate("rows", len(x)), pyro.poutine.mask(mask=keep):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)

    with pyro.validation_enabled(False), pytest.raises(DivergenceError) as caught:
        fit(model, lambda *args: None, x, keep, steps=3)
    report = caught.value.report
    assert (report.what, report.site, report.rows) == ("gradient", "x", [2])


def test_a_parameter_that_may_be_infinite_is_not_blamed():
    def model(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("never", dist.Categorical(logits=torch.tensor([0.0, -math.inf])), obs=torch.zeros(len(x)))
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)

    with pyro.validation_enabled(False), pytest.raises(DivergenceError) as caught:
        fit(model, lambda x: None, with_nan(9, [2]), steps=3)
    assert (caught.value.report.site, caught.value.report.rows) == ("x", [2])


@pytest.mark.parametrize("rows_first", [True, False])
@pytest.mark.parametrize("dim", [-1, -2])
def test_a_row_is_told_from_as_many_columns(rows_first, dim):
    def model(x):
        rows, columns = pyro.plate("rows", 4, dim=dim), pyro.plate("columns", 4, dim=-3 - dim)
        loc = pyro.param("loc", torch.tensor(0.0))
        with rows if rows_first else columns, columns if rows_first else rows:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x if dim == -2 else x.t())

    x = torch.zeros(4, 4)
    x[3, 1] = math.nan
    named = Minibatches(x, batch_size=4, plate="rows")
    for source in (named, x) if dim == -2 else (named,):  # of two plates with no name, the leftmost is taken
        with pyro.validation_enabled(False), pytest.raises(DivergenceError) as caught:
            fit(model, lambda x: None, source, steps=1)
        assert caught.value.report.rows == [3]


def test_a_row_without_a_plate_is_named():
    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("x", dist.Normal(loc, 1.0).expand([len(x)]).to_event(1), obs=x)

    with pyro.validation_enabled(False), pytest.raises(DivergenceError) as caught:
        fit(model, lambda x: None, with_nan(9, [2]), steps=3)
    assert caught.value.report.rows == [2]
    assert caught.value.report.cause == "its value is nan"


def test_the_error_that_told_of_the_fault_is_kept():
    with pyro.validation_enabled(True), pytest.raises(DivergenceError) as caught:
        fit(normal_model, normal_guide, with_nan(9, [2]), steps=3)
    assert isinstance(caught.value.__cause__, ValueError)
    assert "support" in str(caught.value.__cause__)
