"""Runs that survive being killed."""

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType

from pyro_zilognormal.svi import storage
from pyro_zilognormal.svi.checks import check_seconds, check_whole
from pyro_zilognormal.svi.fingerprint import difference, fingerprint
from pyro_zilognormal.svi.losses import compiles
from pyro_zilognormal.svi.run import Run
from pyro_zilognormal.svi.saved import FORMAT, CheckpointError, SavedFit, fresh, newest, open_saved, previous
from pyro_zilognormal.svi.saving import check_state, load_state, state_of

# What a state that is not such a fit's may set off.
_FAULTS = (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError, OverflowError)


class Checkpoint:
    """Save the whole state of a fit to a file now and then, and go on from there if the file exists.

    A resumed fit is bit for bit the uninterrupted one on the same machine and torch, for every optimiser and
    schedule in the documentation. It saves every ``steps`` steps and every ``seconds`` seconds, at the end,
    and on Ctrl-C or SIGTERM, which then take effect after the step in progress. The file before the last is
    kept as ``<path>.previous``, and used if the last is not whole. Nothing in a file is unpickled.
    At the start all data are read once, and model and guide run once, to tell them from others.

    Args:
        path: the file; its folder must exist.
        steps: save every so many steps; None for never by steps.
        seconds: save every so many seconds; None for never by time.
        resume: whether to go on from ``path`` if it exists; False starts anew and replaces it.

    Raises:
        ValueError: for an interval that is not positive, a path that is a folder, or a folder that does not exist.

    Example:
        >>> import tempfile, os
        >>> save = Checkpoint(os.path.join(tempfile.mkdtemp(), "fit.ckpt"), steps=500)
        >>> save.path.name
        'fit.ckpt'
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        steps: int | None = None,
        seconds: float | None = 60.0,
        resume: bool = True,
    ) -> None:
        self.path, self.steps, self.seconds, self.resuming = Path(path), steps, seconds, resume
        if steps is not None:
            check_whole("steps", steps, 1)
        check_seconds("seconds", seconds)
        if self.path.is_dir():
            raise ValueError(f"path is {str(path)!r}, a folder; needed the name of a file, in it for one")
        if not self.path.parent.is_dir():
            raise ValueError(f"path is {str(path)!r}; its folder does not exist, make it first")
        self._signal: int | None = None
        self._fingerprint: dict[str, str] = {}
        self._saved_at = time.monotonic()
        self._damaged = False

    @staticmethod
    def read(path: str | os.PathLike[str]) -> SavedFit:
        """Return what a checkpoint says of its fit, without its data or model, on a machine without its devices.

        Args:
            path: the file, as :class:`Checkpoint` was given it. If it is not whole, the one before it is read.

        Raises:
            CheckpointError: if there is no whole file, or none that holds the state of a fit.

        Example:
            >>> import tempfile, os, pyro, torch
            >>> from pyro_zilognormal.svi import fit
            >>> def model():
            ...     pyro.sample("x", pyro.distributions.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))
            >>> path = os.path.join(tempfile.mkdtemp(), "fit.ckpt")
            >>> _ = fit(lambda: model(), model, steps=3, callbacks=[Checkpoint(path)])
            >>> saved = Checkpoint.read(path)
            >>> saved.step, saved.stop_reason, sorted(saved.params)
            (3, 'steps', ['m'])
        """
        return open_saved(Path(path))

    def start(self, run: Run) -> None:
        """Take note of signals from now on."""
        if compiles(run.objective.loss):
            raise ValueError(
                f"loss is a {type(run.objective.loss).__name__}, whose compiled code rounds differently after its "
                "first calls, so that the fit cannot be resumed bit for bit; use it without a Checkpoint, or a loss "
                "without Jit"
            )
        if hasattr(run.source, "check_resumable"):
            run.source.check_resumable()
        self._saved_at, self._signal = time.monotonic(), None
        # Only the main thread may set signal handlers.
        if threading.current_thread() is threading.main_thread():
            run.stack.callback(self._deliver)
            heeded = (n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN)
            for number in heeded:
                before = signal.signal(number, self._note)
                run.stack.callback(signal.signal, number, before if before is not None else signal.SIG_DFL)

    def identify(self, run: Run) -> None:
        """Take note of what the run is of, now that every callback has started, whatever their order."""
        self._fingerprint = fingerprint(run)

    def resume(self, run: Run) -> None:
        """Go on from the newest whole file, if there is one."""
        content, self._damaged = newest(self.path) if self.resuming else (None, False)
        if content is None:
            return
        other = difference(content["fingerprint"], self._fingerprint)
        if other:
            raise CheckpointError(
                f"{self.path} is the checkpoint of another fit: {other}. Use another path, or resume=False "
                f"to replace it"
            )
        try:
            check_state(run, content["run"])
            load_state(run, content["run"])
        except _FAULTS as error:
            raise CheckpointError(f"{self.path} does not hold the state of such a fit: {error!r}") from error

    def __call__(self, run: Run) -> None:
        """Do nothing: the state is saved in :meth:`after`, when every other callback has had its turn."""

    def after(self, run: Run) -> None:
        """Save if it is time to, or if a signal came."""
        if self._signal is not None:
            self.save(run)
            run.stack.close()
            run.stop("interrupted")  # where a handler of the caller's own has chosen to live on
        elif (self.steps and run.step % self.steps == 0) or self._late():
            self.save(run)

    def finish(self, run: Run) -> None:
        """Save the end of the run, before the best parameters are gone back to."""
        self.save(run)

    def save(self, run: Run) -> None:
        """Save now; the file there was becomes the previous one once the new one is safely written."""
        content = {"format": FORMAT, "fingerprint": self._fingerprint, "run": state_of(run)}
        storage.write(fresh(self.path), content)
        if self.path.exists() and not self._damaged:  # a damaged file must not push out the good one before it
            os.replace(self.path, previous(self.path))
        os.replace(fresh(self.path), self.path)
        self._damaged = False
        storage.sync_folder(self.path.parent)
        self._saved_at = time.monotonic()

    def _late(self) -> bool:
        return self.seconds is not None and time.monotonic() - self._saved_at >= self.seconds

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:  # a second Ctrl-C will not wait for the step to end
            raise KeyboardInterrupt
        self._signal = number

    def _deliver(self) -> None:
        """Let a signal have the effect that it would have had, now that the handlers of before are back."""
        number, self._signal = self._signal, None
        if number is not None:
            signal.raise_signal(number)
