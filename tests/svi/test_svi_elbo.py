"""The loss as one nn.Module: Pyro's own, with every loss and guide, and fit equal to a loop by hand."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    autoguide,
    config_enumerate,
)
from svi_cases import Amortised, adam, data, normal_guide, normal_model

from pyro_zilognormal.svi import Batch, SVIModule, fit

X = data(7)
BATCH = Batch((X,), rows=7)


def discrete_guide(x):
    q = pyro.param("q", torch.tensor(0.4), constraint=dist.constraints.unit_interval)
    with pyro.plate("rows", len(x)):
        pyro.sample("k", dist.Bernoulli(q))


def discrete_model(x):
    with pyro.plate("rows", len(x)):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(4.0 * k, 1.0), obs=x)


def two_latents(x):
    loc = pyro.sample("loc", dist.Normal(1.0, 2.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def listed(model):
    guide = autoguide.AutoGuideList(model)
    guide.append(autoguide.AutoNormal(poutine.block(model, expose=["loc"])))
    guide.append(autoguide.AutoDelta(poutine.block(model, hide=["loc"])))
    return guide


LOSSES = {
    "Trace": (Trace_ELBO(), normal_model, normal_guide),
    "particles": (Trace_ELBO(num_particles=3, vectorize_particles=True), normal_model, normal_guide),
    "MeanField": (TraceMeanField_ELBO(), normal_model, normal_guide),
    "Renyi": (RenyiELBO(num_particles=2), normal_model, normal_guide),
    "Graph": (TraceGraph_ELBO(), discrete_model, discrete_guide),
    "score": (Trace_ELBO(), discrete_model, discrete_guide),
    "Enum": (TraceEnum_ELBO(), discrete_model, config_enumerate(discrete_guide)),
}

GUIDES = {
    "list": listed,
    "Delta": autoguide.AutoDelta,
    "Normal": autoguide.AutoNormal,
    "DiagonalNormal": autoguide.AutoDiagonalNormal,
    "MultivariateNormal": autoguide.AutoMultivariateNormal,
    "LowRank": autoguide.AutoLowRankMultivariateNormal,
    "Gaussian": autoguide.AutoGaussian,
    "Structured": autoguide.AutoStructured,
    "Laplace": autoguide.AutoLaplaceApproximation,
    "IAF": autoguide.AutoIAFNormal,
    "NormalMessenger": autoguide.AutoNormalMessenger,
    "HierarchicalMessenger": autoguide.AutoHierarchicalNormalMessenger,
    "RegressiveMessenger": autoguide.AutoRegressiveMessenger,
}

CASES = LOSSES | {name: (Trace_ELBO(), two_latents, make) for name, make in GUIDES.items()}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_pyros_own(name):
    loss, model, guide = CASES[name]
    torch.manual_seed(0)
    guide = guide(model) if name in GUIDES else guide
    if name == "particles":
        loss.max_plate_nesting = 2
    module = SVIModule(model, guide, loss)
    pyro.set_rng_seed(1)
    module.setup(BATCH)
    parameters = list(module.trainable().values())
    assert len({id(p) for p in parameters}) == len(parameters)
    pyro.set_rng_seed(3)
    ours = module.loss_and_grads(BATCH)
    gradients = [p.grad for p in parameters]
    assert any(g is not None for g in gradients)
    for parameter in parameters:
        parameter.grad = None
    with module.running(BATCH):  # Pyro's own loss, with the same parameters
        pyro.set_rng_seed(3)
        theirs = loss.loss_and_grads(model, guide, X)
        pyro.set_rng_seed(3)
        evaluated = loss.loss(model, guide, X)
    assert ours == pytest.approx(theirs, rel=1e-6)
    for gradient, parameter in zip(gradients, parameters, strict=True):
        if parameter.grad is not None:
            torch.testing.assert_close(gradient, parameter.grad)
    pyro.set_rng_seed(3)
    assert module.evaluate(BATCH) == pytest.approx(evaluated, rel=1e-6)
    assert module.training
    assert not pyro.get_param_store()


def test_a_loss_that_runs_backward_itself_has_no_differentiable_value():
    module = SVIModule(normal_model, normal_guide, RenyiELBO(num_particles=2))
    module.setup(BATCH)
    with pytest.raises(TypeError, match="RenyiELBO, which runs backward itself; call loss_and_grads"):
        module(BATCH)


def test_fit_is_the_loop_by_hand_bit_for_bit():
    module = SVIModule(normal_model, normal_guide, rows=7)
    pyro.set_rng_seed(4)
    module.setup(BATCH)
    optimizer = adam(module.trainable().values())
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = module(BATCH)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    result = fit(normal_model, normal_guide, X, steps=30, optimizer=adam, seed=4)
    assert losses == result.losses.tolist()
    assert all(torch.equal(v, result.params[k]) for k, v in module.constrained().items())


def named_options(name):
    return {"lr": 0.1} if name == "q_loc" else {"lr": 0.01, "betas": (0.5, 0.9)}


@pytest.mark.parametrize(
    "make",
    [
        lambda: pyro.optim.Adam({"lr": 0.05}),
        lambda: pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.9, "clip_norm": 0.5}),
        lambda: pyro.optim.SGD({"lr": 0.01, "momentum": 0.5}, {"clip_norm": 2.0}),
        lambda: pyro.optim.Adam(named_options),
    ],
)
def test_an_optimiser_of_pyro_moves_as_under_svi(make):
    first = fit(normal_model, normal_guide, data(), steps=1, optimizer=functools.partial(torch.optim.SGD, lr=0.0))
    ours = fit(normal_model, normal_guide, data(), steps=25, optimizer=make())
    with pyro.get_param_store().scope():
        svi = SVI(normal_model, normal_guide, make(), Trace_ELBO())
        pyro.set_rng_seed(0)
        module = SVIModule(normal_model, normal_guide)
        module.setup(Batch((data(),)))  # draws as much as the fit before its first step
        losses = [svi.step(data()) for _ in range(25)]
        assert losses[0] == pytest.approx(first.losses[0], rel=1e-6)
        assert losses == pytest.approx(ours.losses.tolist(), rel=1e-5)
        for name, value in pyro.get_param_store().items():
            torch.testing.assert_close(ours.params[name], value, rtol=1e-5, atol=1e-6)


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

    def registered(self, x):
        pyro.module("net", self)
        self(x)


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (lambda m: m, "model.loc"),
        (lambda m: m.forward, "model.loc"),
        (lambda m: functools.partial(m.forward), "model.loc"),
        (lambda m: poutine.scale(m, scale=2.0), "model.loc"),
        (lambda m: lambda x: m.registered(x), "net.loc"),
    ],
    ids=["module", "method", "partial", "handler", "pyro.module"],
)
@pytest.mark.filterwarnings("ignore:.*was not registered in the param store")
def test_modules_are_trained_in_place(wrap, name):
    module = Plain()
    result = fit(wrap(module), lambda x: None, data(), steps=400, optimizer=adam)
    assert result.params.keys() == {name}
    assert result.params[name] == pytest.approx(data().mean().item(), abs=0.02)
    assert torch.equal(module.loc, result.params[name])


@pytest.mark.parametrize("local", [False, True])
def test_a_pyro_module_with_methods_is_trained_and_constrained(local):
    with pyro.settings.context(module_local_params=local):
        module = Amortised(20)
        result = fit(module.model, module.guide, data(), steps=50, optimizer=adam)
    assert sorted(result.params) == ["model.net.bias", "model.net.weight", "model.noise", "model.shift"]
    assert torch.equal(result.params["model.noise"], module.noise)
    assert result.losses[-10:].mean() < result.losses[:10].mean()


def test_plain_parameters_are_registered_for_torch():
    def guide(x):
        pyro.param("a.b", torch.tensor(0.0))
        pyro.sample("loc", dist.Delta(pyro.param("a/b", torch.tensor(1.0))))

    module = SVIModule(normal_model, guide)
    module.setup(BATCH)
    assert {id(p) for p in module.parameters()} == {id(p) for p in module.trainable().values()}
    assert len(module.state_dict()) == 2
    again = SVIModule(normal_model, guide)
    again.setup(BATCH)
    module.restore({"a/b": torch.tensor(7.0)})
    again.load_state_dict(module.state_dict())
    assert again.constrained()["a/b"] == 7.0


@pytest.mark.parametrize("weight", [0.0, 0.3, 2.0])
def test_the_kl_weight_multiplies_the_latent_terms_alone(weight):
    module = SVIModule(normal_model, normal_guide)
    module.setup(BATCH)
    module.kl_weight = weight
    pyro.set_rng_seed(1)
    found = module(BATCH).item()
    pyro.set_rng_seed(1)
    loc = dist.Normal(0.0, 1.0).rsample()
    kl = dist.Normal(0.0, 1.0).log_prob(loc) - dist.Normal(0.0, 10.0).log_prob(loc)
    expected = weight * kl - dist.Normal(loc, 1.0).log_prob(X).sum()
    assert found == pytest.approx(float(expected), rel=1e-5)
    pyro.set_rng_seed(1)
    assert module.evaluate(BATCH) == pytest.approx(float(expected + (1 - weight) * kl), rel=1e-5)


def test_plate_nesting_learnt_in_one_fit_is_not_used_in_another():
    loss = TraceEnum_ELBO(strict_enumeration_warning=False)
    fit(normal_model, normal_guide, data(), steps=1, loss=loss)
    assert loss.max_plate_nesting == float("inf")


class Normed(torch.nn.Module):
    """A network with running means, and a large constant."""

    def __init__(self):
        super().__init__()
        self.norm, self.last = torch.nn.BatchNorm1d(1), torch.nn.Linear(1, 1)
        self.register_buffer("table", torch.ones(3))

    def forward(self, x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(self.last(self.norm(x[:, None]))[:, 0], 1.0), obs=x)


def test_setup_and_evaluation_leave_buffers_as_they_were():
    owner = Normed()
    module = SVIModule(owner, lambda x: None)
    module.setup(BATCH)
    assert sorted(module.running_buffers) == [
        f"buffer model.norm.{k}" for k in ("num_batches_tracked", "running_mean", "running_var")
    ]
    module.evaluate(BATCH)
    assert (owner.norm.running_mean, owner.norm.num_batches_tracked) == (0, 0)
    module(BATCH)
    assert owner.norm.num_batches_tracked == 1


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (JitTrace_ELBO(), r"JitTrace_ELBO, which makes constants .*use Trace_ELBO\(\)"),
        (JitTraceEnum_ELBO(), r"use TraceEnum_ELBO\(\)"),
    ],
)
def test_jit_losses_are_refused(loss, message):
    with pytest.raises(TypeError, match=message):
        SVIModule(normal_model, normal_guide, loss)
