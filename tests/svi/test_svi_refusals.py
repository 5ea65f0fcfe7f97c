"""Mistakes that used to pass in silence: a foreign optimiser, other settings on resuming, a damaged checkpoint."""

import functools
import signal

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.optim.lr_scheduler import ExponentialLR

from pyro_zilognormal.svi import (
    Checkpoint,
    CheckpointError,
    EarlyStopping,
    Minibatches,
    Schedule,
    fit,
    plot_loss,
    posterior_draws,
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


def test_held_out_losses_are_per_held_out_observation():
    torch.manual_seed(0)
    x = torch.randn(400)
    result = fit(model, AutoNormal(model), x[:300], steps=200, callbacks=[EarlyStopping(x[300:], every=50)])
    training, held_out = (line.get_ydata()[-1] for line in plot_loss(result).get_lines()[:3:2])
    assert abs(float(training) - float(held_out)) < 0.3
    assert result.held_out_rows == 100


def test_a_date_serves_as_seed_of_posterior_draws():
    result = fit(model, AutoNormal(model), X, steps=3)
    assert posterior_draws(result, X, draws=2, seed=20261122)["loc"].shape == (2,)
