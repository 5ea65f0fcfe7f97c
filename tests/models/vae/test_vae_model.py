"""The model and guide are what they say: the loss against a formula of its own, and plain Pyro trains them."""

import copy

import mpmath
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from vae_cases import planted, small

from pyro_zilognormal import SufficientStatistics
from pyro_zilognormal.models import ZILNVAE, ZILNVAEGuide
from pyro_zilognormal.models.vae.networks import exposed


def conditioned(x):
    """Return a model with all it can be conditioned on, its guide, and the arguments of a minibatch of 30 cells."""
    model, guide = small(x, batches=2, covariates=1)
    b = slice(30, 60)
    rest = planted().batch[b], torch.linspace(-1, 1, 30)[:, None], torch.linspace(0, 0.5, 30)
    return model, guide.eval(), (x[b], *rest)


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO])
def test_the_loss_is_minus_the_elbo_scaled_from_the_minibatch_to_all_cells(loss):
    x = planted().x[:300].double()
    model, guide, (values, batch, covariates, offset) = conditioned(x)
    model.double(), guide.double()
    pyro.set_rng_seed(5)
    found = loss()(model, guide)(values, batch, covariates, offset).item()
    pyro.set_rng_seed(5)
    z = poutine.trace(guide).get_trace(values, batch, covariates, offset).nodes["z"]["value"]
    q = guide.posterior(values, batch, covariates, offset)
    conditions = torch.cat([torch.eye(2)[batch], covariates], 1)
    hidden = model.decoder.body(torch.cat([z, conditions], 1))
    location, logits = (model.decoder.heads(hidden) + model.decoder.shift(conditions.double())).chunk(2, -1)
    sigma = model.genes.spread * (model.decoder.log_scale.exp() ** 2 + 0.01).sqrt()
    size = offset[:, None].double().exp()
    zero = dist.Bernoulli(probs=logits.sigmoid() ** size)
    mu = model.genes.center + model.genes.spread * location + (size * (-logits).sigmoid() / (1 - zero.probs)).log()
    positive = zero.log_prob(torch.zeros(())) + dist.LogNormal(mu, sigma).log_prob(values.clamp(min=1e-30))
    likelihood = torch.where(values == 0, zero.log_prob(torch.ones(())), positive).sum()
    means = torch.cat([torch.zeros(1, 2).double(), model.means])
    of_each = model.weight_logits.log_softmax(0) + dist.Normal(means, 1.0).log_prob(z[:, None]).sum(-1)
    kl = q.log_prob(z).sum(-1) - of_each.logsumexp(-1)
    assert found == pytest.approx((10 * (kl.sum() - likelihood)).item(), rel=1e-9)


@pytest.mark.parametrize("linear", [False, True])
def test_a_size_factor_multiplies_the_mean_and_is_an_exponent_of_the_share_of_zeros(linear):
    model, _ = small(planted().x[:300].double(), batches=2, linear=linear)
    model.double()
    z, batch, size = torch.randn(30, 2).double(), planted().batch[:30], torch.linspace(0.05, 20, 30).double()
    base, found = (model.likelihood(z, batch, None, offset) for offset in (None, size.log()))
    assert torch.allclose(found.mean, size[:, None] * base.mean, rtol=1e-10)
    assert torch.allclose(found.zi_probs, base.zi_probs ** size[:, None], rtol=1e-10)


@pytest.mark.parametrize("logit", [-200.0, -15.0, 0.0, 15.0, 60.0, 200.0])
def test_a_size_factor_is_exact_and_differentiable_where_zeros_are_certain_or_impossible(logit):
    logits, offset = torch.full((4, 1), logit, requires_grad=True), torch.tensor([-3.0, 0.0, 0.5, 3.0])
    found = torch.cat(exposed(torch.zeros(4, 1), logits, offset), 1)
    found.sum().backward()
    assert logits.grad.isfinite().all()
    assert found[:, 0].abs().max() <= 3.0001
    if logit < 100:  # else P(X > 0) is less than 1e-30
        assert torch.allclose(found, torch.tensor([exact(logit, o) for o in offset.tolist()]), rtol=1e-5, atol=1e-5)


def exact(logit, offset):
    """Return the change of mu, and the log odds of P(X = 0) to the power exp(offset), by 200 digits."""
    with mpmath.workdps(200):
        zero = 1 / (1 + mpmath.exp(-mpmath.mpf(logit)))
        power = zero ** mpmath.exp(offset)
        change = offset + mpmath.log1p(-zero) - mpmath.log1p(-power)
        return float(change), float(mpmath.log(power / (1 - power)))


def test_the_encoder_reads_what_batch_and_covariates_leave_of_a_cell():
    """Values moved by the effects of batch and covariate on log x leave the residuals as they were."""
    x = planted().x[:300].double()
    model, guide = small(x, batches=2, covariates=1)
    model.double(), guide.double().eval()
    number = x.shape[1]
    with torch.no_grad():
        model.decoder.shift.weight[:number].normal_()  # of log x alone
    codes, depth = planted().batch[:30], torch.linspace(-1, 1, 30)[:, None].double()
    effects = model.genes.spread * model.decoder.shift(torch.cat([torch.eye(2)[codes], depth], 1).double())[:, :number]
    reference = guide.encoder(x[:30], model.genes.center, model.genes.zi_logits)[0]
    assert torch.allclose(guide.posterior(x[:30] * effects.exp(), codes, depth).mean, reference, atol=1e-10)


def test_what_is_expected_of_a_cell_is_the_start_of_a_linear_decoder_at_z_0_and_leaves_residuals_of_mean_0():
    x = planted().x[:300]
    _, guide, (values, *rest) = conditioned(x)
    linear = small(x, batches=2, covariates=1, linear=True)[0]
    inputs = []
    guide.encoder.body.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    guide.posterior(x, planted().batch[:300], torch.zeros(300, 1))
    assert inputs[0].mean(0).abs().max() < 2e-3  # half a cell is added to the zeros and positive values of a gene
    with torch.no_grad():
        linear.decoder.shift.weight.normal_()
    found = linear.decoder.typical(linear.conditions(30, *rest, values), rest[-1])
    at_zero = linear.likelihood(torch.zeros(30, 2), *rest)
    assert torch.allclose(found[0], at_zero.loc)
    assert torch.allclose(found[1], at_zero.zi_logits)


def test_plain_svi_trains_and_the_zero_part_takes_any_sign():
    x = planted().x[:200]
    model, guide = small(x)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    losses = [svi.step(x) for _ in range(50)]
    assert losses[-1] < 0.95 * losses[0]
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {k for k, _ in model.named_parameters()}
    logits = model.likelihood(guide.posterior(x).mean).zi_logits
    assert logits.min() < -0.5
    assert logits.max() > 0.5


def test_the_start_is_near_the_distribution_of_each_gene():
    x = planted().x
    model, _ = small(x, linear=True)
    start = model.likelihood(torch.zeros(1, 2))
    log = [column[column > 0].log() for column in x.T]
    assert torch.allclose(start.zi_probs[0], (x == 0).float().mean(0), atol=1e-3)
    assert torch.allclose(start.loc[0], torch.stack([column.mean() for column in log]), atol=1e-4)
    assert torch.allclose(start.scale[0], torch.stack([column.std() for column in log]), rtol=0.05)


def test_the_unit_of_the_values_changes_nothing_but_the_unit():
    x = planted().x[:100]
    fitted = {}
    for unit in (1.0, 1024.0):
        model, guide = small(unit * x)
        guide.eval()
        fitted[unit] = guide.posterior(unit * x).mean, model.likelihood(torch.zeros(1, 2)).mean / unit
    for one, other in zip(*fitted.values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_genes_without_positive_values_or_spread_have_finite_gradients():
    x = torch.tensor([[0.0, 2.0, 1.0], [0.0, 2.0, 0.0], [0.0, 2.0, 0.0]])
    model, guide = small(x)
    TraceMeanField_ELBO()(model, guide)(x).backward()
    assert all(p.grad.isfinite().all() for p in [*model.parameters(), *guide.parameters()])


def test_draws_of_latent_values_can_be_vectorised():
    model, guide, arguments = conditioned(planted().x[:300])
    elbo = Trace_ELBO(num_particles=7, vectorize_particles=True)
    assert elbo(model, guide)(*arguments).isfinite()
    assert model.likelihood(torch.zeros(7, 30, 2), *arguments[1:]).batch_shape == (7, 30, 40)


def test_autocast_computes_the_networks_in_bfloat16_and_the_density_in_float32():
    model, guide, arguments = conditioned(planted().x[:300])
    full = Trace_ELBO()(model, guide)
    pyro.set_rng_seed(1)
    expected = full(*arguments).item()
    pyro.set_rng_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = full(*arguments)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=0.02)


def test_copies_have_parameters_of_their_own():
    model, guide = small(planted().x[:50])
    model_copy, guide_copy = copy.deepcopy((model, guide))
    with torch.no_grad():
        model_copy.decoder.heads.bias.add_(1.0)
    assert not torch.equal(model.decoder.heads.bias, model_copy.decoder.heads.bias)
    assert torch.equal(guide.posterior(planted().x[:50]).mean * 0, guide_copy.posterior(planted().x[:50]).mean * 0)


X, CODES = torch.ones(4, 3), torch.tensor([0, 1, 1, 0])
STATISTICS = SufficientStatistics.from_cells(X)
EMPTY = SufficientStatistics.from_value(torch.zeros(1, 3, 5, dtype=torch.float64))
BAD_MODELS = [
    ({"latent": 0}, "latent is 0"),
    ({"components": 0}, "components is 0"),
    ({"batches": 0}, "batches is 0"),
    ({"covariates": -1}, "covariates is -1"),
    ({"hidden": ()}, "hidden is empty"),
    ({"hidden": (8, 0)}, r"hidden\[1\] is 0"),
    ({"statistics": EMPTY}, "no cell"),
]
BAD_CALLS = [
    ({"x": X[:, :2]}, r"x has shape \(4, 2\); needed \(cells, 3\)"),
    ({"batch": None}, "batch: got None"),
    ({"batch": CODES[:2]}, r"batch: got torch.int64 of shape \(2,\)"),
    ({"batch": CODES.double()}, "batch: got torch.float64"),
    ({"batch": CODES + 1}, "values from 1 to 2; needed 0 to 1"),
    ({"covariates": None}, "covariates: got None"),
    ({"covariates": torch.ones(4, 2)}, r"covariates: got \(4, 2\); needed shape \(4, 1\)"),
    ({"offset": torch.ones(4, 1)}, r"offset has shape \(4, 1\)"),
]


@pytest.mark.parametrize(("options", "message"), BAD_MODELS)
def test_sizes_that_make_no_model_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ZILNVAE(**{"statistics": STATISTICS, **options})


@pytest.mark.parametrize(("given", "message"), BAD_CALLS)
def test_arguments_that_do_not_fit_the_model_are_refused_by_model_and_guide(given, message):
    model, guide = small(X, batches=2, covariates=1)
    arguments = {"x": X, "batch": CODES, "covariates": torch.ones(4, 1), "offset": torch.zeros(4)} | given
    for part in (guide, model):
        with pytest.raises(ValueError, match=message):
            part(**arguments)


def test_a_guide_needs_a_model():
    with pytest.raises(TypeError, match="model is a Linear"):
        ZILNVAEGuide(torch.nn.Linear(2, 2))


def test_batches_and_covariates_are_refused_where_there_are_none():
    model, guide = small(X)
    with pytest.raises(ValueError, match="covariates: got"):
        model(X, None, torch.ones(4, 1))
    assert guide.posterior(X, CODES).mean.shape == (4, 2)  # one batch: there is nothing to tell apart
