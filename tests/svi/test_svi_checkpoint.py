"""Files of checkpoints: written on signals and atomically; damaged, of another fit or newer they are refused."""

import functools
import hashlib
import io
import os
import random
import signal

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from svi_cases import (
    Killed,
    adam,
    data,
    killer,
    normal_guide,
    normal_model,
    plain,
    same,
)
from torch.optim import lr_scheduler

from pyro_zilognormal.svi import (
    Callback,
    Checkpoint,
    CheckpointError,
    EarlyStopping,
    InUseError,
    Minibatches,
    Schedule,
    fit,
)
from pyro_zilognormal.svi.checkpoint import FORMAT


@pytest.fixture
def handled():
    """Set the handler of SIGINT, which a shell may have ignored, and put it back."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def raising(number, step):
    return lambda run: signal.raise_signal(number) if run.step == step else None


@pytest.mark.usefixtures("handled")
@pytest.mark.parametrize("step", [6, 20])
def test_ctrl_c_saves_and_then_interrupts(step, tmp_path):
    path = tmp_path / "a.ckpt"
    with pytest.raises(KeyboardInterrupt):
        plain(raising(signal.SIGINT, step), Checkpoint(path))
    assert Checkpoint.read(path)["step"] == step
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    same(plain(), plain(Checkpoint(path)))


@pytest.mark.parametrize("ignored", [False, True])
def test_a_handler_of_the_caller_is_obeyed(ignored, tmp_path):
    heard = []
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN if ignored else lambda number, frame: heard.append(number))
    try:
        result = plain(raising(signal.SIGTERM, 4), Checkpoint(tmp_path / "a.ckpt"), steps=6)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == ([] if ignored else [signal.SIGTERM])
    assert (result.stop_reason, result.steps) == (("steps", 6) if ignored else ("interrupted", 4))


def test_saving_by_seconds(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Checkpoint, "save", lambda self, run: saved.append(run.step))
    plain(Checkpoint(tmp_path / "a.ckpt", seconds=1e-9), steps=3)
    plain(Checkpoint(tmp_path / "b.ckpt", seconds=None), steps=3)
    assert saved == [1, 2, 3, 3]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "a.ckpt"
    with pytest.raises(Killed):
        plain(Checkpoint(path, steps=4), killer(13))
    return path.read_bytes()


def test_every_single_bit_flip_of_a_checkpoint_is_refused(saved, tmp_path):
    # All of the hash, and a large sample of the rest.
    bits = [*range(8 * 32), *random.Random(0).sample(range(8 * 32, 8 * len(saved)), 1000)]
    path, flipped = tmp_path / "a.ckpt", bytearray(saved)
    for bit in bits:
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="damaged, or no checkpoint"):
            Checkpoint.read(path)
        flipped[bit // 8] ^= 1 << bit % 8
    for wrong in (b"", saved[: len(saved) // 2], saved + b"\0"):
        path.write_bytes(wrong)
        with pytest.raises(CheckpointError, match=r"damaged, or no checkpoint.*Delete it"):
            plain(Checkpoint(path))
        assert path.read_bytes() == wrong
    path.write_bytes(flipped)
    same(plain(), plain(Checkpoint(path)))


def sealed(content):
    """A file with a hash that matches what it holds."""
    payload = io.BytesIO()
    torch.save(content, payload)
    return hashlib.sha256(payload.getvalue()).digest() + payload.getvalue()


def test_nothing_in_a_file_is_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return print, ("run",)

    (tmp_path / "a.ckpt").write_bytes(sealed({"format": FORMAT, "identity": Payload()}))
    with pytest.raises(Exception, match="Weights only load failed"):
        plain(Checkpoint(tmp_path / "a.ckpt"))


@pytest.mark.parametrize("resume", [True, False])
def test_a_newer_format_is_refused_and_never_overwritten(resume, saved, tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(saved)
    newer = sealed(Checkpoint.read(path) | {"format": FORMAT + 1})
    path.write_bytes(newer)
    with pytest.raises(CheckpointError, match=f"format {FORMAT + 1}, newer than the {FORMAT} of this version"):
        plain(Checkpoint(path, resume=resume))
    assert path.read_bytes() == newer


def test_resume_false_starts_anew(saved, tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(saved)
    assert len(plain(Checkpoint(path, resume=False), x=data(seed=1), steps=6).losses) == 6
    assert Checkpoint.read(path)["step"] == 6


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_disk_that_is_full_leaves_the_old_file_and_no_part_of_another(share, saved, tmp_path):
    resource = pytest.importorskip("resource")
    path, before = tmp_path / "a.ckpt", resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(run):
        if run.step == 10:
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * len(saved)), before[1]))

    try:
        with pytest.raises(OSError, match=r"too large while saving \d+ bytes; the last checkpoint is whole: .*a\.ckpt"):
            plain(fill, Checkpoint(path, steps=4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == ["a.ckpt"]
    assert Checkpoint.read(path)["step"] == 8
    same(plain(), plain(Checkpoint(path)))


def wide_guide(x):
    loc = pyro.param("q_loc", torch.zeros(2))
    pyro.sample("loc", dist.Normal(loc.sum(), pyro.param("q_scale", torch.tensor(1.0))))


def renamed_guide(x):
    pyro.sample("loc", dist.Normal(pyro.param("other", torch.tensor(0.0)), 1.0))


class Held(torch.nn.Module):
    """A model that holds a constant as a buffer."""

    def __init__(self, constant):
        super().__init__()
        self.register_buffer("constant", torch.tensor(constant))

    def forward(self, x):
        normal_model(x + self.constant)


def batches(**change):
    return Minibatches(data(), **{"batch_size": 5, "plate": "rows", **change})


def decay(gamma=0.9):
    return [Schedule(functools.partial(lr_scheduler.ExponentialLR, gamma=gamma))]


class Named(Callback):
    """Without a state."""

    def __init__(self, name):
        self.name = name

    def settings(self):
        return {"name": self.name}


OTHERS = {
    "shape": ({}, {"guide": wide_guide}, r"parameter 'q_loc': \(\) torch.float32 in the checkpoint, \(2,\)"),
    "name": ({}, {"guide": renamed_guide}, "parameter 'other': absent in the checkpoint"),
    "data": ({}, {"data": data(seed=1)}, "data: 20 rows in 1 batches, SHA-256 .* in the checkpoint"),
    "rows": ({}, {"data": data(19)}, "data: 20 rows"),
    "batch size": ({"data": batches()}, {"data": batches(batch_size=4)}, "data: 20 rows in 4 batches"),
    "order": ({"data": batches()}, {"data": batches(shuffle=False)}, "data: "),
    "dtype": ({"data": batches()}, {"data": batches(dtype=torch.float64)}, "data: "),
    "buffer": ({"model": Held(0.0)}, {"model": Held(1.0)}, "buffers: "),
    "seed": ({}, {"seed": 1}, "seed: 0 in the checkpoint, 1 now"),
    "loss": ({}, {"loss": Trace_ELBO(num_particles=2)}, "loss: .*'num_particles': 1.*'num_particles': 2"),
    "rate": ({}, {"optimizer": functools.partial(torch.optim.Adam, lr=0.06)}, "optimizer: Adam .*0.05.*0.06"),
    "optimizer": ({}, {"optimizer": functools.partial(torch.optim.SGD, lr=0.05)}, "optimizer: Adam .*SGD"),
    "schedule": ({"more": decay()}, {"more": decay(gamma=0.5)}, "callback 0: Schedule"),
    "stopping": ({"more": [EarlyStopping(data())]}, {"more": [EarlyStopping(data(), every=7)]}, "'every': 100.*7"),
    "held out": ({"more": [EarlyStopping(data(5))]}, {"more": [EarlyStopping(data(6))]}, "'held_out': "),
    "settings": ({"more": [Named("a")]}, {"more": [Named("b")]}, "callback 0: Named {'name': 'a'}"),
    "fewer": ({"more": decay()}, {}, "callback 0: Schedule .*absent now"),
}


@pytest.mark.parametrize(("first", "change", "message"), OTHERS.values(), ids=OTHERS)
def test_a_checkpoint_of_another_fit_is_refused_by_name(first, change, message, tmp_path):
    path = tmp_path / "a.ckpt"

    def run(steps, **settings):
        chosen = {"model": normal_model, "guide": normal_guide, "data": data(), "optimizer": adam, "more": []}
        chosen |= settings
        model, guide, x, more = (chosen.pop(k) for k in ("model", "guide", "data", "more"))
        return fit(model, guide, x, steps=steps, callbacks=[*more, Checkpoint(path)], **chosen)

    run(3, **first)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=f"checkpoint of another fit: .*{message}"):
        run(6, **{**first, **change} if change else {})
    assert path.read_bytes() == before
    assert run(6, **first).steps == 6


BAD = [
    *(
        ({"path": path}, "path is .*; needed the name of a file")
        for path in (5, None, b"a.ckpt", "missing/a.ckpt", ".")
    ),
    *(({"steps": steps}, f"steps is {steps}; needed a whole number of at least 1") for steps in (0, 1.5, True)),
    *(({"seconds": s}, f"seconds is {s!r}; needed a number of at least 0") for s in (-1.0, "1", float("nan"))),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Checkpoint(**{"path": "a.ckpt", **arguments})


def test_the_path_does_not_follow_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save = Checkpoint("a.ckpt")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    plain(save)
    assert sorted(os.listdir(tmp_path)) == ["a.ckpt", "other"]
    assert os.listdir() == []


def test_saving_follows_no_link_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "a.ckpt.new").symlink_to(tmp_path / "victim")
    plain(Checkpoint(tmp_path / "a.ckpt"))
    assert (tmp_path / "victim").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["a.ckpt", "victim"]


def test_a_second_fit_on_a_path_is_refused_by_name_and_a_dead_one_is_no_hindrance(tmp_path):
    path = tmp_path / "a.ckpt"
    (tmp_path / "a.ckpt.lock").write_text("process 1 on elsewhere")

    def again(run):
        with pytest.raises(InUseError, match=rf"a\.ckpt is in use by process {os.getpid()} on "):
            plain(Checkpoint(path))

    plain(again, Checkpoint(path))
    assert os.listdir(tmp_path) == ["a.ckpt"]
    plain(Checkpoint(path))
