"""Losses that learn from their first call: the compiled ones, and those that count plates."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceTMC_ELBO,
)
from svi_cases import adam, data, normal_guide, normal_model, sized_model

from pyro_zilognormal.svi import BatchStream, Checkpoint, EarlyStopping, Minibatches, Objective, fit
from pyro_zilognormal.svi.isolation import global_state_kept

pytestmark = pytest.mark.filterwarnings("ignore")  # the tracer's, of Pyro's own code
JIT = [JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO, JitTraceMeanField_ELBO]
PLAIN = {JitTrace_ELBO: Trace_ELBO, JitTraceEnum_ELBO: TraceEnum_ELBO, JitTraceGraph_ELBO: TraceGraph_ELBO}


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_a_compiled_loss_trains_as_the_plain_one(kind, weight):
    class Weight:
        def start(self, run):
            run.kl_weight = weight

        def __call__(self, run):
            pass

    def run(loss):
        return fit(normal_model, normal_guide, data(), steps=12, optimizer=adam, loss=loss, callbacks=[Weight()])

    compiled, plain = run(kind()), run(PLAIN[kind]())
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-4)
    for name in plain.params:
        torch.testing.assert_close(compiled.params[name], plain.params[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", JIT)
@pytest.mark.parametrize(
    "source",
    [
        lambda: Minibatches(data(), batch_size=6, plate="rows"),
        lambda: Minibatches(data(), batch_size=6, plate=None),
        lambda: BatchStream(list(data().split(6)), plate="rows"),
    ],
    ids=["arrays", "no plate", "stream"],
)
def test_minibatches_are_refused(kind, source):
    with pytest.raises(ValueError, match=f"loss is a {kind.__name__}, which makes constants .* all data in one call"):
        fit(normal_model, normal_guide, source(), steps=9, loss=kind())


@pytest.mark.parametrize("kind", JIT)
def test_one_batch_of_all_rows_is_served_with_held_out_rows_of_another_number(kind):
    source = Minibatches(data(), batch_size=20, plate="rows")
    stop = EarlyStopping(data(7), every=2)
    assert fit(sized_model(20), normal_guide, source, steps=4, loss=kind(), callbacks=[stop]).held_out


@pytest.mark.parametrize("kind", JIT)
def test_a_kl_weight_that_changes_is_refused(kind):
    def anneal(run):
        run.kl_weight = run.step / 10

    with pytest.raises(ValueError, match="the kl_weight of this call are not those of the first"):
        fit(normal_model, normal_guide, data(), steps=9, loss=kind(), callbacks=[anneal])


@pytest.mark.parametrize(
    ("second", "named"),
    [((data(7),), "shapes"), ((data().double(),), "shapes"), ((data(),), "rows")],
    ids=["rows", "dtype", "indices"],
)
def test_calls_of_another_kind_are_refused(second, named):
    objective = Objective(normal_model, normal_guide, JitTrace_ELBO(), "rows", 20)
    objective.setup(data(), indices=torch.arange(20))
    objective.backward(data(), indices=torch.arange(20))
    with pytest.raises(ValueError, match=f"the {named} of this call are not those"):
        objective.backward(*second, indices=torch.arange(20).flip(0) if named == "rows" else torch.arange(20))


def test_a_checkpoint_of_a_compiled_loss_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be resumed bit for bit"):
        fit(normal_model, normal_guide, data(), steps=4, loss=JitTrace_ELBO(), callbacks=[Checkpoint(tmp_path / "a")])


@pytest.mark.parametrize(
    "loss", [TraceEnum_ELBO, TraceTMC_ELBO, functools.partial(Trace_ELBO, 3, math.inf, None, True)]
)
def test_counting_plates_takes_no_draws_of_the_run(loss):
    counted = fit(normal_model, normal_guide, data(), steps=5, loss=loss())
    known = loss()
    known.max_plate_nesting = 1 + (known.num_particles > 1)
    told = fit(normal_model, normal_guide, data(), steps=5, loss=known)
    assert counted.losses.tolist() == told.losses.tolist()
    assert counted.params == told.params


def test_a_first_call_that_is_not_finite_leaves_no_gradient():
    objective = Objective(normal_model, normal_guide, JitTraceGraph_ELBO())
    objective.setup(data())
    with pyro.validation_enabled(False):
        objective._prepare((data() * math.nan,), None)
    assert all(p.grad is None for p in objective.trainable().values())


def far_model(x):
    loc = pyro.sample("loc", dist.Normal(50.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, 100.0), obs=x)


@pytest.mark.parametrize("kind", [JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO])
def test_a_jit_loss_used_again_trains_the_model_at_hand(kind):
    kind = functools.partial(kind, max_plate_nesting=1)  # to guess it would draw from the generator
    used = kind()
    fit(normal_model, normal_guide, data(), steps=2, loss=used)
    again = fit(far_model, normal_guide, data(), steps=2, loss=used)
    assert again.losses.tolist() == fit(far_model, normal_guide, data(), steps=2, loss=kind()).losses.tolist()
    compiled = kind()
    with global_state_kept():
        pyro.clear_param_store()
        compiled.loss_and_grads(normal_model, normal_guide, data())
        pyro.clear_param_store()
    again = fit(far_model, normal_guide, data(), steps=2, loss=compiled)
    assert again.losses.tolist() == fit(far_model, normal_guide, data(), steps=2, loss=kind()).losses.tolist()


def test_plate_nesting_learnt_in_one_fit_is_not_used_in_another():
    loss = TraceEnum_ELBO(strict_enumeration_warning=False)
    fit(normal_model, normal_guide, data(), steps=1, loss=loss)
    assert loss.max_plate_nesting == float("inf")
