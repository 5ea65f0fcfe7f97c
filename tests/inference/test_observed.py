"""An observed ZILN is an ordinary likelihood: plates, masks, scales, SVI, NUTS, Predictive, mixtures."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    Predictive,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
    infer_discrete,
)
from pyro.infer.autoguide import AutoDelta, init_to_value
from pyro.optim import ClippedAdam
from test_latent import CONTINUOUS_GUIDES, make_guide
from torch.distributions import Categorical, MixtureSameFamily, constraints

from pyro_zilognormal import ZeroInflatedLogNormal as ZILN

MASK = torch.tensor([True, False, True])
VALUE = torch.tensor([0.0, 0.7, 3.0], dtype=torch.double)


def parameters():
    mu, scale, logits = ([0.1, 0.2, 0.3], [0.5, 1.0, 2.0], [0.3, -2.0, 1.0])
    return [torch.tensor(v, dtype=torch.double, requires_grad=True) for v in (mu, scale, logits)]


def log_prob_sum(model):
    return poutine.trace(model).get_trace().log_prob_sum()


# Plates, scales, masks.


def in_plate(value):
    def model():
        with pyro.plate("data", 3):
            pyro.sample("x", ZILN(*PARAMETERS), obs=value)

    return model


PARAMETERS = parameters()
WAYS = {
    "plate": (in_plate(VALUE), [1.0, 1.0, 1.0]),
    "to_event": (lambda: pyro.sample("x", ZILN(*PARAMETERS).to_event(1), obs=VALUE), [1.0, 1.0, 1.0]),
    "scale": (poutine.scale(in_plate(VALUE), scale=2.5), [2.5, 2.5, 2.5]),
    "tensor scale": (poutine.scale(in_plate(VALUE), scale=torch.tensor([1.0, 2.0, 3.0])), [1.0, 2.0, 3.0]),
    "poutine.mask": (poutine.mask(in_plate(VALUE), mask=MASK), [1.0, 0.0, 1.0]),
    "mask": (lambda: pyro.sample("x", ZILN(*PARAMETERS).mask(MASK), obs=VALUE), [1.0, 0.0, 1.0]),
    "mask.to_event": (lambda: pyro.sample("x", ZILN(*PARAMETERS).mask(MASK).to_event(1), obs=VALUE), [1.0, 0.0, 1.0]),
    "to_event.mask": (lambda: pyro.sample("x", ZILN(*PARAMETERS).to_event(1).mask(False), obs=VALUE), [0.0] * 3),
    "expand": (lambda: pyro.sample("x", ZILN(*PARAMETERS).expand([2, 3]), obs=VALUE.expand(2, 3)), [2.0, 2.0, 2.0]),
}


@pytest.mark.parametrize(("model", "weights"), WAYS.values(), ids=WAYS)
def test_trace_log_prob_is_the_weighted_sum(model, weights):
    expected = (torch.tensor(weights, dtype=torch.double) * ZILN(*PARAMETERS).log_prob(VALUE)).sum()
    assert torch.allclose(torch.as_tensor(log_prob_sum(model)).double(), expected)


def test_subsamples_are_scaled_to_the_whole():
    """The mean over all subsamples is the log density of all data, each time with the right scale."""
    data = torch.tensor([0.0, 0.0, 0.5, 1.0, 2.0, 7.0])

    def model(indices):
        with pyro.plate("data", 6, subsample=indices) as index:
            pyro.sample("x", ZILN(0.2, 0.9, -0.3), obs=data[index])

    totals = [poutine.trace(model).get_trace(pair).log_prob_sum() for pair in torch.combinations(torch.arange(6))]
    assert torch.allclose(torch.stack(totals).mean(), ZILN(0.2, 0.9, -0.3).log_prob(data).sum())


def obs_mask_model(value):
    def model():
        with pyro.plate("data", 3):
            pyro.sample("x", ZILN(*PARAMETERS), obs=value, obs_mask=MASK)

    return poutine.condition(model, {"x_unobserved": VALUE})  # as a guide would


MASKED = {
    "mask": lambda value: lambda: pyro.sample("x", ZILN(*PARAMETERS).mask(MASK), obs=value),
    "mask.to_event": lambda value: lambda: pyro.sample("x", ZILN(*PARAMETERS).mask(MASK).to_event(1), obs=value),
    "poutine.mask": lambda value: poutine.mask(in_plate(value), mask=MASK),
    "obs_mask": obs_mask_model,
}


@pytest.mark.parametrize("hidden", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("name", MASKED)
def test_what_is_behind_a_mask_does_not_matter(name, hidden):
    """`.mask` knows which values count, so validation may stay on; Pyro's handlers mask after log_prob has looked."""
    value = VALUE.clone()
    value[1] = hidden
    with pyro.validation_enabled(name.startswith("mask")):
        total = log_prob_sum(MASKED[name](value))
    grads = torch.autograd.grad(total, PARAMETERS)
    counted = torch.ones(3, dtype=torch.bool) if name == "obs_mask" else MASK
    expected = ZILN(*PARAMETERS).log_prob(VALUE)[counted].sum()
    assert torch.allclose(total, expected)
    for grad, right in zip(grads, torch.autograd.grad(expected, PARAMETERS), strict=True):
        assert torch.allclose(grad, right)


# A regression with a known posterior: given the zeros, log of the positives is conjugate to a normal mean.

PRIOR_SD, SD = 2.0, 0.8
DATA = torch.tensor([0.0, 1.3, 0.4, 0.0, 2.2, 0.9, 0.0, 1.1, 5.0, 0.6])
LOGS = DATA[DATA > 0].log()


def conjugate():
    mu = pyro.sample("mu", dist.Normal(0.0, PRIOR_SD))
    logits = pyro.sample("logits", dist.Logistic(0.0, 1.0))  # pi uniform on (0, 1)
    with pyro.plate("data", len(DATA)):
        pyro.sample("x", ZILN(mu, SD, logits), obs=DATA)


PRECISION = 1 / PRIOR_SD**2 + len(LOGS) / SD**2
MEAN_MU, SD_MU = (LOGS.sum() / SD**2 / PRECISION).item(), PRECISION**-0.5
BETA = torch.distributions.Beta(4.0, 8.0)  # 3 zeros, 7 positives
LOG_EVIDENCE = (
    math.lgamma(4) + math.lgamma(8) - math.lgamma(12) - LOGS.sum().item() - len(LOGS) * math.log(SD)
    - len(LOGS) / 2 * math.log(2 * math.pi) - math.log(PRIOR_SD) - 0.5 * math.log(PRECISION)
    - 0.5 * (LOGS.square().sum().item() / SD**2 - MEAN_MU**2 * PRECISION)
)  # fmt: skip
# Of logit(pi), pi ~ Beta(4, 8):
MEAN_LOGIT = (torch.digamma(torch.tensor(4.0)) - torch.digamma(torch.tensor(8.0))).item()
SD_LOGIT = (torch.polygamma(1, torch.tensor(4.0)) + torch.polygamma(1, torch.tensor(8.0))).sqrt().item()


def check_draws(draws, mean, sd, number):
    """Mean and sd of draws in standard errors; the sd's allows for excess kurtosis up to 1."""
    assert abs(draws.mean() - mean) < 4 * sd / number**0.5
    assert abs(draws.std() - sd) < 4 * sd * (0.75 / number) ** 0.5


@pytest.mark.parametrize("number", [400, pytest.param(5000, marks=pytest.mark.slow)])
def test_nuts_finds_the_conjugate_posterior(number):
    mcmc = MCMC(NUTS(conjugate), num_samples=number, warmup_steps=150, disable_progbar=True)
    mcmc.run()
    samples, diagnostics = mcmc.get_samples(), mcmc.diagnostics()
    for name, mean, sd in (("mu", MEAN_MU, SD_MU), ("logits", MEAN_LOGIT, SD_LOGIT)):
        check_draws(samples[name], mean, sd, min(float(diagnostics[name]["n_eff"]), number))


def fit(model, guide, loss=None, steps=150, lr=0.1):
    svi = SVI(model, guide, ClippedAdam({"lr": lr, "lrd": 0.02 ** (1 / steps)}), loss or many())
    return torch.tensor([svi.step() for _ in range(steps)])


def many(loss=Trace_ELBO):
    return loss(num_particles=10, vectorize_particles=True, max_plate_nesting=1)


def conjugate_guide():
    for name in ("mu", "logits"):
        loc = pyro.param(f"{name}_loc", torch.tensor(0.0))
        pyro.sample(name, dist.Normal(loc, pyro.param(f"{name}_sd", torch.tensor(0.5), constraints.positive)))


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO])
def test_svi_with_a_hand_guide(loss):
    losses = fit(conjugate, conjugate_guide, many(loss))
    assert pyro.param("mu_loc").item() == pytest.approx(MEAN_MU, abs=0.05)
    assert pyro.param("mu_sd").item() == pytest.approx(SD_MU, rel=0.1)
    assert pyro.param("logits_loc").item() == pytest.approx(MEAN_LOGIT, abs=0.1)
    # The posterior of logits is not quite normal, so the evidence is nearly reached, and not passed.
    assert -0.02 < losses[-50:].mean() + LOG_EVIDENCE < 0.05


@pytest.mark.parametrize("name", CONTINUOUS_GUIDES)
def test_svi_with_every_autoguide(name):
    guide = make_guide(name, conjugate)
    steps = 400 if name == "AutoLowRankMultivariateNormal" else 150
    losses = fit(conjugate, guide, steps=steps)
    if name == "AutoDelta":
        assert guide.median()["mu"].item() == pytest.approx(MEAN_MU, abs=0.01)  # the mode of a normal
        assert guide.median()["logits"].item() == pytest.approx(math.log(4 / 8), abs=0.01)
    elif name == "AutoLaplaceApproximation":
        normal = guide.laplace_approximation().get_posterior()
        # The Hessian at the mode: 12 pi (1 - pi) at pi = 1/3 for the logit.
        assert torch.allclose(normal.mean, torch.tensor([MEAN_MU, math.log(4 / 8)]), atol=0.01)
        expected = torch.tensor([[SD_MU**2, 0.0], [0.0, 1 / (12 * 2 / 9)]])
        assert torch.allclose(normal.covariance_matrix, expected, atol=0.005)
    else:
        assert -0.03 < losses[-50:].mean() + LOG_EVIDENCE < 0.1


# JIT, Predictive, discrete neighbours, mixtures.


JIT = {
    "Trace_ELBO": (Trace_ELBO, JitTrace_ELBO),
    "TraceEnum_ELBO": (TraceEnum_ELBO, JitTraceEnum_ELBO),
    "TraceGraph_ELBO": (TraceGraph_ELBO, JitTraceGraph_ELBO),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", JIT)
def test_jit_equals_eager(name):
    """At a point guide, where losses have no noise, for values and gradients; twice, so that the trace is replayed."""
    start = init_to_value(values={"mu": torch.tensor(0.3), "logits": torch.tensor(-0.2)})
    model = mixture_with_parameters if name == "TraceEnum_ELBO" else conjugate
    guide = AutoDelta(poutine.block(model, hide=["k"]), init_loc_fn=start)
    eager, jit = JIT[name][0](max_plate_nesting=1), JIT[name][1](max_plate_nesting=1, ignore_jit_warnings=True)
    results = []
    for loss in (eager, jit, jit):
        value = loss.loss_and_grads(model, guide)
        results.append(torch.stack([torch.as_tensor(value), *(p.grad.clone() for p in guide.parameters())]))
        guide.zero_grad()
    assert results[0].abs().min() > 0
    for result in results[1:]:
        assert torch.allclose(result, results[0], rtol=1e-5)


def mixture_with_parameters():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    logits = pyro.sample("logits", dist.Normal(0.0, 1.0))
    mixture(DATA, LOCS + mu, LOGITS + logits)


def scales(values):
    return values.double().mean(), values.double().std() / len(values) ** 0.5


@pytest.mark.parametrize("parallel", [False, True])
def test_prior_predictive_has_the_moments_of_the_distribution(parallel):
    number = 4000 if parallel else 400

    def model():
        with pyro.plate("data", 10):
            pyro.sample("x", ZILN(0.2, 0.5, zi_probs=0.3))

    x = Predictive(model, num_samples=number, parallel=parallel)()["x"]
    assert x.shape == (number, 10)
    d, x = ZILN(0.2, 0.5, zi_probs=0.3), x.flatten()
    mean, error = scales(x)
    assert abs(mean - d.mean) < 4 * error
    zero, error = scales(x == 0)
    assert abs(zero - 0.3) < 4 * error


@pytest.mark.parametrize("parallel", [False, True])
def test_posterior_predictive(parallel):
    number = 4000 if parallel else 500
    posterior = {"mu": MEAN_MU + SD_MU * torch.randn(number), "logits": BETA.sample((number,)).logit()}
    unseen = poutine.uncondition(conjugate)
    x = Predictive(unseen, posterior, parallel=parallel)()["x"]
    assert x.shape == (number, len(DATA))
    zero, error = scales((x == 0).double().mean(-1))
    assert abs(zero - BETA.mean) < 4 * error
    logs = torch.where(x > 0, x, 1.0).log().sum(-1) / (x > 0).sum(-1).clamp(min=1)
    mean, error = scales(logs[(x > 0).any(-1)])
    assert abs(mean - MEAN_MU) < 4 * error


LOCS = torch.tensor([-1.0, 1.5])
LOGITS = torch.tensor([0.5, -1.0])


@config_enumerate
def mixture(data, locs=LOCS, gates=LOGITS, weights=None):
    weights = torch.tensor([0.4, 0.6]) if weights is None else weights
    with pyro.plate("data", len(data)):
        k = pyro.sample("k", dist.Categorical(weights))
        pyro.sample("x", ZILN(locs[k], 0.5, gates[k]), obs=data)


def joint(data):
    return torch.tensor([0.4, 0.6]).log() + ZILN(LOCS, 0.5, LOGITS).log_prob(data.unsqueeze(-1))


def test_enumerated_mixture_has_the_exact_likelihood():
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(mixture, lambda data: None, DATA)
    assert loss == pytest.approx(-joint(DATA).logsumexp(-1).sum().item(), rel=1e-5)


def test_posterior_of_a_neighbouring_discrete_site():
    copies = 2000
    data = DATA.repeat(copies)
    trace = poutine.trace(infer_discrete(mixture, first_available_dim=-2)).get_trace(data)
    second = trace.nodes["k"]["value"].reshape(copies, -1).double().mean(0)
    exact = joint(DATA).softmax(-1)[:, 1].double()
    assert ((second - exact).abs() < 4 * (exact * (1 - exact) / copies).sqrt() + 1e-12).all()
    most_likely = poutine.trace(infer_discrete(mixture, first_available_dim=-2, temperature=0)).get_trace(DATA)
    assert torch.equal(most_likely.nodes["k"]["value"], joint(DATA).argmax(-1))


def test_mixture_recovers_its_components():
    number = 4000
    d = MixtureSameFamily(Categorical(torch.tensor([0.4, 0.6])), ZILN(LOCS, 0.5, LOGITS))
    data = d.sample((number,))

    def model(data):
        locs = pyro.param("locs", torch.tensor([-0.5, 0.5]))
        weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraints.simplex)
        mixture(data, locs, pyro.param("gates", torch.zeros(2)), weights)

    svi = SVI(model, lambda data: None, ClippedAdam({"lr": 0.1, "lrd": 0.98}), TraceEnum_ELBO(max_plate_nesting=1))
    for _ in range(200):
        svi.step(data)
    # At the maximum the score is zero, and the estimates are a few standard errors from the truth.
    assert torch.allclose(pyro.param("locs"), LOCS, atol=4 * 0.5 / (0.3 * 0.4 * number) ** 0.5)
    observed = data == 0
    pi = (pyro.param("weights") * pyro.param("gates").sigmoid()).sum()
    assert torch.allclose(pi, observed.float().mean(), atol=1e-3)


def test_torch_mixture():
    d = MixtureSameFamily(Categorical(torch.tensor([0.4, 0.6])), ZILN(LOCS, 0.5, LOGITS))
    assert torch.allclose(d.log_prob(DATA), joint(DATA).logsumexp(-1))
    assert torch.allclose(d.cdf(DATA), (torch.tensor([0.4, 0.6]) * ZILN(LOCS, 0.5, LOGITS).cdf(DATA[:, None])).sum(-1))
    assert torch.allclose(d.mean, (torch.tensor([0.4, 0.6]) * ZILN(LOCS, 0.5, LOGITS).mean).sum())
    mean, error = scales(d.sample((20000,)))
    assert abs(mean - d.mean) < 4 * error


def test_no_enumeration_is_needed_or_done():
    trace = poutine.trace(poutine.enum(config_enumerate(conjugate), first_available_dim=-2)).get_trace()
    assert trace.nodes["x"]["infer"].get("_enumerate_dim") is None
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].shape == DATA.shape
