"""Which axis of the data has the rows, and how many there are."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from svi_cases import data, local_model, normal_guide, normal_model

from pyro_zilognormal.svi import (
    DivergenceError,
    EarlyStopping,
    Minibatches,
    fit,
    posterior_draws,
    posterior_summary,
)

ROWS = 10


def of_columns(rows, columns, *, last=False):
    """A table of rows by columns, with a parameter for each column given as data before it."""

    def model(centre, x):
        loc = pyro.param("loc", torch.zeros(columns))
        with pyro.plate("rows", rows, dim=-1 if last else -2), pyro.plate("columns", columns, dim=-2 if last else -1):
            mean = loc + centre
            pyro.sample("x", dist.Normal(mean[:, None] if last else mean, 1.0), obs=x.t() if last else x)

    return model


def in_a_dict(batch):
    with pyro.plate("rows", 7):
        pyro.sample("x", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0), obs=batch["x"])


def one_event(x):
    pyro.sample("x", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0).expand([len(x)]).to_event(1), obs=x)


def subsampling(x):
    with pyro.plate("rows", len(x), subsample_size=3) as rows:
        pyro.sample("x", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0), obs=x[rows])


def grouped(groups, x):
    """Groups that are observed before the rows."""
    m = pyro.param("m", torch.tensor(0.0))
    with pyro.plate("groups", 3):
        pyro.sample("g", dist.Normal(m, 1.0), obs=groups)
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)


ROW_CASES = {
    "prior vector first": (of_columns(40, 3), (torch.zeros(3), torch.zeros(40, 3)), 40),
    "prior vector first, rows last": (of_columns(40, 3, last=True), (torch.zeros(1), torch.zeros(40, 3)), 40),
    "more columns than rows": (of_columns(5, 100), (torch.zeros(100), torch.zeros(5, 100)), 5),
    "number first": (of_columns(40, 3), (torch.tensor(0.0), torch.zeros(40, 3)), 40),
    "no tensor": (in_a_dict, ({"x": torch.zeros(7)},), 7),
    "no plate": (one_event, (torch.zeros(9),), 9),
    "a subsampling plate": (subsampling, (torch.zeros(8),), 8),
    "two observed sites": (grouped, (torch.zeros(3), torch.zeros(30)), 30),
    "no data": (
        lambda: pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0), obs=torch.tensor(0.0)),
        (),
        1,
    ),
}


@pytest.mark.parametrize(("model", "args", "rows"), ROW_CASES.values(), ids=ROW_CASES)
def test_rows_are_those_of_the_plate_over_data(model, args, rows):
    result = fit(model, lambda *args: None, *args, steps=2)
    assert result.rows == result.objective.rows == rows


def test_held_out_rows_are_counted_alike():
    model = lambda centre, x: of_columns(len(x), 3)(centre, x)  # noqa: E731
    held_out = (torch.zeros(3), torch.zeros(11, 3))
    stop = EarlyStopping(held_out, every=2)
    result = fit(model, lambda *args: None, torch.zeros(3), torch.zeros(40, 3), steps=2, callbacks=[stop])
    assert (result.rows, result.held_out_rows) == (40, 11)


def test_rows_after_a_prior_vector_are_summarised_and_named():
    def model(centre, x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(centre.sum(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x, centre = data(ROWS), torch.zeros(3)
    result = fit(model, AutoNormal(model), centre, x, steps=3)
    assert posterior_draws(result, centre, x, draws=2)["z"].shape == (2, ROWS)
    x[4] = float("nan")
    with pytest.raises(DivergenceError, match=r"rows: \[4\]"):
        fit(model, AutoNormal(model), centre, x, steps=3)


def test_a_plate_that_is_not_there_does_not_stay(tmp_path):
    x = data(ROWS)
    wrong, right, other = (Minibatches(x, batch_size=4, plate=p) for p in ("cells", "rows", "others"))
    result = fit(local_model(ROWS), AutoNormal(local_model(ROWS)), x, steps=3)
    expected = posterior_summary(result, right, draws=5)["z"].mean
    for call in (posterior_draws, posterior_summary):
        with pytest.raises(ValueError, match=r"plate is 'cells', but the model's plates are \['rows'\]"):
            call(result, wrong, draws=5)
        assert torch.equal(posterior_summary(result, right, draws=5)["z"].mean, expected)
    assert result.objective.plate is None
    with pytest.raises(ValueError, match=r"plate is 'cells', but the model's plates are"):
        fit(normal_model, normal_guide, x, steps=3, callbacks=[EarlyStopping(wrong)])
    named = fit(local_model(ROWS), AutoNormal(local_model(ROWS)), right, steps=3)
    for call in (posterior_draws, posterior_summary):
        with pytest.raises(ValueError, match="plate is 'others', but that of the fit is 'rows'"):
            call(named, other, draws=5)
    with pytest.raises(ValueError, match="plate is 'others', but that of the fit is 'rows'"):
        fit(normal_model, normal_guide, right, steps=3, callbacks=[EarlyStopping(other)])


def test_reading_a_fit_of_all_data_in_batches_leaves_its_guide_as_it_was():
    x, guide = data(ROWS), AutoNormal(local_model(ROWS))
    result = fit(local_model(ROWS), guide, x, steps=3)
    posterior_draws(result, Minibatches(x, batch_size=4, plate="rows"), draws=2, joint=True)
    assert guide.create_plates is None
    assert result.guide(x)["z"].shape == (ROWS,)
