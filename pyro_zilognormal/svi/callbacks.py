"""Callbacks: early stopping, schedules of the learning rate, a progress bar."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pyro_zilognormal.svi.data import as_source, whole
from pyro_zilognormal.svi.elbo import isolated
from pyro_zilognormal.svi.fit import Callback, Run

# How many standard errors an improvement, and the slope of a trend, must exceed to count.
_NOISE, _CLEAR = 2.0, 4.0


class EarlyStopping(Callback):
    """Stop when the loss of held-out data no longer improves, and go back to the best parameters.

    The loss L, always with the same random numbers, has improved on an earlier one, B, if ::

        B - L > max(min_delta max(|B|, N), 2 SE),

    where N is the number of rows that the loss is of, and SE the standard error of B - L over the particles. After
    ``patience`` evaluations without improvement the fit stops: "rising", if L is worse than B by as much, and the
    held-out loss rises or the training loss still moves by more than 4 standard errors of a trend; else "converged".

    Args:
        held_out: data like the fit's: an array, a tuple of the arguments of model and guide, :class:`Minibatches` or
            :class:`BatchStream`. The training data themselves show whether it has converged, not whether it overfits.
        every: steps between evaluations.
        patience: evaluations without improvement before it stops.
        min_delta: the smallest improvement that counts, relative to the loss, or to 1 a row if that is more.
        warm_up: steps before evaluations begin; at least as many as a KL weight is annealed over.
        particles: how many times to evaluate the loss.

    Raises:
        ValueError: for an ``every``, ``patience``, ``warm_up`` or ``particles`` that is not whole or out of range.

    Example:
        >>> stop = EarlyStopping(torch.ones(20), every=50, patience=3)
    """

    def __init__(
        self,
        held_out: Any,
        *,
        every: int = 100,
        patience: int = 5,
        min_delta: float = 1e-4,
        warm_up: int = 0,
        particles: int = 8,
    ) -> None:
        self.every, self.patience = whole("every", every, 1), whole("patience", patience, 1)
        self.warm_up, self.particles = whole("warm_up", warm_up, 0), whole("particles", particles, 2)
        self.min_delta = min_delta
        self.held_out = as_source(tuple(held_out) if isinstance(held_out, Sequence) else (held_out,), {})
        self._state: dict[str, Any] = {}

    def on_fit_start(self, run: Run) -> None:
        # ``reference`` holds the losses that later ones must improve on, ``best`` the lowest mean.
        self._state = {"reference": None, "waited": 0, "best": math.inf, "best_step": 0, "values": {}}
        run.module.plate = run.module.plate or self.held_out.plate
        run.held_out_rows = run.rows if run.module.plate else self.held_out.rows

    def on_step_end(self, run: Run) -> None:
        if run.step % self.every or run.step <= self.warm_up:
            return
        losses, state = self._evaluate(run), self._state
        mean = float(losses.mean())
        run.held_out.append((run.step, mean))
        if mean < state["best"]:
            state |= {"best": mean, "best_step": run.step, "values": run.module.snapshot()}
        gain, needed = self._gain(losses, run.held_out_rows)
        if gain > needed:
            state |= {"reference": losses, "waited": 0}
            return
        state["waited"] += 1
        if state["waited"] < self.patience:
            return
        if not math.isfinite(mean):
            run.stop("held-out loss not finite")
        elif -gain > needed and self._rising(run):
            run.stop("rising")
        else:
            run.stop("converged", converged=True)

    def on_fit_end(self, run: Run) -> None:
        if self._state["values"] and run.stop_reason != "diverged":
            run.module.restore(self._state["values"])
            run.best_step = self._state["best_step"]

    def state_dict(self) -> dict[str, Any]:
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = dict(state)

    def settings(self) -> dict[str, Any]:
        names = ("every", "patience", "min_delta", "warm_up", "particles")
        return {name: getattr(self, name) for name in names} | {"held_out": self.held_out.digest(0)}

    def _evaluate(self, run: Run) -> Tensor:
        losses = []
        for particle in range(self.particles):
            with isolated(particle * 1_000_003):
                batches = self.held_out.epoch(0, 0)
                losses.append(sum(b.rows / self.held_out.rows * run.module.evaluate(b) for b in batches))
        return torch.tensor(losses, dtype=torch.float64)

    def _gain(self, losses: Tensor, rows: int) -> tuple[float, float]:
        """Return how much better the losses are than the reference, and how much counts as better."""
        reference = self._state["reference"]
        if reference is None:
            return (math.inf if torch.isfinite(losses).all() else math.nan), 0.0
        gain, size = reference - losses, max(abs(float(reference.mean())), rows)
        error = float(gain.std()) / math.sqrt(self.particles)
        return float(gain.mean()), max(self.min_delta * size, _NOISE * error)

    def _rising(self, run: Run) -> bool:
        """Whether a loss that is worse than the best is so by more than the jumps of the parameters."""
        # Training losses still fall where a fit overfits, and rise where it diverges; at an optimum they are flat.
        waited = self._state["waited"]
        training, held_out = run.losses[-waited * self.every :], [loss for _, loss in run.held_out[-waited:]]
        return abs(_significance(training)) > _CLEAR or _significance(held_out) > _CLEAR


def _significance(values: Sequence[float]) -> float:
    """Return by how many standard errors a series rises: the slope of a least-squares line over its error."""
    if len(values) < 4:
        return 0.0
    at, series = np.arange(len(values)) - (len(values) - 1) / 2, np.asarray(values) - np.mean(values)
    slope = at @ series / (at @ at)
    error = math.sqrt(((series - slope * at) ** 2).sum() / (len(values) - 2) / (at @ at))
    return float(slope) / max(error, np.finfo(np.float64).tiny)


class Schedule(Callback):
    """Change the learning rate after each step by a schedule of ``torch.optim.lr_scheduler``.

    Args:
        make: a function of the optimiser that returns the schedule.

    Example:
        >>> import functools
        >>> halve = Schedule(functools.partial(torch.optim.lr_scheduler.StepLR, step_size=100, gamma=0.5))
    """

    def __init__(self, make: Callable[[torch.optim.Optimizer], Any]) -> None:
        self.make = make
        self._schedule: Any = None

    def on_fit_start(self, run: Run) -> None:
        self._schedule = self.make(run.optimizer)
        first = {k: v for k, v in self.state_dict().items() if isinstance(v, bool | int | float | str | list)}
        self._settings = {"schedule": type(self._schedule).__name__, **first}

    def on_step_end(self, run: Run) -> None:
        self._schedule.step()

    def state_dict(self) -> dict[str, Any]:
        return {k: v for k, v in self._schedule.state_dict().items() if not callable(v)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._schedule.load_state_dict({**self._schedule.state_dict(), **state})  # whose functions are not kept

    def settings(self) -> dict[str, Any]:
        return self._settings


class Progress(Callback):
    """Show the mean loss per observation of the last 100 steps, steps a second and the time left.

    Args:
        show: True or False; None shows only where standard error is a terminal.

    Example:
        >>> hidden = Progress(show=False)
    """

    def __init__(self, show: bool | None = None) -> None:
        self.show = show
        self._bar: Any = None

    def on_step_end(self, run: Run) -> None:
        if self._bar is None:
            hidden = None if self.show is None else not self.show
            self._bar = tqdm(total=run.steps, initial=run.step - 1, disable=hidden, unit="step", dynamic_ncols=True)
        # tqdm redraws only every tenth of a second; the mean is taken only when it has just done so.
        if self._bar.update(1):
            loss = np.mean(run.losses[-100:]) / run.rows
            self._bar.set_postfix_str(f"loss/observation {loss:.4g}", refresh=False)

    def on_fit_end(self, run: Run) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
