"""Stopping that is relative, sign-safe and aware of noise, and says honestly why."""

import functools
import math

import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from svi_cases import adam, auto, data, delta_guide, local_model, normal_guide, normal_model

from pyro_zilognormal.svi import EarlyStopping, Minibatches, Run, fit

ROWS, EVERY = 1000, 10


def noise_of(steps, seed, size=1.0):
    return size * torch.randn(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Written(EarlyStopping):
    """Evaluations that are written beforehand, each of 8 particles that share their random numbers but for a rest."""

    def __init__(self, values, rest=0.01, **settings):
        super().__init__(data(), every=EVERY, **settings)
        self.values, self.rest, self.shared = values, rest, noise_of(8, 1, 5.0)

    def _evaluate(self, run):
        return self.values[run.step // EVERY - 1] + self.shared + noise_of(8, run.step, self.rest)


class Script:
    """A run whose losses are written beforehand, too."""

    def __init__(self, losses):
        self.losses, self.step, self.stop_reason, self.converged = [], 0, "", False
        self.held_out, self.best_step, self.rows = [], 0, ROWS
        self.script, self.module, self.source, self.plate, self.kwargs = losses, self, self, "rows", {}

    def snapshot(self):
        return {"step": torch.tensor(self.step)}

    def restore(self, values):
        self.restored = int(values["step"])

    def stop(self, reason, converged=False):
        self.stop_reason, self.converged = reason, converged

    def play(self, callback):
        callback.on_fit_start(self)
        for loss in self.script:
            self.losses.append(loss)
            self.step += 1
            callback.on_step_end(self)
            if self.stop_reason:
                break
        callback.on_fit_end(self)
        return self


def play(values, training=None, **settings):
    training = noise_of(EVERY * len(values), 5, 0.03).tolist() if training is None else training
    return Script(training).play(Written(values, **settings))


LEVELS = [-100_000.0, -100.0, 0.0, 100.0, 100_000.0]


@pytest.mark.parametrize("rest", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("level", LEVELS)
def test_a_plateau_is_found_whatever_sign_and_noise(level, rest):
    size = 10 * max(abs(level), ROWS)
    run = play([level + size * math.exp(-k / 5) for k in range(200)], rest=rest)
    assert (run.stop_reason, run.converged) == ("converged", True)
    # It did not stop before all but a thousandth of what there was to gain was gained, nor went on for ever.
    assert 35 * EVERY <= run.step < 80 * EVERY
    assert run.restored == run.best_step <= run.step


@pytest.mark.parametrize("level", LEVELS)
def test_a_loss_that_goes_on_falling_is_not_stopped(level):
    # By less than counts from one evaluation to the next, but not over all that it waits for.
    fall = 3e-5 * max(abs(level), ROWS)
    run = play([level - fall * k for k in range(100)])
    assert (run.stop_reason, run.restored) == ("", 100 * EVERY)


@pytest.mark.parametrize("sign", [1, -1])
def test_min_delta_is_relative_to_the_size_of_the_loss(sign):
    gentle = [sign * 1e5 - 5.0 * k for k in range(60)]  # 5e-5 of the loss each
    assert play(gentle, patience=2, min_delta=1e-3).stop_reason
    assert play(gentle, patience=2, min_delta=1e-5).stop_reason == ""


@pytest.mark.parametrize("rest", [1.0, 10.0])
def test_an_improvement_must_exceed_its_noise(rest):
    # By 1 each time, with a standard error of about rest / 2.
    run = play([-1.0 * k for k in range(60)], rest=rest, patience=4, min_delta=0.0)
    assert bool(run.stop_reason) == (rest == 10.0)


def test_a_wild_start_does_not_make_what_follows_look_flat():
    values = [1e3 + 5e4 * math.exp(-k / 20) + 1e9 * math.exp(-3 * k) for k in range(400)]
    run = play(values)
    assert run.converged
    assert values[run.step // EVERY - 1] < 1.01e3


def test_warm_up_is_not_looked_at():
    run = play([0.0] * 200, rest=0.0, patience=2, warm_up=700)
    assert (run.best_step, run.step) == (710, 730)
    assert run.held_out[0][0] == 710


FALLING = [-0.01 * t + w for t, w in enumerate(noise_of(600, 5, 0.03).tolist())]
FLAT = noise_of(600, 5, 0.03).tolist()


@pytest.mark.parametrize(("patience", "training"), [(1, FALLING), (2, FALLING), (5, FALLING), (4, FLAT), (10, FLAT)])
@pytest.mark.parametrize("level", [-100.0, 0.0, 100.0])
def test_overfitting_is_rising_and_the_best_state_is_gone_back_to(patience, training, level):
    run = play([level + 0.2 * (k - 20) ** 2 for k in range(60)], training, patience=patience)
    assert (run.stop_reason, run.converged) == ("rising", False)
    assert run.restored == run.best_step
    assert abs(run.best_step - 10 * 21) <= 10


@pytest.mark.parametrize("patience", [1, 2, 3, 5, 10])
def test_evaluations_that_jump_about_their_best_have_converged(patience):
    # Each differs from the others by far more than its particles do: the parameters jump, the loss does not rise.
    reasons = []
    for seed in range(20):
        jumps = noise_of(60, seed).abs().tolist()
        values = [1000 * math.exp(-k) + jumps[k] for k in range(60)]
        reasons.append(play(values, noise_of(600, seed).tolist(), patience=patience).stop_reason)
    assert reasons.count("converged") >= 17


def test_a_clear_rise_that_is_too_small_to_count_has_converged():
    run = play([5.0 + 1e-3 * k for k in range(40)], rest=0.0, patience=8)
    assert (run.stop_reason, run.step) == ("converged", 90)


def test_evaluations_that_are_not_finite_never_improve():
    run = play([math.nan] * 3 + [5.0, 4.0] + [math.nan] * 9, patience=4)
    assert (run.stop_reason, run.best_step, run.step) == ("held-out loss not finite", 50, 90)
    run = play([math.nan] * 9, patience=4)
    assert (run.stop_reason, run.best_step, run.step) == ("held-out loss not finite", 0, 40)


def test_running_out_of_steps_is_not_converging():
    result = fit(normal_model, normal_guide, data(), steps=10, callbacks=[EarlyStopping(data(), every=5)])
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
    ({"every": 0}, "every is 0; needed a whole number of at least 1"),
    ({"every": "3"}, "every is '3'"),
    ({"patience": 0}, "patience is 0"),
    ({"warm_up": -1}, "warm_up is -1"),
    ({"particles": 1}, "particles is 1; needed a whole number of at least 2"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EarlyStopping(data(), **arguments)


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


def test_a_fit_stops_on_held_out_data_and_keeps_the_best_state():
    held_out = data(50, seed=9)
    stop = EarlyStopping(held_out, every=20, patience=3)
    result = fit(normal_model, normal_guide, data(100), steps=5000, optimizer=adam, callbacks=[stop])
    assert result.stop_reason == "converged"
    assert result.converged
    best = min(result.held_out, key=lambda pair: pair[1])
    assert result.best_step == best[0]
    assert float(EarlyStopping(held_out)._evaluate(result).mean()) == best[1]
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
        with pytest.raises(ValueError, match="none held out"):
            fit(model, AutoNormal(model), source, steps=4, callbacks=[EarlyStopping(data(seed=2), every=2)])
