"""Learning rates that follow a schedule of torch."""

import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from pyro_zilognormal.svi.checks import check_whole
from pyro_zilognormal.svi.forms import same_form
from pyro_zilognormal.svi.run import Run


class Schedule:
    """Step a learning-rate schedule of torch after each training step.

    A schedule that wants a metric, such as ``ReduceLROnPlateau``, is given the mean loss of the last
    ``every`` steps.

    Args:
        make: a function of the optimiser that returns a schedule of ``torch.optim.lr_scheduler``.
        every: step the schedule every so many training steps; those left out by :class:`SkipBadSteps` do not count.

    Example:
        >>> import functools
        >>> halve = Schedule(functools.partial(torch.optim.lr_scheduler.StepLR, step_size=100, gamma=0.5))
        >>> halve.every
        1
    """

    def __init__(self, make: Callable[[torch.optim.Optimizer], Any], every: int = 1) -> None:
        if not callable(make):
            raise TypeError(
                f"make is a {type(make).__name__}; needed a function of the optimiser, such as "
                "functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.999)"
            )
        check_whole("every", every, 1)
        self.make, self.every = make, every
        self._schedule: Any = None

    def start(self, run: Run) -> None:
        """Make the schedule for the run's optimiser."""
        self._schedule = self.make(run.optimizer)
        if not all(hasattr(self._schedule, name) for name in ("step", "state_dict", "load_state_dict")):
            raise TypeError(
                f"make gave a {type(self._schedule).__name__}; needed a schedule of torch.optim.lr_scheduler"
            )
        self._wants_metric = "metrics" in inspect.signature(self._schedule.step).parameters

    def __call__(self, run: Run) -> None:
        """Step the schedule when its turn has come."""
        taken = run.step - len(run.skipped)
        if taken % self.every or run.skipped[-1:] == [run.step]:
            return
        if self._wants_metric:
            recent = [x for x in run.losses[-self.every - len(run.skipped) :] if x == x][-self.every :]
            self._schedule.step(sum(recent) / len(recent))
        else:
            self._schedule.step()

    def settings(self) -> dict[str, Any]:
        """Return what must be the same in a resumed run."""
        first = {k: v for k, v in self.state_dict().items() if isinstance(v, bool | int | float | str | list)}
        return {"every": self.every, "schedule": type(self._schedule).__name__, "first": first}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the schedule as plain data."""
        return {k: v for k, v in self._schedule.state_dict().items() if not callable(v)}

    def check_state(self, run: Run, state: Any) -> None:
        """Raise a ValueError unless ``state`` is one that this schedule could come to."""
        same_form(state, self.state_dict(), type(self._schedule).__name__)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the state of the schedule."""
        now = vars(self._schedule)
        kinds = {k: Counter(v) if isinstance(now.get(k), Counter) else v for k, v in state.items()}
        self._schedule.load_state_dict({**{k: v for k, v in now.items() if callable(v)}, **kinds})
