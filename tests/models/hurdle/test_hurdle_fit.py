"""fit_hurdle: the same seed gives the same bits, and it says when the loss has not converged."""

import numpy as np
import pytest
import torch
from hurdle_cases import KINDS, hurdle

from pyro_zilognormal.models import draw_coefficients, fit_hurdle
from pyro_zilognormal.models.hurdle import fit
from pyro_zilognormal.models.hurdle.fit import _converged
from pyro_zilognormal.svi import posterior_draws


def fitted(kind, **settings):
    model, guide, data = hurdle(**kind)
    result = fit_hurdle(model, guide, data, **{"steps": 10, "batch_size": 30} | settings)
    return data, result


@pytest.mark.parametrize("kind", ["donors", "continuous", "two factors"])
def test_the_same_seed_gives_the_same_bits(kind):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = fitted(KINDS[kind])[1]
    torch.manual_seed(2)
    second, other = fitted(KINDS[kind])[1], fitted(KINDS[kind], seed=1)[1]
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
    assert draws["log_sigma"].shape == (5, 5, 2)
    assert draws["log_sigma"].dtype == torch.float64


def test_cut_short_it_says_so():
    """Moved far from the mode the loss still falls when the steps are over."""
    model, guide, data = hurdle(genes=100, reduce=True)
    with torch.no_grad():
        guide.coefficients.shift += 3.0
    result = fit_hurdle(model, guide, data, steps=100)
    assert not result.converged
    assert result.stop_reason == "steps"


@pytest.fixture(scope="module")
def result():
    return fitted({"levels": (2, 3)})[::-1]


def test_draws_of_coefficients(result):
    found, data = result
    draws = draw_coefficients(found, data, draws=13, random=13)
    widths = {"intercept": 1, "effects": 1, "zero_intercept": 1, "zero_effects": 1, "log_sigma": 2}
    expected = {k: (13, 5, n) for k, n in (widths | {"random": 5, "zero_random": 5}).items()}
    assert {k: tuple(v.shape) for k, v in draws.items()} == expected | {"zero_slope": (13, 1, 1)}
    assert all(v.isfinite().all() and not v.requires_grad for v in draws.values())
    assert draw_coefficients(found, data, draws=2).keys() == widths.keys() | {"zero_slope"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"genes": []}, r"genes is \[\]; needed numbers from 0 to 4, at least one"),
        ({"genes": [0, 5]}, r"genes is \[0, 5\]; needed numbers from 0 to 4"),
        ({"genes": [-1]}, r"genes is \[-1\]; needed numbers from 0 to 4"),
        ({"random": 3}, "random is 3; needed a number of draws from 0 to 2"),
        ({"random": -1}, "random is -1; needed a number of draws from 0 to 2"),
    ],
)
def test_draws_that_cannot_be_made(result, given, message):
    with pytest.raises(ValueError, match=message):
        draw_coefficients(*result, draws=2, **given)


def test_draws_have_a_seed_of_their_own(result):
    before = torch.random.get_rng_state()
    first, again, other = (draw_coefficients(*result, draws=4, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in first.items():
        assert torch.equal(value, again[name])
        assert not torch.equal(value, other[name])


def test_a_gene_has_the_same_draws_whichever_others_are_drawn(result, monkeypatch):
    monkeypatch.setattr(fit, "_NUMBERS_A_BLOCK", 2 * 25 * 16)  # two genes
    whole = draw_coefficients(*result, draws=25, seed=3, random=7)
    assert [(some.start, some.stop) for some, _ in fit.draw_blocks(*result, draws=25)] == [(0, 2), (2, 4), (4, 5)]
    some = draw_coefficients(*result, draws=25, seed=3, genes=[4, 1])
    assert {name: len(value) for name, value in whole.items() if len(value) != 25} == {"random": 7, "zero_random": 7}
    for name, value in some.items():
        assert torch.equal(value, whole[name] if name == "zero_slope" else whole[name][:, [4, 1]]), name
    assert not torch.equal(whole["intercept"][:, 0], whole["intercept"][:, 2])
    assert len(whole["zero_slope"].unique()) == 2  # of 20 draws at most


def test_callbacks_see_every_step():
    seen = []
    fitted({}, steps=12, callbacks=[lambda run: seen.append(run.step)])
    assert seen == list(range(1, 13))


def test_the_learning_rate_falls_to_nothing():
    rates = []
    fitted({}, steps=10, callbacks=[lambda run: rates.append(run.optimizer.param_groups[0]["lr"])])
    np.testing.assert_allclose(rates, [0.01 * (1 - k / 10) for k in range(10)], atol=1e-12)


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
