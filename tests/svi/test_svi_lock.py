"""One run at a time: a second is refused by name, a dead one is no hindrance, and nothing of others is touched."""

import os
from contextlib import nullcontext

import pytest
from svi_cases import plain

from pyro_zilognormal.svi import Checkpoint, InUseError, lock


def test_a_second_fit_on_a_path_is_refused_by_name(tmp_path):
    path = tmp_path / "a.ckpt"

    def again(run):
        with pytest.raises(InUseError, match=rf"a\.ckpt is in use by process {os.getpid()} on "):
            plain(Checkpoint(path))

    plain(again, Checkpoint(path))
    assert os.listdir(tmp_path) == ["a.ckpt"]
    plain(Checkpoint(path))


OTHERS_LOCKS = {
    "link": lambda file: file.symlink_to(file.with_name("victim")),
    "file": lambda file: file.write_text("mine"),
    "folder": lambda file: file.mkdir(),
    "pipe": os.mkfifo,
}


@pytest.mark.parametrize("make", OTHERS_LOCKS.values(), ids=OTHERS_LOCKS)
def test_a_lock_of_a_dead_process_is_taken_and_what_is_not_ours_is_left(make, tmp_path):
    path, file = tmp_path / "a.ckpt", tmp_path / "a.ckpt.lock"
    file.write_text("pyro_zilognormal: in use by process 1 on elsewhere")
    plain(Checkpoint(path))
    assert not file.exists()
    (tmp_path / "victim").write_text("mine")
    make(file)
    with pytest.raises(InUseError, match="is in the way, and no lock of ours"):
        plain(Checkpoint(path))
    assert os.path.lexists(file)
    assert not file.is_file() or file.read_text() == "mine"


@pytest.mark.parametrize(
    ("error", "refused"), [(BlockingIOError, True), (PermissionError, True), (OSError("no locks here"), False)]
)
def test_a_lock_that_is_taken_as_posix_and_windows_say_it_and_a_file_system_without(
    error, refused, tmp_path, monkeypatch
):
    def hold(handle):
        raise error

    monkeypatch.setattr(lock, "_hold", hold)
    path, expected = tmp_path / "run.lock", pytest.raises(InUseError, match=r"the folder is in use by process \?")
    with expected if refused else nullcontext(), lock.locked(path, "the folder"):
        assert f"in use by process {os.getpid()} on " in path.read_text()


def test_a_lock_that_its_holder_deletes_at_the_same_moment_is_not_taken(tmp_path, monkeypatch):
    path = tmp_path / "run.lock"
    monkeypatch.setattr(lock, "_hold", lambda handle: path.unlink())
    with pytest.raises(InUseError, match="the folder is in use by process"), lock.locked(path, "the folder"):
        pass
