"""Item 3: a loss that is level because the learning rate has come down to nothing is not called converged."""

import functools

import pytest
import torch
from svi_cases import Script, adam, auto, check_resume, data, noise_of, normal_model
from torch.optim import lr_scheduler

from pyro_zilognormal.svi import EarlyStopping, Schedule, fit


def exponential(steps, gamma):
    return [gamma**t for t in range(steps)]


def led(rates, pace, gain, noise=0.0):
    """Losses of a fit that comes down by ``pace`` times the rate a step, until it has gained all there is."""
    losses, gained = [], 0.0
    for rate, wave in zip(rates, noise_of(len(rates), 0, noise or 1e-9).tolist(), strict=True):
        gained = min(gain, gained + pace * rate)
        losses.append(-1000.0 - gained + wave)
    return losses


@pytest.mark.parametrize("noise", [0.0, 3.0])
@pytest.mark.parametrize("gamma", [0.97, 0.99, 0.997])
@pytest.mark.parametrize(("share", "reason"), [(10, "slowed down"), (0.5, "converged")])
def test_whether_the_rates_reach_as_far_as_the_way_to_go(share, reason, gamma, noise):
    """The rates add up to 1 / (1 - gamma), and the way to go is that many times as long, or a part of it."""
    rates = exponential(6000, gamma)
    run = Script(led(rates, 2.0, share / (1 - gamma), noise), rates).play(EarlyStopping(every=20))
    assert (run.stop_reason, run.converged) == (reason, reason == "converged")


def test_a_rate_that_is_low_but_leads_far_is_no_reason_to_doubt():
    rates = [1.0] * 200 + [0.05] * 8000
    run = Script(led(rates, 2.0, 500.0), rates).play(EarlyStopping(every=20))
    assert (run.stop_reason, run.converged) == ("converged", True)
    assert run.step > 2000


def test_a_rate_that_rises_again_is_not_low():
    cycle = [*exponential(150, 0.96), *exponential(150, 0.96)]
    rates = cycle + [1.0] * 2000
    run = Script(led(rates, 2.0, 300.0), rates).play(EarlyStopping(every=20))
    assert (run.stop_reason, run.converged) == ("converged", True)
    assert run.step > 300


def far(callbacks, gamma=0.97):
    # From 0 to 52 it would have to go 1040 steps of 0.05; the rates of all steps add up to 33 of these.
    calm = Schedule(functools.partial(lr_scheduler.ExponentialLR, gamma=gamma))
    stop = EarlyStopping(every=20)
    torch.manual_seed(0)
    x = data(60, loc=52.0)
    return fit(normal_model, auto(), x, steps=3000, optimizer=adam, callbacks=[calm, stop, *callbacks])


def test_a_fit_that_stands_still_far_from_its_posterior_is_not_called_converged():
    result = far([])
    assert (result.stop_reason, result.converged) == ("slowed down", False)
    assert abs(float(result.params["AutoNormal.locs.loc"]) - 52) > 20
    assert "the learning rate had become too low" in str(result)


def test_what_is_known_of_the_rate_resumes_bit_for_bit(tmp_path):
    check_resume(tmp_path / "a.ckpt", far, [30, 90, 200])
