"""Mistakes that used to pass in silence: a foreign optimiser, other settings on resuming, a damaged checkpoint."""

import functools
import math
import signal

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader

from pyro_zilognormal.svi import (
    BatchStream,
    Checkpoint,
    CheckpointError,
    EarlyStopping,
    Minibatches,
    Schedule,
    fit,
)

X = torch.linspace(-1.0, 2.0, 30)


def model(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def test_an_optimiser_of_other_tensors_is_refused():
    other = torch.zeros(1, requires_grad=True)
    with pytest.raises(TypeError, match="needed a function of the parameters"):
        fit(model, AutoNormal(model), X, steps=2, optimizer=torch.optim.Adam([other]))
    with pytest.raises(ValueError, match="not exactly the 2 parameters"):
        fit(model, AutoNormal(model), X, steps=2, optimizer=lambda p: torch.optim.Adam([other]))
    with pytest.raises(ValueError, match="holds 1 tensors"):
        fit(model, AutoNormal(model), X, steps=2, optimizer=lambda p: torch.optim.Adam(list(p)[:1]))


def batches(**other):
    return Minibatches(X, **{"batch_size": 10, "plate": "rows", **other})


def decay(gamma=0.9, every=1):
    return Schedule(functools.partial(ExponentialLR, gamma=gamma), every=every)


@pytest.mark.parametrize(
    ("data", "schedule", "lr", "named"),
    [
        (batches(batch_size=11), decay(), 0.1, "'batch_size': 11"),
        (batches(shuffle=False), decay(), 0.1, "'shuffle': False"),
        (batches(), decay(gamma=0.5), 0.1, "0.5"),
        (batches(), decay(every=2), 0.1, "'every': 2"),
        (batches(), decay(), 0.2, "0.2"),
    ],
)
def test_other_settings_are_refused_on_resuming(tmp_path, data, schedule, lr, named):
    def run(steps, data, schedule, lr):
        adam = functools.partial(torch.optim.Adam, lr=lr)
        callbacks = [schedule, Checkpoint(tmp_path / "c")]
        return fit(model, AutoNormal(model), data, steps=steps, optimizer=adam, callbacks=callbacks)

    run(4, batches(), decay(), 0.1)
    with pytest.raises(CheckpointError, match="checkpoint of another fit") as caught:
        run(8, data, schedule, lr)
    assert named in str(caught.value)
    assert run(8, batches(), decay(), 0.1).steps == 8


def test_a_damaged_checkpoint_never_pushes_out_the_good_one_before_it(tmp_path):
    path = tmp_path / "c"
    fit(model, AutoNormal(model), X, steps=6, callbacks=[Checkpoint(path, steps=3)])
    good = path.with_name("c.previous").read_bytes()
    path.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="using the one before"):
        fit(model, AutoNormal(model), X, steps=7, callbacks=[Checkpoint(path, steps=100)])
    assert path.with_name("c.previous").read_bytes() == good
    assert path.read_bytes() != b"damaged"


def test_a_whole_new_file_is_found_when_a_kill_came_between_the_renames(tmp_path):
    path = tmp_path / "c"
    fit(model, AutoNormal(model), X, steps=5, callbacks=[Checkpoint(path)])
    path.rename(path.with_name("c.new"))
    path.with_name("c.previous").unlink(missing_ok=True)
    assert fit(model, AutoNormal(model), X, steps=5, callbacks=[Checkpoint(path)]).steps == 5


def test_an_ignored_signal_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:

        def interrupt(run):
            signal.raise_signal(signal.SIGINT)

        result = fit(model, AutoNormal(model), X, steps=4, callbacks=[interrupt, Checkpoint(tmp_path / "c")])
        assert (result.steps, result.stop_reason) == (4, "steps")
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": torch.nn.Linear}, "model holds the class Linear; needed an instance"),
        ({"guide": AutoNormal}, "guide holds the class AutoNormal"),
        ({"loss": Trace_ELBO}, r"loss holds the class Trace_ELBO; needed an instance, as Trace_ELBO\(...\) is"),
        ({"callbacks": [EarlyStopping]}, "callbacks holds the class EarlyStopping"),
    ],
)
def test_a_class_in_the_place_of_an_instance_is_refused(change, message):
    given = {"model": model, "guide": AutoNormal(model), **change}
    with pytest.raises(TypeError, match=message):
        fit(given.pop("model"), given.pop("guide"), X, steps=1, **given)


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf, "1", None])
def test_what_is_no_kl_weight_is_refused(weight):
    def anneal(run):
        run.kl_weight = weight

    with pytest.raises(ValueError, match=r"kl_weight is .*; needed a finite number of at least 0"):
        fit(model, AutoNormal(model), X, steps=2, callbacks=[anneal])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EarlyStopping(every=2.5), "every is 2.5; needed a whole number"),
        (lambda: EarlyStopping(patience=1.5), "patience is 1.5; needed a whole number"),
        (lambda: EarlyStopping(seed=0.5), "seed is 0.5; needed a whole number"),
        (lambda: Schedule(ExponentialLR, every=1.5), "every is 1.5; needed a whole number"),
        (lambda: Checkpoint("a", steps=1.5), "steps is 1.5; needed a whole number of at least 1"),
    ],
)
def test_parts_of_a_step_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def local(x):
    with pyro.plate("rows", len(X), subsample_size=len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize(
    ("guide", "message"),
    [(AutoNormal, "nothing says which rows these are"), (AutoDiagonalNormal, "nor on a BatchStream")],
)
def test_one_shuffled_batch_of_all_rows_has_no_parameters_of_rows(guide, message):
    stream = BatchStream(DataLoader(X, batch_size=len(X), shuffle=True), plate="rows")
    with pytest.raises(ValueError, match=message):
        fit(local, guide(local), stream, steps=3)
    whole = Minibatches(X, batch_size=len(X), plate="rows")
    assert fit(local, guide(local), whole, steps=3).steps == 3


def test_names_with_a_dot_and_a_slash_are_two_parameters():
    def guide(x):
        pyro.param("a.b", torch.tensor(0.0))
        pyro.sample("loc", dist.Delta(pyro.param("a/b", torch.tensor(1.0))))

    objective = fit(model, guide, X, steps=1).objective
    assert len(objective.state_dict()) == len(list(objective.parameters())) == 2


def weighted(weights):
    def model(x):
        pyro.sample("w", dist.Normal(torch.tensor(weights), 1.0).to_event(1))

    return model


def test_constants_in_another_order_are_another_model(tmp_path):
    def guide(x):
        pyro.sample("w", dist.Normal(pyro.param("m", torch.zeros(2)), 1.0).to_event(1))

    def run(weights, steps=2):
        fit(weighted(weights), guide, X, steps=steps, callbacks=[Checkpoint(tmp_path / "c")])

    run([1.0, 2.0])
    run([1.0, 2.0], 3)
    with pytest.raises(CheckpointError, match="model site 'w'"):
        run([2.0, 1.0])
