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

    The lock ends with the process, however it ends; the file is deleted (on Windows, it stays). On file systems without
    locks it keeps no one off. Errors name ``what`` is locked. A file or link at the path that is none of ours is left.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "lock"
        >>> with locked(path, "the folder"):
        ...     path.exists()
        True
        >>> path.exists()
        False
    """
    while (handle := _acquire(path, what)) is None:
        pass
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        os.ftruncate(handle, 0)
        os.write(handle, f"{_OURS}{os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        with suppress(PermissionError):  # Windows deletes no open file; the next run takes it over
            path.unlink(missing_ok=True)
        os.close(handle)


def _acquire(path: Path, what: str) -> int | None:
    """Return a handle of the file that this process alone holds; None if its last holder has just deleted it."""
    with ExitStack() as opened:
        try:
            handle = os.open(path, _FLAGS, 0o644)
            opened.callback(os.close, handle)
            text = os.read(handle, 200).decode(errors="replace") or f"{_OURS}?"
        except OSError as error:
            if not os.path.lexists(path):  # no file can be made here
                raise
            # A link, or a folder.
            raise InUseError(f"{path} is in the way, and no lock of ours ({error.strerror}); remove it") from error
        if not text.startswith(_OURS):
            raise InUseError(f"{path} is in the way, and no lock of ours; remove it")
        try:
            _hold(handle)
        except (BlockingIOError, PermissionError) as error:
            by = text.removeprefix(_NAME)
            raise InUseError(f"{what} is {by}; wait for it to end, or use another path") from error
        except OSError:  # a file system without locks
            pass
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.lstat(path)):
                opened.pop_all()
                return handle
    return None
