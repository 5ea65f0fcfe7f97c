"""The reparameterizer: the same density in two sites, and the right posterior of a spike-and-slab latent."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, TraceEnum_ELBO, autoguide, config_enumerate, infer_discrete
from pyro.infer.autoguide import init_to_feasible, init_to_mean, init_to_median, init_to_sample, init_to_uniform
from pyro.infer.autoguide.initialization import InitMessenger, init_to_value
from pyro.ops.stats import effective_sample_size
from test_latent import CONTINUOUS_GUIDES, make_guide

from pyro_zilognormal import ZeroInflatedLogNormal as ZILN
from pyro_zilognormal import ZeroInflatedLogNormalReparam

MU, SCALE, PI = 0.3, 0.7, 0.4


def split(model, site="x"):
    return poutine.reparam(model, config={site: ZeroInflatedLogNormalReparam()})


# A spike and a slab, seen through noise. Quadrature gives the posterior.

NOISE = 0.6
DATA = torch.tensor([0.2, 1.1, 2.4])


def spike_and_slab(data=DATA):
    with pyro.plate("data", len(data)):
        x = pyro.sample("x", ZILN(MU, SCALE, zi_probs=PI))
        pyro.sample("y", dist.Normal(x, NOISE), obs=data)
    return x


def exact_posterior(y):
    """P(x = 0 | y), E[x | y] and sd[x | y], on a grid of log x."""
    t = np.linspace(-9, 9, 20001)
    x = np.exp(MU + SCALE * t)
    slab = np.exp(-(t**2) / 2 - 0.5 * ((y - x) / NOISE) ** 2)
    slab *= (1 - PI) * (t[1] - t[0]) / math.sqrt(2 * math.pi)
    spike = PI * math.exp(-0.5 * (y / NOISE) ** 2)
    total = spike + slab.sum()
    mean, square = (slab * x).sum() / total, (slab * x**2).sum() / total
    return torch.tensor([spike / total, mean, math.sqrt(square - mean**2)])


def check_posterior(x, number):
    """Compare draws of x (rows) with quadrature, in standard errors; `number` is the effective sample size."""
    for k, y in enumerate(DATA.tolist()):
        zero, mean, sd = exact_posterior(y)
        draws = x[:, k].double()
        assert abs((draws == 0).double().mean() - zero) < 4 * (zero * (1 - zero) / number[k]).sqrt()
        assert abs(draws.mean() - mean) < 4 * draws.std() / number[k].sqrt()
        square = (draws - mean) ** 2
        assert abs(square.mean() - sd**2) < 4 * square.std() / number[k].sqrt()


def run_nuts(num_samples, warmup=100):
    mcmc = MCMC(NUTS(split(spike_and_slab)), num_samples, warmup, disable_progbar=True)
    mcmc.run()
    samples = mcmc.get_samples()
    assert set(samples) == {"x_positive"}  # the Bernoulli site is enumerated
    return samples["x_positive"]


def draw_zeros(positive):
    """x given the continuous latents: the zeros sampled from their posterior."""

    def model():
        with pyro.plate("draws", len(positive), dim=-2):
            return spike_and_slab()

    given = poutine.condition(split(model), {"x_positive": positive})
    return infer_discrete(config_enumerate(given), first_available_dim=-3)()


@pytest.mark.parametrize("number", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_nuts_gives_the_right_posterior(number):
    positive = run_nuts(number)
    x = draw_zeros(positive)
    assert x.shape == (number, 3)
    check_posterior(x, effective_sample_size(positive.unsqueeze(0)).clamp(max=number))


# A neighbour that only tells whether x is zero: the positive part keeps its prior, which every normal guide can match.

HIT = {True: 0.9, False: 0.2}


def tell_zero():
    with pyro.plate("data", 2):
        x = pyro.sample("x", ZILN(MU, SCALE, zi_probs=PI))
        pyro.sample("y", dist.Bernoulli(torch.where(x > 0, HIT[True], HIT[False])), obs=torch.tensor([1.0, 0.0]))


LOG_EVIDENCE = sum(math.log(PI * abs(miss - HIT[False]) + (1 - PI) * abs(miss - HIT[True])) for miss in (0, 1))


def test_messenger_guides_cannot_enumerate():
    """A limit of Pyro's; here so that the docs can say which AutoGuides work."""
    model = config_enumerate(split(tell_zero))
    guide = make_guide("AutoNormalMessenger", poutine.block(model, hide=["x_gate"]))
    with pytest.raises(NotImplementedError, match="TraceEnum_ELBO does not support GuideMessenger"):
        train(model, guide, steps=1)


def train(model, guide, steps=120, lr=0.1, **options):
    loss = TraceEnum_ELBO(max_plate_nesting=1, **options)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": lr, "lrd": 0.02 ** (1 / steps)}), loss)
    return torch.tensor([svi.step() for _ in range(steps)])


@pytest.mark.parametrize("name", [name for name in CONTINUOUS_GUIDES if "Messenger" not in name])
def test_autoguides_give_the_right_posterior(name):
    model = config_enumerate(split(tell_zero))
    guide = make_guide(name, poutine.block(model, hide=["x_gate"]))
    steps = 340 if name == "AutoLowRankMultivariateNormal" else 120
    losses = train(model, guide, steps, num_particles=10, vectorize_particles=True)
    if name == "AutoDelta":
        median = guide.median()["x_positive"]
        assert torch.allclose(median, torch.full((2,), math.exp(MU - SCALE**2)), rtol=0.02)  # the mode
        return
    if name == "AutoLaplaceApproximation":
        posterior = guide.laplace_approximation().get_posterior()
        assert torch.allclose(posterior.mean, torch.full((2,), MU), atol=0.02)
        assert torch.allclose(posterior.variance.sqrt(), torch.full((2,), SCALE), atol=0.02)
        return
    # The loss is the negative log evidence plus the divergence from the posterior.
    assert abs(losses[-30:].mean() + LOG_EVIDENCE) < (0.1 if name == "AutoIAFNormal" else 0.02)


def test_bernoulli_posterior_of_an_autoguide():
    model = config_enumerate(split(tell_zero))
    guide = make_guide("AutoNormal", poutine.block(model, hide=["x_gate"]))
    train(model, guide, steps=3)
    gate = TraceEnum_ELBO(max_plate_nesting=1).compute_marginals(model, guide)["x_gate"]
    seen = torch.tensor([1.0, 0.0])
    zero = PI * torch.where(seen == 1, HIT[False], 1 - HIT[False])
    positive = (1 - PI) * torch.where(seen == 1, HIT[True], 1 - HIT[True])
    assert torch.allclose(gate.probs, zero / (zero + positive))


# A hand-written guide that enumerates the Bernoulli. With normal noise on log x (log 1 for a zero) it can be exact.


def log_noise(y=0.9):
    x = pyro.sample("x", ZILN(MU, SCALE, zi_probs=PI))
    pyro.sample("y", dist.Normal(torch.where(x > 0, x, 1.0).log(), 0.5), obs=torch.tensor(y))


@config_enumerate
def log_noise_guide():
    gate = pyro.sample("x_gate", dist.Bernoulli(logits=pyro.param("gate", torch.tensor(0.0))))
    loc = pyro.param("loc", torch.zeros(2))
    scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
    pyro.sample("x_positive", dist.LogNormal(loc[gate.long()], scale[gate.long()]))


def exact_log_noise(y=0.9):
    normal = lambda sd, mean: math.exp(-0.5 * ((y - mean) / sd) ** 2) / (sd * math.sqrt(2 * math.pi))  # noqa: E731
    zero, positive = PI * normal(0.5, 0.0), (1 - PI) * normal(math.hypot(0.5, SCALE), MU)
    precision = 1 / SCALE**2 + 4
    values = {
        "gate": torch.tensor(math.log(zero / positive)),
        "loc": torch.tensor([(MU / SCALE**2 + 4 * y) / precision, MU]),
        "scale": torch.tensor([precision**-0.5, SCALE]),
    }
    return values, math.log(zero + positive)


def test_enumerated_guide_at_the_posterior_has_the_evidence_as_its_loss_without_noise():
    values, log_evidence = exact_log_noise()
    for name, value in values.items():
        pyro.param(name, value, constraint=dist.constraints.positive if name == "scale" else dist.constraints.real)
    losses = [TraceEnum_ELBO(max_plate_nesting=0).loss(split(log_noise), log_noise_guide) for _ in range(5)]
    assert losses == pytest.approx([-log_evidence] * 5, abs=1e-5)


def test_enumerated_guide_finds_the_posterior():
    loss = TraceEnum_ELBO(max_plate_nesting=0, num_particles=20, vectorize_particles=True)
    svi = SVI(split(log_noise), log_noise_guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.98}), loss)
    for _ in range(200):
        svi.step()
    for name, value in exact_log_noise()[0].items():
        assert torch.allclose(pyro.param(name), value, atol=0.05), name


# Observed sites: the two log densities sum to the one of x.

ROWS = [
    [0.0, 0.0, 0.0],
    [1e-30, 0.5, 1e20],
    [0.0, 2.0, 0.0],
]
MASK = torch.tensor([True, False, True])
WRAPPED = {
    "plain": lambda d: d,
    "expand": lambda d: d.expand([4, 3]),
    "to_event": lambda d: d.to_event(1),
    "mask": lambda d: d.mask(MASK),
    "mask.to_event": lambda d: d.mask(MASK).to_event(1),
    "to_event.mask": lambda d: d.to_event(1).mask(True),
    "expand.to_event.mask": lambda d: d.expand([4, 3]).to_event(1).mask(torch.tensor([True, False, True, True])),
    "to_event.expand": lambda d: d.to_event(1).expand([4]),
    "stock Independent": lambda d: dist.Independent(d, 1),
    "stock expand": lambda d: dist.torch_distribution.ExpandedDistribution(d, torch.Size([4, 3])),
    "mask False": lambda d: d.mask(False),
}


def observed_log_prob(wrap, value, parameters, reparam, handler=None):
    def model():
        pyro.sample("x", wrap(ZILN(*parameters)), obs=value)

    model = split(model) if reparam else model
    with handler or poutine.scale(scale=1.0):
        trace = poutine.trace(model).get_trace()
    return trace.log_prob_sum()


def make_parameters(loc, logits):
    values = ([loc] * 3, [0.5, 1.0, 2.0], logits)
    return [torch.tensor(v, dtype=torch.double, requires_grad=True) for v in values]


def gradients(total, parameters):
    if not total.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    grads = torch.autograd.grad(total, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters, strict=True)]


def check_same(wrap, value, parameters, handler=lambda: None):
    results = []
    for reparam in (False, True):
        total = observed_log_prob(wrap, value, parameters, reparam, handler())
        results.append([total, *gradients(total, parameters)])
    for plain, other in zip(*results, strict=True):
        assert plain.isfinite().all()
        assert torch.allclose(plain.double(), other.double(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_observed_sites_keep_their_density(wrap, row):
    for loc, logits in itertools.product((0.0, 800.0, -800.0), ([0.3, -2.0, 1.0], [80.0, -80.0, 0.0])):
        parameters = make_parameters(loc, logits)
        batch = wrap(ZILN(*parameters)).shape()
        check_same(wrap, torch.tensor(row, dtype=torch.double).expand(batch), parameters)


@pytest.mark.parametrize("wrap", [WRAPPED["mask"], WRAPPED["mask.to_event"]], ids=["mask", "mask.to_event"])
@pytest.mark.parametrize("hidden", [math.nan, math.inf, -1.0])
def test_values_behind_a_mask_do_not_matter(wrap, hidden):
    check_same(wrap, torch.tensor([0.0, hidden, 2.0], dtype=torch.double), make_parameters(0.1, [0.3, -2.0, 1.0]))


@pytest.mark.parametrize("hidden", [math.nan, math.inf, -1.0])
def test_values_behind_poutine_mask_do_not_matter(hidden):
    value = torch.tensor([0.0, hidden, 2.0], dtype=torch.double)
    with pyro.validation_enabled(False):
        handler = lambda: poutine.mask(mask=MASK)  # noqa: E731
        check_same(lambda d: d, value, make_parameters(0.1, [0.3, -2.0, 1.0]), handler)


@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_bad_observed_values_are_refused_as_ever(value):
    with pytest.raises(ValueError, match="Expected value argument"):
        observed_log_prob(lambda d: d, torch.tensor([value]), [torch.zeros(1), 1.0, 0.0], True)


def test_nan_that_nothing_masks_stays_nan():
    with pyro.validation_enabled(False):
        total = observed_log_prob(lambda d: d, torch.tensor([math.nan]), [torch.zeros(1), 1.0, 0.0], True)
    assert total.isnan()


@pytest.mark.parametrize("probs", [False, True])
@pytest.mark.parametrize("sign", [-1, 1])
def test_infinite_logits(sign, probs):
    zero_part = {"zi_probs": torch.tensor(0.5 + 0.5 * sign)} if probs else {"zi_logits": torch.tensor(sign * math.inf)}
    model = split(lambda value: pyro.sample("x", ZILN(0.0, 1.0, validate_args=False, **zero_part), obs=value))
    possible, impossible = (0.0, 1.0) if sign > 0 else (1.0, 0.0)
    total = poutine.trace(model).get_trace(torch.tensor(possible)).log_prob_sum()
    assert torch.allclose(total, ZILN(0.0, 1.0, validate_args=False, **zero_part).log_prob(possible))
    assert poutine.trace(model).get_trace(torch.tensor(impossible)).log_prob_sum() < -1e18
    drawn = split(lambda: pyro.sample("x", ZILN(0.0, 1.0, validate_args=False, **zero_part).expand([200])))()
    assert (drawn == 0).all() if sign > 0 else (drawn > 0).all()


# Draws, initial values, errors.


@pytest.mark.parametrize("zero_part", [{"zi_logits": -0.4}, {"zi_probs": 0.7}])
def test_predictive_recovers_the_distribution(zero_part):
    d = ZILN(MU, SCALE, **zero_part)
    n = 20000
    x = Predictive(split(lambda: pyro.sample("x", d)), num_samples=n, parallel=True)()["x"].flatten().double()
    assert x.shape == (n,)
    pi = d.zi_probs.item()
    assert abs((x == 0).double().mean() - pi) < 4 * math.sqrt(pi * (1 - pi) / n)
    logs = x[x > 0].log()
    assert abs(logs.mean() - MU) < 4 * SCALE / len(logs) ** 0.5
    assert abs(logs.std() - SCALE) < 4 * SCALE / (2 * len(logs)) ** 0.5
    assert abs(x.mean() - d.mean) < 4 * x.std() / n**0.5


@pytest.mark.parametrize("wrap", [WRAPPED[k] for k in ("expand", "to_event", "mask.to_event", "expand.to_event.mask")])
def test_latent_draws_keep_their_shape_and_parts(wrap):
    d = wrap(ZILN(torch.zeros(3), 1.0, 0.0))
    trace = poutine.trace(split(lambda: pyro.sample("x", d))).get_trace()
    x, is_zero, positive = (trace.nodes[name]["value"] for name in ("x", "x_gate", "x_positive"))
    assert x.shape == is_zero.shape == positive.shape == d.shape()
    assert torch.equal(x, torch.where(is_zero == 1, 0, positive))
    assert (is_zero == 1).any() or (is_zero == 0).any()
    # The joint density of the two sites, masked as the distribution is.
    unmasked = dist.Bernoulli(logits=torch.tensor(0.0)).log_prob(is_zero) + dist.LogNormal(0.0, 1.0).log_prob(positive)
    mask = observed_mask(wrap)
    assert torch.allclose(trace.log_prob_sum(), torch.where(mask, unmasked, 0).sum())


def observed_mask(wrap):
    """Which elements count, read off the gradients of the distribution's own log_prob."""
    loc = torch.zeros(4, 3, requires_grad=True)
    d = ZILN(loc, 1.0, 0.0)
    shape = wrap(ZILN(torch.zeros(3), 1.0, 0.0)).shape()
    wrapped = wrap(d) if len(shape) == 2 else wrap(ZILN(loc[0], 1.0, 0.0))
    (grad,) = torch.autograd.grad(wrapped.log_prob(torch.full(shape, 2.0)).sum(), loc)
    return (grad != 0) if len(shape) == 2 else (grad[0] != 0)


@pytest.mark.parametrize("start", [0.0, 2.0])
def test_initial_values_reach_the_parts(start):
    value = torch.tensor([start, 3.0])
    model = split(lambda: pyro.sample("x", ZILN(torch.tensor([0.0, -2000.0]), 1.0, 0.0).to_event(1)))
    with InitMessenger(init_to_value(values={"x": value})):
        trace = poutine.trace(model).get_trace()
    assert torch.equal(trace.nodes["x"]["value"], value)
    assert torch.equal(trace.nodes["x_gate"]["value"], (value == 0).float())
    positive = trace.nodes["x_positive"]["value"]
    assert torch.equal(positive[value > 0], value[value > 0])
    assert (positive > 0).all()
    assert not trace.nodes["x_positive"]["is_observed"]


INITS = [init_to_feasible, init_to_mean, init_to_median, init_to_sample, init_to_uniform]


@pytest.mark.parametrize("init", [*INITS, init_to_value(values={"x": torch.tensor([0.0, 2.0])})])
def test_init_strategies_start_autoguides_and_nuts(init):
    model = config_enumerate(split(tell_zero))
    guide = autoguide.AutoNormal(poutine.block(model, hide=["x_gate"]), init_loc_fn=init)
    assert train(model, guide, steps=2).isfinite().all()
    kernel = NUTS(split(tell_zero), init_strategy=init)
    MCMC(kernel, num_samples=1, warmup_steps=1, disable_progbar=True).run()


@pytest.mark.parametrize("fn", [dist.LogNormal(0.0, 1.0), dist.Normal(torch.zeros(2), 1.0).to_event(1)])
def test_other_distributions_are_refused(fn):
    with pytest.raises(TypeError, match=r"site 'x' is a (Log)?Normal, and only a ZeroInflatedLogNormal"):
        split(lambda: pyro.sample("x", fn))()


def test_a_config_that_splits_every_ziln_does_not_split_its_own_parts() -> None:
    def config(msg: dict) -> ZeroInflatedLogNormalReparam | None:
        return ZeroInflatedLogNormalReparam() if isinstance(msg["fn"], ZILN) else None

    def model() -> None:
        pyro.sample("x", ZILN(0.0, 1.0, 0.0), obs=torch.tensor(1.5))

    trace = pyro.poutine.trace(pyro.poutine.reparam(model, config=config)).get_trace()
    torch.testing.assert_close(trace.log_prob_sum(), ZILN(0.0, 1.0, 0.0).log_prob(1.5))
