"""Every AutoGuide of Pyro: the loss is Pyro's own, each parameter is trained once, draws are right, and it resumes."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer import autoguide as auto
from svi_cases import adam, check_resume, data

from pyro_zilognormal.svi import (
    Minibatches,
    Objective,
    Schedule,
    fit,
    posterior_draws,
    posterior_predictive,
    posterior_summary,
)

ROWS = 40
X = data(ROWS)


def model(x):
    loc = pyro.sample("loc", dist.Normal(1.0, 2.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def listed(model):
    guide = auto.AutoGuideList(model)
    guide.append(auto.AutoNormal(poutine.block(model, expose=["loc"])))
    guide.append(auto.AutoDelta(poutine.block(model, hide=["loc"])))
    return guide


GUIDES = {
    "AutoDelta": auto.AutoDelta,
    "AutoNormal": auto.AutoNormal,
    "AutoDiagonalNormal": auto.AutoDiagonalNormal,
    "AutoMultivariateNormal": auto.AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": functools.partial(auto.AutoLowRankMultivariateNormal, rank=1),
    "AutoIAFNormal": functools.partial(auto.AutoIAFNormal, hidden_dim=[8]),
    "AutoGaussian": auto.AutoGaussian,
    "AutoStructured": auto.AutoStructured,
    "AutoLaplaceApproximation": auto.AutoLaplaceApproximation,
    "AutoNormalMessenger": auto.AutoNormalMessenger,
    "AutoHierarchicalNormalMessenger": auto.AutoHierarchicalNormalMessenger,
    "AutoRegressiveMessenger": auto.AutoRegressiveMessenger,
    "AutoGuideList": listed,
}

# These run the model themselves, so that Pyro's losses must be able to tell them from a function.
MESSENGERS = [k for k in GUIDES if k.endswith("Messenger")]

# A quarter of its draws are far off after so few steps as a test can afford.
POOR = {"AutoIAFNormal", "AutoRegressiveMessenger", "AutoLaplaceApproximation"}


@pytest.mark.parametrize("name", GUIDES)
def test_the_loss_with_each_guide_is_pyros_own(name):
    torch.manual_seed(0)
    guide = GUIDES[name](model)
    objective = Objective(model, guide, Trace_ELBO())
    pyro.set_rng_seed(1)
    objective.setup(X)
    pyro.set_rng_seed(2)
    ours = objective.backward(X)
    gradients = {k: p.grad.clone() for k, p in objective.trainable().items() if p.grad is not None}
    for parameter in objective.trainable().values():
        parameter.grad = None
    pyro.set_rng_seed(2)
    with objective.space.active():  # Pyro's own loss, with the same parameters
        theirs = Trace_ELBO().differentiable_loss(model, guide, X)
        theirs.backward()
    assert float(ours) == pytest.approx(theirs.item(), rel=1e-6)
    assert gradients
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, objective.trainable()[key].grad)


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.filterwarnings("error")  # torch warns of a parameter that an optimiser would move twice a step
def test_each_parameter_of_a_guide_is_trained_once(name):
    torch.manual_seed(0)
    seen = []
    fit(model, GUIDES[name](model), X, steps=2, callbacks=[lambda run: seen.append(run.optimizer.param_groups)])
    parameters = [id(p) for group in seen[0] for p in group["params"]]
    assert len(parameters) == len(set(parameters))


@pytest.mark.parametrize("name", sorted(GUIDES.keys() - POOR))
def test_draws_of_each_guide_are_of_the_posterior(name):
    torch.manual_seed(0)
    fast = functools.partial(torch.optim.Adam, lr=0.05)
    calm = Schedule(functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.99))
    result = fit(model, GUIDES[name](model), X, steps=300, optimizer=fast, callbacks=[calm])
    found = posterior_summary(result, X, draws=200)
    # The posterior of loc, as good as normal: the mean of the data, with a standard error.
    error = float(X.std()) / ROWS**0.5
    assert abs(float(found["loc"].mean) - float(X.mean())) < 2 * error
    assert float(found["loc"].sd) == (0.0 if name == "AutoDelta" else pytest.approx(error, rel=0.35))
    assert float(found["scale"].mean) == pytest.approx(float(X.std()), rel=0.2)
    assert posterior_draws(result, X, draws=3)["loc"].shape == (3,)
    assert 0.01 < float(posterior_predictive(result, X, draws=100)["x"].tail["mean"]) < 0.99


@pytest.mark.parametrize("name", ["AutoIAFNormal", "AutoGuideList", *MESSENGERS])
def test_guides_of_another_make_resume_bit_for_bit(name, tmp_path):
    def run(callbacks):
        torch.manual_seed(0)
        return fit(model, GUIDES[name](model), X, steps=12, optimizer=adam, callbacks=callbacks)

    check_resume(tmp_path / "a.ckpt", run, [7])


def local(x):
    loc = pyro.sample("loc", dist.Normal(1.0, 2.0))
    with pyro.plate("rows", ROWS, subsample_size=len(x)):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


@pytest.mark.parametrize("name", ["AutoNormal", "AutoNormalMessenger", "AutoHierarchicalNormalMessenger"])
def test_local_values_of_a_guide_meet_their_own_rows_in_minibatches(name):
    torch.manual_seed(0)
    source = Minibatches(X, batch_size=16, plate="rows")
    fast = functools.partial(torch.optim.Adam, lr=0.1)
    calm = Schedule(functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.99))
    result = fit(local, GUIDES[name](local), source, steps=450, optimizer=fast, callbacks=[calm])
    found = posterior_summary(result, source, draws=100)
    expected = (found["loc"].mean + 4 * X) / 5  # by conjugacy, given loc
    assert found["z"].mean.shape == (ROWS,)
    assert (found["z"].mean - expected).abs().mean() < 0.12
    assert posterior_draws(result, source, draws=2, joint=True)["z"].shape == (2, ROWS)


def test_the_kl_weight_counts_in_a_guide_that_runs_the_model():
    guide = auto.AutoNormalMessenger(model)
    objective = Objective(model, guide, Trace_ELBO(), rows=ROWS)
    objective.setup(X)
    found = {}
    for weight in (0.0, 0.5, 1.0):
        objective.kl_weight = weight
        pyro.set_rng_seed(5)
        found[weight] = objective(X).item()
    assert found[0.0] != found[1.0]
    assert found[0.5] == pytest.approx((found[0.0] + found[1.0]) / 2, rel=1e-5)


@pytest.mark.parametrize("call", [posterior_draws, posterior_summary, posterior_predictive])
def test_a_laplace_approximation_is_not_read_as_its_mode(call):
    guide = auto.AutoLaplaceApproximation(model)
    result = fit(model, guide, X, steps=400, optimizer=adam)
    with pytest.raises(ValueError, match=r"draws nothing but the mode.*guide\.laplace_approximation"):
        call(result, X, draws=3)
    with result.scope():  # the way that the error names
        gaussian = guide.laplace_approximation(X)
        draws = torch.stack([gaussian(X)["loc"] for _ in range(400)])
    assert float(draws.std()) == pytest.approx(float(X.std()) / ROWS**0.5, rel=0.2)
