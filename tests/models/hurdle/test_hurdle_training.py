"""One model and guide trained by plain Pyro, by torch through ELBOModule, by Lightning and by svi.fit, all alike."""

import copy
import warnings

import numpy as np
import pyro
import pytest
import torch
from hurdle_cases import as_kind, hurdle, offsets, with_depth, without_guide
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from pyro_zilognormal.models import Condition, HurdleData, HurdleGuide, HurdleModel, cell_parameters
from pyro_zilognormal.svi import Minibatches, fit

STEPS = 12
KINDS = {
    "groups": {"levels": (2,)},
    "cells": {"zero_design": with_depth(), "offset": offsets(), "reduce": False},
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def adam(parameters):
    """Start the stream of draws where training starts, whatever an engine drew before."""
    pyro.set_rng_seed(0)
    return torch.optim.Adam(parameters, lr=0.01)


def by_svi(model, guide, arguments):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    pyro.set_rng_seed(0)
    return [svi.step(*arguments) for _ in range(STEPS)]


def by_torch(model, guide, arguments):
    elbo = Trace_ELBO()(model, guide)
    optimizer, losses = adam(elbo.parameters()), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = elbo(*arguments)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def by_lightning(model, guide, arguments):
    import lightning  # which takes seconds

    class Training(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.elbo, self.losses = Trace_ELBO()(model, guide), []

        def training_step(self, batch, _):
            if not self.losses:  # the data loader has drawn a seed of its own
                pyro.set_rng_seed(0)
            loss = self.elbo(*batch)
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.01)

    module = Training()
    batches = torch.utils.data.DataLoader([arguments] * STEPS, batch_size=None)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with warnings.catch_warnings():  # of the speed of data loaders
        warnings.simplefilter("ignore")
        lightning.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet).fit(module, batches)
    return module.losses


def by_fit(model, guide, arguments):
    return fit(model, guide, *arguments, steps=STEPS, optimizer=adam).losses


@kinds
def test_it_trains_as_by_plain_pyro(kind):
    model, guide, data = hurdle(**kind)
    start = copy.deepcopy(guide)
    expected = by_svi(model, guide, data.arguments)
    for train in (by_torch, by_lightning, by_fit):
        twin = copy.deepcopy(start)
        pyro.clear_param_store()  # or the twin would go on with the parameters of the first
        np.testing.assert_allclose(train(model, twin, data.arguments), expected, rtol=1e-6, err_msg=train.__name__)
        for name, value in guide.state_dict().items():
            torch.testing.assert_close(twin.state_dict()[name], value, rtol=1e-6, atol=1e-6)
    kept = {k for k, v in guide.named_parameters() if torch.equal(v, start.state_dict()[k])}
    # A single log sd is coupled with no other.
    single = not data.levels and data.zero_design.shape[1] == 1
    assert kept == ({"log_sds.coupling_unconstrained"} if single else set())


def test_the_parameters_are_those_of_the_guide():
    model, guide, data = hurdle()
    by_svi(model, guide, data.arguments)
    store = dict(pyro.get_param_store().named_parameters())
    assert {f"{k}_unconstrained" for k in store} == {k for k, _ in guide.named_parameters()}
    assert all(store[k.removesuffix("_unconstrained")] is v for k, v in guide.named_parameters())
    assert not list(model.parameters())


@pytest.mark.parametrize("automatic", [False, True], ids=["HurdleGuide", "AutoNormal"])
def test_a_second_guide_under_plain_pyro(automatic):
    """Ours as an AutoGuide: its parameters are those of the store, of whatever shape, unless that is cleared."""

    def fresh(**kind):
        model, guide, data = hurdle(**kind)
        pyro.set_rng_seed(0)  # for the start of AutoNormal
        return model, AutoNormal(model) if automatic else guide, data.arguments

    first, again = fresh(), fresh()
    losses = by_svi(*first)
    assert by_svi(*again)[0] != losses[0]
    for name, value in first[1].named_parameters():
        assert torch.equal(dict(again[1].named_parameters())[name], value)
    with pytest.raises((RuntimeError, ValueError)):
        by_svi(*fresh(genes=7))
    pyro.clear_param_store()
    np.testing.assert_array_equal(by_svi(*fresh()), losses)


@kinds
def test_state_dict_and_deepcopy(kind):
    model, guide, data = hurdle(**kind)
    by_svi(model, guide, data.arguments)
    pyro.clear_param_store()
    fresh = hurdle(**kind)[1]
    fresh.load_state_dict(guide.state_dict())
    losses = []
    for each in (guide, fresh, copy.deepcopy(guide)):
        pyro.clear_param_store()
        pyro.set_rng_seed(7)
        losses.append(Trace_ELBO()(model, each)(*data.arguments).item())
    assert losses[0] == losses[1] == losses[2]


def batches(data, size):
    """Rows of all arguments, every one once, in an order without meaning."""
    for rows in torch.randperm(len(data.design), generator=torch.Generator().manual_seed(1)).split(size):
        yield [None if a is None else a[rows] for a in data.arguments], len(rows) / len(data.design)


@pytest.mark.parametrize("reduce", [True, False])
def test_minibatches_under_plain_pyro_average_to_the_whole(reduce):
    """One seed gives every batch the same draw, for no latent site has rows."""
    model, guide, data = hurdle(levels=(2,), offset=offsets(), reduce=reduce)
    elbo = Trace_ELBO()(model, guide)

    def loss_and_gradient(arguments):
        pyro.set_rng_seed(3)
        loss = elbo(*arguments)
        return loss.detach(), torch.autograd.grad(loss, list(elbo.parameters()))

    whole, gradient = loss_and_gradient(data.arguments)
    found = [(*loss_and_gradient(a), weight) for a, weight in batches(data, 3 if reduce else 17)]
    assert len(found) > 1
    torch.testing.assert_close(sum(loss * weight for loss, _, weight in found), whole, rtol=1e-10, atol=0)
    for k, expected in enumerate(gradient):
        mean = sum(g[k] * weight for _, g, weight in found)
        torch.testing.assert_close(mean, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", ["cells", "numpy", "csr", "groups"])
def test_minibatches_under_fit_are_scaled_once(kind):
    model, guide, data = hurdle(levels=(2,), offset=offsets(), reduce=kind == "groups")
    size = 3 if kind == "groups" else 17
    arrays = *data.arguments[:-1], as_kind(data.value, kind)
    data_plate = Minibatches(*arrays, batch_size=size, plate="rows")
    count = -(-len(data.design) // size)

    def loss(*program):
        pyro.set_rng_seed(3)
        return Trace_ELBO().differentiable_loss(*program)

    whole = fit(model, copy.deepcopy(guide), *data.arguments, steps=1, loss=loss).losses[0]
    still = fit(model, guide, data_plate, steps=count, loss=loss, optimizer=lambda p: torch.optim.SGD(p, lr=0.0)).losses
    # The last batch is short, and its loss an estimate with a weight of its own.
    weights = [size] * (count - 1) + [len(data.design) - size * (count - 1)]
    assert np.average(still, weights=weights) == pytest.approx(whole, rel=1e-10)


@pytest.mark.parametrize("parallel", [True, False])
@kinds
def test_values_left_out_are_predicted(kind, parallel):
    """The zeros of each prediction have the odds of its own coefficients."""
    model, guide, data = hurdle(**kind)
    count = 400 if parallel else 100
    with torch.no_grad():
        drawn = Predictive(model, guide=guide, num_samples=count, parallel=parallel)(*data.arguments[:-1])
    assert drawn["x"].shape == (count, *data.value.shape)
    draws = model.at_origin({k: v.reshape(count, -1, v.shape[-1]) for k, v in drawn.items() if k != "x"})
    cells = data.cells if data.reduced else torch.ones(len(data.design), 5)
    zeros = drawn["x"][..., 0] if data.reduced else (drawn["x"] == 0).double()
    for row in range(len(data.design)):
        condition = Condition(data.design[row], data.zero_design[row], data.scale_design[row])
        odds = cell_parameters(draws, condition, data.random_elements[row].tolist()).zi_logits.sigmoid()
        residual = (zeros[:, row] - cells[row] * odds) / (cells[row] * odds * (1 - odds)).sqrt()
        assert (residual.mean(0).abs() < 4.5 / count**0.5).all()
        assert ((residual.square().mean(0) - 1).abs() < 10 / count**0.5).all()


def test_cells_are_predicted_from_a_fit_to_groups():
    (model, guide, _), cells = hurdle(), hurdle(reduce=False)[-1]
    x = Predictive(model, guide=guide, num_samples=5)(*cells.arguments[:-1])["x"]
    assert x.shape == (5, 60, 5)
    assert (x >= 0).all()


def test_priors_follow_the_unit_of_a_covariate():
    """A covariate in other units has coefficients in other units, and the same loss."""
    data = without_guide(continuous=True)[-1]
    design = data.design * torch.tensor([1.0, 1000.0])
    other = HurdleData(data.value, *[design] * 3, data.factors, data.offset)
    losses = []
    for each in (data, other):
        model = HurdleModel(each)
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        losses.append(Trace_ELBO()(model, HurdleGuide(model, each))(*each.arguments).item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
