"""The state of a fit while it runs: what callbacks see, and what a checkpoint keeps."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from pyro_zilognormal.svi.data import Batch, Source
from pyro_zilognormal.svi.divergence import DivergenceReport, SkipBadSteps, all_finite, diagnose
from pyro_zilognormal.svi.objective import Objective
from pyro_zilognormal.svi.rng import rng_state, set_rng_state, torch_rng_state
from pyro_zilognormal.svi.sites import Site


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
        self.step = self.epoch = self.position = 0
        self.losses: list[float] = []
        self.held_out: list[tuple[int, float]] = []
        self.skipped: list[int] = []
        self.smoothed: list[tuple[int, float]] = []
        self.best_step = self.good_step = 0
        self.rows, self.held_out_rows = source.rows, 0
        self.stop_reason, self.converged = "", False
        self.stack = ExitStack()
        self._before, self._started = 0.0, time.monotonic()
        self._batches: Iterator[Batch] | None = None
        self._epoch_random: dict[str, Any] | None = None
        self._in_a_row = 0
        first = next(source.epoch(0, seed))
        self.sites: list[Site] = objective.setup(*first.args, indices=first.indices)
        self.optimizer = _build(optimizer, list(objective.trainable().values()))
        self._first = list(objective.trainable())
        self._parameters: list[Tensor] = list(objective.trainable().values())
        self._good = [p.detach().clone() for p in self._parameters]
        self._keep_buffers()

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

    def stop(self, reason: str, converged: bool = False) -> None:
        """End the fit after this step.

        Args:
            reason: why, for ``FitResult.stop_reason``.
            converged: whether the fit is as good as it gets.
        """
        self.stop_reason, self.converged = reason, converged

    def advance(self) -> DivergenceReport | None:
        """Take one step, or return what was found where its loss or gradient is not finite."""
        batch, random = self._next_batch(), torch_rng_state()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._keep_buffers()
        fault, error = self._gradient(batch)
        if fault:
            return self._bad_step(batch, random, fault, error)
        self._in_a_row = 0
        with torch.no_grad():
            torch._foreach_copy_(self._good, self._parameters)
        self.good_step = self.step - 1
        self.optimizer.step()
        return None

    def back_to_good(self) -> None:
        """Set the parameters to the last ones whose loss and gradient were finite."""
        with torch.no_grad():
            torch._foreach_copy_(self._parameters, self._good)
        self._restore_buffers()
        self.best_step = self.good_step

    def final_fault(self) -> DivergenceReport | None:
        """Return which parameters the last step made not finite, or None: no later loss would show it."""
        seen, good = self.params, dict(zip(self.objective.trainable(), self._good, strict=True))
        now = {k: [p.detach(), seen[k]] for k, p in self.objective.trainable().items()}
        bad = [k for k, values in now.items() if all_finite([good[k]]) and not all_finite(values)]
        return DivergenceReport(self.step, "update", parameters=bad) if bad else None

    def state_dict(self) -> dict[str, Any]:
        """Return everything a resumed run needs, as tensors, numbers, text, and containers of them."""
        late = [k for k in self.objective.trainable() if k not in self._first]
        if late:
            raise RuntimeError(
                f"parameters {late} first appeared after the first run of model and guide; such a run "
                "cannot be resumed. Make every parameter in the first run, or fit without a Checkpoint"
            )
        return {
            "step": self.step,
            "epoch": self.epoch,
            "position": self.position,
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "held_out": [list(pair) for pair in self.held_out],
            "smoothed": [list(pair) for pair in self.smoothed],
            "good_step": self.good_step,
            "skipped": list(self.skipped),
            "in_a_row": self._in_a_row,
            "seconds": self.seconds,
            "kl_weight": self.kl_weight,
            "stopped": [self.stop_reason, self.converged],
            "values": self.objective.snapshot(),
            "good": list(self._good),
            "optimizer": self.optimizer.state_dict(),
            "random": rng_state(),
            "epoch_random": self._epoch_random,
            "callbacks": [c.state_dict() for c in self._stateful()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where a run was that returned ``state``; takes no training step."""
        self.step, self.epoch, self.position = state["step"], state["epoch"], state["position"]
        self.losses = state["losses"].tolist()
        self.held_out = [(int(s), float(v)) for s, v in state["held_out"]]
        self.smoothed = [(int(s), float(v)) for s, v in state["smoothed"]]
        self.good_step = state["good_step"]
        self.skipped, self._in_a_row = state["skipped"], state["in_a_row"]
        self._before, self._started = state["seconds"], time.monotonic()
        self.kl_weight = state["kl_weight"]
        self.objective.restore(state["values"])
        self._keep_buffers()
        torch._foreach_copy_(self._good, [g.to(p) for g, p in zip(state["good"], self._good, strict=True)])
        self.optimizer.load_state_dict(state["optimizer"])
        for callback, saved in zip(self._stateful(), state["callbacks"], strict=True):
            callback.load_state_dict(saved)
        reason, converged = state["stopped"]
        if reason not in ("", "steps", "max_seconds", "interrupted"):
            self.stop(reason, converged)
        self._rewind(state["epoch_random"])
        set_rng_state(state["random"])

    def _stateful(self) -> list[Any]:
        return [c for c in self.callbacks if hasattr(c, "state_dict")]

    def _rewind(self, epoch_random: dict[str, Any] | None) -> None:
        """Open the current epoch again at the batch that comes next."""
        self._epoch_random = epoch_random
        if self.position == self.source.batches:
            self._batches = iter(())
            return
        if epoch_random is not None:
            set_rng_state(epoch_random)
        # Reading starts only when a batch is asked for, and a loader draws its order when it starts.
        batches = self.source.epoch(self.epoch, self.seed, self.position)
        self._batches = _chain(next(batches), batches)

    def _next_batch(self) -> Batch:
        batch = None if self._batches is None else next(self._batches, None)
        if batch is None:
            self.epoch += self._batches is not None
            self.position = 0
            self._epoch_random = rng_state() if getattr(self.source, "draws_order", False) else None
            self._batches = self.source.epoch(self.epoch, self.seed)
            batch = next(self._batches)
        self.position += 1
        return batch

    def _gradient(self, batch: Batch) -> tuple[str, Exception | None]:
        """Compute loss and gradient; return which of them is not finite, and the error that said so."""
        try:
            loss = self.objective.backward(*batch.args, indices=batch.indices, weight=batch.weight)
        except (ValueError, RuntimeError) as error:
            # Validation and linear algebra refuse a NaN where arithmetic would pass it on.
            self.losses.append(float("nan"))
            return "loss", error
        self._adopt_late_parameters()
        self.losses.append(float(loss))
        if not math.isfinite(self.loss):
            return "loss", None
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        return ("" if all_finite(gradients) else "gradient"), None

    def _bad_step(self, batch: Batch, random: Any, fault: str, error: Exception | None) -> DivergenceReport | None:
        """Skip the step if that is allowed, else return what is at fault; raise an error of another cause."""
        self.losses[-1] = float("nan")
        self._in_a_row += 1
        self._restore_buffers()
        allowed = max((c.in_a_row for c in self.callbacks if isinstance(c, SkipBadSteps)), default=1)
        if self._in_a_row < allowed and error is None:
            self.skipped.append(self.step)
            return None
        report = diagnose(self.objective, batch, random, self.step, fault)
        self._restore_buffers()
        if error is not None and report.site is None and not report.parameters:
            raise error
        if self._in_a_row < allowed:
            self.skipped.append(self.step)
            return None
        return report

    def _keep_buffers(self) -> None:
        """Remember the modules' buffers, which a forward pass may change: running means for one."""
        self._buffers = {k: b.detach().clone() for k, b in self.objective.buffers_by_name().items()}

    @torch.no_grad()
    def _restore_buffers(self) -> None:
        for name, buffer in self.objective.buffers_by_name().items():
            if name in self._buffers:
                buffer.copy_(self._buffers[name])

    def _adopt_late_parameters(self) -> None:
        if len(self.objective.trainable()) == len(self._good):
            return
        late = list(self.objective.trainable().values())[len(self._good) :]
        self._parameters.extend(late)
        self.optimizer.param_groups[0]["params"].extend(late)
        self._good.extend(p.detach().clone() for p in late)


def _build(optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer], parameters: list[Any]) -> Any:
    built = optimizer(parameters) if callable(optimizer) else optimizer
    if not callable(optimizer) or not isinstance(built, torch.optim.Optimizer) or isinstance(built, torch.optim.LBFGS):
        raise TypeError(
            f"optimizer is or gave a {type(built).__name__}; needed a function of the parameters that returns a "
            "first-order torch optimiser, such as functools.partial(torch.optim.Adam, lr=0.01)"
        )
    held = {id(p) for group in built.param_groups for p in group["params"]}
    if held != {id(p) for p in parameters}:
        raise ValueError(
            f"optimizer holds {len(held)} tensors, not exactly the {len(parameters)} parameters it was given; "
            "needed a function that passes all of them on"
        )
    return built


def _chain(first: Batch, rest: Iterator[Batch]) -> Iterator[Batch]:
    yield first
    yield from rest
