"""fit_hurdle: the same seed gives the same bits, and it says when the loss has not converged."""

import numpy as np
import pytest
import torch
from hurdle_cases import hurdle

from pyro_zilognormal.models import HurdlePriors, fit_hurdle
from pyro_zilognormal.models.hurdle.fit import _converged
from pyro_zilognormal.svi import posterior_draws

KINDS = {
    "groups": {"donors": 2},
    "cells": {"continuous": True},
    "sparse": {"priors": HurdlePriors()},
}


def fitted(kind, **settings):
    model, guide, data = hurdle(**kind)
    result = fit_hurdle(model, guide, data, **{"steps": 10, "batch_size": 30} | settings)
    return data, result


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_same_seed_gives_the_same_bits(kind):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = fitted(kind)[1]
    torch.manual_seed(2)
    second, other = fitted(kind)[1], fitted(kind, seed=1)[1]
    np.testing.assert_array_equal(first.losses, second.losses)
    assert all(torch.equal(v, second.params[k]) for k, v in first.params.items())
    assert (first.losses != other.losses).any()
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_global_state_is_left_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    fitted({})
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float32


def test_it_converges_from_its_start():
    data, result = fitted({}, steps=30)
    assert result.converged
    assert result.stop_reason == "converged"
    assert result.steps == 30
    draws = posterior_draws(result, *data.arguments, draws=5)
    assert draws["log_sigma"].shape == (5, 5, 1)
    assert draws["log_sigma"].dtype == torch.float64


def test_cut_short_it_says_so():
    """Moved far from the mode the loss still falls when the steps are over."""
    model, guide, data = hurdle(genes=50, reduce=True)
    with torch.no_grad():
        for site in (guide.zero, guide.positive):
            site.shift += 10.0
    result = fit_hurdle(model, guide, data, steps=60)
    assert not result.converged
    assert result.stop_reason == "steps"


def test_callbacks_see_every_step():
    seen = []
    fitted({}, steps=12, callbacks=[lambda run: seen.append(run.step)])
    assert seen == list(range(1, 13))


def test_the_learning_rate_falls_to_nothing():
    rates = []
    fitted({}, steps=10, callbacks=[lambda run: rates.append(run.optimizer.param_groups[0]["lr"])])
    np.testing.assert_allclose(rates, [0.01 * (1 - max(k, 0) / 10) for k in range(10)], atol=1e-12)


@pytest.mark.parametrize(
    ("losses", "converged"),
    [
        (np.zeros(50), True),
        (np.full(10, -3e5), True),
        (-np.arange(100.0), False),
        (np.arange(100.0), True),
        (1e6 - 0.01 * np.arange(100), True),
        (1e6 - np.arange(100), False),
        (np.random.default_rng(0).normal(size=100), True),
        (np.random.default_rng(0).normal(size=100) - np.arange(100), False),
        (np.concatenate([100 - np.arange(60.0), np.full(40, 40.0)]), True),
    ],
    ids=["zeros", "flat", "falling", "rising", "slowly", "of 1e6", "noise", "noisy fall", "flat at last"],
)
def test_when_a_loss_has_converged(losses, converged):
    assert _converged(losses.tolist(), negligible=0.5) == converged
