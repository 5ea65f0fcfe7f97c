"""Item 2: values of rows outside the plate over rows, and rows that the guide would draw anew, are refused."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from svi_cases import adam, data, same

from pyro_zilognormal.svi import BatchStream, Minibatches, fit, posterior_draws, posterior_summary, program

ROWS = 12
X = data(ROWS)


def observed(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
    pyro.sample("y", dist.Normal(loc.expand(len(x)), 1.0).to_event(1), obs=x)


def second_plate(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
    with pyro.plate("others", len(x)):
        pyro.sample("y", dist.Normal(loc, 1.0), obs=x)


def latent(x):
    z = pyro.sample("y", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def latent_guide(x):
    w = pyro.param("w", torch.tensor(0.5))
    pyro.sample("y", dist.Normal(w * x, 1.0).to_event(1))


def local(x):
    with pyro.plate("rows", ROWS, subsample_size=len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def auxiliary_guide(x, inside=False):
    w = pyro.param("w", torch.tensor(0.5))
    law = dist.Normal(w * x, 1.0)
    if not inside:
        y = pyro.sample("y", law.to_event(1), infer={"is_auxiliary": True})
    with pyro.plate("rows", ROWS, subsample_size=len(x)):
        y = pyro.sample("y", law, infer={"is_auxiliary": True}) if inside else y
        pyro.sample("z", dist.Delta(y))


OUTSIDE = {
    "observed": (observed, AutoNormal(observed), "model"),
    "plate of another name": (second_plate, AutoNormal(second_plate), "model"),
    "latent": (latent, latent_guide, "model"),
    "auxiliary": (local, auxiliary_guide, "guide"),
}


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize(("model", "guide", "part"), OUTSIDE.values(), ids=OUTSIDE)
def test_values_of_rows_outside_the_plate_are_refused_in_minibatches(model, guide, part, batch_size):
    message = f"site 'y' of the {part} has a value for every row, but is outside plate 'rows'"
    with pytest.raises(ValueError, match=message):
        fit(model, guide, Minibatches(X, batch_size=batch_size, plate="rows"), steps=1)
    stream = BatchStream(list(X.split(batch_size)), plate="rows")
    with pytest.raises(ValueError, match=message):
        fit(model, guide, stream, steps=1)
    assert fit(model, guide, X, steps=1).steps == 1  # all rows at once count as they are


def scaled_by_hand(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
    with poutine.scale(scale=ROWS / len(x)):
        pyro.sample("y", dist.Normal(loc.expand(len(x)), 1.0).to_event(1), obs=x)


def scaled_by_pyro(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
    with pyro.plate("others", ROWS, subsample_size=len(x)):
        pyro.sample("y", dist.Normal(loc, 1.0), obs=x)


def as_long_by_chance(x):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(5), 10.0).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc.sum(), 1.0), obs=x)


def inside(x):
    return auxiliary_guide(x, inside=True)


SERVED = [(m, AutoNormal(m)) for m in (scaled_by_hand, scaled_by_pyro, as_long_by_chance)] + [(local, inside)]


@pytest.mark.parametrize(("model", "guide"), SERVED)
def test_what_is_scaled_otherwise_or_as_long_by_chance_is_served(model, guide):
    assert fit(model, guide, Minibatches(X, batch_size=5, plate="rows"), steps=2).steps == 2


def test_looking_for_values_of_rows_leaves_draws_and_buffers_as_they_were(monkeypatch):
    class Guide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = torch.nn.Parameter(torch.zeros(5))
            self.norm = torch.nn.BatchNorm1d(1)

        def forward(self, x):
            self.norm(x[:, None])
            pyro.sample("loc", dist.Normal(self.loc, 1.0).to_event(1))

    def run():
        source = Minibatches(X, batch_size=5, plate="rows")
        return fit(as_long_by_chance, Guide(), source, steps=3, optimizer=adam)

    looked = run()
    monkeypatch.setattr(program, "check_outside", lambda *arguments: None)
    same(looked, run())


def test_a_statistic_of_rows_outside_the_plate_is_not_put_together():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        mean = pyro.deterministic("mean", loc + 0 * x)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        pyro.deterministic("five", loc.expand(5))

    source = Minibatches(X, batch_size=5, plate="rows")
    result = fit(model, AutoNormal(model), source, steps=1)
    for call in (posterior_summary, functools.partial(posterior_draws, joint=True)):
        with pytest.raises(ValueError, match="site 'mean' has a value for every row, but is outside the plate"):
            call(result, source, draws=2, sites=["mean"])
    assert posterior_summary(result, source, draws=2, sites=["five"])["five"].mean.shape == (5,)
    assert posterior_summary(result, X, draws=2, sites=["mean"])["mean"].mean.shape == (ROWS,)


@pytest.mark.parametrize("given", [None, 5])
def test_a_plate_that_is_not_of_the_batch_is_refused_also_without_validation(given):
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", ROWS, subsample_size=given):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[:1])

    def guide(x):
        pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))

    pyro.enable_validation(False)
    try:
        for source in (BatchStream(list(X.split(6)), plate="rows"), Minibatches(X, batch_size=6, plate="rows")):
            with pytest.raises(ValueError, match="subsample_size is not the 6 rows of this minibatch"):
                fit(model, guide, source, steps=1)
    finally:
        pyro.enable_validation(True)


def told(x, rows):
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", ROWS, subsample=rows):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, 0.1), obs=x)


def test_a_guide_that_draws_other_rows_than_the_model_is_told_is_refused():
    # Pyro's replay would put the guide's rows in the place of the model's, without a word.
    rows = torch.tensor([7, 1, 4])
    with pytest.raises(ValueError, match=r"plate 'rows' is told its rows in the model \(subsample=\)"):
        fit(told, AutoNormal(told), X[rows], rows, steps=1)
    same = AutoNormal(told, create_plates=lambda x, rows: pyro.plate("rows", ROWS, subsample=rows))
    assert fit(told, same, X[rows], rows, steps=1).steps == 1
    assert fit(told, AutoNormal(told), X, torch.arange(ROWS), steps=1).steps == 1


def test_a_model_that_is_told_the_rows_of_its_minibatch_meets_them():
    source = Minibatches(X, torch.arange(ROWS), batch_size=5, plate="rows")
    fast = functools.partial(torch.optim.Adam, lr=0.1)
    result = fit(told, AutoNormal(told), source, steps=400, optimizer=fast)
    assert (result.params["AutoNormal.locs.z"] - X).abs().max() < 0.2


def test_a_model_that_is_told_other_rows_than_those_of_its_minibatch_is_refused():
    source = Minibatches(X, torch.arange(ROWS).flip(0), batch_size=5, plate="rows")
    with pytest.raises(ValueError, match="told other rows"):
        fit(told, AutoNormal(told), source, steps=1)


def test_the_rows_of_a_plate_in_the_model_are_those_of_the_batch_whatever_the_guides_plate():
    def model(x):
        with pyro.plate("rows", ROWS, subsample_size=len(x)) as rows:
            seen.append((rows.clone(), x))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("w", torch.tensor(0.5)) * x, 1.0))

    seen = []
    fit(model, guide, Minibatches(X, batch_size=5, plate="rows"), steps=6)
    assert len(seen) > 6
    assert all(torch.equal(X[rows], x) for rows, x in seen)
