"""Item 1: a fit or draws inside a model, with Pyro's handlers around them, are as they are alone."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from svi_cases import auto, data, normal_guide, normal_model, same

from pyro_zilognormal.svi import fit, posterior_draws, posterior_predictive, posterior_summary

INNER = data(seed=3, loc=40.0)


def inner_fit():
    return fit(normal_model, auto(), INNER, steps=4)


@pytest.mark.parametrize("make", [lambda model: normal_guide, auto], ids=["function", "AutoNormal"])
def test_a_fit_inside_a_model_and_that_around_it_do_not_see_each_other(make):
    found = []

    def model(x):
        found.append(inner_fit())
        normal_model(x)

    alone, around = (fit(m, make(m), data(), steps=3) for m in (normal_model, model))
    same(alone, around)
    for result in found:
        same(result, inner_fit())


HANDLERS = {
    "trace": poutine.trace,
    "condition": lambda: poutine.condition(data={"loc": torch.tensor(7.0)}),
    "scale": lambda: poutine.scale(scale=3.0),
    "mask": lambda: poutine.mask(mask=False),
    "block": poutine.block,
    "replay": lambda: poutine.replay(trace=poutine.trace(normal_model).get_trace(INNER)),
}


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS)
def test_handlers_around_a_fit_do_not_reach_into_it(handler):
    alone = inner_fit()
    with handler() as around:
        inside = inner_fit()
        draws = posterior_draws(inside, INNER, draws=2)
        summary = posterior_summary(inside, INNER, draws=2)
        check = posterior_predictive(inside, INNER, draws=2)
    same(alone, inside)
    assert torch.equal(draws["loc"], posterior_draws(alone, INNER, draws=2)["loc"])
    assert torch.equal(summary["loc"].mean, posterior_summary(alone, INNER, draws=2)["loc"].mean)
    assert torch.equal(check["x"].tail["mean"], posterior_predictive(alone, INNER, draws=2)["x"].tail["mean"])
    if hasattr(around, "get_trace"):
        assert not around.trace.nodes


def test_a_model_that_fits_another_has_none_of_its_sites():
    def model(x):
        inner_fit()
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=x)

    trace = poutine.trace(model).get_trace(torch.tensor(1.0))
    assert [k for k in trace.nodes if not k.startswith("_")] == ["y"]


@pytest.mark.parametrize("call", [posterior_draws, posterior_summary, posterior_predictive])
def test_inside_a_plate_all_is_refused(call):
    # Its axis would be taken, so that rows would lie along another and be compared with one another.
    result = inner_fit()
    with pyro.plate("around", 3):
        with pytest.raises(ValueError, match=r"inside plates \['around'\], whose axes would be taken"):
            inner_fit()
        with pytest.raises(ValueError, match="inside plates"):
            call(result, INNER, draws=2)
    for _ in pyro.plate("one by one", 1):
        same(result, inner_fit())
