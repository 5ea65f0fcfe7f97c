"""Item 5: a NaN stops the fit with the last good state kept, or is skipped and counted."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from svi_cases import adam, data, normal_guide, normal_model, with_nan

from pyro_zilognormal.svi import BatchStream, DivergenceError, Minibatches, SkipBadSteps, fit


@pytest.mark.parametrize("validate", [True, False])
def test_exploding_parameters_go_back_to_the_last_good_state(validate):
    seen = []

    def remember(run):
        seen.append({k: v.clone() for k, v in run.params.items()})
        if run.step == 6:
            run.optimizer.param_groups[0]["lr"] = 1e38

    with pyro.validation_enabled(validate), pytest.raises(DivergenceError) as caught:
        fit(normal_model, normal_guide, data(), steps=20, optimizer=adam, callbacks=[remember])
    result = caught.value.result
    # Step 7 began from the parameters after step 6, with a finite loss, and blew them up.
    assert result.best_step == 6
    assert all(torch.equal(result.params[k], seen[5][k]) for k in seen[5])
    assert result.stop_reason == "diverged"
    assert not result.converged
    assert caught.value.report.step == 8
    assert all(math.isfinite(v) for v in result.losses[:7])


def test_clipped_adam_does_not_poison_the_parameters():
    from pyro.optim.clipped_adam import ClippedAdam

    with pyro.validation_enabled(False), pytest.raises(DivergenceError) as caught:
        fit(normal_model, normal_guide, with_nan(9, 2), steps=9, optimizer=ClippedAdam)
    assert all(torch.isfinite(v).all() for v in caught.value.result.params.values())


def sometimes(every):
    count = []

    def loss(model, guide, x):
        count.append(1)
        total = pyro.infer.Trace_ELBO().differentiable_loss(model, guide, x)
        return total * math.nan if len(count) % every == 0 else total

    return loss


def test_bad_steps_are_skipped_and_counted_on_request():
    result = fit(
        normal_model,
        normal_guide,
        data(),
        steps=100,
        optimizer=adam,
        loss=sometimes(10),
        callbacks=[SkipBadSteps()],
    )
    assert result.skipped == list(range(10, 101, 10))
    assert [i + 1 for i, v in enumerate(result.losses) if math.isnan(v)] == result.skipped
    assert "10 steps skipped" in str(result)
    assert all(torch.isfinite(v).all() for v in result.params.values())


def test_a_skipped_step_changes_no_parameter():
    seen = []
    fit(
        normal_model,
        normal_guide,
        data(),
        steps=4,
        loss=sometimes(3),
        callbacks=[SkipBadSteps(), lambda run: seen.append(run.params["q_loc"])],
    )
    assert torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[2], seen[3])


def test_too_many_bad_steps_in_a_row_stop_the_fit():
    with pytest.raises(DivergenceError) as caught:
        fit(
            normal_model,
            normal_guide,
            data(),
            steps=50,
            loss=sometimes(1),
            callbacks=[SkipBadSteps(in_a_row=4)],
        )
    assert caught.value.report.step == 4
    assert caught.value.result.skipped == [1, 2, 3]


def test_skipping_serves_validation_errors_too():
    x = with_nan(20, [4])
    source = Minibatches(x, batch_size=5, plate="rows")
    result = fit(normal_model, normal_guide, source, steps=40, optimizer=adam, callbacks=[SkipBadSteps()])
    assert len(result.skipped) == 10  # the batch of row 4, once an epoch


def test_an_error_of_the_model_is_not_dressed_up():
    def model(x):
        normal_model(x)
        if pyro.poutine.runtime.am_i_wrapped() and len(calls) > 4:
            raise ValueError("my own mistake")
        calls.append(1)

    calls = []
    with pytest.raises(ValueError, match="my own mistake"):
        fit(model, normal_guide, data(), steps=20)


@pytest.mark.parametrize("validate", [True, False])
def test_parameters_that_the_last_step_blew_up_are_not_returned(validate):
    sgd = functools.partial(torch.optim.SGD, lr=1e38)
    with pyro.validation_enabled(validate), pytest.raises(DivergenceError, match="update of step 1") as caught:
        fit(normal_model, normal_guide, data(), steps=1, optimizer=sgd)
    assert "q_loc" in caught.value.report.parameters
    assert caught.value.result.params == {"q_loc": 0.0, "q_scale": 1.0}
    assert caught.value.result.stop_reason == "diverged"


class Normed(torch.nn.Module):
    """A network whose running means a NaN in a batch would poison, as it would a sum that is replaced at each call."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(1)
        self.register_buffer("total", torch.zeros(()))
        self.scale = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        self.total = self.total + x.sum()
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(self.norm(x[:, None])[:, 0], self.scale.exp()), obs=x)


@pytest.mark.parametrize("callbacks", [[], [SkipBadSteps()], [SkipBadSteps(in_a_row=1)]])
def test_a_bad_step_leaves_buffers_as_they_were(callbacks):
    module, clean = Normed(), Normed()
    batches = BatchStream([data(5), data(5, 1), with_nan(5, 2)], plate="rows")
    with pyro.validation_enabled(False):
        fit(clean, lambda x: None, batches, steps=2)
        try:
            result = fit(module, lambda x: None, batches, steps=3, callbacks=callbacks)
        except DivergenceError as error:
            result = error.result
    assert torch.equal(module.norm.running_mean, clean.norm.running_mean)
    assert torch.equal(module.total, clean.total)
    assert torch.equal(result.values["buffer model.norm.running_var"], clean.norm.running_var)
    assert result.stop_reason == ("steps" if callbacks and callbacks[0].in_a_row > 1 else "diverged")
