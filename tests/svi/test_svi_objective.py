"""The loss as one nn.Module: equal to Pyro's own, and fit equal to a loop by hand."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    SVI,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from svi_cases import Amortised, adam, auto, data, normal_guide, normal_model

from pyro_zilognormal.svi import Objective, fit


def discrete_guide(x):
    q = pyro.param("q", torch.tensor(0.4), constraint=dist.constraints.unit_interval)
    with pyro.plate("rows", len(x)):
        pyro.sample("k", dist.Bernoulli(q))


def discrete_model(x):
    with pyro.plate("rows", len(x)):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(4.0 * k, 1.0), obs=x)


CASES = [
    (Trace_ELBO(), normal_model, normal_guide),
    (Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1), normal_model, normal_guide),
    (TraceMeanField_ELBO(), normal_model, normal_guide),
    (TraceGraph_ELBO(), discrete_model, discrete_guide),
    (Trace_ELBO(), discrete_model, discrete_guide),
    (TraceEnum_ELBO(), discrete_model, config_enumerate(discrete_guide)),
]


@pytest.mark.parametrize(("loss", "model", "guide"), CASES)
def test_loss_and_gradient_are_pyros_own(loss, model, guide):
    x = data(7)
    pyro.clear_param_store()
    objective = Objective(model, guide, loss)
    objective.setup(x)
    pyro.set_rng_seed(3)
    ours = objective.backward(x)
    pyro.set_rng_seed(3)
    evaluated = objective.evaluate(x)
    poutine.trace(guide).get_trace(x)
    pyro.set_rng_seed(3)
    theirs = loss.loss_and_grads(model, guide, x)
    assert float(ours) == pytest.approx(theirs, rel=1e-6)
    assert evaluated == pytest.approx(theirs, rel=1e-6)
    for name, parameter in objective.trainable().items():
        expected = pyro.get_param_store()[name].unconstrained().grad
        torch.testing.assert_close(parameter.grad, expected)
    pyro.clear_param_store()


def test_fit_is_the_loop_by_hand_bit_for_bit():
    x = data()
    result = fit(normal_model, normal_guide, x, steps=30, optimizer=adam, seed=4)
    pyro.clear_param_store()
    pyro.set_rng_seed(4)
    with torch.no_grad():
        poutine.trace(normal_model).get_trace(x)
        guide = poutine.trace(normal_guide).get_trace(x)
        poutine.trace(poutine.replay(normal_model, trace=guide)).get_trace(x)
    store = pyro.get_param_store()
    optimizer = adam([p for _, p in store.named_parameters()])
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = Trace_ELBO().differentiable_loss(normal_model, normal_guide, x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == result.losses.tolist()
    assert {k: v.item() for k, v in store.items()} == {k: v.item() for k, v in result.params.items()}
    pyro.clear_param_store()


def test_fit_agrees_with_svi():
    x = data(100)
    result = fit(normal_model, normal_guide, x, steps=200, optimizer=adam)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = SVI(normal_model, normal_guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(200):
        svi.step(x)
    assert abs(result.params["q_loc"] - pyro.param("q_loc")) < 0.2
    pyro.clear_param_store()


def test_a_loss_may_be_a_function():
    def half(model, guide, *args):
        return Trace_ELBO().differentiable_loss(model, guide, *args) / 2

    whole = fit(normal_model, normal_guide, data(), steps=3)
    halved = fit(normal_model, normal_guide, data(), steps=1, loss=half)
    assert halved.losses[0] == pytest.approx(whole.losses[0] / 2)


class Plain(torch.nn.Module):
    """An nn.Module that Pyro does not know of."""

    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.tensor(0.0))
        self.frozen = torch.nn.Parameter(torch.tensor(1.0), requires_grad=False)

    def forward(self, x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(self.loc, self.frozen), obs=x)

    def empty(self, x):
        pass


@pytest.mark.parametrize(
    "wrap",
    [lambda m: m, lambda m: m.forward, lambda m: functools.partial(m.forward)],
    ids=["module", "method", "partial"],
)
def test_a_plain_module_is_trained_in_place(wrap):
    module = Plain()
    result = fit(wrap(module), module.empty, data(), steps=400, optimizer=adam)
    assert result.params.keys() == {"model.loc"}
    assert result.params["model.loc"] == pytest.approx(data().mean().item(), abs=0.02)
    assert torch.equal(module.loc, result.params["model.loc"])


def registered(module):
    def model(x):
        pyro.module("net", module)
        module(x)

    return model


def test_pyro_module_is_trained():
    module = Plain()
    module.frozen = None
    del module.frozen
    module.register_buffer("frozen", torch.tensor(1.0))
    result = fit(registered(module), lambda x: None, data(), steps=400, optimizer=adam)
    assert result.params["net.loc"] == pytest.approx(data().mean().item(), abs=0.02)


def test_a_module_with_methods_is_trained_and_constrained():
    module = Amortised(20)
    result = fit(module.model, module.guide, data(), steps=30)
    assert sorted(result.params) == ["model.net.bias", "model.net.weight", "model.noise", "model.shift"]
    assert torch.equal(result.params["model.noise"], module.noise)
    assert result.objective.constraints()["model.noise"] == "GreaterThan(lower_bound=0.0)"


def test_any_torch_loop_can_drive_it():
    x = data()
    objective = Objective(normal_model, auto(), Trace_ELBO())
    objective.setup(x)
    assert {id(p) for p in objective.parameters()} == {id(p) for p in objective.trainable().values()}
    optimizer = adam(objective.parameters())
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = objective(x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < sum(losses[:10])
    again = Objective(normal_model, auto(), Trace_ELBO())
    again.setup(x)
    again.load_state_dict(objective.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), objective.parameters(), strict=True))


def test_plain_parameters_are_registered_for_torch():
    objective = Objective(normal_model, normal_guide, Trace_ELBO())
    objective.setup(data())
    assert sorted(objective.state_dict()) == ["param/q_loc", "param/q_scale"]


def test_late_parameters_are_trained():
    def guide(x):
        normal_guide(x)
        seen.append(1)
        if len(seen) > 5:
            pyro.param("late", torch.tensor(3.0))

    def loss(model, guide, x):
        total = Trace_ELBO().differentiable_loss(model, guide, x)
        store = pyro.get_param_store()
        return total + (store["late"] ** 2 if "late" in store else 0.0)

    seen = []
    result = fit(normal_model, guide, data(), steps=300, optimizer=adam, loss=loss)
    assert abs(result.params["late"]) < 0.2


def no_parameters(x):
    pyro.sample("loc", dist.Normal(0.0, 1.0))


GOOD = {"model": normal_model, "guide": normal_guide, "steps": 2}

BAD = [
    ({"model": 3}, TypeError, "model is a int; needed a function"),
    ({"guide": None}, TypeError, "guide is a NoneType"),
    ({"guide": no_parameters}, ValueError, "no parameters"),
    ({"steps": 0}, ValueError, "steps is 0; needed a whole number of at least 1"),
    ({"steps": 2.0}, ValueError, "steps is 2.0"),
    ({"seed": -1}, ValueError, "seed is -1; needed a whole number from 0 to 4294967295"),
    ({"seed": 2**32}, ValueError, "seed is 4294967296"),
    ({"max_seconds": 0}, ValueError, "max_seconds is 0; needed a positive"),
    ({"optimizer": pyro.optim.Adam({"lr": 0.1})}, TypeError, "functools.partial"),
    ({"optimizer": lambda p: None}, TypeError, "optimizer is or gave a NoneType"),
    ({"optimizer": torch.optim.LBFGS}, TypeError, "optimizer is or gave a LBFGS"),
    ({"callbacks": [3]}, TypeError, "callbacks is"),
    ({"callbacks": print}, TypeError, "callbacks is"),
    ({"loss": ReweightedWakeSleep(num_particles=2)}, TypeError, "several parts"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments_are_refused(change, error, message):
    arguments = {**GOOD, **change}
    model, guide = arguments.pop("model"), arguments.pop("guide")
    with pytest.raises(error, match=message):
        fit(model, guide, data(), **arguments)
