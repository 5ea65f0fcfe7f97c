"""Item 1: every fit has its own parameters, and leaves the process as it was."""

import ast
import copy
import random
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from svi_cases import Amortised, adam, auto, data, normal_guide, normal_model

from pyro_zilognormal.svi import Objective, fit


def fitted(x, **settings):
    return fit(normal_model, normal_guide, x, steps=20, optimizer=adam, **settings)


def same(a, b):
    return a.params.keys() == b.params.keys() and all(torch.equal(a.params[k], b.params[k]) for k in a.params)


@pytest.fixture(autouse=True)
def _clean_store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def test_the_global_store_is_neither_read_nor_written():
    alone = fitted(data())
    decoy = pyro.param("q_loc", torch.tensor(99.0))
    beside = fitted(data())
    assert same(alone, beside)
    assert list(pyro.get_param_store()) == ["q_loc"]
    assert pyro.get_param_store()["q_loc"].item() == decoy.item() == 99.0


def test_a_decoy_with_the_name_of_an_autoguide_site_is_not_read():
    alone = fit(normal_model, auto(), data(), steps=5)
    pyro.param("AutoNormal.locs.loc", torch.tensor(99.0))
    assert same(alone, fit(normal_model, auto(), data(), steps=5))


@pytest.mark.parametrize("make", [lambda: normal_guide, auto], ids=["function", "AutoNormal"])
def test_a_second_fit_does_not_start_from_the_first(make):
    def run(x):
        return fit(normal_model, make(), x, steps=20, optimizer=adam)

    expected = run(data(loc=-5.0))
    run(data(loc=50.0))
    assert same(expected, run(data(loc=-5.0)))


@pytest.mark.parametrize("make", [lambda: normal_guide, auto], ids=["function", "AutoNormal"])
def test_a_nested_fit_changes_nothing(make):
    def run(x, callbacks=()):
        return fit(normal_model, make(), x, steps=20, optimizer=adam, callbacks=callbacks)

    outer, inner = run(data(loc=-5.0)), run(data(loc=50.0))
    seen = []

    def nest(state):
        if state.step == 10:
            seen.append(run(data(loc=50.0)))

    assert same(outer, run(data(loc=-5.0), [nest]))
    assert same(inner, seen[0])


def test_interleaved_objectives_do_not_see_each_other():
    def start(x):
        pyro.set_rng_seed(0)
        objective = Objective(normal_model, normal_guide, Trace_ELBO())
        objective.setup(x)
        return objective, adam(objective.trainable().values())

    def step(objective, optimizer, x, seed):
        pyro.set_rng_seed(seed)
        optimizer.zero_grad()
        objective(x).backward()
        optimizer.step()

    sets = [data(loc=-5.0), data(loc=50.0)]
    apart = [start(x) for x in sets]
    for (objective, optimizer), x in zip(apart, sets, strict=True):
        for seed in range(10):
            step(objective, optimizer, x, seed)
    interleaved = [start(x) for x in sets]
    for seed in range(10):
        for (objective, optimizer), x in zip(interleaved, sets, strict=True):
            step(objective, optimizer, x, seed)
    for (a, _), (b, _) in zip(apart, interleaved, strict=True):
        assert torch.equal(a.constrained()["q_loc"], b.constrained()["q_loc"])
    assert len(pyro.get_param_store()) == 0


def test_fits_in_two_threads_take_turns():
    expected = [fitted(data(loc=loc)) for loc in (-5.0, 50.0)]
    found = {}
    threads = [
        threading.Thread(target=lambda loc=loc: found.update({loc: fitted(data(loc=loc))})) for loc in (-5.0, 50.0)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same(expected[0], found[-5.0])
    assert same(expected[1], found[50.0])


def test_a_result_keeps_its_parameters_when_its_guide_is_fitted_again():
    guide = auto()
    first = fit(normal_model, guide, data(loc=-5.0), steps=100, optimizer=adam)
    before = copy.deepcopy(first.params)
    second = fit(normal_model, guide, data(loc=50.0), steps=100, optimizer=adam)
    with first.scope():
        median_of_first = guide.median()["loc"]
    with second.scope():
        median_of_second = guide.median()["loc"]
    assert torch.equal(before["AutoNormal.locs.loc"], first.params["AutoNormal.locs.loc"])
    assert torch.equal(median_of_first, first.params["AutoNormal.locs.loc"])
    assert torch.equal(median_of_second, second.params["AutoNormal.locs.loc"])
    assert torch.equal(guide.locs.loc.detach(), second.params["AutoNormal.locs.loc"])


def test_the_results_guide_draws_with_its_own_parameters():
    first, second = (fit(normal_model, auto(), data(loc=loc), steps=100, optimizer=adam) for loc in (-3.0, 3.0))
    pyro.set_rng_seed(0)
    assert first.guide(data())["loc"] < 0 < second.guide(data())["loc"]


def test_a_nested_fit_of_the_guide_in_training_is_refused():
    guide = auto()

    def nest(state):
        fit(normal_model, guide, data(), steps=1)

    with pytest.raises(ValueError, match="a fit in progress is training"):
        fit(normal_model, guide, data(), steps=2, callbacks=[nest])
    assert fit(normal_model, guide, data(), steps=1).steps == 1


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
        outcome = pytest.raises(RuntimeError, match="stop here") if callback is fail else nullcontext()
        with outcome:
            fit(normal_model, auto(), data(), steps=2, callbacks=[callback])
        assert global_state() == before


def test_the_seed_alone_decides_the_result():
    first = fitted(data(), seed=1)
    torch.rand(3)
    assert same(first, fitted(data(), seed=1))
    assert not same(first, fitted(data(), seed=2))


def test_fit_trains_under_no_grad():
    with torch.no_grad():
        assert same(fitted(data()), fitted(data()))
        assert not torch.is_grad_enabled()


def test_module_local_params_is_served():
    with pyro.settings.context(module_local_params=True):
        module = Amortised(20)
        result = fit(module.model, module.guide, data(), steps=50, optimizer=adam)
    assert result.losses[-10:].mean() < result.losses[:10].mean()
    assert any("net" in name for name in result.params)


def test_importing_has_no_side_effect():
    code = (
        "import sys, torch, pyro\n"
        "before = torch.get_rng_state(), torch.get_default_dtype(), pyro.settings.get()\n"
        "import pyro_zilognormal.svi\n"
        "assert torch.equal(before[0], torch.get_rng_state())\n"
        "assert before[1:] == (torch.get_default_dtype(), pyro.settings.get())\n"
        "bad = {'matplotlib', 'anndata', 'pandas', 'scipy'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_svi_knows_nothing_of_the_rest_of_the_package():
    imported = set()
    for path in (Path(__file__).parents[2] / "pyro_zilognormal" / "svi").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported |= {name for name in names if name.startswith("pyro_zilognormal")}
    assert imported
    assert {
        name for name in imported if not name.startswith(("pyro_zilognormal.svi", "pyro_zilognormal._version"))
    } == set()


def test_what_is_done_in_scope_does_not_reach_the_stored_values():
    result = fit(normal_model, auto(), data(), steps=3)
    before = {k: v.clone() for k, v in result.values.items()}
    with result.scope(), torch.no_grad():
        for parameter in result.objective.trainable().values():
            parameter.zero_()
    assert all(torch.equal(v, before[k]) for k, v in result.values.items())
