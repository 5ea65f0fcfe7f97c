"""Item 6: which values of a site are of which row, in whatever order rows come, and no more than a batch at a time."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from svi_cases import Amortised, data
from torch.utils.data import DataLoader

from pyro_zilognormal.svi import (
    BatchStream,
    Minibatches,
    fit,
    posterior_draws,
    posterior_predictive,
    posterior_summary,
)

ROWS = 12


def wide_model(rows):
    def model(x):
        largest.append(len(x))
        with pyro.plate("rows", rows, subsample_size=len(x), dim=-2), pyro.plate("columns", 50, dim=-1):
            pyro.sample("x", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0), obs=x)

    return model


largest = []


def test_no_more_than_a_batch_is_drawn_at_a_time():
    largest.clear()
    rows = 200
    source = Minibatches(torch.zeros(rows, 50), batch_size=20, plate="rows")
    result = fit(wide_model(rows), lambda x: None, source, steps=1)
    posterior_predictive(result, source, draws=2, quantiles=[0.5], max_bytes=8 * rows * 10)
    assert max(largest) == 20


class Shuffled:
    """An order of its own at every reading, drawn from no torch sampler."""

    def __iter__(self):
        return iter(data(ROWS)[torch.randperm(ROWS)].split(4))


SHUFFLING = [Shuffled(), DataLoader(data(ROWS), batch_size=4, shuffle=True)]


@pytest.mark.parametrize("shuffling", SHUFFLING)
def test_local_sites_of_a_shuffling_stream_are_refused(shuffling):
    module = Amortised(ROWS)
    result = fit(module.model, module.guide, BatchStream(list(data(ROWS).split(4)), plate="rows"), steps=2)
    shuffled = BatchStream(shuffling, plate="rows")
    with pytest.raises(ValueError, match=r"sites \['z'\] have a value for every row.*does not shuffle"):
        posterior_summary(result, shuffled, draws=2)
    with pytest.raises(ValueError, match=r"sites \['z'\] have a value for every row"):
        posterior_draws(result, shuffled, draws=2, joint=True)
    in_order = BatchStream(DataLoader(data(ROWS), batch_size=4), plate="rows")
    whole = posterior_draws(result, in_order, draws=2, sites=["x"], joint=True)["x"]
    assert torch.equal(whole[0], data(ROWS))


@pytest.mark.parametrize("rows_first", [True, False])
@pytest.mark.parametrize("dim", [-1, -2])
def test_as_many_rows_as_columns_are_told_apart(rows_first, dim):
    def model(x):
        rows, columns = pyro.plate("rows", 4, dim=dim), pyro.plate("columns", 4, dim=-3 - dim)
        loc = pyro.param("loc", torch.tensor(0.0))
        with rows if rows_first else columns, columns if rows_first else rows:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    x = torch.arange(16.0).reshape(4, 4)
    named = fit(model, lambda x: None, Minibatches(x, batch_size=4, plate="rows"), steps=1)
    unnamed = fit(model, lambda x: None, x, steps=1)
    for result, axis in ((named, dim), (unnamed, -2)):
        check = posterior_predictive(result, x, draws=2)["x"]
        assert torch.equal(check.observed["mean"], x.mean(axis).double())


@pytest.fixture(scope="module")
def mixture():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(2.0, 1.0))
        pyro.deterministic("before", 2 * loc)
        with pyro.plate("rows", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.deterministic("after", k * loc)
            pyro.sample("x", dist.Normal(k * loc, 1.0), obs=x)

    guide = AutoNormal(pyro.poutine.block(model, hide=["k", "after"]))
    return fit(model, guide, data(ROWS), steps=2, loss=TraceEnum_ELBO(max_plate_nesting=1))


@pytest.mark.parametrize("call", [posterior_draws, posterior_summary])
def test_an_enumerated_site_is_not_drawn_from_its_prior(call, mixture):
    x = data(ROWS)
    assert set(call(mixture, x, draws=2)) == {"loc"}
    assert set(call(mixture, x, draws=2, sites=["before"])) == {"before"}
    for name in ("k", "after"):
        with pytest.raises(ValueError, match=rf"sites holds '{name}', but \['k'\].*pyro.infer.infer_discrete"):
            call(mixture, x, draws=2, sites=[name])
