"""One run at a time: on a path, by a lock file; in a process, by a lock that a forked child has anew."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyro.params.param_store import ParamStoreDict
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_PARAM_STORE, _PYRO_STACK

try:
    import fcntl
except ImportError:  # not on Windows, where paths are not locked
    fcntl = None  # type: ignore[assignment]

_NAME = "pyro_zilognormal: "
_OURS = f"{_NAME}in use by process "


class InUseError(RuntimeError):
    """Files that another run is writing."""


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file for the length of a block; its text is the process and the host.

    The lock ends with the process, however it ends. On Windows, and on file systems without locks, it does nothing.

    Args:
        path: the lock file, in a folder that exists; it is deleted afterwards.
        what: what it stands for, in errors.

    Raises:
        InUseError: another run holds it, or the file is none of ours.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "lock"
        >>> with locked(path, "the folder"):
        ...     path.exists()
        True
        >>> path.exists()
        False
    """
    if fcntl is None:
        yield
        return
    handle = _acquire(path, what)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _acquire(path: Path, what: str) -> int:
    """Return a handle of a new file that this process alone holds."""
    while True:
        handle, text = _open(path)
        if handle is None:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            by = (text or _OURS + "?").removeprefix(_NAME)
            raise InUseError(f"{what} is {by}; wait for it to end, or use another path") from error
        except OSError:  # a file system without locks
            pass
        if _is_at(path, handle):
            if text is None:
                os.write(handle, f"{_OURS}{os.getpid()} on {socket.gethostname()}".encode())
                return handle
            path.unlink()  # of a process that has died
        os.close(handle)


def _open(path: Path) -> tuple[int | None, str | None]:
    """Return a handle of a new file and None, or of the file there and its text; no handle if that has just gone."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), None
    except FileExistsError:
        pass
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        text = os.read(handle, 200).decode(errors="replace")
    except FileNotFoundError:
        return None, None
    except OSError as error:  # a link, a folder
        raise InUseError(f"{path} is in the way, and no lock of ours ({error.strerror}); remove it") from error
    if text and not text.startswith(_OURS):
        os.close(handle)
        raise InUseError(f"{path} is in the way, and no lock of ours; remove it")
    return handle, text


def _is_at(path: Path, handle: int) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


_PROCESS = threading.RLock()
_holder: "_OneThread | None" = None


class _OneThread(Messenger):
    """Refuse statements of Pyro in other threads: handlers and parameters are one for the whole process."""

    def __init__(self, outer: Any) -> None:
        super().__init__()
        self.thread, self.outer = threading.get_ident(), outer

    def _process_message(self, msg: Any) -> None:
        if threading.get_ident() != self.thread:
            raise RuntimeError(
                f"pyro.{msg['type']} {msg['name']!r} was called while another thread fits or draws; Pyro has one "
                "parameter store and one stack of handlers in a process: call it before or after, or in another process"
            )


@contextmanager
def one_thread(store: ParamStoreDict) -> Iterator[None]:
    """Let one thread of a process at a time run a block; others wait for it. Blocks may be nested."""
    global _holder
    with _PROCESS:
        if _holder is not None:
            yield
            return
        with _OneThread(store.get_state()) as _holder:
            try:
                yield
            finally:
                _holder = None


def _renew() -> None:
    """In a forked child, forget a block of a thread that the child does not have."""
    global _PROCESS, _holder
    if _holder is not None and _holder.thread != threading.get_ident():
        _PYRO_PARAM_STORE.set_state(_holder.outer)
        _PYRO_STACK.clear()
        _PROCESS, _holder = threading.RLock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
