"""The loop: every fit has its own parameters, leaves the process as it was, and refuses bad arguments by name."""

import ast
import functools
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO
from svi_cases import adam, auto, data, normal_guide, normal_model
from torch.distributions import constraints

from pyro_zilognormal.svi import Callback, EarlyStopping, Progress, Schedule, fit


def fitted(x=None, guide=normal_guide, **settings):
    settings = {"steps": 20, "optimizer": adam, **settings}
    return fit(normal_model, guide, data() if x is None else x, **settings)


class Net:
    """A guide that registers a network by pyro.module."""

    def __init__(self):
        torch.manual_seed(0)
        self.net = torch.nn.Linear(1, 1)

    def guide(self, x):
        pyro.module("net", self.net)
        pyro.sample("loc", dist.Normal(self.net(x[:1, None]).sum(), 1.0))


def same(a, b):
    return a.params.keys() == b.params.keys() and all(torch.equal(a.params[k], b.params[k]) for k in a.params)


STILL = functools.partial(torch.optim.SGD, lr=0.0)


def test_a_value_set_by_pyro_param_is_the_start_and_is_left_as_it_was():
    def guide(x):
        loc = pyro.param("q_loc")  # as of a start that is set beforehand alone
        scale = pyro.param("q_scale", lambda: torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("loc", dist.Normal(loc, scale))

    store = pyro.get_param_store()
    with store.scope():
        pyro.param("q_loc", torch.tensor(99.0))
        pyro.param("q_scale", torch.tensor(3.0), constraint=constraints.positive)
        pyro.param("of another model", torch.tensor(0.0))
        started = fitted(guide=guide, optimizer=STILL, steps=1)
        trained = fitted(guide=guide)
        assert started.params == {"q_loc": 99.0, "q_scale": pytest.approx(3.0)}
        assert 80 < trained.params["q_loc"] < 99  # it has moved, and not come from 0
        assert (trained.params["q_loc"], len(store)) != (store["q_loc"], 2)
        assert {k: round(v.item(), 4) for k, v in store.items()} == {"q_loc": 99, "q_scale": 3, "of another model": 0}
        assert store["q_loc"].grad is None
        outer, inner = fitted(guide=guide), []
        fitted(guide=guide, callbacks=[lambda run: inner.append(fitted(guide=guide))], steps=2)
        assert same(outer, inner[1])  # a fit in a callback starts from what was set outside, not from the outer fit


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("make", [auto, lambda: Net().guide], ids=["AutoNormal", "pyro.module"])
def test_modules_start_from_what_they_hold(make, local):
    with pyro.settings.context(module_local_params=local):
        alone = fitted(guide=make())
        with pyro.get_param_store().scope():
            for name in alone.params:
                pyro.param(name.replace("net.", "net$$$"), torch.tensor(99.0))
            assert same(alone, fitted(guide=make()))
            assert all(v == 99.0 for v in pyro.get_param_store().values())


@pytest.mark.parametrize("make", [lambda: normal_guide, auto], ids=["function", "AutoNormal"])
def test_fits_one_after_and_inside_another_change_nothing(make):
    outer, inner, seen = fitted(data(loc=-5.0), make()), fitted(data(loc=50.0), make()), []

    def nest(run):
        if run.step == 10:
            seen.append(fitted(data(loc=50.0), make()))

    assert same(outer, fitted(data(loc=-5.0), make(), callbacks=[nest]))
    assert same(inner, seen[0])


def test_fits_in_threads_take_turns():
    alone = fitted(guide=auto(), steps=100)
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(lambda _: fitted(guide=auto(), steps=100), range(3)):
            assert same(found, alone)


def test_a_result_keeps_its_parameters_when_its_guide_is_fitted_again():
    guide = auto()
    first, second = (fitted(data(loc=loc), guide, steps=100) for loc in (-5.0, 50.0))
    for result in (first, second, first):
        with result.scope():
            assert torch.equal(guide.median()["loc"], result.params["AutoNormal.locs.loc"])
    assert torch.equal(guide.locs.loc.detach(), second.params["AutoNormal.locs.loc"])


def test_a_scope_has_the_value_of_the_fit_and_what_it_sets_stays_inside():
    result = fitted(guide=normal_guide, steps=1, optimizer=STILL)
    assert result.params == {"q_loc": 0.0, "q_scale": 1.0}
    with pyro.get_param_store().scope():
        pyro.param("q_loc", torch.tensor(99.0))
        with result.scope():
            assert pyro.param("q_loc") == 0.0
            pyro.get_param_store()["q_loc"] = torch.tensor(5.0)
        assert pyro.param("q_loc") == 99.0
        with result.scope():
            assert pyro.param("q_loc") == 0.0


def test_scope_puts_parameters_back_also_after_an_error():
    guide = auto()
    first, second = fitted(guide=guide), fitted(data(loc=50.0), guide)
    with suppress(RuntimeError), first.scope():
        guide.locs.loc.data.fill_(7.0)
        raise RuntimeError
    assert torch.equal(guide.locs.loc.detach(), second.params["AutoNormal.locs.loc"])
    with first.scope(), second.scope():
        assert torch.equal(guide.locs.loc.detach(), second.params["AutoNormal.locs.loc"])


def test_a_loss_that_trains_nothing_is_refused():
    class Guide(torch.nn.Module):
        """Without pyro.param, which is what some of Pyro's losses look for before they run backward."""

        def __init__(self):
            super().__init__()
            self.loc = torch.nn.Parameter(torch.tensor(0.0))

        def forward(self, x):
            pyro.sample("loc", dist.Normal(self.loc, 1.0))

    with pytest.raises(ValueError, match="no parameter got a gradient"):
        fitted(guide=Guide(), loss=RenyiELBO(num_particles=2))


def global_state():
    return (
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002 - the global generator is what is checked
        random.getstate(),
        torch.get_default_dtype(),
        torch.distributions.Distribution._validate_args,
        pyro.settings.get(),
        torch.is_grad_enabled(),
    )


def disturb(state):
    torch.set_default_dtype(torch.float64)
    torch.distributions.Distribution.set_default_validate_args(False)
    pyro.enable_validation(False)
    pyro.set_rng_seed(7)


def fail(state):
    disturb(state)
    raise RuntimeError("stop here")


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("callback", [disturb, fail])
def test_global_state_is_put_back_also_after_an_error(callback, validate):
    with pyro.validation_enabled(validate):
        before = global_state()
        with pytest.raises(RuntimeError, match="stop here") if callback is fail else nullcontext():
            fitted(guide=auto(), steps=2, callbacks=[callback])
        assert global_state() == before


def test_the_seed_alone_decides_the_result():
    first = fitted(seed=1)
    torch.rand(3)
    with torch.no_grad():
        assert same(first, fitted(seed=np.int64(1), steps=np.int32(20)))
        assert same(first, fitted(seed=torch.tensor(1), steps=torch.tensor(20)))
    assert not same(first, fitted(seed=2))


def test_svi_knows_nothing_of_the_rest_of_the_package():
    imported = set()
    for path in (Path(__file__).parents[2] / "pyro_zilognormal" / "svi").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported |= {name for name in names if name.startswith("pyro_zilognormal")}
    assert {name.split(".")[1] for name in imported} == {"svi"}


def test_the_hooks_of_a_callback_are_called_in_their_turn():
    class Hooked(Callback):
        def on_fit_start(self, run):
            calls.append("start")

        def on_step_end(self, run):
            calls.append(run.step)
            if run.step == self.last:
                raise RuntimeError("enough")

        def on_fit_end(self, run):
            calls.append(run.stop_reason)

    calls, callback = [], Hooked()
    callback.last = 3
    fitted(steps=2, callbacks=[callback])
    with pytest.raises(RuntimeError, match="enough"):
        fitted(steps=4, callbacks=[callback])
    assert calls == ["start", 1, 2, "steps", "start", 1, 2, 3, ""]


def test_a_callback_sees_the_run_and_does_not_change_it():
    def look(run):
        assert run.step == len(run.losses)
        assert run.loss == run.losses[-1]
        assert run.params.keys() == {"q_loc", "q_scale"}
        assert run.optimizer.param_groups[0]["lr"] == 0.05
        assert (run.rows, run.kl_weight) == (20, 1.0)
        assert "q_loc" not in pyro.get_param_store()

    watched = fitted(callbacks=[look, Progress()])
    assert watched.losses.tolist() == fitted().losses.tolist()


def test_annealing_the_kl_weight():
    weights = []

    class Anneal(Callback):
        def on_fit_start(self, run):
            run.kl_weight = 0.25
            self.run = run

        def on_step_end(self, run):
            run.kl_weight = min(1.0, (run.step + 1) / 4)

    def loss(model, guide, x):
        weights.append(anneal.run.kl_weight)
        return Trace_ELBO().differentiable_loss(model, guide, x)

    anneal = Anneal()
    fitted(steps=6, loss=loss, callbacks=[anneal])
    assert weights == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_a_schedule_follows_the_steps():
    def rate(run):
        return run.optimizer.param_groups[0]["lr"]

    rates, halve = [], functools.partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5)
    sgd = functools.partial(torch.optim.SGD, lr=0.0008)
    fitted(steps=7, optimizer=sgd, callbacks=[Schedule(halve), lambda run: rates.append(rate(run))])
    assert [round(0.0008 / rate) for rate in rates] == [1, 2, 2, 4, 4, 8, 8]


@pytest.mark.parametrize(
    ("terminal", "show", "shown"), [(False, None, False), (True, False, False), (True, None, True)]
)
def test_progress_shows_the_loss_on_a_terminal_alone(terminal, show, shown, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    result = fitted(steps=5, callbacks=[lambda run: __import__("time").sleep(0.12), Progress(show)])
    found = capsys.readouterr().err
    assert ("5/5" in found and "loss/observation" in found) == shown
    assert bool(found) == shown
    if shown:
        value = float(found.split("observation ")[-1].split("]")[0].split(",")[0])
        means = result.losses.cumsum() / np.arange(1, 6) / 20  # it does not redraw at every step
        assert abs(means - value).min() < 1e-3 * abs(value)


def late_guide(x):
    normal_guide(x)
    late_guide.calls += 1
    if late_guide.calls > 3:
        pyro.param("late", torch.tensor(3.0))


def test_a_parameter_that_comes_late_is_refused():
    late_guide.calls = 0
    with pytest.raises(ValueError, match=r"parameters \['late'\] appeared after the first run"):
        fitted(guide=late_guide)


def no_parameters(x):
    pyro.sample("loc", dist.Normal(0.0, 1.0))


OTHER = torch.zeros(1, requires_grad=True)
SCHEDULER = pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.1})

BAD = [
    ({"guide": no_parameters}, ValueError, "no parameters"),
    ({"steps": 0}, ValueError, "steps is 0; needed a whole number of at least 1"),
    ({"steps": 2.0}, ValueError, "steps is 2.0"),
    ({"seed": -1}, ValueError, "seed is -1; needed a whole number from 0 to 4294967295"),
    ({"seed": 2**32}, ValueError, "seed is 4294967296"),
    (
        {"optimizer": torch.optim.Adam([OTHER])},
        TypeError,
        "optimizer is or returned a Adam; needed a function of the parameters",
    ),
    ({"optimizer": SCHEDULER}, TypeError, "a scheduler of pyro.optim; pass the optimiser, and Schedule"),
    *(({"optimizer": o}, TypeError, "optimizer is or returned a .*; needed a ") for o in ({}, 0, [], False, "Adam")),
    ({"optimizer": lambda parameters: None}, TypeError, "optimizer is or returned a NoneType; needed a "),
    *(({"callbacks": c}, TypeError, "is not iterable") for c in (print, 0, Progress())),
    ({"callbacks": [3]}, TypeError, "callbacks holds 3; needed instances"),
    ({"callbacks": [EarlyStopping]}, TypeError, "callbacks holds <class .*EarlyStopping"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments_are_refused(change, error, message):
    arguments = {"model": normal_model, "guide": normal_guide, "steps": 2, **change}
    with pytest.raises(error, match=message):
        fit(arguments.pop("model"), arguments.pop("guide"), data(), **arguments)
