"""A latent ZILN in a guide: gradients are unbiased against quadrature, in standard errors, or refused."""

import copy
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.gp.kernels import RBF
from pyro.distributions.score_parts import ScoreParts
from pyro.infer import (
    SVI,
    EnergyDistance,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    Trace_MMD,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
)
from score_cases import Case, exact_gradient, gradients, z_scores

from pyro_zilognormal import ZeroInflatedLogNormal as ZILN
from pyro_zilognormal.distribution import ziln

HALF = (True, False)
CASES = {
    "plate": Case(),
    "probs": Case(probs=True),
    "expand": Case("expand"),
    "mask": Case(mask=HALF),
    "expand.mask": Case("expand", mask=HALF),
    "poutine.mask": Case(mask=HALF, poutine_mask=True),
    "to_event": Case("event"),
    "to_event, probs": Case("event", probs=True),
    "mask.to_event": Case("event", mask=HALF, mask_outside_event=False),
    "to_event.mask": Case("event", mask=(False, True), mask_outside_event=True),
    "scale": Case(scale=0.3),
    "subsample, scale": Case(subsample=True, scale=2.0),
    "feeding": Case("feeding"),
    "feeding, probs": Case("feeding", probs=True),
}
VECTORIZED = {"num_particles": 200, "vectorize_particles": True}
JIT = {"ignore_jit_warnings": True}


def estimate(loss_type, case, *, steps=50, copies=20, guide=None, **options):
    """Estimates of the gradient, and the exact one. The neighbour is there only if it can be enumerated."""
    case = replace(case, enumerated=issubclass(loss_type, TraceEnum_ELBO))
    loss = loss_type(max_plate_nesting=2 if case.wrap == "plate" else 1, **options)
    guide = guide or case.guide(copies)
    return gradients(loss, case.model(copies), guide, steps, copies), exact_gradient(case)


@pytest.mark.parametrize("loss_type", [Trace_ELBO, TraceEnum_ELBO])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_unbiased(case, loss_type):
    z = z_scores(*estimate(loss_type, case, **VECTORIZED))
    assert z.abs().max() < 4, z


@pytest.mark.parametrize("loss_type", [Trace_ELBO, TraceEnum_ELBO])
@pytest.mark.parametrize("name", ["plate", "expand.mask", "mask.to_event", "subsample, scale", "feeding"])
def test_unbiased_without_vectorized_particles(name, loss_type):
    z = z_scores(*estimate(loss_type, CASES[name], steps=30, copies=400, num_particles=2))
    assert z.abs().max() < 4, z


@pytest.mark.parametrize("loss_type", [Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO])
@pytest.mark.parametrize("name", ["plate", "expand.mask", "to_event", "mask.to_event", "feeding"])
def test_full_score_is_unbiased(name, loss_type):
    case = CASES[name]
    z = z_scores(*estimate(loss_type, case, guide=case.guide(has_rsample=False), **VECTORIZED))
    assert z.abs().max() < 4, z


@pytest.mark.parametrize("loss_type", [JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO])
@pytest.mark.parametrize("name", ["plate", "to_event"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_jit_is_unbiased(name, loss_type):
    z = z_scores(*estimate(loss_type, CASES[name], **VECTORIZED, **JIT))
    assert z.abs().max() < 4, z


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", [Trace_ELBO, TraceEnum_ELBO])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_unbiased_with_many_draws(case, loss_type):
    z = z_scores(*estimate(loss_type, case, steps=200, num_particles=2000, vectorize_particles=True))
    assert z.abs().max() < 4, z


class NoScore(ZILN):
    """What the distribution would be if its zero part were taken for reparameterized."""

    def score_parts(self, value):
        log_prob = self.log_prob(value)
        return ScoreParts(log_prob, 0, log_prob)


@pytest.mark.parametrize("loss_type", [Trace_ELBO, TraceEnum_ELBO])
@pytest.mark.parametrize("name", ["plate", "probs", "to_event", "mask.to_event", "subsample, scale", "feeding"])
def test_these_draws_have_the_power_to_show_a_missing_score(name, loss_type, monkeypatch):
    monkeypatch.setattr(ziln, "require_score", lambda draw, zero, count: draw)
    case = CASES[name]
    # expand() would make a plain ZILN of it; the plates do not call it where batch shapes agree.
    monkeypatch.setattr(NoScore, "expand", lambda self, shape, _instance=None: NoScore(**parameters(self, shape)))
    z = z_scores(*estimate(loss_type, case, guide=case.guide(distribution=NoScore), **VECTORIZED))
    assert z[4:].abs().max() > 15, z
    if case.wrap != "feeding":
        assert z[:4].abs().max() < 4, z


def parameters(d, shape):
    zero = d._zero_part
    return {"mu": d.loc.expand(shape), "scale": d.scale.expand(shape), zero.parameter: zero.tensor.expand(shape)}


# Losses that do not add the score.

REFUSAL = r"zero inflation of a ZeroInflatedLogNormal draw has no pathwise gradient[\s\S]*has_rsample_\(False\)"


def latent_guide(wrap=lambda d: d, shape=(2,)):
    def guide():
        zero = pyro.param("zero", torch.zeros(shape))
        pyro.sample("x", wrap(ZILN(pyro.param("mu", torch.zeros(shape)), 1.0, zero)).to_event())

    return guide


def latent_model():
    x = pyro.sample("x", ZILN(torch.zeros(2), 1.0, 0.0).to_event(1))
    pyro.sample("y", dist.Normal(x / (1 + x), 1.0).to_event(1), obs=torch.tensor([0.5, 0.1]))


def step(loss, model=latent_model, guide=None):
    return SVI(model, guide or latent_guide(), pyro.optim.Adam({"lr": 0.01}), loss).step()


SCORELESS = {
    "TraceGraph_ELBO": lambda: TraceGraph_ELBO(),
    "Trace_MMD": lambda: Trace_MMD(
        kernel=RBF(2), mmd_scale=1.0, num_particles=3, vectorize_particles=True, max_plate_nesting=1
    ),
    "EnergyDistance": lambda: EnergyDistance(num_particles=3, max_plate_nesting=1),
}


@pytest.mark.parametrize("make", SCORELESS.values(), ids=SCORELESS)
def test_losses_without_the_score_stop(make):
    loss = make()
    differentiate = energy_step if isinstance(loss, EnergyDistance) else step
    with pytest.raises(RuntimeError, match=REFUSAL):
        differentiate(loss)


def energy_step(loss):
    loss(latent_model, latent_guide()).backward()


def test_energy_distance_stops_at_an_observed_site_too():
    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("y", ZILN(loc, 1.0, pyro.param("zero", torch.tensor(0.0))), obs=torch.tensor(0.5))

    def guide():
        pyro.sample("loc", dist.Normal(pyro.param("mu", torch.tensor(0.0)), 1.0))

    with pytest.raises(RuntimeError, match=REFUSAL):
        EnergyDistance(num_particles=3, max_plate_nesting=1)(model, guide).backward()


@pytest.mark.parametrize("loss_type", [TraceMeanField_ELBO, TraceTailAdaptive_ELBO])
def test_losses_for_full_reparameterization_refuse(loss_type):
    options = {"num_particles": 2, "vectorize_particles": True, "max_plate_nesting": 1}
    options = options if loss_type is TraceTailAdaptive_ELBO else {}
    with pytest.raises(NotImplementedError, match="must be fully reparameterized"):
        step(loss_type(**options))


def test_renyi_refuses_a_score_beside_a_path():
    with pytest.raises(NotImplementedError):
        step(RenyiELBO(num_particles=2))


def test_reweighted_wake_sleep_needs_no_path():
    losses = step(ReweightedWakeSleep(num_particles=3, vectorize_particles=False, max_plate_nesting=1))
    assert all(torch.tensor(losses).isfinite())


STOCK = {
    "Independent": (lambda d: dist.Independent(d, 1)),
    "MaskedDistribution": (lambda d: dist.MaskedDistribution(d, torch.tensor([True, False]))),
    "ExpandedDistribution": (lambda d: dist.torch_distribution.ExpandedDistribution(d, torch.Size([3, 2]))),
    "TorchDistribution.expand": (lambda d: dist.TorchDistribution.expand(d, torch.Size([3, 2]))),
    "Independent of mask": (lambda d: dist.Independent(d.mask(torch.tensor([True, False])), 1)),
}
KEEP_THE_SCORE = {"MaskedDistribution", "ExpandedDistribution", "TorchDistribution.expand"}


@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("loss_type", [Trace_ELBO, TraceEnum_ELBO])
@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
def test_stock_wrappers_never_lose_the_score_silently(name, loss_type):
    logits = torch.zeros(2, dtype=torch.double, requires_grad=True)
    wrapped = STOCK[name](ZILN(torch.zeros(2).double(), 1.0, logits))
    x = wrapped.rsample()
    parts = wrapped.score_parts(x)
    if torch.is_tensor(parts.score_function):  # the very same as that of our own wrapping
        own = ZILN(torch.zeros(2).double(), 1.0, logits).expand(x.shape).score_parts(x).score_function
        assert torch.equal(parts.score_function, own)
        torch.autograd.backward(x.sum() + parts.score_function.sum())
        return
    assert name not in KEEP_THE_SCORE

    def guide():
        d = ZILN(torch.zeros(2), 1.0, pyro.param("zero", torch.zeros(2)))
        pyro.sample("x", STOCK[name](d))

    with pytest.raises(RuntimeError, match=REFUSAL):
        step(loss_type(), guide=guide)


def test_the_score_of_one_draw_does_not_serve_another():
    def guide():
        d = ZILN(torch.zeros(2), 1.0, pyro.param("zero", torch.zeros(2)))
        pyro.sample("x", d.to_event(1))
        pyro.sample("z", dist.Independent(d, 1))

    def model():
        latent_model()
        z = pyro.sample("z", ZILN(torch.zeros(2), 1.0, 0.0).to_event(1))
        pyro.sample("w", dist.Normal(z / (1 + z), 1.0).to_event(1), obs=torch.zeros(2))

    with pytest.raises(RuntimeError, match=REFUSAL):
        step(Trace_ELBO(), model, guide)


@pytest.fixture
def draw():
    mu, weight = torch.tensor(0.1, requires_grad=True), torch.tensor(0.2, requires_grad=True)
    return ZILN(mu, 1.0, weight * 2).expand([100]).rsample(), mu, weight


def test_hand_written_loss_stops_for_the_zero_part_alone(draw):
    x, mu, weight = draw
    (path,) = torch.autograd.grad(x.sum(), mu, retain_graph=True)
    assert torch.allclose(path, x.sum())  # d exp(mu + s eps) / d mu
    for inputs in ([weight], [mu, weight]):
        with pytest.raises(RuntimeError, match=REFUSAL):
            torch.autograd.grad(x.sum(), inputs, retain_graph=True)
    with pytest.raises(RuntimeError, match=REFUSAL):
        x.sum().backward()


FORWARD_MODE_LOADS_JIT = "ignore:.*torch.jit.script. is deprecated:DeprecationWarning"


@pytest.mark.filterwarnings(FORWARD_MODE_LOADS_JIT)
@pytest.mark.parametrize("mode", ["grad", "vmap", "jacfwd"])
def test_function_transforms_stop_too(mode):
    def total(logits):
        return ZILN(0.0, 1.0, logits).expand([10]).rsample().sum()

    transforms = {
        "grad": torch.func.grad(total),
        "vmap": lambda g: torch.func.vmap(torch.func.grad(total), randomness="different")(g.expand(2)),
        "jacfwd": torch.func.jacfwd(total, randomness="different"),
    }
    with pytest.raises(RuntimeError, match=REFUSAL):
        transforms[mode](torch.tensor(0.3))


@pytest.mark.filterwarnings(FORWARD_MODE_LOADS_JIT)
def test_a_path_for_mu_in_forward_mode():
    zero = torch.tensor(0.3, requires_grad=True)
    x, tangent = torch.func.jvp(lambda mu: ZILN(mu, 1.0, zero).rsample(), (torch.tensor(0.1),), (torch.tensor(1.0),))
    assert torch.equal(x, tangent)


SAFE = {
    "constant zero part": lambda mu, zero: ZILN(mu, 1.0, 0.3),
    "detached zero part": lambda mu, zero: ZILN(mu, 1.0, zero.detach()),
    "detached probs": lambda mu, zero: ZILN(mu, 1.0, zi_probs=zero.sigmoid().detach()).expand([4]).to_event(1),
}


@pytest.mark.parametrize("make", SAFE.values(), ids=SAFE)
def test_never_stops_where_the_zero_part_needs_no_gradient(make):
    mu, zero = torch.tensor(0.1, requires_grad=True), torch.tensor(0.0, requires_grad=True)
    for draw in (make(mu, zero).rsample((50,)), make(mu, zero)((50,))):
        (grad,) = torch.autograd.grad(draw.sum(), mu)
        assert torch.allclose(grad, draw.sum())


def test_sample_has_no_gradient(draw):
    d = ZILN(torch.tensor(0.1, requires_grad=True), 1.0, torch.tensor(0.0, requires_grad=True))
    assert not d.sample((3,)).requires_grad
    assert not d.has_rsample_(False)((3,)).requires_grad


WRAPPED = {
    "plain": lambda d: d,
    "copy": copy.copy,
    "expand": lambda d: d.expand([5, 2]),
    "to_event": lambda d: d.to_event(1),
    "mask": lambda d: d.mask(torch.tensor([True, False])),
    "mask.to_event": lambda d: d.mask(torch.tensor([True, False])).to_event(1),
    "to_event.mask": lambda d: d.to_event(1).mask(True),
    "expand.mask.to_event.expand": lambda d: d.expand([4, 2]).mask(torch.tensor(True)).to_event(1).expand([3, 4]),
}


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_has_rsample_off_gives_the_full_score(wrap, before):
    logits = torch.zeros(2, requires_grad=True)
    d = ZILN(torch.zeros(2, requires_grad=True), 1.0, logits)
    wrapped = wrap(d.has_rsample_(False)) if before else wrap(d).has_rsample_(False)
    assert wrapped.has_rsample is False
    x = wrapped()
    assert not x.requires_grad
    parts = wrapped.score_parts(x)
    full = wrap(ZILN(torch.zeros(2), 1.0, torch.zeros(2)))
    assert isinstance(parts.entropy_term, int)
    assert parts.entropy_term == 0
    masked = "mask" in repr(type(full)).lower() or "Masked" in repr(getattr(full, "base_dist", ""))
    if not masked:
        assert torch.allclose(parts.score_function, full.log_prob(x))
    assert torch.allclose(parts.log_prob, full.log_prob(x))


def test_has_rsample_can_be_switched_back():
    d = ZILN(0.0, 1.0, 0.0).to_event(0)
    assert d.has_rsample is True
    assert d.has_rsample_(False).has_rsample is False
    assert d.has_rsample_(True).has_rsample is True
    assert ZILN(0.0, 1.0, 0.0).has_rsample is True
