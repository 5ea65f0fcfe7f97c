"""A progress bar."""

import sys
from typing import Any

from tqdm import tqdm

from pyro_zilognormal.svi.checks import check_whole
from pyro_zilognormal.svi.run import Run


class Progress:
    """Show the loss per observation, steps a second and the time left.

    Silent where standard error is not a terminal, unless it is told to show.

    Args:
        show: True or False; None shows on a terminal only.
        window: how many of the last losses to take the mean of.

    Raises:
        TypeError: if ``show`` is not one of these.
        ValueError: for a window that is no whole number of at least 1.

    Example:
        >>> Progress(show=False).show
        False
    """

    def __init__(self, show: bool | None = None, window: int = 100) -> None:
        if show not in (None, True, False):
            raise TypeError(f"show is {show!r}; needed True, False, or None to show on a terminal only")
        check_whole("window", window, 1)
        self.show, self.window = show, window
        self._bar: Any = None

    def start(self, run: Run) -> None:
        """Open the bar, to be closed with the fit."""
        shown = sys.stderr.isatty() if self.show is None else self.show
        self._bar = tqdm(total=run.steps, disable=not shown, unit="step", file=sys.stderr, dynamic_ncols=True)
        run.stack.callback(self._bar.close)

    def ready(self, run: Run) -> None:
        """Start the bar where a resumed run starts."""
        self._bar.update(run.step - self._bar.n)

    def __call__(self, run: Run) -> None:
        """Move on by a step."""
        # tqdm itself redraws only every tenth of a second; the mean is taken only when it has just done so.
        if self._bar.update(1):
            recent = [x for x in run.losses[-self.window :] if x == x]
            mean = sum(recent) / max(1, len(recent)) / run.rows
            self._bar.set_postfix_str(f"loss/observation {mean:.4g}", refresh=False)
