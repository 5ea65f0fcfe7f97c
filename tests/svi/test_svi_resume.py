"""Killed anywhere, a fit goes on bit for bit: each optimiser, schedule, kind of model, data and loss."""

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
import svi_kill_script
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal, AutoNormalMessenger
from pyro.optim.clipped_adam import ClippedAdam
from svi_cases import (
    Amortised,
    Killed,
    adam,
    auto,
    check_resume,
    data,
    killer,
    local_model,
    normal_guide,
    normal_model,
    plain,
    same,
)
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from pyro_zilognormal.svi import (
    BatchStream,
    Callback,
    Checkpoint,
    EarlyStopping,
    Minibatches,
    Schedule,
    fit,
)

STEPS = 40

# An optimiser of torch or Pyro with its options, and a schedule with its own; each is in one pair at least.
PAIRS = [
    ("Adam", {"lr": 0.05}, "CyclicLR", {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 6}),
    ("AdamW", {"lr": 0.05}, "StepLR", {"step_size": 7, "gamma": 0.5}),
    ("Adamax", {"lr": 0.05}, "MultiStepLR", {"milestones": [5, 20, 20]}),
    ("NAdam", {"lr": 0.05}, "CosineAnnealingLR", {"T_max": STEPS}),
    ("RAdam", {"lr": 0.05}, "CosineAnnealingWarmRestarts", {"T_0": 6}),
    ("Adagrad", {"lr": 0.05}, "LinearLR", {"total_iters": 20}),
    ("Adadelta", {"lr": 0.5}, "PolynomialLR", {"total_iters": 30, "power": 2.0}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.5}, "LambdaLR", {"lr_lambda": lambda step: 1 / (1 + step)}),
    ("Rprop", {"lr": 0.01}, "ExponentialLR", {"gamma": 0.97}),
    ("ASGD", {"lr": 0.001}, "ConstantLR", {"total_iters": 10}),
    ("SGD", {"lr": 0.001, "momentum": 0.9}, "OneCycleLR", {"max_lr": 0.1, "total_steps": STEPS + 1}),
    ("ClippedAdam", {"lr": 0.05, "lrd": 0.99}, "SequentialLR", {"milestones": [8]}),
]


def schedule(opt, name, options):
    if name == "SequentialLR":
        parts = [lr_scheduler.ConstantLR(opt, 0.5, 8), lr_scheduler.ExponentialLR(opt, 0.9)]
        return lr_scheduler.SequentialLR(opt, parts, **options)
    return getattr(lr_scheduler, name)(opt, **options)


def kills(name, count=2):
    return random.Random(name).sample(range(1, STEPS), count)


@pytest.mark.parametrize("pair", [*PAIRS, "pyro.optim"], ids=lambda pair: pair[0] if isinstance(pair, tuple) else pair)
def test_each_optimizer_and_schedule_resumes_bit_for_bit(pair, tmp_path):
    def run(callbacks):
        source = Minibatches(data(23), batch_size=5, plate="rows")
        rates.append([])
        follow = [lambda run: rates[-1].append(run.optimizer.param_groups[0]["lr"])]
        if pair == "pyro.optim":
            optimizer = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99})
        else:
            name, options, *scheduled = pair
            optimizer = functools.partial(
                ClippedAdam if name == "ClippedAdam" else getattr(torch.optim, name), **options
            )
            follow = [Schedule(lambda opt: schedule(opt, *scheduled)), *follow]
        return fit(normal_model, auto(), source, steps=STEPS, optimizer=optimizer, callbacks=[*follow, *callbacks])

    rates = []
    check_resume(tmp_path / "a.ckpt", run, kills(str(pair)[:20]))
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


class Augmented(torch.utils.data.Dataset):
    """Rows with noise that is drawn whenever they are read."""

    def __len__(self):
        return 23

    def __getitem__(self, i):
        return data(23)[i] + 0.1 * torch.randn(())


def pair(kind):
    torch.manual_seed(11)
    if kind == "module":
        module = Normed(23)
        return module.model, module.guide
    return {
        "rows": (local_model(23), AutoNormal(local_model(23))),
        "low rank": (normal_model, AutoLowRankMultivariateNormal(normal_model, rank=1)),
        "messenger": (normal_model, AutoNormalMessenger(normal_model)),
        "plain": (normal_model, normal_guide),
        "noisy": (normal_model, noisy),
    }[kind]


def loader(dataset, **settings):
    return BatchStream(DataLoader(dataset, batch_size=5, shuffle=True, **settings), plate="rows")


DATA = {
    "full": lambda: data(23),
    "batches": lambda: Minibatches(data(23), batch_size=5, plate="rows"),
    "list": lambda: BatchStream(list(data(23).split(5)), plate="rows"),
    "loader": lambda: loader(data(23)),
    "own generator": lambda: loader(data(23), generator=torch.Generator().manual_seed(5)),
    "augmented": lambda: loader(Augmented()),
}

COUNTING = [  # plates, at their first call
    functools.partial(TraceEnum_ELBO, strict_enumeration_warning=False),
    functools.partial(Trace_ELBO, 2, vectorize_particles=True),
]

KINDS = [
    *(("module", s, Trace_ELBO) for s in DATA),
    *(("noisy", s, Trace_ELBO) for s in DATA),
    *(("rows", s, Trace_ELBO) for s in ("full", "batches")),  # a stream does not say which rows a batch holds
    *((k, "batches", Trace_ELBO) for k in ("low rank", "messenger")),
    *(("plain", "full", loss) for loss in COUNTING),
]


@pytest.mark.parametrize(("kind", "source", "loss"), KINDS)
def test_each_kind_of_model_data_and_loss_resumes_bit_for_bit(kind, source, loss, tmp_path):
    def run(callbacks):
        return fit(*pair(kind), DATA[source](), steps=STEPS, optimizer=adam, loss=loss(), callbacks=callbacks)

    check_resume(tmp_path / "a.ckpt", run, kills(kind + source))


def test_stopping_and_annealing_resume_bit_for_bit(tmp_path):
    def run(callbacks):
        def anneal(run):
            run.kl_weight = np.minimum(1.0, run.step / 30)

        slow = functools.partial(torch.optim.Adam, lr=0.02)
        stop = EarlyStopping(data(9, seed=5), every=10, patience=3)
        return plain(stop, anneal, *callbacks, steps=1000, optimizer=slow)

    whole = run([])
    assert whole.stop_reason == "converged"
    check_resume(tmp_path / "a.ckpt", run, [1, 7, whole.steps - 1])


@pytest.mark.parametrize("steps", [20, 50])
def test_a_finished_run_goes_on_only_if_more_steps_are_asked_for(steps, tmp_path):
    def run(steps, *callbacks):
        return plain(EarlyStopping(data(9), every=5, patience=100), *callbacks, steps=steps)

    taken = []
    run(20, Checkpoint(tmp_path / "a.ckpt"))
    same(run(steps), run(steps, lambda run: taken.append(run.step), Checkpoint(tmp_path / "a.ckpt")))
    assert taken == list(range(21, steps + 1))


def test_the_state_of_a_callback_is_kept_whatever_stands_around_it(tmp_path):
    class Count(Callback):
        steps = 0

        def on_step_end(self, run):
            self.steps += 1

        def state_dict(self):
            return {"steps": self.steps}

        def load_state_dict(self, state):
            self.steps = state["steps"]

    path = tmp_path / "a.ckpt"
    with pytest.raises(Killed):
        plain(Checkpoint(path, 4), Count(), killer(9))
    count = Count()
    plain(count, Checkpoint(path), lambda run: None)
    assert count.steps == 20


@pytest.mark.parametrize(
    ("name", "number"), [("Adam", signal.SIGKILL), ("SGD", signal.SIGKILL), ("Adam", signal.SIGTERM)]
)
def test_a_killed_process_resumes_bit_for_bit(name, number, tmp_path):
    here, path = pathlib.Path(__file__).parent, tmp_path / "a.ckpt"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])])}
    command = [sys.executable, str(here / "svi_kill_script.py"), name, str(path), "0.1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    next(line for line in process.stdout if line == "13\n")
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert "done" not in out
    assert process.returncode == -number, error
    step = Checkpoint.read(path)["step"]
    # A signal that can be caught loses nothing; SIGKILL at most the last interval of 5 steps.
    assert step >= (10 if number == signal.SIGKILL else 13)
    same(svi_kill_script.run(name, []), svi_kill_script.run(name, [Checkpoint(path, steps=5)]))
