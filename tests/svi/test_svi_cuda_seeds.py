"""The seeds of CUDA, on a stand-in for it that keeps torch's rule: a seed set before it starts waits until then."""

import pyro
import pytest
import torch
from svi_cases import data, normal_guide, normal_model

from pyro_zilognormal.svi import EarlyStopping, fit, posterior_draws
from pyro_zilognormal.svi.isolation import global_state_kept


class Device:
    """Two devices whose generators are the number of their seed and of the draws since."""

    def __init__(self, started):
        self.started, self.waiting, self.states = started, 77, [[77, 0], [77, 0]]

    def is_initialized(self):
        return self.started

    def manual_seed_all(self, seed):
        if self.started:
            self.states = [[seed, 0], [seed, 0]]
        else:
            self.waiting = seed

    def start(self):
        if not self.started:
            self.started = True
            self.manual_seed_all(self.waiting)

    def draw(self):
        self.start()
        self.states[0][1] += 1
        return tuple(self.states[0])

    def get_rng_state_all(self):
        return [torch.tensor(s) for s in self.states]

    def set_rng_state(self, state, device):
        self.states[device] = state.tolist()

    def set_rng_state_all(self, states):
        self.states = [s.tolist() for s in states]


@pytest.fixture
def cuda(request, monkeypatch):
    device = Device(request.param)
    for name in ("is_initialized", "manual_seed_all", "get_rng_state_all", "set_rng_state", "set_rng_state_all"):
        monkeypatch.setattr(torch.cuda, name, getattr(device, name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    before = torch.get_rng_state()
    torch.manual_seed(5)
    yield device
    torch.set_rng_state(before)


def left(device):
    """What the next draw would come from."""
    return [[device.waiting, 0]] * 2 if not device.started else device.states


@pytest.mark.parametrize("cuda", [False, True], indirect=True, ids=["yet to start", "started"])
@pytest.mark.parametrize("used", [False, True], ids=["unused", "used"])
@pytest.mark.parametrize("fails", [False, True], ids=["ends", "fails"])
def test_a_fit_leaves_the_seed_of_cuda_as_it_was(cuda, used, fails):
    def draw(run):
        drawn.append(cuda.draw() if used else None)
        if fails and run.step == 2:
            raise KeyError

    drawn, started = [], cuda.started
    stop = EarlyStopping(data(7), every=2)
    try:
        result = fit(normal_model, normal_guide, data(), steps=4, seed=9, callbacks=[draw, stop])
        posterior_draws(result, data(), draws=2, seed=3)
    except KeyError:
        assert fails
    assert left(cuda) == [[5, 0], [5, 0]]
    assert drawn[0] == ((9, 1) if used else None)  # its own seed reaches the device
    assert cuda.started == (used or started)


@pytest.mark.parametrize("cuda", [True], indirect=True)
def test_draws_before_a_fit_are_not_forgotten(cuda):
    cuda.draw()
    fit(normal_model, normal_guide, data(), steps=2)
    assert left(cuda) == [[5, 1], [5, 0]]


@pytest.mark.parametrize("cuda", [False], indirect=True)
def test_what_is_not_used_is_not_started(cuda):
    with global_state_kept():
        pyro.set_rng_seed(1)
    assert left(cuda) == [[5, 0], [5, 0]]
    assert not cuda.started


@pytest.mark.parametrize("name", ["mps", "xpu"])
def test_devices_that_are_not_kept_are_not_seeded(name, monkeypatch):
    seeded = []
    monkeypatch.setattr(
        torch.mps if name == "mps" else torch.xpu, "manual_seed" + "_all" * (name == "xpu"), seeded.append
    )
    fit(normal_model, normal_guide, data(), steps=2, callbacks=[EarlyStopping(data(7), every=2)])
    assert seeded == []
