"""Item 4, the run: killed anywhere, a fit goes on bit for bit."""

import functools
import os
import pathlib
import random
import signal
import subprocess
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import svi_resume_script
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal
from pyro.optim.clipped_adam import ClippedAdam
from svi_cases import Amortised, adam, auto, data, local_model, normal_guide, normal_model
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from pyro_zilognormal.svi import (
    BatchStream,
    Checkpoint,
    EarlyStopping,
    Minibatches,
    Run,
    Schedule,
    SkipBadSteps,
    fit,
    storage,
)
from pyro_zilognormal.svi.checkpoint import CheckpointError

STEPS = 40


class Killed(Exception):
    """Stands for the end of the process."""


def killer(step):
    def kill(run):
        if run.step == step:
            raise Killed

    return kill


def same(a, b):
    assert np.array_equal(a.losses, b.losses, equal_nan=True)
    assert a.held_out == b.held_out
    assert a.smoothed == b.smoothed
    assert a.params.keys() == b.params.keys()
    for name in a.params:
        assert torch.equal(a.params[name], b.params[name]), name
    for name in a.values:
        assert torch.equal(a.values[name], b.values[name]), name
    assert (a.stop_reason, a.converged, a.best_step, a.skipped) == (
        b.stop_reason,
        b.converged,
        b.best_step,
        b.skipped,
    )


def check_resume(path, run, kills, every=3):
    """Compare an uninterrupted run with one that is killed at each of ``kills`` and started again."""
    whole = run([])
    for kill in sorted(kills):
        with pytest.raises(Killed):
            run([killer(kill), Checkpoint(path, steps=every)])
    resumed = run([Checkpoint(path, steps=every)])
    same(whole, resumed)


def random_steps(name, count=2):
    return random.Random(name).sample(range(1, STEPS), count)


OPTIMIZERS = {
    "Adam": functools.partial(torch.optim.Adam, lr=0.05),
    "AdamW": functools.partial(torch.optim.AdamW, lr=0.05),
    "Adamax": functools.partial(torch.optim.Adamax, lr=0.05),
    "NAdam": functools.partial(torch.optim.NAdam, lr=0.05),
    "RAdam": functools.partial(torch.optim.RAdam, lr=0.05),
    "Adagrad": functools.partial(torch.optim.Adagrad, lr=0.05),
    "Adadelta": functools.partial(torch.optim.Adadelta, lr=0.5),
    "RMSprop": functools.partial(torch.optim.RMSprop, lr=0.01, momentum=0.5),
    "Rprop": functools.partial(torch.optim.Rprop, lr=0.01),
    "ASGD": functools.partial(torch.optim.ASGD, lr=0.001),
    "SGD": functools.partial(torch.optim.SGD, lr=0.001, momentum=0.9, nesterov=True),
    "ClippedAdam": functools.partial(ClippedAdam, lr=0.05, lrd=0.99),
}
SCHEDULES = {
    "ExponentialLR": functools.partial(lr_scheduler.ExponentialLR, gamma=0.97),
    "StepLR": functools.partial(lr_scheduler.StepLR, step_size=7, gamma=0.5),
    "MultiStepLR": functools.partial(lr_scheduler.MultiStepLR, milestones=[5, 20, 20]),
    "CosineAnnealingLR": functools.partial(lr_scheduler.CosineAnnealingLR, T_max=STEPS),
    "CosineAnnealingWarmRestarts": functools.partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=6),
    "OneCycleLR": functools.partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=STEPS + 1),
    "CyclicLR": functools.partial(lr_scheduler.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=6),
    "LinearLR": functools.partial(lr_scheduler.LinearLR, total_iters=20),
    "PolynomialLR": functools.partial(lr_scheduler.PolynomialLR, total_iters=30, power=2.0),
    "LambdaLR": functools.partial(lr_scheduler.LambdaLR, lr_lambda=lambda step: 1 / (1 + step)),
    "ReduceLROnPlateau": functools.partial(lr_scheduler.ReduceLROnPlateau, patience=1),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt,
        [lr_scheduler.ConstantLR(opt, 0.5, 8), lr_scheduler.ExponentialLR(opt, 0.9)],
        milestones=[8],
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_resumes_bit_for_bit(name, tmp_path):
    def run(callbacks):
        source = Minibatches(data(23), batch_size=5, plate="rows")
        return fit(normal_model, auto(), source, steps=STEPS, optimizer=OPTIMIZERS[name], callbacks=callbacks)

    check_resume(tmp_path / "a.ckpt", run, random_steps(name))


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_schedule_resumes_bit_for_bit(name, tmp_path):
    def run(callbacks):
        every = 4 if name == "ReduceLROnPlateau" else 1
        schedule = Schedule(SCHEDULES[name], every=every)
        rates.append([])
        follow = [schedule, lambda run: rates[-1].append(run.optimizer.param_groups[0]["lr"])]
        return fit(normal_model, normal_guide, data(), steps=STEPS, optimizer=adam, callbacks=follow + callbacks)

    rates = []
    check_resume(tmp_path / "a.ckpt", run, random_steps(name))
    assert rates[0][-len(rates[-1]) :] == rates[-1]
    assert len(set(rates[0])) > 1


def noisy(x):
    """Draws from every generator that is kept, to some effect."""
    loc = pyro.param("q_loc", torch.tensor(0.0))
    shift = torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002 - the global one is kept
    pyro.sample("loc", dist.Normal(loc + 0.1 * shift, 0.1))


class Normed(Amortised):
    """With state that is not a parameter: running means and dropout."""

    def __init__(self, rows):
        super().__init__(rows)
        layers = torch.nn.Linear(1, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 2)
        self.net = torch.nn.Sequential(*layers)


def pair(kind):
    torch.manual_seed(11)
    if kind == "module":
        module = Normed(23)
        return module.model, module.guide
    if kind == "rows":
        return local_model(23), AutoNormal(local_model(23))
    if kind == "low rank":
        return normal_model, AutoLowRankMultivariateNormal(normal_model, rank=1)
    return normal_model, noisy


DATA = {
    "full": lambda: data(23),
    "batches": lambda: Minibatches(data(23), batch_size=5, plate="rows"),
    "list": lambda: BatchStream(list(data(23).split(5)), plate="rows"),
    "loader": lambda: BatchStream(DataLoader(data(23), batch_size=5, shuffle=True), plate="rows"),
}


# A stream does not say which rows a batch holds, so a guide with parameters of rows cannot read one.
KINDS = [
    (k, s) for k in ("module", "rows", "low rank", "noisy") for s in DATA if k != "rows" or s in ("full", "batches")
]


@pytest.mark.parametrize(("kind", "source"), KINDS)
def test_each_kind_of_model_and_data_resumes_bit_for_bit(kind, source, tmp_path):
    def run(callbacks):
        return fit(*pair(kind), DATA[source](), steps=STEPS, optimizer=adam, callbacks=callbacks)

    check_resume(tmp_path / "a.ckpt", run, random_steps(kind + source, 3))


COUNTING = [
    functools.partial(TraceEnum_ELBO, strict_enumeration_warning=False),
    functools.partial(Trace_ELBO, 2, vectorize_particles=True),
]


@pytest.mark.parametrize("loss", COUNTING)
def test_a_loss_that_counts_plates_at_its_first_call_resumes_bit_for_bit(loss, tmp_path):
    def run(callbacks):
        return fit(normal_model, normal_guide, data(), steps=STEPS, loss=loss(), callbacks=callbacks)

    check_resume(tmp_path / "a.ckpt", run, [7, 20])


def test_stopping_and_skipping_resume_bit_for_bit(tmp_path):
    def sometimes(model, guide, x):
        loss = pyro.infer.Trace_ELBO().differentiable_loss(model, guide, x)
        return loss * float("nan") if loss.requires_grad and torch.rand(()) < 0.2 else loss

    def run(callbacks):
        stop = EarlyStopping(data(9, seed=5), every=5, patience=3, noise=0.0)

        def anneal(run):
            run.kl_weight = min(1.0, run.step / 30)

        first = [SkipBadSteps(), stop, anneal]
        return fit(
            normal_model,
            normal_guide,
            data(),
            steps=400,
            optimizer=adam,
            loss=sometimes,
            callbacks=first + callbacks,
        )

    whole = run([])
    assert whole.converged
    assert whole.skipped
    check_resume(tmp_path / "a.ckpt", run, [1, 7, whole.steps - 1])


def test_a_longer_run_goes_on_bit_for_bit(tmp_path):
    def run(steps, callbacks):
        stop = EarlyStopping(every=5, patience=100)
        return fit(normal_model, normal_guide, data(), steps=steps, optimizer=adam, callbacks=[stop, *callbacks])

    run(20, [Checkpoint(tmp_path / "a.ckpt")])
    same(run(50, []), run(50, [Checkpoint(tmp_path / "a.ckpt")]))


def test_a_finished_run_is_not_trained_again(tmp_path):
    calls = []

    def counted(x):
        calls.append(1)
        normal_guide(x)

    def run():
        save = Checkpoint(tmp_path / "a.ckpt")
        return fit(normal_model, counted, data(), steps=10, optimizer=adam, callbacks=[save])

    first = run()
    before = len(calls)
    same(first, run())
    # One run of the guide makes the parameters; none of them is a step.
    assert len(calls) == before + 1


def test_loading_takes_no_training_step(tmp_path):
    path = tmp_path / "a.ckpt"
    with pytest.raises(Killed):
        fit(normal_model, normal_guide, data(), steps=9, callbacks=[Checkpoint(path, steps=1), killer(5)])
    saved = storage.read(path)["run"]["values"]
    seen = {}

    class Look:
        def ready(self, run):
            seen.update(run.objective.snapshot(), step=run.step)
            raise Killed

        def __call__(self, run):
            raise AssertionError("a step was taken")

    with pytest.raises(Killed):
        fit(normal_model, normal_guide, data(), steps=9, callbacks=[Look(), Checkpoint(path, steps=1)])
    assert seen.pop("step") == 4
    assert seen.keys() == saved.keys()
    assert all(torch.equal(seen[k], saved[k]) for k in saved)


def start(path, steps=30, pause=0.2):
    here = pathlib.Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])])}
    command = [sys.executable, str(here / "svi_resume_script.py"), str(path), str(steps), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_process_resumes_bit_for_bit(number, tmp_path):
    process = start(tmp_path / "a.ckpt")
    next(line for line in process.stdout if line == "13\n")
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert "done" not in out
    assert process.returncode == -number, error
    step = storage.read(tmp_path / "a.ckpt")["run"]["step"]
    # A signal that can be caught loses nothing; SIGKILL at most the last interval of 5 steps.
    assert step == 10 if number == signal.SIGKILL else step >= 13
    same(svi_resume_script.run([]), svi_resume_script.run([Checkpoint(tmp_path / "a.ckpt", steps=5)]))


def test_ctrl_c_saves_and_then_interrupts(tmp_path):
    path, before = tmp_path / "a.ckpt", signal.getsignal(signal.SIGINT)

    def interrupt(run):
        if run.step == 6:
            os.kill(os.getpid(), signal.SIGINT)

    def run(*callbacks):
        return fit(normal_model, normal_guide, data(), steps=20, optimizer=adam, callbacks=callbacks)

    with pytest.raises(KeyboardInterrupt):
        run(interrupt, Checkpoint(path, steps=1000))
    assert storage.read(path)["run"]["step"] == 6
    assert signal.getsignal(signal.SIGINT) is before
    same(run(), run(Checkpoint(path)))


def test_sigterm_obeys_a_handler_of_the_caller(tmp_path):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        kill = lambda run: os.kill(os.getpid(), signal.SIGTERM) if run.step == 4 else None  # noqa: E731
        save = Checkpoint(tmp_path / "a.ckpt")
        result = fit(normal_model, normal_guide, data(), steps=20, callbacks=[kill, save])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert (result.stop_reason, result.steps) == ("interrupted", 4)


def test_saving_by_seconds(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Checkpoint, "save", lambda self, run: saved.append(run.step))
    save = Checkpoint(tmp_path / "a.ckpt", seconds=1e-9)
    save._saved_at = 0.0
    fit(normal_model, normal_guide, data(), steps=3, callbacks=[save])
    assert saved == [1, 2, 3, 3]
    saved.clear()
    fit(normal_model, normal_guide, data(), steps=3, callbacks=[Checkpoint(tmp_path / "b.ckpt", seconds=None)])
    assert saved == [3]


def test_a_damaged_file_falls_back_to_the_previous_one(tmp_path):
    path = tmp_path / "a.ckpt"

    def run(*callbacks):
        return fit(normal_model, normal_guide, data(), steps=20, optimizer=adam, callbacks=callbacks)

    whole = run()
    for damage in ("flip", "half", "gone"):
        with pytest.raises(Killed):
            run(Checkpoint(path, steps=4, resume=False), killer(13))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content if damage == "flip" else content[: len(content) // 2])
        if damage == "gone":  # killed between the two renames
            path.unlink()
            same(whole, run(Checkpoint(path)))
        else:
            with pytest.warns(UserWarning, match="checkpoint damaged, using the one before"):
                same(whole, run(Checkpoint(path)))


def test_two_damaged_files_are_an_error(tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"SVI-CHECKPOINT-1 and nothing")
    path.with_name("a.ckpt.previous").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint can be read.*Delete the files"):
        fit(normal_model, normal_guide, data(), steps=2, callbacks=[Checkpoint(path)])


def wider(x):
    loc = pyro.sample("loc", dist.StudentT(3.0, 0.0, 10.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def narrower(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


BASE = {"model": normal_model, "guide": normal_guide, "data": data(), "steps": 4, "optimizer": adam}
OTHERS = [
    ({"data": data(seed=1)}, r"data argument 0: tensor \(20,\) torch.float32 \w+ in the checkpoint, tensor"),
    ({"data": data(21)}, r"tensor \(21,\)"),
    ({"data": data().double()}, "torch.float64"),
    ({"data": Minibatches(data(), batch_size=3, plate="rows")}, "Minibatches of 20 rows in 7 batches .* now"),
    ({"model": wider}, r"model site 'loc': latent Normal\(.* in the checkpoint, latent StudentT"),
    ({"guide": auto()}, "parameter 'q_loc': .*Real.* in the checkpoint, absent now"),
    ({"model": narrower}, r"model site 'loc': .*scale=10\) .* in the checkpoint, .*scale=5\)"),
    ({"seed": 5}, "seed: 0 in the checkpoint, 5 now"),
    (
        {"optimizer": functools.partial(adam, lr=0.1)},
        "optimizer: .*'lr': 0.05.* in the checkpoint, .*'lr': 0.1",
    ),
    ({"optimizer": functools.partial(torch.optim.SGD, lr=0.05)}, "optimizer: Adam .* now"),
    ({"loss": pyro.infer.Trace_ELBO(num_particles=3)}, "loss: .*'num_particles': 1.*'num_particles': 3"),
    ({"more": [EarlyStopping()]}, "callback 0 with a state: absent in the checkpoint, EarlyStopping"),
]


def fit_with(path, change):
    arguments = {**BASE, **change}
    more = arguments.pop("more", [])
    model, guide, x = (arguments.pop(k) for k in ("model", "guide", "data"))
    return fit(model, guide, x, callbacks=[*more, Checkpoint(path)], **arguments)


@pytest.mark.parametrize(("change", "message"), OTHERS)
def test_a_checkpoint_of_another_fit_is_refused_with_the_difference(change, message, tmp_path):
    path = tmp_path / "a.ckpt"
    fit_with(path, {})
    with pytest.raises(CheckpointError, match=message):
        fit_with(path, change)
    assert fit_with(path, {}).steps == 4


def test_other_held_out_data_are_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    fit_with(path, {"more": [EarlyStopping(data(seed=3))]})
    with pytest.raises(CheckpointError, match=r"callback 0 with a state: EarlyStopping .*held_out"):
        fit_with(path, {"more": [EarlyStopping(data(seed=4))]})


def test_resume_false_starts_anew(tmp_path):
    path = tmp_path / "a.ckpt"
    fit_with(path, {})
    save = Checkpoint(path, resume=False)
    again = fit(normal_model, normal_guide, data(seed=1), steps=6, callbacks=[save])
    assert len(again.losses) == 6


def test_a_file_with_gpu_state_opens_without_a_gpu(tmp_path):
    path = tmp_path / "a.ckpt"
    with pytest.raises(Killed):
        fit(normal_model, normal_guide, data(), steps=9, callbacks=[Checkpoint(path, steps=4), killer(5)])
    content = storage.read(path)
    content["run"]["random"]["cuda"] = [torch.zeros(16, dtype=torch.uint8)] * 2
    assert all(v.device.type == "cpu" for v in content["run"]["values"].values())
    storage.write(path, content)
    same(
        fit(normal_model, normal_guide, data(), steps=9),
        fit(normal_model, normal_guide, data(), steps=9, callbacks=[Checkpoint(path)]),
    )


@pytest.mark.parametrize("change", ["no step", "shape", "optimizer", "text"])
def test_a_hostile_state_with_a_right_checksum_is_refused(change, tmp_path):
    path = tmp_path / "a.ckpt"
    fit_with(path, {})
    content = storage.read(path)
    state = content["run"]
    if change == "no step":
        del state["step"]
    elif change == "shape":
        state["values"]["q_loc"] = torch.zeros(1)
    elif change == "optimizer":
        state["optimizer"] = {"state": {}, "param_groups": []}
    else:
        state["values"] = "text"
    storage.write(path, content)
    with pytest.raises(CheckpointError, match="does not hold the state of such a fit"):
        fit_with(path, {})


@pytest.mark.parametrize("format_number", [0, 2, "1"])
def test_another_format_is_refused(format_number, tmp_path):
    path = tmp_path / "a.ckpt"
    storage.write(path, {"format": format_number, "fingerprint": {}, "run": {}})
    with pytest.raises(CheckpointError, match="not a checkpoint of format 1"):
        fit_with(path, {})


def test_a_signal_during_the_last_save_is_not_lost(tmp_path, monkeypatch):
    save = Checkpoint.save

    def interrupted(self, run):
        save(self, run)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Checkpoint, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_with(tmp_path / "a.ckpt", {"steps": 3})
    assert storage.read(tmp_path / "a.ckpt")["run"]["step"] == 3


def test_max_seconds_begin_anew_in_a_resumed_fit(tmp_path):
    def run():
        save = Checkpoint(tmp_path / "a.ckpt")
        return fit(normal_model, normal_guide, data(), steps=10**6, max_seconds=0.2, callbacks=[save])

    first, second = run(), run()
    assert second.steps > first.steps + 1
    assert second.seconds > first.seconds


def test_a_late_parameter_is_refused_when_it_would_be_lost(tmp_path):
    def guide(x):
        normal_guide(x)
        seen.append(1)
        if len(seen) > 3:
            pyro.param("late", torch.tensor(3.0))

    seen = []
    with pytest.raises(RuntimeError, match=r"parameters \['late'\] first appeared after the first run"):
        fit(normal_model, guide, data(), steps=9, callbacks=[Checkpoint(tmp_path / "a.ckpt", steps=1)])


def test_a_callback_with_odd_state_is_named(tmp_path):
    class Odd:
        def __call__(self, run: Run):
            pass

        def state_dict(self):
            return {"f": print}

        def load_state_dict(self, state):
            pass

    with pytest.raises(TypeError, match=r"callbacks'\]\[0\]\['f'\] is a builtin_function"):
        fit(normal_model, normal_guide, data(), steps=1, callbacks=[Odd(), Checkpoint(tmp_path / "a.ckpt")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "missing/a.ckpt"}, "its folder does not exist"),
        ({"path": "a.ckpt", "steps": 0}, "steps is 0; needed a positive number"),
        ({"path": "a.ckpt", "seconds": -1.0}, "seconds is -1.0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Checkpoint(**arguments)
