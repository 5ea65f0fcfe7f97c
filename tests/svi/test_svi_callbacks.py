"""Items 7 and 9: progress, three-line callbacks, schedules of torch."""

import functools
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from svi_cases import adam, data, normal_guide, normal_model

from pyro_zilognormal.svi import Objective, Progress, Schedule, SkipBadSteps, fit


def test_logging_to_a_file_takes_three_lines(tmp_path):
    with open(tmp_path / "log.csv", "w") as file:

        def log(run):
            print(run.step, run.loss / run.rows, sep=",", file=file)

        result = fit(normal_model, normal_guide, data(), steps=5, callbacks=[log])
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert [float(line.split(",")[1]) for line in lines] == pytest.approx(list(result.losses / 20))


def test_logging_to_tensorboard_takes_three_lines():
    class SummaryWriter:  # what torch.utils.tensorboard calls so
        def __init__(self):
            self.seen = []

        def add_scalar(self, tag, value, step):
            self.seen.append((tag, value, step))

    writer = SummaryWriter()

    def log(run):
        writer.add_scalar("loss", run.loss, run.step)

    result = fit(normal_model, normal_guide, data(), steps=3, callbacks=[log])
    assert writer.seen == [("loss", loss, step) for step, loss in enumerate(result.losses, 1)]


def test_annealing_the_kl_weight_takes_three_lines():
    weights = []

    def anneal(run):
        run.kl_weight = min(1.0, (run.step + 1) / 4)

    anneal.start = anneal  # before the first step too

    def loss(model, guide, x):
        weights.append(seen[0].kl_weight)
        return Trace_ELBO().differentiable_loss(model, guide, x)

    seen = []
    look = functools.partial(lambda run: None)
    look.start = seen.append
    fit(normal_model, normal_guide, data(), steps=6, loss=loss, callbacks=[look, anneal])
    assert weights == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_the_hooks_of_a_callback_are_called_in_their_turn():
    class Hooked:
        def __getattr__(self, name):
            if name not in ("start", "ready", "after", "finish", "end"):
                raise AttributeError(name)
            return lambda run: calls.append(name)

        def __call__(self, run):
            calls.append(run.step)

    calls = []
    fit(normal_model, normal_guide, data(), steps=2, callbacks=[Hooked()])
    assert calls == ["start", "ready", 1, "after", 2, "after", "finish", "end"]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 2.0])
def test_the_kl_weight_multiplies_the_latent_terms_alone(weight):
    x = data()
    objective = Objective(normal_model, normal_guide, Trace_ELBO(), rows=20)
    objective.setup(x)
    objective.kl_weight = weight
    pyro.set_rng_seed(1)
    found = objective(x).item()
    pyro.set_rng_seed(1)
    loc = dist.Normal(0.0, 1.0).rsample()
    kl = dist.Normal(0.0, 1.0).log_prob(loc) - dist.Normal(0.0, 10.0).log_prob(loc)
    expected = weight * kl - dist.Normal(loc, 1.0).log_prob(x).sum()
    assert found == pytest.approx(float(expected), rel=1e-5)
    pyro.set_rng_seed(1)
    assert objective.evaluate(x) == pytest.approx(float(expected + (1 - weight) * kl), rel=1e-5)


def test_an_attribute_of_the_model_may_be_annealed():
    class Model(torch.nn.Module):
        beta = 0.0

        def forward(self, x):
            seen.append(self.beta)
            normal_model(x)

    seen, model = [], Model()

    def anneal(run):
        model.beta = run.step

    fit(model, normal_guide, data(), steps=3, callbacks=[anneal])
    assert seen[-3:] == [0.0, 1, 2]


def test_a_callback_sees_the_run():
    def look(run):
        assert run.step == len(run.losses)
        assert run.params.keys() == {"q_loc", "q_scale"}
        assert run.optimizer.param_groups[0]["lr"] == 0.05
        assert "q_loc" not in pyro.get_param_store()
        seen.append(run.seconds)

    seen = []
    fit(normal_model, normal_guide, data(), steps=4, optimizer=adam, callbacks=[look])
    assert seen == sorted(seen)
    assert len(seen) == 4


def test_callbacks_do_not_change_the_fit():
    plain = fit(normal_model, normal_guide, data(), steps=10)
    watched = fit(normal_model, normal_guide, data(), steps=10, callbacks=[lambda run: run.params, Progress()])
    assert plain.losses.tolist() == watched.losses.tolist()


def rates_of(make, every, steps, bad=()):
    """The learning rates after each step, where the steps ``bad`` are skipped."""
    rates, count = [], []

    def loss(model, guide, x):
        count.append(1)
        total = Trace_ELBO().differentiable_loss(model, guide, x)
        return total * float("nan") if len(count) in bad else total

    follow = lambda run: rates.append(run.optimizer.param_groups[0]["lr"])  # noqa: E731
    callbacks = [Schedule(make, every=every), SkipBadSteps(), follow]
    sgd = functools.partial(torch.optim.SGD, lr=0.0008)
    result = fit(normal_model, normal_guide, data(), steps=steps, optimizer=sgd, loss=loss, callbacks=callbacks)
    return [round(0.0008 / rate) for rate in rates], result


HALVE = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)


@pytest.mark.parametrize(
    ("make", "every", "bad", "divided_by"),
    [
        (functools.partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5), 1, [], [1, 2, 2, 4, 4, 8, 8]),
        (HALVE, 3, [], [1, 1, 2, 2, 2, 4, 4]),
        (HALVE, 3, [3], [1, 1, 1, 2, 2, 2, 4]),  # the third step that counts is the fourth
        (HALVE, 3, [2, 4, 5], [1, 1, 1, 1, 1, 2, 2]),
        (HALVE, 1, [2], [2, 2, 4, 8, 16, 32, 64]),
    ],
)
def test_a_schedule_follows_the_steps_that_are_not_skipped(make, every, bad, divided_by):
    assert rates_of(make, every, 7, bad)[0] == divided_by


@pytest.mark.parametrize(("bad", "windows"), [([], [[0, 1, 2], [3, 4, 5]]), ([2, 3], [[0, 3, 4], [5, 6, 7]])])
def test_a_plateau_schedule_is_given_the_mean_loss(bad, windows):
    seen = []

    class Plateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics, epoch=None):
            seen.append(metrics)

    _, result = rates_of(Plateau, 3, 6 + len(bad), bad)
    assert seen == pytest.approx([result.losses[window].mean() for window in windows])


def test_progress_is_silent_where_there_is_no_terminal(capsys):
    fit(normal_model, normal_guide, data(), steps=5, callbacks=[Progress()])
    assert capsys.readouterr() == ("", "")


def test_progress_is_silent_on_a_terminal_when_off(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fit(normal_model, normal_guide, data(), steps=5, callbacks=[Progress(show=False)])
    assert capsys.readouterr() == ("", "")


def test_progress_shows_loss_speed_and_time_left_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    def slowly(run):
        import time

        time.sleep(0.03)

    result = fit(normal_model, normal_guide, data(), steps=20, callbacks=[slowly, Progress(window=1)])
    shown = capsys.readouterr().err
    assert "20/20" in shown
    assert "step/s" in shown
    assert "<00:0" in shown  # elapsed<left
    shown_losses = [
        float(part.split("observation ")[1].split("]")[0]) for part in shown.split("\r") if "observation" in part
    ]
    known = result.losses / 20
    assert shown_losses
    assert all(abs(known - loss).min() < 1e-3 * abs(loss) for loss in shown_losses)


def test_progress_ends_with_an_error(capsys):
    def fail(run):
        raise RuntimeError("stop")

    bar = Progress(show=True)
    with pytest.raises(RuntimeError, match="stop"):
        fit(normal_model, normal_guide, data(), steps=5, callbacks=[fail, bar])
    assert bar._bar.disable  # tqdm's mark of a closed bar


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Schedule(3), TypeError, "make is a int; needed a function of the optimiser"),
        (lambda: Schedule(print, every=0), ValueError, "every is 0"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
