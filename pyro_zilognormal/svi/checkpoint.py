"""Fits that survive being killed."""

import errno
import hashlib
import io
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from numbers import Real
from pathlib import Path
from types import FrameType
from typing import Any

import pyro
import torch
from filelock import FileLock, Timeout

from pyro_zilognormal.svi.data import batches, digest, whole
from pyro_zilognormal.svi.elbo import isolated, rng_state, set_rng_state
from pyro_zilognormal.svi.fit import Callback, Run

FORMAT = 1
# Attributes of a run that are saved as they are.
_RUN = ("step", "losses", "held_out", "last_finite_step")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used: damaged, of another fit, or of a newer format."""


class InUseError(RuntimeError):
    """Files that another run is writing."""


class Checkpoint(Callback):
    """Save the whole state of a fit to a file now and then, and go on from there if the file exists.

    A resumed fit is bit for bit the uninterrupted one on the same machine and versions. It is saved at the end too, and
    on Ctrl-C or SIGTERM, which take effect after the step in progress. A new file takes the place of the old one once
    it is safely on the disk; ``path`` + ".lock" keeps other runs off; a hash finds damage; nothing in a file is run.

    Args:
        path: the file; its folder must exist.
        steps: save every so many steps; None for never by steps.
        seconds: save every so many seconds; None for never by time.
        resume: whether to go on from ``path`` if it exists; False starts anew and replaces it.

    Raises:
        ValueError: for an interval below 1 step or 0 seconds, or a path that is no name of a file in a folder.

    Example:
        >>> checkpoint = Checkpoint("fit.ckpt", steps=500)
    """

    comes_last = True  # when every other callback has had its turn

    def __init__(
        self,
        path: str | os.PathLike[str],
        steps: int | None = None,
        *,
        seconds: float | None = 60.0,
        resume: bool = True,
    ) -> None:
        if not isinstance(path, str | os.PathLike) or Path(path).is_dir() or not Path(path).absolute().parent.is_dir():
            raise ValueError(f"path is {path!r}; needed the name of a file in a folder that exists")
        if seconds is not None and not (isinstance(seconds, Real) and seconds >= 0):
            raise ValueError(f"seconds is {seconds!r}; needed a number of at least 0, or None")
        self.path = Path(path).absolute()  # the working directory may change while the fit runs
        self.steps = None if steps is None else whole("steps", steps, 1)
        self.seconds, self.resume = seconds, resume

    @staticmethod
    def read(path: str | os.PathLike[str]) -> dict[str, Any]:
        """Return what a checkpoint holds, with tensors on the CPU.

        Returns:
            A dict of "step", "losses", "held_out", "seconds", "stop_reason", "converged", all else that a resumed fit
            goes on from, and "identity", which it must match.

        Raises:
            CheckpointError: if the file is damaged or of a newer format.
        """
        return _content(Path(path))

    def on_fit_start(self, run: Run) -> None:
        self._identity, self._saved_at, self._signal = _identity(run), time.monotonic(), 0
        with ExitStack() as stack:
            stack.enter_context(locked(self.path.with_name(f"{self.path.name}.lock"), str(self.path)))
            saved = _content(self.path, self.resume) if self.path.exists() else {}  # a newer format is not replaced
            if self.resume and saved:
                self._resume(run, saved)
            if threading.current_thread() is threading.main_thread():  # no other may set signal handlers
                for which in (signal.SIGINT, signal.SIGTERM):
                    if signal.getsignal(which) not in (signal.SIG_IGN, None):
                        stack.callback(signal.signal, which, signal.signal(which, self._note))
            self._until_end = stack.pop_all()  # the lock, and the signal handlers to put back

    def on_step_end(self, run: Run) -> None:
        late = self.seconds is not None and time.monotonic() - self._saved_at >= self.seconds
        if self._signal and not run.stop_reason:
            run.stop("interrupted")
        if late or run.stop_reason or run.step == run.steps or (self.steps and run.step % self.steps == 0):
            self.save(run)

    def on_fit_end(self, run: Run) -> None:
        self._until_end.close()
        if self._signal:
            signal.raise_signal(self._signal)

    def save(self, run: Run) -> None:
        """Save now: write and sync a new file, then rename it to the path."""
        payload = io.BytesIO()
        torch.save({"format": FORMAT, "identity": self._identity, **_state_of(run)}, payload)
        _replace(self.path, hashlib.sha256(payload.getvalue()).digest() + payload.getvalue())
        self._saved_at = time.monotonic()

    def _resume(self, run: Run, state: dict[str, Any]) -> None:
        saved, now = state["identity"], self._identity
        names = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
        if names:
            other = [f"{k}: {saved.get(k, 'absent')} in the checkpoint, {now.get(k, 'absent')} now" for k in names]
            raise CheckpointError(
                f"{self.path} is the checkpoint of another fit: {'; '.join(other)}. Use another path, or resume=False "
                "to replace it"
            )
        _load_state(run, state)

    def _note(self, which: int, frame: FrameType | None) -> None:
        if self._signal and which == signal.SIGINT:  # a second Ctrl-C does not wait for the step to end
            raise KeyboardInterrupt
        self._signal = which


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file for a block; raise an InUseError, which names ``what`` is locked, if another process does."""
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        if not path.exists():  # as in a folder of /proc
            raise OSError(errno.EACCES, "no lock file can be made", str(path)) from error
        who = "another process"
        with suppress(OSError):  # Windows shows nobody a file that is locked
            who = path.read_text() or who
        raise InUseError(f"{what} is in use by {who}; wait for it to end, or use another path") from error
    try:
        with suppress(OSError):
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        with suppress(OSError):  # Windows deletes no open file
            path.unlink()
        lock.release()


def _replace(path: Path, content: bytes) -> None:
    """Put a new file in the place of another only once it is whole and on the disk."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)  # of a run that was killed while it wrote
    try:
        with open(new, "xb") as file:  # x follows no link
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError as error:
        new.unlink(missing_ok=True)  # of a full disk it would take what is left
        left = "the last checkpoint is whole" if path.exists() else "there is no checkpoint yet"
        raise OSError(error.errno, f"{error.strerror} while saving {len(content)} bytes; {left}", str(path)) from error
    if os.name == "posix":  # so that the rename outlives a power cut
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def _content(path: Path, needed: bool = True) -> dict[str, Any]:
    """Return what was saved to a file, behind its SHA-256; of a damaged file {} if it is not needed."""
    data = path.read_bytes()
    seal, payload = data[:32], data[32:]
    if hashlib.sha256(payload).digest() != seal:
        if not needed:
            return {}
        raise CheckpointError(
            f"{path} is damaged, or no checkpoint: its hash does not match its content. Delete it, or pass "
            "resume=False to replace it"
        )
    content: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    if content["format"] > FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {content['format']}, newer than the {FORMAT} of this version, and is left "
            "as it is; upgrade pyro_zilognormal, or use another path"
        )
    return content


def _identity(run: Run) -> dict[str, str]:
    """Return what must be the same in a resumed run, each as text under a name that can be read in an error."""
    module, loss, optimizer = run.module, run.module.loss, run.optimizer
    constants = {k: b for k, b in module.state().items() if k not in run.last_finite}
    with isolated(run.seed):  # a stream may draw random numbers when it is read
        settings = [f"{type(c).__qualname__} {c.settings()}" for c in _kept(run)]
        data = digest([run.source.digest(run.seed), module.kwargs])
    return {
        **{f"parameter {k!r}": f"{tuple(p.shape)} {p.dtype}" for k, p in module.trainable().items()},
        "loss": f"{getattr(loss, '__qualname__', type(loss).__qualname__)} {_plain(getattr(loss, '__dict__', {}))}",
        "optimizer": f"{type(optimizer).__qualname__} {[_plain(group) for group in optimizer.param_groups]}",
        "seed": str(run.seed),
        "buffers": digest(constants),
        **{f"callback {i}": text for i, text in enumerate(settings)},
        "data": f"{run.source.rows} rows in {run.source.batches} batches, SHA-256 {data}",
    }


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if isinstance(v, bool | int | float | str | tuple | None)}


def _kept(run: Run) -> list[Callback]:
    """Return the callbacks that have a state or settings."""
    names = ("state_dict", "settings")
    return [c for c in run.callbacks if any(getattr(type(c), name) is not getattr(Callback, name) for name in names)]


def _state_of(run: Run) -> dict[str, Any]:
    """Return everything a resumed run needs, as tensors, numbers, text, and lists, tuples and dicts of them."""
    random = pyro.util.get_rng_state() | rng_state()
    name, words, *rest = random["numpy"]
    return {
        **{name: getattr(run, name) for name in _RUN},
        "kl_weight": float(run.kl_weight),
        "seconds": run.seconds,
        "stop_reason": run.stop_reason or ("steps" if run.step == run.steps else ""),
        "converged": run.converged,
        "values": run.module.snapshot(),
        "last_finite": run.last_finite,
        "optimizer": run.optimizer.state_dict(),
        "random": random | {"numpy": (str(name), words.tolist(), *rest)},
        "callbacks": [c.state_dict() for c in _kept(run)],
    }


def _load_state(run: Run, state: dict[str, Any]) -> None:
    """Go on from where a run was whose state :func:`_state_of` returned."""
    for callback, saved in zip(_kept(run), state["callbacks"], strict=True):
        callback.load_state_dict(saved)
    run.optimizer.load_state_dict(state["optimizer"])
    for name in (*_RUN, "kl_weight"):
        setattr(run, name, state[name])
    run.started -= state["seconds"]
    run.module.restore(state["values"])
    for name, tensor in run.last_finite.items():
        tensor.copy_(state["last_finite"][name])
    if state["stop_reason"] not in ("", "steps", "interrupted"):
        run.stop(state["stop_reason"], state["converged"])
    if run.step:  # read up to here now: a stream may draw random numbers when it is read
        run.batches = batches(run.source, run.seed, run.step - 1)
        next(run.batches)
    set_rng_state(state["random"])
