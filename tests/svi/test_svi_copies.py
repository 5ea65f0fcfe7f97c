"""Copies of an objective and of a result: whole, or refused."""

import copy
import io
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from svi_cases import Amortised, adam, auto, data, local_model, normal_guide, normal_model

from pyro_zilognormal.svi import Minibatches, fit
from pyro_zilognormal.svi.isolation import global_state_kept

PAIRS = {
    "function": lambda: (normal_model, normal_guide),
    "AutoGuide": lambda: (normal_model, auto()),
    "AutoGuide of rows": lambda: (local_model(20), AutoNormal(local_model(20))),
    "method": lambda: (lambda m: (m.model, m.guide))(Amortised(20)),
}


def descend(objective, source, steps):
    optimizer = adam(objective.trainable().values())
    losses = []
    for step in range(steps):
        batch = next(source.epoch(step, 0))
        pyro.set_rng_seed(step)
        optimizer.zero_grad()
        losses.append(objective.backward(*batch.args, indices=batch.indices).item())
        optimizer.step()
    return losses


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_a_deep_copy_is_an_objective_of_its_own(pair, weight):
    source = Minibatches(data(), batch_size=6, plate="rows")
    with global_state_kept(0):
        original = fit(*pair(), source, steps=3).objective
        original.kl_weight = weight
        twin = copy.deepcopy(original)
        before = original.snapshot()
        alone = descend(twin, source, 5)
        assert all(torch.equal(v, before[k]) for k, v in original.snapshot().items())
        assert any(not torch.equal(v, before[k]) for k, v in twin.snapshot().items())
        after = twin.snapshot()
        twin.kl_weight = 7.0
        assert descend(original, source, 5) == alone
        assert all(torch.equal(v, after[k]) for k, v in original.snapshot().items())
        assert all(torch.equal(v, after[k]) for k, v in twin.snapshot().items())
    assert {id(p) for p in twin.parameters()} == {id(p) for p in twin.trainable().values()}


def test_a_deep_copy_of_a_result_keeps_its_values():
    result = fit(normal_model, auto(), data(), steps=3)
    twin = copy.deepcopy(result)
    with torch.no_grad():
        twin.values["AutoNormal.locs.loc"].fill_(9.0)
    with result.scope():
        assert result.objective.owner("guide").median()["loc"] != 9.0
    with twin.scope():
        assert twin.objective.owner("guide").median()["loc"] == 9.0
    assert copy.copy(result).objective is result.objective


def listed():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, scale), obs=x)

    guide = AutoGuideList(model)
    guide.append(AutoNormal(pyro.poutine.block(model, expose=["loc"])))
    guide.append(AutoNormal(pyro.poutine.block(model, expose=["scale"])))
    return model, guide


def test_a_deep_copy_leaves_an_autoguide_its_model():
    model, guide = listed()
    original = fit(model, guide, data(), steps=2).objective
    links = [(g.model, g.master) for g in (guide, *guide)]
    twin = copy.deepcopy(original)
    assert [(g.model, g.master) for g in (guide, *guide)] == links
    copied = twin.owner("guide")
    assert copied.model is model
    assert all(part.master() is copied for part in copied)
    whole = Minibatches(data(), batch_size=20, plate=None)
    with global_state_kept(0):
        assert descend(twin, whole, 3) == descend(original, whole, 3)


def test_torch_averages_an_objective():
    objective = fit(normal_model, auto(), data(), steps=3).objective
    average = torch.optim.swa_utils.AveragedModel(objective)
    first = objective.constrained()
    descend(objective, Minibatches(data(), batch_size=20, plate=None), 3)
    average.update_parameters(objective)
    # The first update of an average takes the values as they are; what was copied before is the first value.
    assert torch.equal(average.module.snapshot()["AutoNormal.locs.loc"], objective.snapshot()["AutoNormal.locs.loc"])
    assert not torch.equal(first["AutoNormal.locs.loc"], objective.constrained()["AutoNormal.locs.loc"])


def test_a_function_that_holds_a_module_is_not_copied_by_half():
    module = torch.nn.Linear(1, 1)

    def model(x):
        pyro.module("net", module)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(module(x[:, None])[:, 0], 1.0), obs=x)

    result = fit(model, lambda x: None, data(), steps=2)
    with pytest.raises(
        TypeError, match=r"parameters \['net.weight', 'net.bias'\] are of a module that a function gives"
    ):
        copy.deepcopy(result.objective)


@pytest.mark.parametrize("write", [pickle.dumps, lambda x: torch.save(x, io.BytesIO())], ids=["pickle", "torch.save"])
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_a_fit_is_not_pickled_and_says_what_to_do(write, pair):
    result = fit(*pair(), data(), steps=2)
    for what in (result, result.objective):
        with pytest.raises(TypeError, match=r"a fit cannot be pickled.*Save result.params"):
            write(what)
    write(result.params)
    write(result.objective.state_dict())
