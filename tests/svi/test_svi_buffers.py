"""Items 1 and 3: buffers are as they were after draws from a result and after looks at held-out data."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from svi_cases import data

from pyro_zilognormal.svi import EarlyStopping, fit, posterior_predictive


class Counting(torch.nn.Module):
    """Counts its calls, in eval mode too: in a buffer that it writes to, or in new ones in its place."""

    def __init__(self, size, in_place):
        super().__init__()
        self.in_place = in_place
        self.register_buffer("calls", torch.zeros(size))
        self.loc = torch.nn.Parameter(torch.tensor(0.0))

    def forward(self, x):
        if self.in_place:
            self.calls += 1
        else:
            self.calls = self.calls + 1
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(self.loc, 1.0), obs=x)


# Of large buffers a copy is taken only where they have changed.
KINDS = [(size, in_place) for size in (2, 70_000) for in_place in (True, False)]


@pytest.mark.parametrize(("size", "in_place"), KINDS)
def test_draws_from_a_result_leave_the_buffers_of_its_module_as_they_were(size, in_place):
    module = Counting(size, in_place)
    result = fit(module, lambda x: None, data(), steps=3)
    before, held = module.calls, module.calls.clone()
    posterior_predictive(result, data(), draws=3)
    with result.scope():
        result.model(data())
        assert torch.equal(module.calls, result.values["buffer model.calls"])
    assert module.calls is before
    assert torch.equal(module.calls, held)


@pytest.mark.parametrize(("size", "in_place"), KINDS)
def test_counting_rows_leaves_buffers_as_they_were(size, in_place):
    module = Counting(size, in_place)
    fit(module, lambda x: None, data(), steps=6)
    assert torch.equal(module.calls, torch.full((size,), 6.0 + 2))  # two runs make the parameters of model and guide


@pytest.mark.parametrize(("size", "in_place"), KINDS)
def test_looks_at_held_out_data_leave_buffers_as_they_were(size, in_place):
    def calls(callbacks):
        module = Counting(size, in_place)
        fit(module, lambda x: None, data(), steps=6, callbacks=callbacks)
        return module.calls

    watched = calls([EarlyStopping(data(9, seed=3), every=2, patience=100)])
    assert torch.equal(watched, calls([]))
