"""The state of a fit while it runs: what callbacks see."""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from pyro_zilognormal.svi.batch import Batch, Source
from pyro_zilognormal.svi.data import count_rows
from pyro_zilognormal.svi.divergence import DivergenceReport, SkipBadSteps, all_finite, diagnose
from pyro_zilognormal.svi.good import GoodState
from pyro_zilognormal.svi.objective import Objective
from pyro_zilognormal.svi.optimizers import build
from pyro_zilognormal.svi.reading import Reader
from pyro_zilognormal.svi.rng import torch_rng_state
from pyro_zilognormal.svi.sites import Site

# What was found at a bad step, and the error that a distribution or linear algebra raised there, if one did.
Fault = tuple[DivergenceReport, Exception | None]


class Run:
    """A fit while it runs, as callbacks see it.

    Attributes:
        step: number of steps taken so far.
        epoch: number of the current epoch, from 0.
        losses: the loss of every step, an estimate of the loss of all data; NaN for a skipped step.
        held_out: (step, loss) of every evaluation on held-out data.
        smoothed: (step, loss) of every evaluation of the smoothed training loss.
        best_step: the step whose parameters were gone back to; 0 if none were.
        good_step: the step after which loss and gradient were last finite.
        rows: number of rows of the data.
        held_out_rows: number of rows of the held-out data; 0 without any.
        steps: number of steps asked for.
        seconds: seconds spent so far, those before a resume included.
        optimizer: the torch optimiser.
        objective: the loss as an nn.Module, with the parameters.
        skipped: the steps left out by :class:`SkipBadSteps`.
        stack: closes with the fit; for what a callback must undo.
    """

    def __init__(
        self,
        objective: Objective,
        source: Source,
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer],
        seed: int,
        steps: int,
        callbacks: tuple[Any, ...],
    ) -> None:
        self.objective, self.source, self.seed, self.steps = objective, source, seed, steps
        self.callbacks = callbacks
        self.step = 0
        self.losses: list[float] = []
        self.held_out: list[tuple[int, float]] = []
        self.skipped: list[int] = []
        self.smoothed: list[tuple[int, float]] = []
        self.best_step = self.good_step = self.bad_in_a_row = 0
        self.held_out_rows = 0
        self.stop_reason, self.converged = "", False
        self.stack = ExitStack()
        self._before, self._started = 0.0, time.monotonic()
        first = next(source.epoch(0, seed))
        self.sites: list[Site] = objective.setup(*first.args, indices=first.indices)
        self.rows = objective.rows = count_rows(source, objective)
        self.reader = Reader(source, seed)
        self.first_parameters = list(objective.trainable())
        self.optimizer = build(optimizer, list(objective.trainable().values()))
        self.good = GoodState(objective)

    @property
    def epoch(self) -> int:
        """Number of the current epoch, from 0."""
        return self.reader.epoch

    @property
    def loss(self) -> float:
        """The loss of the last step."""
        return self.losses[-1]

    @property
    def seconds(self) -> float:
        """Seconds spent so far, those before a resume included."""
        return self._before + self.seconds_of_call

    @property
    def seconds_of_call(self) -> float:
        """Seconds spent since this call of ``fit`` began, or resumed."""
        return time.monotonic() - self._started

    @property
    def kl_weight(self) -> float:
        """The weight of the latent sites' log densities in the loss; set it to anneal the KL divergence."""
        return self.objective.kl_weight

    @kl_weight.setter
    def kl_weight(self, weight: float) -> None:
        self.objective.kl_weight = weight

    @property
    def params(self) -> dict[str, Tensor]:
        """A copy of the parameters by name, as the model sees them."""
        return self.objective.constrained()

    @property
    def stateful(self) -> list[Any]:
        """The callbacks that have a state to save."""
        return [c for c in self.callbacks if hasattr(c, "state_dict")]

    def stop(self, reason: str, converged: bool = False) -> None:
        """End the fit after this step.

        Args:
            reason: why, for ``FitResult.stop_reason``.
            converged: whether the fit is as good as it gets.
        """
        self.stop_reason, self.converged = reason, converged

    def advance(self) -> Fault | None:
        """Take one step, or return what was found where its loss or gradient is not finite."""
        batch, random = self.reader.next(), torch_rng_state()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.good.keep_buffers()
        fault, error = self._gradient(batch)
        if fault:
            return self._bad_step(batch, random, fault, error)
        self.bad_in_a_row = 0
        self.good.keep_parameters()
        self.good_step = self.step - 1
        self.optimizer.step()
        return None

    def back_to_good(self) -> None:
        """Set the parameters to the last ones whose loss and gradient were finite."""
        self.good.restore()
        self.best_step = self.good_step

    def go_on_from(self, seconds: float) -> None:
        """Count the time of the call from now on, beside the seconds spent before."""
        self._before, self._started = seconds, time.monotonic()

    def final_fault(self) -> Fault | None:
        """Return which parameters the last step made not finite, or None: no later loss would show it."""
        seen, good = self.params, dict(zip(self.objective.trainable(), self.good.copies, strict=True))
        now = {k: [p.detach(), seen[k]] for k, p in self.objective.trainable().items()}
        bad = [k for k, values in now.items() if all_finite([good[k]]) and not all_finite(values)]
        return (DivergenceReport(self.step, "update", parameters=bad), None) if bad else None

    def _gradient(self, batch: Batch) -> tuple[str, Exception | None]:
        """Compute loss and gradient; return which of them is not finite, and the error that said so."""
        try:
            loss = self.objective.backward(*batch.args, indices=batch.indices, weight=batch.weight)
        except (ValueError, RuntimeError) as error:
            # Validation and linear algebra refuse a NaN where arithmetic would pass it on.
            self.losses.append(float("nan"))
            return "loss", error
        if len(self.objective.trainable()) > len(self.good.parameters):
            self.optimizer.param_groups[0]["params"].extend(self.good.adopt_late())
        self.losses.append(float(loss))
        if not math.isfinite(self.loss):
            return "loss", None
        gradients = [p.grad for p in self.good.parameters if p.grad is not None]
        return ("" if all_finite(gradients) else "gradient"), None

    def _bad_step(self, batch: Batch, random: Any, fault: str, error: Exception | None) -> Fault | None:
        """Skip the step if that is allowed, else return what is at fault; raise an error of another cause."""
        self.losses[-1] = float("nan")
        self.bad_in_a_row += 1
        self.good.restore_buffers()
        allowed = max((c.in_a_row for c in self.callbacks if isinstance(c, SkipBadSteps)), default=1)
        if self.bad_in_a_row < allowed and error is None:
            self.skipped.append(self.step)
            return None
        report = diagnose(self.objective, batch, random, self.step, fault)
        self.good.restore_buffers()
        if error is not None and report.site is None and not report.parameters:
            raise error
        if self.bad_in_a_row < allowed:
            self.skipped.append(self.step)
            return None
        return report, error
