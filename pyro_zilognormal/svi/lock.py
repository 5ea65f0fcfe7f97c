"""A lock on files that one run at a time may write."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    def _hold(handle: int) -> None:
        os.lseek(handle, 2**20, os.SEEK_SET)  # others cannot read what is locked: a byte far behind the text
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _hold(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


_NAME = "pyro_zilognormal: "
_OURS = f"{_NAME}in use by process "
# A link is not followed, and a pipe does not block; Windows knows neither flag.
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class InUseError(RuntimeError):
    """Files that another run is writing."""


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file, whose text is the process and the host, for a block; raise an InUseError if another run does.

    The lock ends with the process, however it ends; on file systems without locks it keeps no one off. A file or link
    at the path that is none of ours is left as it is. Errors name ``what`` is locked.
    """
    with ExitStack() as stack:
        try:
            handle = os.open(path, _FLAGS, 0o644)
            stack.callback(os.close, handle)
            text = os.read(handle, 200).decode(errors="replace") or f"{_OURS}?"
        except OSError as error:
            if not os.path.lexists(path):  # no file can be made here
                raise
            text = str(error)  # of a link, a folder or a pipe
        if not text.startswith(_OURS):
            raise InUseError(f"{path} is in the way, and no lock of ours; remove it")
        if not _hold_at(handle, path):
            raise InUseError(f"{what} is {text.removeprefix(_NAME)}; wait for it to end, or use another path")
        stack.callback(_delete, path)
        os.lseek(handle, 0, os.SEEK_SET)
        os.ftruncate(handle, 0)
        os.write(handle, f"{_OURS}{os.getpid()} on {socket.gethostname()}".encode())
        yield


def _hold_at(handle: int, path: Path) -> bool:
    """Hold the open file; return whether no other process does, and it has not been deleted by one that ended."""
    try:
        _hold(handle)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        pass
    return os.path.lexists(path) and os.path.samestat(os.fstat(handle), os.lstat(path))


def _delete(path: Path) -> None:
    with suppress(PermissionError):  # Windows deletes no open file; the next run takes it over
        path.unlink(missing_ok=True)
