"""Item 4, saving: when, where and under which signals a run is kept."""

import os
import pathlib
import signal
import subprocess
import sys

import pyro
import pytest
import svi_resume_script
import torch
from svi_cases import Killed, adam, data, fit_with, killer, normal_guide, normal_model, same

from pyro_zilognormal.svi import (
    Checkpoint,
    CheckpointError,
    Run,
    fit,
    storage,
)


def start(path, steps=30, pause=0.2):
    here = pathlib.Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])])}
    command = [sys.executable, str(here / "svi_resume_script.py"), str(path), str(steps), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_process_resumes_bit_for_bit(number, tmp_path):
    process = start(tmp_path / "a.ckpt")
    next(line for line in process.stdout if line == "13\n")
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert "done" not in out
    # After a step of a torch optimiser, what torch runs at exit can turn Python's death by SIGINT into a plain error.
    interrupted = number == signal.SIGINT and process.returncode == 1 and error.rstrip().endswith("KeyboardInterrupt")
    assert process.returncode == -number or interrupted, error
    step = storage.read(tmp_path / "a.ckpt")["run"]["step"]
    # A signal that can be caught loses nothing; SIGKILL at most the last interval of 5 steps.
    assert step == 10 if number == signal.SIGKILL else step >= 13
    same(svi_resume_script.run([]), svi_resume_script.run([Checkpoint(tmp_path / "a.ckpt", steps=5)]))


def test_ctrl_c_saves_and_then_interrupts(tmp_path):
    path, before = tmp_path / "a.ckpt", signal.getsignal(signal.SIGINT)

    def interrupt(run):
        if run.step == 6:
            os.kill(os.getpid(), signal.SIGINT)

    def run(*callbacks):
        return fit(normal_model, normal_guide, data(), steps=20, optimizer=adam, callbacks=callbacks)

    with pytest.raises(KeyboardInterrupt):
        run(interrupt, Checkpoint(path, steps=1000))
    assert storage.read(path)["run"]["step"] == 6
    assert signal.getsignal(signal.SIGINT) is before
    same(run(), run(Checkpoint(path)))


def test_sigterm_obeys_a_handler_of_the_caller(tmp_path):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        kill = lambda run: os.kill(os.getpid(), signal.SIGTERM) if run.step == 4 else None  # noqa: E731
        save = Checkpoint(tmp_path / "a.ckpt")
        result = fit(normal_model, normal_guide, data(), steps=20, callbacks=[kill, save])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert (result.stop_reason, result.steps) == ("interrupted", 4)


def test_saving_by_seconds(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Checkpoint, "save", lambda self, run: saved.append(run.step))
    save = Checkpoint(tmp_path / "a.ckpt", seconds=1e-9)
    save._saved_at = 0.0
    fit(normal_model, normal_guide, data(), steps=3, callbacks=[save])
    assert saved == [1, 2, 3, 3]
    saved.clear()
    fit(normal_model, normal_guide, data(), steps=3, callbacks=[Checkpoint(tmp_path / "b.ckpt", seconds=None)])
    assert saved == [3]


def test_a_damaged_file_falls_back_to_the_previous_one(tmp_path):
    path = tmp_path / "a.ckpt"

    def run(*callbacks):
        return fit(normal_model, normal_guide, data(), steps=20, optimizer=adam, callbacks=callbacks)

    whole = run()
    for damage in ("flip", "half", "gone"):
        with pytest.raises(Killed):
            run(Checkpoint(path, steps=4, resume=False), killer(13))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content if damage == "flip" else content[: len(content) // 2])
        if damage == "gone":  # killed between the two renames
            path.unlink()
            same(whole, run(Checkpoint(path)))
        else:
            with pytest.warns(UserWarning, match="checkpoint damaged, using the one before"):
                same(whole, run(Checkpoint(path)))


def test_two_damaged_files_are_an_error(tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"SVI-CHECKPOINT-1 and nothing")
    path.with_name("a.ckpt.previous").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint can be read.*Delete the files"):
        fit(normal_model, normal_guide, data(), steps=2, callbacks=[Checkpoint(path)])


def test_resume_false_starts_anew(tmp_path):
    path = tmp_path / "a.ckpt"
    fit_with(path, {})
    save = Checkpoint(path, resume=False)
    again = fit(normal_model, normal_guide, data(seed=1), steps=6, callbacks=[save])
    assert len(again.losses) == 6


@pytest.mark.parametrize("format_number", [0, 2, "1"])
def test_another_format_is_refused(format_number, tmp_path):
    path = tmp_path / "a.ckpt"
    storage.write(path, {"format": format_number, "fingerprint": {}, "run": {}})
    with pytest.raises(CheckpointError, match="not a checkpoint of format 1"):
        fit_with(path, {})


def test_a_signal_during_the_last_save_is_not_lost(tmp_path, monkeypatch):
    save = Checkpoint.save

    def interrupted(self, run):
        save(self, run)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Checkpoint, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_with(tmp_path / "a.ckpt", {"steps": 3})
    assert storage.read(tmp_path / "a.ckpt")["run"]["step"] == 3


def test_max_seconds_begin_anew_in_a_resumed_fit(tmp_path):
    def run():
        save = Checkpoint(tmp_path / "a.ckpt")
        return fit(normal_model, normal_guide, data(), steps=10**6, max_seconds=0.2, callbacks=[save])

    first, second = run(), run()
    assert second.steps > first.steps + 1
    assert second.seconds > first.seconds


def test_a_late_parameter_is_refused_when_it_would_be_lost(tmp_path):
    def guide(x):
        normal_guide(x)
        seen.append(1)
        if len(seen) > 3:
            pyro.param("late", torch.tensor(3.0))

    seen = []
    with pytest.raises(RuntimeError, match=r"parameters \['late'\] first appeared after the first run"):
        fit(normal_model, guide, data(), steps=9, callbacks=[Checkpoint(tmp_path / "a.ckpt", steps=1)])


def test_a_callback_with_odd_state_is_named(tmp_path):
    class Odd:
        def __call__(self, run: Run):
            pass

        def state_dict(self):
            return {"f": print}

        def load_state_dict(self, state):
            pass

    with pytest.raises(TypeError, match=r"callbacks'\]\[0\]\['f'\] is a builtin_function"):
        fit(normal_model, normal_guide, data(), steps=1, callbacks=[Odd(), Checkpoint(tmp_path / "a.ckpt")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "missing/a.ckpt"}, "its folder does not exist"),
        ({"path": "a.ckpt", "steps": 0}, "steps is 0; needed a whole number of at least 1"),
        ({"path": "a.ckpt", "seconds": -1.0}, "seconds is -1.0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Checkpoint(**arguments)
