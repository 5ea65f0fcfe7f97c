"""Item 3, held-out data: fixed particles and seed, overfitting told from convergence, the best state restored."""

import functools
import math

import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from svi_cases import (
    Amortised,
    Script,
    adam,
    data,
    delta_guide,
    local_model,
    noise_of,
    normal_guide,
    normal_model,
)

from pyro_zilognormal.svi import EarlyStopping, Minibatches, fit
from pyro_zilognormal.svi.good import GoodState


def looks(values, patience, training, size=0.01):
    """Play held-out losses that are written beforehand, each of 8 particles that share their random numbers."""
    stop = EarlyStopping(every=10, patience=patience)
    shared = noise_of(8, 1, 5.0)

    class Play(Script):
        def play(self, callback):
            callback.start(self)
            callback.held_out = "written"
            callback._look = lambda run: values[run.step // 10 - 1] + shared + noise_of(8, run.step, size)
            for loss in training:
                self.losses.append(loss)
                self.step += 1
                callback(self)
                if self.stop_reason:
                    break
            callback.end(self)
            return self

    return Play([]).play(stop)


FALLING = [-0.01 * t + w for t, w in enumerate(noise_of(600, 5, 0.03).tolist())]

FLAT = noise_of(600, 5, 0.03).tolist()


@pytest.mark.parametrize(("patience", "training"), [(1, FALLING), (2, FALLING), (5, FALLING), (3, FLAT), (10, FLAT)])
@pytest.mark.parametrize("level", [-100.0, 0.0, 100.0])
def test_overfitting_is_rising_and_the_best_state_is_gone_back_to(patience, training, level):
    run = looks([level + 0.02 * (k - 20) ** 2 for k in range(60)], patience, training)
    assert (run.stop_reason, run.converged) == ("rising", False)
    assert run.restored == run.best_step
    assert abs(run.best_step - 10 * 21) <= 10


@pytest.mark.parametrize("patience", [1, 2, 3, 5, 10])
def test_looks_that_jump_about_their_best_have_converged(patience):
    # Each differs from the others by far more than its particles do: the parameters jump, the loss does not rise.
    reasons = []
    for seed in range(20):
        jumps = noise_of(60, seed).abs().tolist()
        values = [100 * math.exp(-k) + jumps[k] for k in range(60)]
        reasons.append(looks(values, patience, noise_of(600, seed).tolist()).stop_reason)
    assert reasons.count("converged") >= 17


def test_a_fit_that_overfits_says_so():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(1, 60), torch.nn.Tanh(), torch.nn.Linear(60, 1))
    x = torch.linspace(-1, 1, 24)[:, None]
    y = (2 * x + torch.randn(24, 1))[:, 0]

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, y):
            with pyro.plate("rows", len(x)):
                pyro.sample("y", pyro.distributions.Normal(self.net(x)[:, 0], 0.5), obs=y)

    held_out = (x[1::2], y[1::2])
    stop = EarlyStopping(held_out, every=20, patience=4)
    fast = functools.partial(torch.optim.Adam, lr=0.02)
    result = fit(Net(), lambda *a: None, x[::2], y[::2], steps=4000, optimizer=fast, callbacks=[stop])
    assert (result.stop_reason, result.converged) == ("rising", False)
    assert result.best_step == min(result.held_out, key=lambda pair: pair[1])[0] < result.steps
    assert "the held-out loss rose: more steps overfit" in str(result)


def test_a_held_out_loss_that_is_not_finite_is_not_called_converged():
    def broken(model, guide, x):
        loss = pyro.infer.Trace_ELBO().differentiable_loss(model, guide, x)
        return loss if loss.requires_grad else loss * math.nan

    stop = EarlyStopping(data(), every=2, patience=3)
    result = fit(normal_model, normal_guide, data(), steps=100, loss=broken, callbacks=[stop])
    assert (result.stop_reason, result.converged) == ("held-out loss not finite", False)


def test_a_fit_stops_on_held_out_data_and_keeps_the_best_state():
    held_out = data(50, seed=9)
    stop = EarlyStopping(held_out, every=20, patience=3)
    result = fit(normal_model, normal_guide, data(100), steps=5000, optimizer=adam, callbacks=[stop])
    assert result.stop_reason == "converged"
    assert result.converged
    best = min(result.held_out, key=lambda pair: pair[1])
    assert result.best_step == best[0]
    again = EarlyStopping(held_out, every=20, patience=3)

    class Now:
        objective, good = result.objective, GoodState(result.objective)

    assert float(again._look(Now).mean()) == best[1]
    assert "converged: the loss stopped improving" in str(result)


def test_held_out_evaluation_is_repeatable_and_leaves_training_alone():
    def run(callbacks):
        return fit(normal_model, normal_guide, data(), steps=60, optimizer=adam, callbacks=callbacks)

    plain = run([])
    watched = run([EarlyStopping(data(seed=5), every=20, patience=100)])
    assert plain.losses.tolist() == watched.losses.tolist()
    assert watched.held_out == run([EarlyStopping(data(seed=5), every=20, patience=100)]).held_out


def test_held_out_batches_give_the_held_out_loss():
    x, held_out = data(40), data(11, seed=3)
    losses = []
    for kind in (held_out, Minibatches(held_out, batch_size=4, plate="rows"), (held_out,), held_out.numpy()):
        stop = EarlyStopping(kind, every=2, patience=9)
        source = Minibatches(x, batch_size=10, plate="rows")
        losses.append(fit(normal_model, delta_guide, source, steps=2, callbacks=[stop]).held_out[0][1])
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)
    # Scaled to the number of rows that the fit has, so that it can be compared with the training loss.
    loc = fit(normal_model, delta_guide, Minibatches(x, batch_size=10, plate="rows"), steps=2).params["q_loc"]
    prior = -pyro.distributions.Normal(0.0, 10.0).log_prob(loc)
    each = -pyro.distributions.Normal(loc, 1.0).log_prob(held_out).mean()
    assert losses[0] == pytest.approx(float(prior + 40 * each), rel=1e-5)


def test_batch_norm_is_not_changed_by_held_out_data():
    class Normed(Amortised):
        def __init__(self, rows):
            super().__init__(rows)
            self.net = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.BatchNorm1d(2))

    def run(callbacks):
        module = Normed(20)
        pyro.set_rng_seed(0)
        return fit(module.model, module.guide, data(), steps=40, callbacks=callbacks), module

    torch.manual_seed(0)
    plain, _ = run([])
    torch.manual_seed(0)
    watched, two = run([EarlyStopping(data(seed=8), every=10, patience=100)])
    assert plain.losses.tolist() == watched.losses.tolist()
    assert two.net[1].training


def test_held_out_rows_have_no_parameters_of_their_own():
    model = local_model(20)
    for source in (Minibatches(data(), batch_size=5, plate="rows"), data()):
        with pytest.raises(ValueError, match="held-out rows have none"):
            fit(model, AutoNormal(model), source, steps=4, callbacks=[EarlyStopping(data(seed=2), every=2)])
