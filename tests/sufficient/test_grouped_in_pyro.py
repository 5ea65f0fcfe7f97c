"""A fit on the reduction is the fit on the cells: one objective, one gradient, under every loss and sampler."""

from collections.abc import Callable, Iterator
from typing import Any

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
    JitTraceGraph_ELBO,
    Predictive,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation, AutoNormal, init_to_value
from torch import Tensor

from pyro_zilognormal import GroupedZeroInflatedLogNormal, SufficientStatistics, ZeroInflatedLogNormal
from tests.sufficient.cases import COLUMNS, GROUP, GROUPS, OFFSET, X

CELLS, GROUP_OF, OFFSETS = torch.from_numpy(X), torch.from_numpy(GROUP), torch.from_numpy(OFFSET)[:, None]
STATS = SufficientStatistics.from_cells(X, GROUP, GROUPS, OFFSET)
ZERO, ONE = torch.zeros((), dtype=torch.double), torch.ones((), dtype=torch.double)


@pytest.fixture(autouse=True)
def clean_pyro() -> Iterator[None]:
    pyro.set_rng_seed(20)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def latents() -> tuple[Tensor, Tensor, Tensor]:
    """Scale by column, mu and zi_logits by group and column."""
    with pyro.plate("columns", COLUMNS, dim=-1):
        scale = pyro.sample("scale", dist.LogNormal(ZERO, ONE))
        with pyro.plate("groups", GROUPS, dim=-2):
            mu = pyro.sample("mu", dist.Normal(ZERO, 2 * ONE))
            logits = pyro.sample("logits", dist.Normal(ZERO, 2 * ONE))
    return mu, scale, logits


def on_groups() -> None:
    mu, scale, logits = latents()
    with pyro.plate("columns again", COLUMNS, dim=-1), pyro.plate("groups again", GROUPS, dim=-2):
        pyro.sample("x", GroupedZeroInflatedLogNormal(mu, scale, logits), obs=STATS.value)


def on_cells() -> None:
    mu, scale, logits = latents()
    d = ZeroInflatedLogNormal(mu[..., GROUP_OF, :] + OFFSETS, scale, logits[..., GROUP_OF, :])
    with pyro.plate("columns again", COLUMNS, dim=-1), pyro.plate("cells", len(X), dim=-2):
        pyro.sample("x", d, obs=CELLS)


def loss_and_gradient(model: Callable[[], None], loss: Any, guide: type = AutoDelta) -> tuple[float, dict[str, Tensor]]:
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    values = {"mu": torch.full((GROUPS, COLUMNS), 0.3).double(), "scale": torch.ones(COLUMNS).double()}
    fixed = guide(model, init_loc_fn=init_to_value(values={**values, "logits": 0 * values["mu"]}))
    fixed()
    pyro.set_rng_seed(2)
    value = loss.loss_and_grads(model, fixed)
    return value, {name: p.grad for name, p in pyro.get_param_store().named_parameters()}


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore:TraceEnum_ELBO found no"
)
@pytest.mark.parametrize("guide", [AutoDelta, AutoNormal])
@pytest.mark.parametrize(
    "loss", [Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, TraceEnum_ELBO, JitTrace_ELBO, JitTraceGraph_ELBO]
)
@pytest.mark.parametrize("particles", [1, 3])
def test_losses_and_gradients_are_those_of_the_cells(loss: Any, guide: type, particles: int) -> None:
    kwargs = {"max_plate_nesting": 2, "num_particles": particles, "vectorize_particles": particles > 1}
    if "Jit" in loss.__name__:
        kwargs["ignore_jit_warnings"] = True
    ours, our_slopes = loss_and_gradient(on_groups, loss(**kwargs), guide)
    theirs, their_slopes = loss_and_gradient(on_cells, loss(**kwargs), guide)
    assert ours == pytest.approx(theirs, rel=1e-12)
    assert our_slopes.keys() == their_slopes.keys()
    for name, slope in our_slopes.items():
        torch.testing.assert_close(slope, their_slopes[name], rtol=1e-9, atol=1e-9)


def test_subsampled_groups_are_scaled_to_the_whole() -> None:
    def model(index: Tensor) -> None:
        with pyro.plate("groups", GROUPS, subsample=index, dim=-2):
            d = GroupedZeroInflatedLogNormal(torch.zeros(COLUMNS).double(), ONE, ZERO)
            pyro.sample("x", d.expand((len(index), COLUMNS)), obs=STATS.value[index])

    def total(index: Tensor) -> Tensor:
        return poutine.trace(model).get_trace(index).log_prob_sum()

    singles = torch.stack([total(torch.tensor([i])) for i in range(GROUPS)])
    torch.testing.assert_close(singles.mean(), total(torch.arange(GROUPS)))


def test_a_mixture_of_groups_is_enumerated() -> None:
    """Each group is of one of two kinds; the sum over kinds by hand."""
    mus, weights = torch.tensor([-1.0, 2.0]).double(), torch.tensor([0.3, 0.7]).double()

    @config_enumerate
    def model() -> None:
        with pyro.plate("groups", GROUPS):
            kind = pyro.sample("kind", dist.Categorical(weights))
            d = GroupedZeroInflatedLogNormal(mus[kind][..., None], ONE, ZERO)
            pyro.sample("x", d.expand((*kind.shape, COLUMNS)).to_event(1), obs=STATS.value)

    ours = TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda: None)
    each = [GroupedZeroInflatedLogNormal(mu, ONE, ZERO).log_prob(STATS.value).sum(-1) for mu in mus]
    by_hand = (torch.stack(each, -1) + weights.log()).logsumexp(-1).sum()
    assert ours == pytest.approx(-by_hand.item(), rel=1e-12)


def test_nuts_on_groups_follows_nuts_on_cells() -> None:
    """With one seed the two chains take the same steps, until rounding parts them."""
    draws = []
    for model in (on_groups, on_cells):
        pyro.set_rng_seed(3)
        kernel = NUTS(model, step_size=0.05, adapt_step_size=False, adapt_mass_matrix=False, max_tree_depth=3)
        chain = MCMC(kernel, num_samples=5, warmup_steps=0, disable_progbar=True, initial_params=start())
        chain.run()
        draws.append(chain.get_samples())
    for name, ours in draws[0].items():
        torch.testing.assert_close(ours, draws[1][name], rtol=1e-7, atol=1e-7)
        assert not torch.equal(ours[0], ours[-1])


def start() -> dict[str, Tensor]:
    """Unconstrained."""
    shapes = {"mu": (GROUPS, COLUMNS), "scale": (COLUMNS,), "logits": (GROUPS, COLUMNS)}
    return {name: torch.zeros(shape, dtype=torch.double) for name, shape in shapes.items()}


def test_laplace_approximations_agree() -> None:
    """They take second derivatives at the mode."""
    models = {"now": on_groups}
    guide = AutoLaplaceApproximation(lambda: models["now"]())
    svi = SVI(on_groups, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(80):
        svi.step()
    ours = guide.laplace_approximation().get_posterior()
    models["now"] = on_cells
    theirs = guide.laplace_approximation().get_posterior()
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.covariance_matrix, theirs.covariance_matrix, rtol=1e-8, atol=1e-10)


def test_predictive_draws_groups() -> None:
    def model(value: Tensor | None = None) -> Tensor:
        with pyro.plate("columns", COLUMNS, dim=-1), pyro.plate("groups", GROUPS, dim=-2):
            count = STATS.n_zero + STATS.n_pos
            return pyro.sample("x", GroupedZeroInflatedLogNormal(ZERO, ONE, ZERO, total_count=count), obs=value)

    draws = Predictive(model, num_samples=4)()["x"]
    assert draws.shape == (4, GROUPS, COLUMNS, 5)
    assert torch.equal(draws[..., 0] + draws[..., 1], (STATS.n_zero + STATS.n_pos).expand(4, -1, -1))
    model(draws[0])


def test_a_latent_group_is_refused_by_samplers() -> None:
    def model() -> None:
        pyro.sample("x", GroupedZeroInflatedLogNormal(0.0, 1.0, 0.0, total_count=5))

    with pytest.raises(NotImplementedError):
        MCMC(NUTS(model), num_samples=1, warmup_steps=0, disable_progbar=True).run()
