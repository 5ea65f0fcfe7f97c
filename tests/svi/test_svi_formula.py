"""Item 4, identity: a checkpoint of a model that computes something else is refused."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from svi_cases import data, delta_guide, normal_guide, normal_model, same

from pyro_zilognormal.svi import Checkpoint, CheckpointError, Minibatches, fit


def twice(value):
    return 2 * value


def of_formula(mean, prior=0.0, scale=1.0):
    """Models with the same sites, laws and constants, that differ in what they compute alone."""

    def model(x):
        loc = pyro.sample("loc", dist.Normal(prior, 10.0))
        with pyro.plate("rows", len(x)), pyro.poutine.scale(scale=scale):
            pyro.sample("x", dist.Normal(mean(loc), 1.0), obs=x)

    return model


FORMULAS = {
    "a factor": lambda loc: 1.01 * loc,
    "a function that it calls": twice,
    "a power": lambda loc: loc**3,
}


@pytest.mark.parametrize("guide", [normal_guide, delta_guide])
@pytest.mark.parametrize("mean", FORMULAS.values(), ids=FORMULAS)
def test_another_formula_is_another_model(mean, guide, tmp_path):
    path = tmp_path / "a.ckpt"
    fit(of_formula(lambda loc: loc), guide, data(), steps=3, callbacks=[Checkpoint(path)])
    with pytest.raises(CheckpointError, match=r"log density of model site 'x' on cpu: .* in the checkpoint, .* now"):
        fit(of_formula(mean), guide, data(), steps=5, callbacks=[Checkpoint(path)])
    again = fit(of_formula(lambda loc: 0.0 + loc), guide, data(), steps=5, callbacks=[Checkpoint(path)])
    assert again.steps == 5


def test_another_formula_of_the_guide_is_another_guide(tmp_path):
    def guide(shift):
        return lambda x: pyro.sample("loc", dist.Normal(pyro.param("q", torch.tensor(0.0)) + shift(), 1.0))

    path = tmp_path / "a.ckpt"
    fit(normal_model, guide(lambda: 0.0), data(), steps=3, callbacks=[Checkpoint(path)])
    with pytest.raises(CheckpointError, match="log density of model site"):
        fit(normal_model, guide(lambda: 1.0), data(), steps=5, callbacks=[Checkpoint(path)])


class Averaging(torch.nn.Module):
    """A network with running means, of which the same object is fitted again."""

    def __init__(self):
        super().__init__()
        self.norm, self.last = torch.nn.BatchNorm1d(1), torch.nn.Linear(1, 1)

    def forward(self, x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(self.last(self.norm(x[:, None]))[:, 0], 1.0), obs=x)


def test_a_module_that_has_been_trained_is_the_same_model(tmp_path):
    module, path = Averaging(), tmp_path / "a.ckpt"
    source = Minibatches(data(), batch_size=5, plate="rows")
    whole = fit(copy.deepcopy(module), lambda x: None, source, steps=20)
    fit(module, lambda x: None, source, steps=7, callbacks=[Checkpoint(path)])
    same(whole, fit(module, lambda x: None, source, steps=20, callbacks=[Checkpoint(path)]))


def test_a_model_that_does_not_run_with_made_up_parameters_has_no_densities(tmp_path):
    def model(x):
        factor = torch.linalg.cholesky(pyro.param("square", torch.eye(2)))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(factor[0, 0], 1.0), obs=x)

    path = tmp_path / "a.ckpt"
    fit(model, lambda x: None, data(), steps=3, callbacks=[Checkpoint(path)])
    assert not any(k.startswith("log density") for k in Checkpoint.read(path).identity)
    assert fit(model, lambda x: None, data(), steps=5, callbacks=[Checkpoint(path)]).steps == 5
