"""A latent ZILN where a density on the real line is needed: a clear error that names the reparameterizer."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import HMC, MCMC, NUTS, SVGD, SVI, RBFSteinKernel, Trace_ELBO, autoguide
from pyro.infer.autoguide import init_to_feasible, init_to_median, init_to_sample, init_to_uniform
from pyro.infer.reparam import AutoReparam, MinimalReparam
from torch.distributions import biject_to, constraints, transform_to

from pyro_zilognormal import ZeroInflatedLogNormal as ZILN

REFUSAL = r"atom at 0[\s\S]*pyro\.poutine\.reparam[\s\S]*ZeroInflatedLogNormalReparam"
WRAPPED = {
    "plain": lambda d: d,
    "to_event": lambda d: d.to_event(1),
    "mask": lambda d: d.mask(torch.tensor([True, False])),
    "mask.to_event": lambda d: d.mask(torch.tensor([True, False])).to_event(1),
}
CONTINUOUS_GUIDES = [
    "AutoDelta",
    "AutoNormal",
    "AutoDiagonalNormal",
    "AutoMultivariateNormal",
    "AutoLowRankMultivariateNormal",
    "AutoIAFNormal",
    "AutoLaplaceApproximation",
    "AutoStructured",
    "AutoGaussian",
    "AutoNormalMessenger",
    "AutoHierarchicalNormalMessenger",
    "AutoRegressiveMessenger",
]


def make_model(wrap):
    def model():
        d = wrap(ZILN(torch.zeros(2), 1.0, 0.0))
        if d.event_dim:
            x = pyro.sample("x", d)
        else:
            with pyro.plate("pair", 2):
                x = pyro.sample("x", d)
        pyro.sample("y", dist.Normal(x.sum(), 1.0), obs=torch.tensor(0.5))

    return model


def make_guide(name, model, **options):
    structured = {"conditionals": "normal", "dependencies": "linear"} if name == "AutoStructured" else {}
    return getattr(autoguide, name)(model, **structured, **options)


def make_and_step(name, model, **options):
    guide = make_guide(name, model, **options)
    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step()


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("kernel", [NUTS, HMC])
def test_mcmc_names_the_reparameterizer(kernel, wrap):
    mcmc = MCMC(kernel(make_model(wrap)), num_samples=2, warmup_steps=1, disable_progbar=True)
    with pytest.raises(NotImplementedError, match=REFUSAL):
        mcmc.run()


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("name", CONTINUOUS_GUIDES)
def test_autoguides_name_the_reparameterizer(name, wrap):
    model = make_model(wrap)
    with pytest.raises(NotImplementedError, match=REFUSAL):
        make_and_step(name, model)


@pytest.mark.parametrize("init", [init_to_feasible, init_to_median, init_to_sample, init_to_uniform])
@pytest.mark.parametrize("name", ["AutoNormal", "AutoDelta"])
def test_no_initialization_gets_past_it(name, init):
    model = make_model(lambda d: d)
    with pytest.raises(NotImplementedError, match=REFUSAL):
        make_and_step(name, model, init_loc_fn=init)


def test_svgd_names_the_reparameterizer():
    svgd = SVGD(make_model(lambda d: d), RBFSteinKernel(), pyro.optim.Adam({"lr": 0.01}), 5, 1)
    with pytest.raises(NotImplementedError, match=REFUSAL):
        svgd.step()


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_automatic_reparameterizers_leave_the_site_to_the_error(wrap):
    """AutoReparam looks for location and scale, and through wrappers."""
    for strategy in (AutoReparam, MinimalReparam):
        with pytest.raises(NotImplementedError, match=REFUSAL):
            make_and_step("AutoNormal", strategy()(make_model(wrap)))


def test_no_bijection_and_no_differentiable_transform():
    d = ZILN(torch.zeros(2), 1.0, 0.0)
    for support in (d.support, d.to_event(1).support):
        with pytest.raises(NotImplementedError, match=REFUSAL):
            biject_to(support)
        start = transform_to(support)  # init strategies may start from a constant, but nothing moves along it
        assert torch.equal(start(start.inv(torch.tensor([2.0, 0.5]))), torch.tensor([2.0, 0.5]))
        with pytest.raises(NotImplementedError, match=REFUSAL):
            start(torch.zeros(2, requires_grad=True))
    biject_to(constraints.nonnegative)  # torch's own is as it was
