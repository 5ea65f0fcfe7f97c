"""Stopping that is relative, sign-safe and aware of noise, and says honestly why."""

import functools
import math

import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from svi_cases import (
    Script,
    adam,
    auto,
    data,
    delta_guide,
    local_model,
    noise_of,
    normal_guide,
    normal_model,
)

from pyro_zilognormal.svi import EarlyStopping, Minibatches, Run, fit


def decay(steps, noise=0.0, level=0.0, size=10.0, rate=0.02):
    g = torch.Generator().manual_seed(1)
    wave = noise * torch.randn(steps, generator=g)
    return [level + size * math.exp(-rate * t) + float(w) for t, w in enumerate(wave)]


@pytest.mark.parametrize("noise", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("level", [-1000.0, -10.0, 0.0, 10.0, 1000.0])
def test_a_plateau_is_found_whatever_sign_and_noise(level, noise):
    run = Script(decay(5000, noise, level)).play(EarlyStopping(every=50, patience=5))
    assert run.stop_reason == "converged"
    assert run.converged
    # It did not stop before all but 1 % of what there was to gain was gained, nor went on for ever.
    assert 100 < run.step < 3000
    assert run.restored == run.best_step <= run.step


@pytest.mark.parametrize("level", [-100.0, 0.0, 100.0])
def test_a_loss_that_goes_on_falling_is_not_stopped(level):
    falling = [level - 0.05 * t for t in range(3000)]
    run = Script(falling).play(EarlyStopping(every=50, patience=3))
    assert run.stop_reason == ""
    assert run.restored == 3000


def test_a_rising_loss_is_not_called_converged():
    run = Script([*decay(500), *(0.1 * t for t in range(2000))]).play(EarlyStopping(every=50, patience=4))
    assert run.stop_reason == "rising"
    assert not run.converged
    assert run.restored == 500


@pytest.mark.parametrize("sign", [1, -1])
def test_min_delta_is_relative_to_the_size_of_the_loss(sign):
    gentle = [sign * 1000.0 - 0.002 * t for t in range(2000)]  # 0.1 in 50 steps, 1e-4 of the loss
    loose = EarlyStopping(every=50, patience=2, min_delta=1e-2)
    strict = EarlyStopping(every=50, patience=2, min_delta=1e-5, noise=0.0)
    assert Script(gentle).play(loose).stop_reason
    assert Script(gentle).play(strict).stop_reason == ""


@pytest.mark.parametrize("size", [0.001, 1.0, 30.0])
@pytest.mark.parametrize("level", [-1000.0, -1.0, 0.0, 100.0])
def test_a_fit_that_starts_at_its_optimum_is_soon_found_to_have_converged(level, size):
    for seed in range(8):
        run = Script((level + noise_of(5000, seed, size)).tolist()).play(EarlyStopping())
        assert (run.stop_reason, run.converged) == ("converged", True)
        assert run.step <= 3000


@pytest.mark.parametrize("level", [-100.0, 0.0, 100.0])
def test_a_slow_trend_from_the_first_step_on_is_not_called_a_plateau(level):
    # Half of the noise's sd in 1000 steps: far less than two neighbouring looks can tell.
    for seed in range(6):
        fall = level + noise_of(6000, seed) - 5e-4 * torch.arange(6000)
        assert Script(fall.tolist()).play(EarlyStopping()).stop_reason == ""


def test_a_wild_start_does_not_make_what_follows_look_flat():
    t = torch.arange(30_000, dtype=torch.float64)
    loss = 1e3 + 5e4 * torch.exp(-t / 2000) + 1e9 * torch.exp(-t / 20) + noise_of(30_000, 0, 10.0)
    run = Script(loss.tolist()).play(EarlyStopping())
    assert run.converged
    assert loss[run.step] < 1.1e3
    assert run.step < 25_000


@pytest.mark.parametrize("place", [0, 40, 99])
def test_one_wild_loss_in_the_first_window_does_not_hide_the_rest(place):
    loss = torch.tensor(decay(6000, noise=0.5, level=50.0))
    loss[place] = 1e12
    run = Script(loss.tolist()).play(EarlyStopping())
    assert run.stop_reason == "converged"
    assert 500 < run.step < 5000
    assert run.best_step > 200


def test_warm_up_is_not_looked_at():
    run = Script([0.0] * 2000).play(EarlyStopping(every=50, patience=2, warm_up=700))
    assert (run.best_step, run.step) == (750, 1000)  # the line it is judged by is 6 windows long


def test_running_out_of_steps_is_not_converging():
    result = fit(normal_model, normal_guide, data(), steps=10, callbacks=[EarlyStopping(every=5)])
    assert (result.stop_reason, result.converged) == ("steps", False)
    assert "ran out of steps" in str(result)


def test_a_callback_may_stop_a_fit():
    def enough(run: Run):
        if run.step == 7:
            run.stop("seven is enough")

    result = fit(normal_model, auto(), data(), steps=100, callbacks=[enough])
    assert (result.steps, result.stop_reason, result.converged) == (7, "seven is enough", False)
    assert "stopped: seven is enough" in str(result)


BAD = [
    ({"every": 1}, "every is 1; needed a whole number of at least 2"),
    ({"every": "3"}, "every is '3'"),
    ({"patience": 0}, "patience is 0"),
    ({"warm_up": -1}, "warm_up is -1"),
    ({"particles": 1}, "particles is 1; needed a whole number of at least 2"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EarlyStopping(**arguments)


def evaluations(values, patience, training, size=0.01):
    """Play held-out losses that are written beforehand, each of 8 particles that share their random numbers."""
    stop = EarlyStopping(every=10, patience=patience)
    shared = noise_of(8, 1, 5.0)

    def evaluate(run):
        return values[run.step // 10 - 1] + shared + noise_of(8, run.step, size)

    class HeldOut(Script):
        def on_fit_start(self, callback):
            callback.on_fit_start(self)
            callback.held_out, callback._evaluate = "written", evaluate

    return HeldOut(training).play(stop)


FALLING = [-0.01 * t + w for t, w in enumerate(noise_of(600, 5, 0.03).tolist())]

FLAT = noise_of(600, 5, 0.03).tolist()


@pytest.mark.parametrize(("patience", "training"), [(1, FALLING), (2, FALLING), (5, FALLING), (3, FLAT), (10, FLAT)])
@pytest.mark.parametrize("level", [-100.0, 0.0, 100.0])
def test_overfitting_is_rising_and_the_best_state_is_gone_back_to(patience, training, level):
    run = evaluations([level + 0.02 * (k - 20) ** 2 for k in range(60)], patience, training)
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
        reasons.append(evaluations(values, patience, noise_of(600, seed).tolist()).stop_reason)
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

    assert float(again._evaluate(result).mean()) == best[1]
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


def test_held_out_rows_have_no_parameters_of_their_own():
    model = local_model(20)
    for source in (Minibatches(data(), batch_size=5, plate="rows"), data()):
        with pytest.raises(ValueError, match="held-out rows have none"):
            fit(model, AutoNormal(model), source, steps=4, callbacks=[EarlyStopping(data(seed=2), every=2)])
