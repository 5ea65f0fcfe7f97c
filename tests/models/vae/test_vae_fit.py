"""Fits to cells of a known model find it, and their methods say what is so."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal
from vae_cases import LATENT, fitted, planted, small

from pyro_zilognormal.models import FittedVAE, KLWarmUp, fit_vae
from pyro_zilognormal.svi import BatchStream, Checkpoint, Minibatches, fit

CELLS = planted()
NEW = slice(1000, 1200)
DATA = CELLS.x[NEW], CELLS.batch[NEW]


def canonical_correlations(a, b):
    """Return those of two tables of cells."""
    bases = [torch.linalg.qr(table - table.mean(0))[0] for table in (a, b)]
    return torch.linalg.svdvals(bases[0].T @ bases[1])


def test_a_linear_decoder_finds_the_planted_subspace_in_training_and_new_cells():
    embedding = fitted().latent(CELLS.x, CELLS.batch).mean
    for cells in (slice(0, 1000), NEW):
        assert canonical_correlations(embedding[cells], CELLS.z[cells]).min() >= 0.95
    loadings, zero_loadings = fitted().model.loadings
    assert loadings.shape == zero_loadings.shape == (LATENT, 40)


def test_the_embedding_does_not_tell_batches_and_decoding_swaps_them():
    embedding = fitted().latent(CELLS.x, CELLS.batch).mean
    gap = embedding[CELLS.batch == 0].mean(0) - embedding[CELLS.batch == 1].mean(0)
    assert gap.abs().max() < 4 * (2 / 600) ** 0.5
    first, second, both = (fitted().normalized_expression(*DATA, batches=b) for b in ([0], [1], None))
    assert np.corrcoef((second / first).log().mean(0), CELLS.shift)[0, 1] > 0.985
    assert np.corrcoef(first.log().flatten(), CELLS.mean[NEW].log().flatten())[0, 1] > 0.97
    assert torch.allclose(both, (first + second) / 2, rtol=0.2)


def test_imputing_replaces_zeros_alone():
    filled, zero = fitted().impute(*DATA), DATA[0] == 0
    assert torch.equal(filled[~zero], DATA[0][~zero])
    assert (filled[zero] > 0).all()
    truth = (CELLS.mean[NEW] * (DATA[1][:, None] * CELLS.shift).exp())[zero]
    assert np.corrcoef(filled[zero].log(), truth.log())[0, 1] > 0.9


def test_the_held_out_likelihood_is_that_of_quadrature():
    train, x = CELLS.x[:100, :4], CELLS.x[100:110, :4]  # few genes: a wide posterior
    model, guide = small(train, latent=1)
    partly = fit_vae(model, guide, train, steps=150, warm_up=1)
    grid = torch.linspace(-8, 8, 4001)
    with torch.no_grad():
        joint = model.likelihood(grid[:, None, None].expand(-1, 10, 1)).log_prob(x).sum(-1)
        means = torch.cat([torch.zeros(1), model.means[:, 0]])
        prior = (model.weight_logits.softmax(0) * Normal(means, 1.0).log_prob(grid[:, None]).exp()).sum(-1)
    exact = torch.logsumexp(joint + prior.log()[:, None], 0) + np.log(16 / 4000)
    found = torch.stack([partly.log_likelihood(x, particles=250, seed=s) for s in range(6)])
    error = found.std(0) / 6**0.5
    assert error.max() < 0.05
    assert ((found.mean(0) - exact).abs() < 5 * error + 1e-3).all()


def test_more_particles_tighten_the_bound_and_a_fit_explains_more_than_its_start():
    few, many = (fitted().log_likelihood(*DATA, particles=k).mean() for k in (1, 50))
    assert few < many
    start = fit_vae(*small(CELLS.x[:1000], batches=2), CELLS.x[:1000], CELLS.batch[:1000], steps=1)
    assert many / 40 > start.log_likelihood(*DATA, particles=50).mean() / 40 + 0.1


def test_replicated_cells_have_the_observed_share_of_zeros():
    check = fitted().predictive_check(*DATA, draws=30)
    replicated = check.replicated["zero fraction"]
    error = (replicated.mean(0) - check.observed["zero fraction"]).abs()
    assert (error / replicated.std(0)).mean() < 1.3  # 0.8 in the mean for the true model


def test_a_planted_change_is_called_and_random_halves_differ_in_nothing():
    high = CELLS.z[:, 0] > 0
    halves = torch.arange(1200) % 4 < 2  # of both batches
    for chosen, differ in ((high, True), (halves, False)):
        groups = [(CELLS.x[rows], CELLS.batch[rows]) for rows in (chosen, ~chosen)]
        change = fitted().differential_expression(*groups, draws=100)
        truth = torch.log2(CELLS.mean[chosen].mean(0) / CELLS.mean[~chosen].mean(0))
        called = change.expected_fdr <= 0.05
        assert change.draws.shape == (100, 40)
        if differ:
            assert called.sum() >= 10
            assert torch.equal(change.draws.mean(0)[called].sign(), truth[called].sign().double())
            assert np.corrcoef(change.draws.mean(0), truth)[0, 1] > 0.9
        else:
            assert not called.any()


def test_minibatches_and_whole_data_give_the_same_in_the_order_of_the_cells():
    whole = fitted().latent(*DATA)
    parts = fitted().latent(Minibatches(*(a.numpy() for a in DATA), batch_size=7, plate="cells"))
    batches = list(zip(*(a.split(9) for a in DATA), strict=True))
    stream = fitted().latent(BatchStream(batches, plate="cells"))
    for other in (parts, stream):
        assert torch.allclose(whole.mean, other.mean, atol=1e-5)
        assert torch.allclose(whole.sd, other.sd, atol=1e-5)


def test_methods_leave_the_random_generator_and_the_modes_as_they_were():
    fitted()
    state = torch.get_rng_state()
    one, other = (fitted().normalized_expression(*DATA, seed=3, draws=2) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert fitted().guide.training


@pytest.mark.parametrize("batches", [[], [2], [-1]])
def test_unknown_batches_are_refused(batches):
    with pytest.raises(ValueError, match=r"batches is .*; needed some of 0 to 1"):
        fitted().normalized_expression(*DATA, batches=batches)


def test_the_fit_of_another_model_is_refused():
    layer = torch.nn.Linear(1, 1)
    other = fit(layer.forward, layer.forward, torch.ones(1, 1), steps=1, loss=lambda model, guide, x: model(x).sum())
    with pytest.raises(TypeError, match="the fit of Linear and Linear"):
        FittedVAE(other)


def test_a_negative_delta_is_refused():
    with pytest.raises(ValueError, match="delta is -1"):
        fitted().differential_expression(DATA, DATA, delta=-1)


class Killed(Exception):
    """Stands for the end of the process."""


def kill(run):
    if run.step == 3:
        raise Killed


def test_the_kl_weight_rises_over_the_warm_up_and_a_killed_fit_goes_on(tmp_path):
    x, weights = CELLS.x[:150], []

    def run(steps, *callbacks):
        data = Minibatches(x, batch_size=64, plate="cells")
        note = [lambda run: weights.append(run.kl_weight), *callbacks]
        return fit_vae(*small(x), data, steps=steps, warm_up=4, callbacks=note)

    whole = run(8)
    assert weights == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0])
    path = tmp_path / "fit.ckpt"
    with pytest.raises(Killed):
        run(8, kill, Checkpoint(path, steps=2))
    resumed = run(8, Checkpoint(path, steps=2))
    assert isinstance(resumed, FittedVAE)
    assert np.array_equal(whole.result.losses, resumed.result.losses)
    assert KLWarmUp(4).settings() == {"steps": 4}
