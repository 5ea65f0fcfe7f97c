"""Checkpoints: killed anywhere, a fit goes on bit for bit; what is damaged, of another fit or newer is refused."""

import functools
import os
import pathlib
import random
import signal
import subprocess
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import svi_kill_script
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal, AutoNormalMessenger
from pyro.optim.clipped_adam import ClippedAdam
from svi_cases import (
    Amortised,
    Killed,
    adam,
    auto,
    check_resume,
    data,
    killer,
    local_model,
    normal_guide,
    normal_model,
    same,
)
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from pyro_zilognormal.svi import (
    BatchStream,
    Callback,
    Checkpoint,
    CheckpointError,
    EarlyStopping,
    Minibatches,
    Schedule,
    fit,
)
from pyro_zilognormal.svi.checkpoint import FORMAT, _sealed

STEPS = 40

# An optimiser of torch or Pyro with its options, and a schedule with its own; each is in one pair at least.
PAIRS = [
    ("Adam", {"lr": 0.05}, "CyclicLR", {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 6}),
    ("AdamW", {"lr": 0.05}, "StepLR", {"step_size": 7, "gamma": 0.5}),
    ("Adamax", {"lr": 0.05}, "MultiStepLR", {"milestones": [5, 20, 20]}),
    ("NAdam", {"lr": 0.05}, "CosineAnnealingLR", {"T_max": STEPS}),
    ("RAdam", {"lr": 0.05}, "CosineAnnealingWarmRestarts", {"T_0": 6}),
    ("Adagrad", {"lr": 0.05}, "LinearLR", {"total_iters": 20}),
    ("Adadelta", {"lr": 0.5}, "PolynomialLR", {"total_iters": 30, "power": 2.0}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.5}, "LambdaLR", {"lr_lambda": lambda step: 1 / (1 + step)}),
    ("Rprop", {"lr": 0.01}, "ExponentialLR", {"gamma": 0.97}),
    ("ASGD", {"lr": 0.001}, "ConstantLR", {"total_iters": 10}),
    ("SGD", {"lr": 0.001, "momentum": 0.9}, "OneCycleLR", {"max_lr": 0.1, "total_steps": STEPS + 1}),
    ("ClippedAdam", {"lr": 0.05, "lrd": 0.99}, "SequentialLR", {"milestones": [8]}),
]


def schedule(opt, name, options):
    if name == "SequentialLR":
        parts = [lr_scheduler.ConstantLR(opt, 0.5, 8), lr_scheduler.ExponentialLR(opt, 0.9)]
        return lr_scheduler.SequentialLR(opt, parts, **options)
    return getattr(lr_scheduler, name)(opt, **options)


def kills(name, count=2):
    return random.Random(name).sample(range(1, STEPS), count)


def plain(*callbacks, steps=20, x=None, guide=normal_guide, **settings):
    x = data() if x is None else x
    return fit(normal_model, guide, x, steps=steps, **{"optimizer": adam, **settings}, callbacks=callbacks)


@pytest.mark.parametrize("pair", [*PAIRS, "pyro.optim"], ids=lambda pair: pair[0] if isinstance(pair, tuple) else pair)
def test_each_optimizer_and_schedule_resumes_bit_for_bit(pair, tmp_path):
    def run(callbacks):
        source = Minibatches(data(23), batch_size=5, plate="rows")
        rates.append([])
        follow = [lambda run: rates[-1].append(run.optimizer.param_groups[0]["lr"])]
        if pair == "pyro.optim":
            optimizer = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99})
        else:
            name, options, *scheduled = pair
            optimizer = functools.partial(
                ClippedAdam if name == "ClippedAdam" else getattr(torch.optim, name), **options
            )
            follow = [Schedule(lambda opt: schedule(opt, *scheduled)), *follow]
        return fit(normal_model, auto(), source, steps=STEPS, optimizer=optimizer, callbacks=[*follow, *callbacks])

    rates = []
    check_resume(tmp_path / "a.ckpt", run, kills(str(pair)[:20]))
    assert rates[0][-len(rates[-1]) :] == rates[-1]
    assert len(set(rates[0])) > 1


def noisy(x):
    """Draws from every generator that is kept, to some effect."""
    loc = pyro.param("q_loc", torch.tensor(0.0))
    shift = torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002 - the global one is kept
    pyro.sample("loc", dist.Normal(loc + 0.1 * shift, 0.1))


class Normed(Amortised):
    """With state that is not a parameter: running means and dropout."""

    def __init__(self, rows):
        super().__init__(rows)
        layers = torch.nn.Linear(1, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 2)
        self.net = torch.nn.Sequential(*layers)


class Augmented(torch.utils.data.Dataset):
    """Rows with noise that is drawn whenever they are read."""

    def __len__(self):
        return 23

    def __getitem__(self, i):
        return data(23)[i] + 0.1 * torch.randn(())


def pair(kind):
    torch.manual_seed(11)
    if kind == "module":
        module = Normed(23)
        return module.model, module.guide
    return {
        "rows": (local_model(23), AutoNormal(local_model(23))),
        "low rank": (normal_model, AutoLowRankMultivariateNormal(normal_model, rank=1)),
        "messenger": (normal_model, AutoNormalMessenger(normal_model)),
        "plain": (normal_model, normal_guide),
        "noisy": (normal_model, noisy),
    }[kind]


def loader(dataset, **settings):
    return BatchStream(DataLoader(dataset, batch_size=5, shuffle=True, **settings), plate="rows")


DATA = {
    "full": lambda: data(23),
    "batches": lambda: Minibatches(data(23), batch_size=5, plate="rows"),
    "list": lambda: BatchStream(list(data(23).split(5)), plate="rows"),
    "loader": lambda: loader(data(23)),
    "own generator": lambda: loader(data(23), generator=torch.Generator().manual_seed(5)),
    "augmented": lambda: loader(Augmented()),
}

COUNTING = [  # plates, at their first call
    functools.partial(TraceEnum_ELBO, strict_enumeration_warning=False),
    functools.partial(Trace_ELBO, 2, vectorize_particles=True),
]

KINDS = [
    *(("module", s, Trace_ELBO) for s in DATA),
    *(("noisy", s, Trace_ELBO) for s in DATA),
    *(("rows", s, Trace_ELBO) for s in ("full", "batches")),  # a stream does not say which rows a batch holds
    *((k, "batches", Trace_ELBO) for k in ("low rank", "messenger")),
    *(("plain", "full", loss) for loss in COUNTING),
]


@pytest.mark.parametrize(("kind", "source", "loss"), KINDS)
def test_each_kind_of_model_data_and_loss_resumes_bit_for_bit(kind, source, loss, tmp_path):
    def run(callbacks):
        return fit(*pair(kind), DATA[source](), steps=STEPS, optimizer=adam, loss=loss(), callbacks=callbacks)

    check_resume(tmp_path / "a.ckpt", run, kills(kind + source))


def test_stopping_and_annealing_resume_bit_for_bit(tmp_path):
    def run(callbacks):
        def anneal(run):
            run.kl_weight = np.minimum(1.0, run.step / 30)

        slow = functools.partial(torch.optim.Adam, lr=0.02)
        stop = EarlyStopping(data(9, seed=5), every=10, patience=3)
        return plain(stop, anneal, *callbacks, steps=1000, optimizer=slow)

    whole = run([])
    assert whole.stop_reason == "converged"
    check_resume(tmp_path / "a.ckpt", run, [1, 7, whole.steps - 1])


@pytest.mark.parametrize("steps", [20, 50])
def test_a_finished_run_goes_on_only_if_more_steps_are_asked_for(steps, tmp_path):
    def run(steps, *callbacks):
        return plain(EarlyStopping(data(9), every=5, patience=100), *callbacks, steps=steps)

    taken = []
    run(20, Checkpoint(tmp_path / "a.ckpt"))
    same(run(steps), run(steps, lambda run: taken.append(run.step), Checkpoint(tmp_path / "a.ckpt")))
    assert taken == list(range(21, steps + 1))


def test_the_state_of_a_callback_is_kept_whatever_stands_around_it(tmp_path):
    class Count(Callback):
        steps = 0

        def on_step_end(self, run):
            self.steps += 1

        def state_dict(self):
            return {"steps": self.steps}

        def load_state_dict(self, state):
            self.steps = state["steps"]

    path = tmp_path / "a.ckpt"
    with pytest.raises(Killed):
        plain(Checkpoint(path, 4), Count(), killer(9))
    count = Count()
    plain(count, Checkpoint(path), lambda run: None)
    assert count.steps == 20


# --- signals and kills


@pytest.mark.parametrize(
    ("name", "number"), [("Adam", signal.SIGKILL), ("SGD", signal.SIGKILL), ("Adam", signal.SIGTERM)]
)
def test_a_killed_process_resumes_bit_for_bit(name, number, tmp_path):
    here, path = pathlib.Path(__file__).parent, tmp_path / "a.ckpt"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])])}
    command = [sys.executable, str(here / "svi_kill_script.py"), name, str(path), "0.1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    next(line for line in process.stdout if line == "13\n")
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert "done" not in out
    assert process.returncode == -number, error
    step = Checkpoint.read(path)["step"]
    # A signal that can be caught loses nothing; SIGKILL at most the last interval of 5 steps.
    assert step >= (10 if number == signal.SIGKILL else 13)
    same(svi_kill_script.run(name, []), svi_kill_script.run(name, [Checkpoint(path, steps=5)]))


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
    assert heard == [] if ignored else [signal.SIGTERM]
    assert (result.stop_reason, result.steps) == (("steps", 6) if ignored else ("interrupted", 4))


def test_saving_by_seconds(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Checkpoint, "save", lambda self, run: saved.append(run.step))
    plain(Checkpoint(tmp_path / "a.ckpt", seconds=1e-9), steps=3)
    plain(Checkpoint(tmp_path / "b.ckpt", seconds=None), steps=3)
    assert saved == [1, 2, 3, 3]


# --- files


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "a.ckpt"
    with pytest.raises(Killed):
        plain(Checkpoint(path, steps=4), killer(13))
    return path.read_bytes()


def test_every_single_bit_flip_of_a_checkpoint_is_refused(saved, tmp_path):
    # All of the header, and a large sample of the rest.
    bits = [*range(8 * 42), *random.Random(0).sample(range(8 * 42, 8 * len(saved)), 1000)]
    path, flipped = tmp_path / "a.ckpt", bytearray(saved)
    for bit in bits:
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"damaged, or no checkpoint|newer than"):
            Checkpoint.read(path)
        flipped[bit // 8] ^= 1 << bit % 8
    for wrong in (b"", saved[: len(saved) // 2], saved + b"\0"):
        path.write_bytes(wrong)
        with pytest.raises(CheckpointError, match=r"damaged, or no checkpoint.*Delete it"):
            plain(Checkpoint(path))
        assert path.read_bytes() == wrong
    path.write_bytes(flipped)
    same(plain(), plain(Checkpoint(path)))


def test_nothing_in_a_file_is_run(saved, tmp_path):
    import io

    class Payload:
        def __reduce__(self):
            return print, ("run",)

    content = io.BytesIO()
    torch.save({"identity": Payload(), "run": {}}, content)
    (tmp_path / "a.ckpt").write_bytes(_sealed(content.getvalue()))
    with pytest.raises(Exception, match="Weights only load failed"):
        plain(Checkpoint(tmp_path / "a.ckpt"))


@pytest.mark.parametrize("resume", [True, False])
def test_a_newer_format_is_refused_and_never_overwritten(resume, saved, tmp_path):
    newer = saved[:8] + (FORMAT + 1).to_bytes(2, "big") + saved[10:]
    path = tmp_path / "a.ckpt"
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


# --- another fit


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
    "schedule": ({"more": decay()}, {"more": decay(gamma=0.5)}, "callback 0 with a state: Schedule"),
    "stopping": ({"more": [EarlyStopping(data())]}, {"more": [EarlyStopping(data(), every=7)]}, "'every': 100.*7"),
    "held out": ({"more": [EarlyStopping(data(5))]}, {"more": [EarlyStopping(data(6))]}, "'held_out': "),
    "fewer": ({"more": decay()}, {}, "callback 0 with a state: Schedule .*absent now"),
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
    (tmp_path / "a.ckpt.0123abcd.new").write_bytes(b"SVI")  # of a run that was killed
    plain(Checkpoint(tmp_path / "a.ckpt"))
    assert (tmp_path / "victim").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["a.ckpt", "a.ckpt.new", "victim"]
