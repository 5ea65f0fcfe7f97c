"""Items 5 and 6: rows of the data are told from axes that are as long by chance."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from svi_cases import normal_guide, normal_model, with_nan
from torch.utils.data import DataLoader

from pyro_zilognormal.svi import BatchStream, DivergenceError, Minibatches, fit, posterior_predictive

N = 8


def table(rows_dim, *, transposed):
    """A plate for each axis of a table of N rows and N columns, with a value of each column."""

    def model(x):
        columns, rows = pyro.plate("columns", N, dim=-3 - rows_dim), pyro.plate("rows", N, dim=rows_dim)
        with columns:
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with columns, rows:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x.t() if transposed else x)

    return model


def of_logarithms(x):
    with pyro.plate("columns", N, dim=-2):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", N, dim=-1):
            pyro.sample("x", dist.LogNormal(loc, 1.0), obs=x.t().exp())


def rows_in_an_event(x):
    with pyro.plate("columns", N):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(loc[:, None].expand(N, N), 1.0).to_event(1), obs=x.t())


def rows_without_a_plate(x):
    with pyro.plate("columns", N):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(loc, 1.0).expand([N, N]), obs=x)


def no_plate(x):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(N), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(loc, 1.0).expand([N, N]).to_event(2), obs=x)


SQUARE = {
    "rows left": table(-2, transposed=False),
    "rows right": table(-1, transposed=True),
    "columns of the data right, rows by another plate": table(-1, transposed=False),
    "logarithms": of_logarithms,
    "rows in an event": rows_in_an_event,
    "rows without a plate": rows_without_a_plate,
    "no plate": no_plate,
}


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("model", SQUARE.values(), ids=SQUARE)
def test_rows_of_the_data_are_named_where_columns_are_as_many(model, validate):
    x = torch.randn(N, N, generator=torch.Generator().manual_seed(0))
    x[2, 5] = math.nan
    with pyro.validation_enabled(validate), pytest.raises(DivergenceError) as caught:
        fit(model, AutoNormal(model), x, steps=2)
    assert (caught.value.report.site, caught.value.report.rows) == ("x", [2])


def sized(x):
    """The rows are in a plate that is named, and there are as many columns as rows of a batch."""
    with pyro.plate("columns", N, dim=-1):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 3 * N, subsample_size=len(x), dim=-2):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def summed(x):
    """As many rows as columns have a value each, and the data do not follow the columns."""
    with pyro.plate("columns", N):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(loc.sum(), 1.0), obs=x[:, 0])


COLUMNS = {
    "named plate": (sized, Minibatches(torch.zeros(3 * N, N), batch_size=N, plate="rows")),
    "no plate named": (summed, torch.randn(N, N, generator=torch.Generator().manual_seed(0))),
}


@pytest.mark.parametrize(("model", "source"), COLUMNS.values(), ids=COLUMNS)
def test_columns_are_not_named_as_rows(model, source):
    def guide(x):
        loc = pyro.param("q_loc", torch.zeros(N))
        with pyro.plate("columns", N, dim=-1):
            pyro.sample("loc", dist.Normal(loc, 1.0))

    def spoil(run):
        with torch.no_grad():
            run.objective.trainable()["q_loc"][5] = math.nan

    with pyro.validation_enabled(False), pytest.raises(DivergenceError) as caught:
        fit(model, guide, source, steps=2, callbacks=[spoil])
    report = caught.value.report
    assert (report.site, report.part, report.rows, report.parameters) == ("loc", "guide", [], ["q_loc"])


@pytest.mark.parametrize("name", [k for k in SQUARE if k != "rows without a plate"])  # which Pyro refuses
def test_a_check_has_the_columns_of_the_data_where_rows_are_as_many(name):
    x = torch.randn(N, N, generator=torch.Generator().manual_seed(0))
    seen = x.exp() if name == "logarithms" else x
    result = fit(SQUARE[name], AutoNormal(SQUARE[name]), x, steps=2)
    check = posterior_predictive(result, x, draws=2)["x"]
    torch.testing.assert_close(check.observed["mean"], seen.double().mean(0))


def test_a_check_has_the_columns_of_the_data_where_rows_are_within_an_event():
    def model(x):
        with pyro.plate("columns", 3):
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(loc[:, None].expand(3, N), 1.0).to_event(1), obs=x.t())

    x = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
    check = posterior_predictive(fit(model, AutoNormal(model), x, steps=2), x, draws=2)["x"]
    torch.testing.assert_close(check.observed["mean"], x.double().mean(0))


@pytest.mark.parametrize("make", [list, lambda parts: DataLoader(torch.cat(parts), batch_size=5)])
def test_rows_of_a_stream_are_said_to_be_of_a_batch(make):
    stream = BatchStream(make(list(with_nan(20, [13, 14]).split(5))), plate="rows")
    with pytest.raises(DivergenceError, match=r"offending rows of batch 2 of epoch 0, both from 0: \[3, 4\]") as caught:
        fit(normal_model, normal_guide, stream, steps=9)
    assert (caught.value.report.rows, caught.value.report.rows_of) == ([3, 4], "batch 2 of epoch 0, both from 0")
