"""When a fit has done enough."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_zilognormal.svi.batch import Source
from pyro_zilognormal.svi.checks import check_number, check_whole
from pyro_zilognormal.svi.data import as_source, count_rows
from pyro_zilognormal.svi.digests import describe
from pyro_zilognormal.svi.forms import same_form, whole
from pyro_zilognormal.svi.isolation import global_state_kept
from pyro_zilognormal.svi.rates import check_rates, highest_rate, why_level
from pyro_zilognormal.svi.run import Run
from pyro_zilognormal.svi.stream import generators_kept
from pyro_zilognormal.svi.trends import trend

_LEAST = {"every": 2, "patience": 1, "min_delta": 0, "noise": 0, "warm_up": 0, "particles": 2, "seed": 0}
_MOST = {"seed": 2**32 - 1}

# By how many standard errors a trend is no chance.
_CLEAR = 4.0


class EarlyStopping:
    """Stop when the loss no longer improves, and go back to the best parameters.

    Every ``every`` steps it looks at the loss L: of held-out data if there are any, always with the same
    particles and seed, else the mean of the last ``every`` training losses. L is better than the best so far,
    B, if ::

        B - L > max(min_delta max(|B|, min(F - B, N)), noise SE),

    where F is the loss at the first look and N the number of rows, so that a loss near 0 has a size too, and SE
    is the standard error of B - L: over particles that share their random numbers, or over the two windows of
    training losses. After ``patience`` looks with nothing better it stops, unless the training losses that it
    looks at still fall by a least-squares line: those since the best look where they are precise enough to
    tell, else those of twice as many looks, and by more than ``noise`` / 2 standard errors.

    Then the fit has converged, unless the loss is worse than the best by more than that and rises since by more
    than 4 standard errors, or is held out while the training losses do not stay level by as much. That is "rising",
    and not converged: of held-out data the fit overfits, and of training losses it diverges. Nor has it where the
    learning rate has come down to a tenth of its peak while the training losses still fell by as much, and has not led
    as far since: that is "slowed down". The best parameters are gone back to in each case.

    Args:
        held_out: data like the fit's: an array, a tuple of the arguments of model and guide, or
            :class:`Minibatches` or :class:`BatchStream` of them. None looks at the training loss.
        every: steps between looks, and the length of the window for the training loss.
        patience: looks without improvement before it stops.
        min_delta: the smallest relative improvement that counts.
        noise: how many standard errors an improvement must exceed.
        warm_up: steps before the first look; at least as many as a KL weight is annealed over.
        particles: how many times to evaluate the held-out loss.
        seed: of the held-out evaluations.

    Raises:
        ValueError: for a number out of range.

    Example:
        >>> stop = EarlyStopping(every=50, patience=3)
        >>> stop.every, stop.patience
        (50, 3)
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
        seed: int = 0,
    ) -> None:
        self.every, self.patience, self.min_delta, self.noise = every, patience, min_delta, noise
        self.warm_up, self.particles, self.seed = warm_up, particles, seed
        for name, least in _LEAST.items():
            if name in ("min_delta", "noise"):
                check_number(name, getattr(self, name), least)
            else:
                check_whole(name, getattr(self, name), least, _MOST.get(name, math.inf))
        self.held_out = None if held_out is None else _source(held_out)
        self._state: dict[str, Any] = {}
        self._rates: list[float] = []

    def start(self, run: Run) -> None:
        """Forget an earlier fit."""
        if self.held_out is not None:
            with global_state_kept(), generators_kept(self.held_out):  # a shuffling loader draws its order
                first = next(self.held_out.epoch(0, self.seed))
            run.objective.use_plate(self.held_out.plate, *first.args)
            run.held_out_rows = count_rows(self.held_out, run.objective)
        self._rates = []
        self._state = {
            "first": None,
            "reference": None,
            "best": math.inf,
            "best_step": 0,
            "values": None,
            "waited": 0,
        }

    def __call__(self, run: Run) -> None:
        """Look at the loss when it is time to."""
        self._rates.append(highest_rate(run.optimizer))
        if run.step % self.every or run.step < self.warm_up + self.every:
            return
        losses = self._look(run)
        if losses.numel() < 2:
            return
        mean = float(losses.mean())
        (run.smoothed if self.held_out is None else run.held_out).append((run.step, mean))
        self._keep_best(run, mean)
        self._judge(run, losses)

    def end(self, run: Run) -> None:
        """Go back to the best parameters seen."""
        if self._state["values"] is not None:
            run.objective.restore(self._state["values"])
            run.best_step = self._state["best_step"]

    def state_dict(self) -> dict[str, Any]:
        """Return what has been seen so far."""
        return {**self._state, "rates": torch.tensor(self._rates, dtype=torch.float64)}

    def check_state(self, run: Run, state: Any) -> None:
        """Raise a ValueError unless ``state`` is one that these looks could come to."""
        same_form(dict.fromkeys(state), dict.fromkeys(self.state_dict()), "what EarlyStopping has seen")
        check_rates(state["rates"])
        for name in ("best_step", "waited"):
            whole(state[name], name)
        same_form(state["best"], 0.0, "best")
        if state["reference"] is not None:
            same_form(state["first"], 0.0, "first")
            same_form(state["reference"], torch.empty(len(state["reference"]), dtype=torch.float64), "reference")
        if state["values"] is not None:
            same_form(state["values"], run.objective.snapshot(), "values")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what had been seen."""
        self._state = {k: v for k, v in state.items() if k != "rates"}
        self._rates = state["rates"].tolist()

    def settings(self) -> dict[str, Any]:
        """Return what must be the same in a resumed run."""
        data = [] if self.held_out is None else [describe(v) for v in self.held_out.arguments()]
        return {k: getattr(self, k) for k in _LEAST} | {"held_out": data}

    def _look(self, run: Run) -> Tensor:
        if self.held_out is None:
            recent = torch.tensor(run.losses[-self.every :], dtype=torch.float64)
            return recent[torch.isfinite(recent)]
        each = [self._evaluate(run, self.held_out, p) for p in range(self.particles)]
        return torch.tensor(each, dtype=torch.float64)

    def _evaluate(self, run: Run, held_out: Source, particle: int) -> float:
        with global_state_kept(self.seed * 1_000_003 + particle), generators_kept(held_out), run.good.buffers_apart():
            batches = held_out.epoch(0, self.seed)
            total = sum(b.weight * run.objective.evaluate(*b.args, indices=b.indices) for b in batches)
        return total / held_out.batches

    def _keep_best(self, run: Run, mean: float) -> None:
        if math.isfinite(mean) and mean < self._state["best"]:
            values = run.objective.snapshot()
            self._state.update(best=mean, best_step=run.step, values=values)

    def _judge(self, run: Run, losses: Tensor) -> None:
        reference = self._state["reference"]
        finite = bool(torch.isfinite(losses).all())
        if reference is None:
            if finite:
                self._state.update(first=float(losses.mean()), reference=losses, waited=0)
                return
            gain = needed = 0.0
        else:
            gain, needed = self._gain(run, reference, losses)
        if finite and gain > needed:
            self._state.update(reference=losses, waited=0)
            return
        self._state["waited"] += 1
        if finite and self.held_out is None and gain > 0 and losses.var() < reference.var() / 4:
            # One wild loss in the window would make every later one no better than its error.
            self._state["reference"] = losses
        if self._state["waited"] >= self.patience and not self._falling(run):
            rising = -gain > needed and self._rising(run)
            reason = "rising" if rising else self._level(run) if finite else "held-out loss not finite"
            if reason:
                run.stop(reason, converged=reason == "converged")

    def _falling(self, run: Run) -> bool:
        """Whether the training losses of the last looks, taken together, fall by enough to count, or may do so."""
        if self.held_out is not None:
            return False
        looks, least = self._state["waited"] + 1, self._least(run)
        slope, error = trend(run.losses[-looks * self.every :])
        if self.noise * error * looks * self.every > least:
            # Too noisy to tell: twice as many looks as it waits for tell a fall of a third of the size.
            looks = max(looks, 2 * (self.patience + 1))
            if run.step - self.warm_up < looks * self.every:
                return True
            slope, error = trend(run.losses[-looks * self.every :])
        return -slope * looks * self.every > max(least, self.noise / 2 * error * looks * self.every)

    def _level(self, run: Run) -> str:
        """Say why the loss is level, nothing where that cannot be told yet."""
        most = 2 * (self.patience + 1) * self.every
        return why_level(run.losses, self._rates, most, self._least(run), _CLEAR)

    def _rising(self, run: Run) -> bool:
        """Whether a loss that is worse than the best is so by more than the jumps of the parameters."""
        waited = self._state["waited"]
        training = _significance(run.losses[-waited * self.every :])
        if self.held_out is None:
            return training > _CLEAR
        # Training losses still fall where a fit overfits, and rise where it diverges; at an optimum they are flat.
        looks = _significance([loss for _, loss in run.held_out[-waited:]]) if waited > 2 else 0.0
        return max(abs(training), looks) > _CLEAR

    def _least(self, run: Run) -> float:
        best = float(self._state["reference"].mean())
        # A wild start must not make all that follows look small: beyond 1 a row, its size does not count.
        return self.min_delta * max(abs(best), min(self._state["first"] - best, run.rows))

    def _gain(self, run: Run, reference: Tensor, losses: Tensor) -> tuple[float, float]:
        """Return how much better the losses are than the reference, and how much counts as better."""
        gain = float(reference.mean() - losses.mean())
        if self.held_out is None:
            error = math.sqrt(float(reference.var() / len(reference) + losses.var() / len(losses)))
        else:
            error = float((reference - losses).std()) / math.sqrt(self.particles)
        return gain, max(self._least(run), self.noise * error)


def _significance(values: Sequence[float]) -> float:
    """Return by how many standard errors a series rises."""
    slope, error = trend(values)
    return slope / error if error > 0 else math.copysign(math.inf, slope) if slope else 0.0


def _source(held_out: Any) -> Source:
    return as_source(tuple(held_out) if isinstance(held_out, Sequence) else (held_out,))
