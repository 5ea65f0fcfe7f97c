"""What happens between the steps of a fit: stopping, schedules, progress."""

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_zilognormal.svi.data import as_source, whole
from pyro_zilognormal.svi.isolation import isolated

if TYPE_CHECKING:
    from pyro_zilognormal.svi.fit import Run

# By how many standard errors a trend must differ from 0 to be believed.
_CLEAR = 4.0


class Callback:
    """Base class of what :func:`fit` calls between steps, in the order given, but :class:`Checkpoint` last.

    Example:
        >>> class Anneal(Callback):
        ...     def on_fit_start(self, run):
        ...         run.kl_weight = 0.1
        ...     def on_step_end(self, run):
        ...         run.kl_weight = min(1.0, 0.1 + run.step / 100)
    """

    def on_fit_start(self, run: "Run") -> None:
        """Called once before the first step, or the first after a resume."""

    def on_step_end(self, run: "Run") -> None:
        """Called after each step."""

    def on_fit_end(self, run: "Run") -> None:
        """Called once at the end, also after an error; ``run.stop_reason`` says why the fit ended, "" for an error."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must keep, as tensors, numbers, text, and lists, tuples and dicts of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""

    def settings(self) -> dict[str, Any]:
        """Return what must be the same where a checkpoint is resumed."""
        return {}


class _EachStep(Callback):
    """A function of the run, called after each step."""

    def __init__(self, function: Callable[["Run"], Any]) -> None:
        self.function = function

    def on_step_end(self, run: "Run") -> None:
        self.function(run)


def as_callbacks(given: Any) -> list[Callback]:
    """Return callbacks and functions of the run as callbacks; raise a TypeError for anything else."""
    if isinstance(given, Callback) or not isinstance(given, Sequence):
        raise TypeError(f"callbacks is a {type(given).__name__}; needed a list of callbacks")
    for each in given:
        if isinstance(each, type) or not (callable(each) or isinstance(each, Callback)):
            raise TypeError(f"callbacks holds {each!r}; needed instances of Callback and functions of the run")
    return [each if isinstance(each, Callback) else _EachStep(each) for each in given]


class EarlyStopping(Callback):
    """Stop when the loss no longer improves, and go back to the best parameters.

    Every ``every`` steps it evaluates the loss L: the mean of the last ``every`` training losses, or that of held-out
    data, always with the same particles and random numbers. L is better than the best so far, B, if ::

        B - L > max(min_delta max(|B|, min(F - B, N)), noise SE),

    where F is the first evaluation, N the number of rows, and SE the standard error of B - L. After ``patience``
    evaluations with nothing better it stops: "rising" if the loss is worse than the best by as much as would count as
    better, with a trend of more than 4 standard errors, else "converged". Without held-out data, it goes on while a
    line through the last 2 (patience + 1) windows falls by enough to count.

    Args:
        held_out: data like the fit's: an array, a tuple of the arguments of model and guide, :class:`Minibatches` or
            :class:`BatchStream` of them, or a dict of keyword arguments; others are those of the fit. None evaluates
            the training loss.
        every: steps between evaluations, and the length of the window for the training loss.
        patience: evaluations without improvement before it stops.
        min_delta: the smallest relative improvement that counts.
        noise: how many standard errors an improvement must exceed.
        warm_up: steps before the first window; at least as many as a KL weight is annealed over.
        particles: how many times to evaluate the held-out loss.

    Raises:
        ValueError: for an ``every``, ``patience``, ``warm_up`` or ``particles`` that is not whole or out of range.

    Example:
        >>> EarlyStopping(every=50, patience=3).patience
        3
    """

    def __init__(
        self,
        held_out: Any = None,
        *,
        every: int = 100,
        patience: int = 5,
        min_delta: float = 1e-4,
        noise: float = 2.0,
        warm_up: int = 0,
        particles: int = 8,
    ) -> None:
        self.every, self.patience = whole("every", every, 2), whole("patience", patience, 1)
        self.min_delta, self.noise = min_delta, noise
        self.warm_up, self.particles = whole("warm_up", warm_up, 0), whole("particles", particles, 2)
        named = held_out if isinstance(held_out, dict) else {}
        data = () if named else tuple(held_out) if isinstance(held_out, Sequence) else (held_out,)
        self.held_out = None if held_out is None else as_source(data, named)
        self._named = {} if self.held_out is None else self.held_out.kwargs
        self._state: dict[str, Any] = {}

    def on_fit_start(self, run: "Run") -> None:
        # ``reference`` holds the losses that later ones are compared with, ``best`` the lowest mean.
        self._state = {"reference": None, "waited": 0, "best": math.inf, "best_step": 0, "values": {}}
        if self.held_out is not None:
            self.held_out.kwargs = run.source.kwargs | self._named
            run.module.plate = run.module.plate or self.held_out.plate
            run.held_out_rows = run.rows if run.module.plate else self.held_out.rows

    def on_step_end(self, run: "Run") -> None:
        if run.step % self.every or run.step < self.warm_up + self.every:
            return
        losses, state = self._evaluate(run), self._state
        mean, finite = float(losses.mean()), bool(torch.isfinite(losses).all())
        if self.held_out is not None:
            run.held_out.append((run.step, mean))
        if finite and mean < state["best"]:
            state |= {"best": mean, "best_step": run.step, "values": run.module.snapshot()}
        gain, needed = self._gain(run, losses)
        if finite and gain > needed:
            state |= {"first": state.get("first", mean), "reference": losses, "waited": 0}
            return
        state["waited"] += 1
        if state["waited"] < self.patience or (self.held_out is None and self._may_fall(run)):
            return
        if -gain > needed and self._rising(run):
            run.stop("rising")
        else:
            run.stop("converged" if finite else "held-out loss not finite", converged=finite)

    def on_fit_end(self, run: "Run") -> None:
        if self._state["values"] and run.stop_reason != "diverged":
            run.module.restore(self._state["values"])
            run.best_step = self._state["best_step"]

    def state_dict(self) -> dict[str, Any]:
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = dict(state)

    def settings(self) -> dict[str, Any]:
        names = ("every", "patience", "min_delta", "noise", "warm_up", "particles")
        held_out = None if self.held_out is None else self.held_out.digest(0)
        return {name: getattr(self, name) for name in names} | {"held_out": held_out}

    def _evaluate(self, run: "Run") -> Tensor:
        if self.held_out is None:
            return torch.tensor(run.losses[-self.every :], dtype=torch.float64)
        losses = []
        for particle in range(self.particles):
            with isolated(particle * 1_000_003):
                batches = self.held_out.epoch(0, 0)
                losses.append(sum(b.rows / self.held_out.rows * run.module.evaluate(b) for b in batches))
        return torch.tensor(losses, dtype=torch.float64)

    def _gain(self, run: "Run", losses: Tensor) -> tuple[float, float]:
        """Return how much better the losses are than the reference, and how much counts as better."""
        reference = self._state["reference"]
        if reference is None:
            return math.inf, 0.0
        if self.held_out is None:  # the error of the window now: one wild loss in the reference must not hide the rest
            error = math.sqrt(2 * float(losses.var()) / len(losses))
        else:
            error = float((reference - losses).std()) / math.sqrt(self.particles)
        return float(reference.mean() - losses.mean()), max(self._least(run), self.noise * error)

    def _least(self, run: "Run") -> float:
        best = float(self._state["reference"].mean())
        # A wild start must not make all that follows look small: beyond 1 a row, its size does not count.
        return self.min_delta * max(abs(best), min(self._state["first"] - best, run.rows))

    def _may_fall(self, run: "Run") -> bool:
        """Whether the training losses fall by enough to count, or are too few to tell."""
        steps = 2 * (self.patience + 1) * self.every
        slope, error = _trend(run.losses[-steps:])
        return run.step - self.warm_up < steps or -slope * steps > max(self._least(run), self.noise * error * steps)

    def _rising(self, run: "Run") -> bool:
        """Whether a loss that is worse than the best is so by more than the jumps of the parameters."""
        waited = self._state["waited"]
        training = _significance(run.losses[-waited * self.every :])
        if self.held_out is None:
            return training > _CLEAR
        # Training losses still fall where a fit overfits, and rise where it diverges; at an optimum they are flat.
        recent = [loss for _, loss in run.held_out[-waited:] if math.isfinite(loss)]
        held_out = _significance(recent) if waited > 2 else 0.0
        return max(abs(training), held_out) > _CLEAR


def _trend(values: Sequence[float]) -> tuple[float, float]:
    """Return the slope of a least-squares line through a series, and its standard error."""
    series = torch.tensor(values, dtype=torch.float64)
    if len(series) < 2:
        return 0.0, 0.0
    at = torch.arange(len(series), dtype=torch.float64) - (len(series) - 1) / 2
    spread = float((at * at).sum())
    slope = float((at * (series - series.mean())).sum()) / spread
    residuals = series - series.mean() - slope * at
    return slope, math.sqrt(float((residuals * residuals).sum()) / max(1, len(series) - 2) / spread)


def _significance(values: Sequence[float]) -> float:
    """Return by how many standard errors a series rises."""
    slope, error = _trend(values)
    return slope / error if error > 0 else math.copysign(math.inf, slope) if slope else 0.0


class Schedule(Callback):
    """Change the learning rate by a schedule of ``torch.optim.lr_scheduler``.

    ``ReduceLROnPlateau`` gets the mean of the last ``every`` losses.

    Args:
        make: a function of the optimiser that returns the schedule.
        every: training steps between steps of the schedule.

    Raises:
        ValueError: for ``every`` below 1.

    Example:
        >>> import functools
        >>> halve = Schedule(functools.partial(torch.optim.lr_scheduler.StepLR, step_size=100, gamma=0.5))
        >>> halve.every
        1
    """

    def __init__(self, make: Callable[[torch.optim.Optimizer], Any], every: int = 1) -> None:
        self.make, self.every = make, whole("every", every, 1)
        self._schedule: Any = None

    def on_fit_start(self, run: "Run") -> None:
        self._schedule = self.make(run.optimizer)
        first = {k: v for k, v in self.state_dict().items() if isinstance(v, bool | int | float | str | list)}
        self._settings = {"every": self.every, "schedule": type(self._schedule).__name__, **first}

    def on_step_end(self, run: "Run") -> None:
        if run.step % self.every:
            return
        if "metrics" in inspect.signature(self._schedule.step).parameters:
            self._schedule.step(sum(run.losses[-self.every :]) / self.every)
        else:
            self._schedule.step()

    def state_dict(self) -> dict[str, Any]:
        return {k: v for k, v in self._schedule.state_dict().items() if not callable(v)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        functions = {k: v for k, v in self._schedule.state_dict().items() if callable(v)}
        self._schedule.load_state_dict({**functions, **state})

    def settings(self) -> dict[str, Any]:
        return self._settings


class Progress(Callback):
    """Show the loss per observation, steps a second and the time left.

    Args:
        show: True or False; None shows only where standard error is a terminal.
        window: how many of the last losses to take the mean of.

    Example:
        >>> Progress(show=False).show
        False
    """

    def __init__(self, show: bool | None = None, window: int = 100) -> None:
        self.show, self.window = show, window
        self._bar: Any = None

    def on_step_end(self, run: "Run") -> None:
        if self._bar is None:
            hidden = not (sys.stderr.isatty() if self.show is None else self.show)
            self._bar = tqdm(total=run.steps, initial=run.step - 1, disable=hidden, unit="step", dynamic_ncols=True)
        # tqdm redraws only every tenth of a second; the mean is taken only when it has just done so.
        if self._bar.update(1):
            recent = run.losses[-self.window :]
            self._bar.set_postfix_str(f"loss/observation {sum(recent) / len(recent) / run.rows:.4g}", refresh=False)

    def on_fit_end(self, run: "Run") -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
