"""Item 4, the state in a file: checked before anything is overwritten, and read without the data."""

import functools
import math

import numpy as np
import pyro
import pytest
import torch
from svi_cases import Killed, adam, data, fit_with, killer, normal_guide, normal_model, same
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from pyro_zilognormal.svi import (
    BatchStream,
    Checkpoint,
    CheckpointError,
    EarlyStopping,
    SavedFit,
    Schedule,
    fit,
    storage,
)


class Guide(torch.nn.Module):
    """Parameters that a refused file must not reach, a buffer, and a number that a callback changes."""

    beta = 1.0

    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.tensor([0.0, 1.0]))
        self.register_buffer("seen", torch.zeros(2))
        self.temperature = 1.0

    def forward(self, x):
        self.seen += 1
        pyro.sample("loc", pyro.distributions.Normal(self.loc.sum(), self.temperature))


def rich_fit(path, guide, steps=9, more=()):
    """A fit that has everything that a checkpoint keeps."""
    loader = DataLoader(data(), batch_size=6, shuffle=True, generator=torch.Generator().manual_seed(3))

    def cool(run):
        guide.temperature = 1 / (1 + run.step)

    plateau = Schedule(functools.partial(lr_scheduler.ReduceLROnPlateau, patience=1), every=2)
    callbacks = [EarlyStopping(data(7), every=2, patience=99), plateau, cool, *more, Checkpoint(path, steps=1)]
    return fit(normal_model, guide, BatchStream(loader, plate="rows"), steps=steps, optimizer=adam, callbacks=callbacks)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rich") / "a.ckpt"
    with pytest.raises(Killed):
        rich_fit(path, Guide(), more=[killer(6)])
    return storage.read(path)


def at(content, place):
    for key in place:
        content = content[key]
    return content


HOSTILE = [
    (("step",), -1),
    (("step",), 10**9),
    (("step",), 5.0),
    (("step",), True),
    (("good_step",), 99),
    (("in_a_row",), "1"),
    (("losses",), torch.zeros(3, dtype=torch.float64)),
    (("losses",), torch.zeros(5)),
    (("losses",), [1.0] * 5),
    (("held_out",), [[1]]),
    (("held_out",), [[9999, 1.0]]),
    (("held_out",), {"a": 1}),
    (("smoothed",), [["1", 1.0]]),
    (("skipped",), [0.5]),
    (("skipped",), list(range(99))),
    (("seconds",), math.nan),
    (("kl_weight",), math.inf),
    (("kl_weight",), "1"),
    (("stopped",), ["converged"]),
    (("stopped",), ["converged", "yes"]),
    (("values",), "text"),
    (("values",), {}),
    (("values", "guide.loc"), torch.zeros(3)),
    (("values", "guide.loc"), torch.zeros(2, dtype=torch.float64)),
    (("values", "guide.loc"), [0.0, 0.0]),
    (("values", "buffer guide.seen"), torch.zeros(1)),
    (("good",), []),
    (("good", 0), torch.zeros(1)),
    (("numbers",), {}),
    (("numbers", "guide", "temperature"), "1"),
    (("numbers", "guide", "forward"), 1.0),
    (("numbers", "guide", "__class__"), 1.0),
    (("numbers", "guide", "no_part.p"), 1.0),
    (("numbers", "guide", "loc"), 1.0),
    (("optimizer",), {"state": {}, "param_groups": []}),
    (("optimizer", "param_groups", 0, "lr"), math.nan),
    (("optimizer", "param_groups", 0, "lr"), "0.1"),
    (("optimizer", "param_groups", 0, "betas"), (0.9,)),
    (("optimizer", "param_groups", 0, "betas"), [0.9, 0.9]),
    (("optimizer", "param_groups", 0, "amsgrad"), 1),
    (("optimizer", "param_groups", 0, "params"), [7]),
    (("optimizer", "state", 3), {}),
    (("optimizer", "state", 0), []),
    (("optimizer", "state", 0, "exp_avg"), torch.zeros(5)),
    (("optimizer", "state", 0, "step"), "one"),
    (("random", "torch"), torch.zeros(3, dtype=torch.uint8)),
    (("random", "torch"), torch.full((5056,), 255, dtype=torch.uint8)),
    (("random", "numpy", "state", "pos"), 10**6),
    (("random", "numpy", "state", "key"), torch.zeros(3, dtype=torch.int64)),
    (("random", "numpy", "bit_generator"), "PCG64"),
    (("random", "python", 1), torch.zeros(3, dtype=torch.int64)),
    (("random", "python", 1), torch.full((625,), 2**40)),
    (("reader", "epoch"), -1),
    (("reader", "position"), 99),
    (("reader", "opened"), None),
    (("reader", "opened", "own"), []),
    (("reader", "opened", "own", 0), torch.zeros(3, dtype=torch.uint8)),
    (("reader", "opened", "global"), {}),
    (("reader", "own", 0), torch.full((5056,), 255, dtype=torch.uint8)),
    (("callbacks",), []),
    (("callbacks", 0), {}),
    (("callbacks", 0, "best"), "low"),
    (("callbacks", 0, "rates"), None),
    (("callbacks", 0, "rates"), [0.05] * 5),
    (("callbacks", 0, "rates"), torch.tensor([math.nan], dtype=torch.float64)),
    (("callbacks", 0, "best_step"), -1),
    (("callbacks", 0, "waited"), None),
    (("callbacks", 0, "reference"), torch.zeros(4)),
    (("callbacks", 0, "first"), None),
    (("callbacks", 0, "values", "guide.loc"), torch.zeros(3)),
    (("callbacks", 1), None),
    (("callbacks", 1, "mode"), "sideways"),
    (("callbacks", 1, "patience"), 0.5),
    (("callbacks", 1, "_last_lr"), [0.1, 0.2]),
]


@pytest.mark.parametrize(("place", "value"), HOSTILE, ids=lambda v: str(v)[:60])
def test_a_hostile_state_with_a_right_checksum_is_refused_before_anything_is_overwritten(place, value, file, tmp_path):
    path, guide, fresh = tmp_path / "a.ckpt", Guide(), Guide()
    content = storage.decode(storage.encode(file))
    at(content["run"], place[:-1])[place[-1]] = value
    storage.write(path, content)
    before = torch.get_rng_state()
    with pytest.raises(CheckpointError, match="does not hold the state of such a fit"):
        rich_fit(path, guide)
    assert torch.equal(guide.loc, fresh.loc)
    assert guide.temperature == fresh.temperature
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("key", ["step", "values", "optimizer", "random", "reader", "numbers", "callbacks"])
def test_a_state_that_lacks_something_is_refused(key, file, tmp_path):
    content = storage.decode(storage.encode(file))
    del content["run"][key]
    storage.write(tmp_path / "a.ckpt", content)
    guide = Guide()
    with pytest.raises(CheckpointError, match="does not hold the state of such a fit"):
        rich_fit(tmp_path / "a.ckpt", guide)
    assert torch.equal(guide.loc, Guide().loc)


def test_the_file_itself_is_good(file, tmp_path):
    storage.write(tmp_path / "a.ckpt", file)
    same(rich_fit(tmp_path / "a.ckpt", Guide()), rich_fit(tmp_path / "b.ckpt", Guide()))


def test_states_of_another_machines_devices_are_left_out(tmp_path):
    # A file as a machine with two GPUs would write it, made by hand: this machine has none.
    path = tmp_path / "a.ckpt"
    with pytest.raises(Killed):
        fit(normal_model, normal_guide, data(), steps=9, callbacks=[Checkpoint(path, steps=4), killer(5)])
    content = storage.read(path)
    content["run"]["random"]["cuda"] = [torch.zeros(16, dtype=torch.uint8)] * 2
    storage.write(path, content)
    same(
        fit(normal_model, normal_guide, data(), steps=9),
        fit(normal_model, normal_guide, data(), steps=9, callbacks=[Checkpoint(path)]),
    )


def test_a_checkpoint_is_read_without_data_or_model(tmp_path):
    path = tmp_path / "a.ckpt"
    stop = EarlyStopping(data(seed=3), every=2)
    whole = fit_with(path, {"steps": 6, "more": [stop]})
    saved = Checkpoint.read(str(path))
    assert isinstance(saved, SavedFit)
    assert (saved.step, saved.stop_reason, saved.converged, saved.skipped) == (6, "steps", False, [])
    assert np.array_equal(saved.losses, whole.losses)
    assert saved.held_out == whole.held_out
    assert saved.params.keys() == whole.params.keys()
    last = fit_with(tmp_path / "b.ckpt", {"steps": 6})
    assert all(torch.equal(saved.params[k], last.params[k]) for k in last.params)  # q_scale within its constraint
    assert saved.identity["seed"] == "0"
    assert "tensor (20,)" in saved.identity["data argument 0"]


def test_reading_falls_back_and_refuses_as_resuming_does(tmp_path):
    path = tmp_path / "a.ckpt"
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        Checkpoint.read(path)
    fit(normal_model, normal_guide, data(), steps=6, callbacks=[Checkpoint(path, steps=4)])
    path.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="using the one before"):
        assert Checkpoint.read(path).step == 4
    path.with_name("a.ckpt.previous").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint can be read"):
        Checkpoint.read(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("step", "1"), ("losses", [1.0]), ("values", {"a": 1.0}), ("stopped", [1, True]), ("constrained", None)],
)
def test_reading_a_hostile_state_is_refused(key, value, file, tmp_path):
    content = storage.decode(storage.encode(file))
    content["run"][key] = value
    storage.write(tmp_path / "a.ckpt", content)
    with pytest.raises(CheckpointError, match="does not hold the state of a fit"):
        Checkpoint.read(tmp_path / "a.ckpt")
