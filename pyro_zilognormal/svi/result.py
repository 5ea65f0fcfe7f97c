"""What a fit returns."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pyro_zilognormal.svi.objective import Objective

_REASONS = {
    "converged": "converged: the loss stopped improving",
    "rising": "stopped because the loss rose; lower the learning rate",
    "slowed down": "stopped because the learning rate had become too low for a loss that still fell; lower it later",
    "rising held out": "stopped because the held-out loss rose: more steps overfit",
    "steps": "ran out of steps before it was found to have converged",
    "max_seconds": "ran out of time before it was found to have converged",
    "interrupted": "was interrupted",
    "diverged": "diverged: a loss or gradient was not finite",
}


@dataclass(frozen=True)
class FitResult:
    """A finished fit.

    Attributes:
        params: every parameter by name, as the model sees it.
        losses: the loss of every step, an estimate of the loss of all data; NaN for a skipped step.
        held_out: (step, loss) of every evaluation on held-out data; where a plate over rows is named, scaled to the
            rows of the fit, so that it can be compared with the training loss.
        held_out_rows: number of rows of the held-out data; 0 without any.
        steps: number of steps taken.
        rows: number of rows of the data.
        seconds: seconds spent, those before a resume included.
        stop_reason: "converged", "rising", "slowed down", "steps", "max_seconds", "interrupted", "diverged" or a
            callback's own.
        converged: whether a stopping rule found that the loss had stopped improving and stays so. Running out of
            steps is not converging, nor is a loss that rises again, though its best parameters are kept.
        skipped: the steps left out because their loss or gradient was not finite.
        best_step: the step whose parameters these are.
        objective: the loss as an nn.Module.
        smoothed: (step, loss) of every evaluation of the smoothed training loss.
    """

    params: dict[str, Tensor]
    losses: npt.NDArray[np.float64]
    held_out: list[tuple[int, float]]
    held_out_rows: int
    steps: int
    rows: int
    seconds: float
    stop_reason: str
    converged: bool
    skipped: list[int]
    best_step: int
    objective: Objective
    smoothed: list[tuple[int, float]] = field(default_factory=list)
    values: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        skipped = f", {len(self.skipped)} steps skipped" if self.skipped else ""
        kind = f"{self.stop_reason} held out" if self.held_out and self.stop_reason == "rising" else self.stop_reason
        why = _REASONS.get(kind, f"stopped: {self.stop_reason}")
        took = f"fit of {self.steps} steps in {self.seconds:.1f} s"
        return f"{took} {why}{skipped}; parameters of step {self.best_step}"

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Let modules and ``pyro.param`` have this fit's parameters for the length of a block.

        Use it around anything that runs model or guide outside this package, ``pyro.infer.Predictive`` for
        one. Another fit, even of the same objects, does not change what is seen inside.

        Example:
            >>> from pyro_zilognormal.svi import fit
            >>> import pyro, pyro.distributions as dist, torch
            >>> def model(x):
            ...     m = pyro.sample("m", dist.Normal(0.0, 1.0))
            ...     with pyro.plate("rows", len(x)):
            ...         pyro.sample("x", dist.Normal(m, 1.0), obs=x)
            >>> guide = pyro.infer.autoguide.AutoNormal(model)
            >>> result = fit(model, guide, torch.ones(4), steps=2)
            >>> with result.scope():
            ...     median = guide.median()
            >>> list(median)
            ['m']
        """
        with self.objective.holding(self.values):
            yield

    @property
    def model(self) -> Callable[..., Any]:
        """The model with this fit's parameters, whenever it is called."""
        return self._scoped("model")

    @property
    def guide(self) -> Callable[..., Any]:
        """The guide with this fit's parameters, whenever it is called."""
        return self._scoped("guide")

    def _scoped(self, which: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.scope():
                return self.objective.callable(which)(*args, **kwargs)

        return call
