"""Item 4, the run: killed anywhere, a fit goes on bit for bit."""

import functools
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal
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
    same,
)
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from pyro_zilognormal.svi import (
    BatchStream,
    Checkpoint,
    EarlyStopping,
    Minibatches,
    Schedule,
    SkipBadSteps,
    fit,
    storage,
)

STEPS = 40


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
    # One run of the guide makes the parameters, one tells it from another guide; none of them is a step.
    assert len(calls) == before + 2 == 10 + 2 + 2


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
