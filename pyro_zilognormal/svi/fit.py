"""The training loop: what it calls between steps, what it is in the middle of, and what it returns."""

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor, nn

from pyro_zilognormal.svi.data import Source, as_source, as_tensor, batches, whole
from pyro_zilognormal.svi.diagnose import DivergenceReport, all_finite, diagnose
from pyro_zilognormal.svi.elbo import SVIModule, isolated, rng_state

_REASONS = {
    "converged": "converged: the loss stopped improving",
    "rising": "stopped because the held-out loss rose: more steps overfit, or the learning rate is too high",
    "steps": "ran out of steps before it was found to have converged",
    "interrupted": "was interrupted",
    "diverged": "diverged: a loss or gradient was not finite",
}

# What an optimizer may be: a function of the parameters, or one of pyro.optim.
Optimizer: TypeAlias = Callable[[Iterable[Any]], torch.optim.Optimizer] | PyroOptim


class Callback:
    """Base class of what :func:`fit` calls between steps, in the order given, but :class:`Checkpoint` last.

    Example:
        >>> class Anneal(Callback):
        ...     def on_fit_start(self, run):
        ...         run.kl_weight = 0.1
        ...     def on_step_end(self, run):
        ...         run.kl_weight = min(1.0, 0.1 + run.step / 100)
    """

    comes_last = False

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
        if isinstance(function, type) or not callable(function):
            raise TypeError(f"callbacks holds {function!r}; needed instances of Callback and functions of the run")
        self.function = function

    def on_step_end(self, run: "Run") -> None:
        self.function(run)


def as_callbacks(given: Sequence[Any]) -> list[Callback]:
    """Return callbacks and functions of the run as callbacks; raise a TypeError for anything else."""
    return [each if isinstance(each, Callback) else _EachStep(each) for each in given]


def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    steps: int,
    optimizer: Optimizer | None = None,
    loss: ELBO | Callable[..., Tensor] | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback | Callable[["Run"], Any]] = (),
    **kwargs: Any,
) -> "FitResult":
    """Fit a guide to a model by stochastic variational inference.

    Parameters of modules are trained in place. Those of ``pyro.param`` start from values in Pyro's store, if any, and
    belong to the fit: use a fitted model or guide inside :meth:`FitResult.scope`. The store, random seeds, the default
    dtype and validation flags are put back afterwards.

    Args:
        model: a Pyro model: a function, an nn.Module or PyroModule, or a method of one.
        guide: its guide, with the same arguments.
        args: positional arguments of both, whose numpy arrays and CSR matrices become tensors, or one
            :class:`Minibatches` or :class:`BatchStream` of them.
        steps: the number of steps to take at most, those before a resume included.
        optimizer: an optimiser of ``pyro.optim``, or a function of the parameters that returns one of torch; by default
            ``functools.partial(torch.optim.Adam, lr=0.01)``.
        loss: a loss of ``pyro.infer``, by default ``Trace_ELBO()``, or a function of ``(model, guide, *args,
            **kwargs)`` that returns a differentiable scalar.
        seed: the random seed of torch, numpy, Python and the shuffling.
        callbacks: :class:`Callback` objects, or functions of the :class:`Run`, called after each step.
        kwargs: keyword arguments of model and guide; each minibatch gets them whole.

    Returns:
        The parameters, the losses and why the fit stopped.

    Raises:
        DivergenceError: at a loss or gradient that is not finite; holds the last finite state.
        TypeError, ValueError: for arguments of the wrong kind, or a model without the plate over rows.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> def model(x):
        ...     rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
        ...     with pyro.plate("rows", len(x)):
        ...         pyro.sample("x", dist.Exponential(rate), obs=x)
        >>> guide = pyro.infer.autoguide.AutoNormal(model)
        >>> result = fit(model, guide, torch.ones(50), steps=20)
        >>> result.stop_reason, result.converged
        ('steps', False)
    """
    steps, seed = whole("steps", steps, 1), whole("seed", seed, 0, 2**32 - 1)
    called = sorted(as_callbacks(callbacks), key=lambda callback: callback.comes_last)
    with isolated(seed), torch.enable_grad():
        kwargs = {k: as_tensor(value) for k, value in kwargs.items()}
        source = as_source(args, kwargs)
        module = SVIModule(model, guide, loss, source.plate, source.rows, kwargs)
        module.setup(next(source.epoch(0, seed)))
        run = Run(module, source, build_optimizer(optimizer, module.trainable()), seed, steps, called)
        run.train()
        return run.result()


@dataclass(eq=False)
class Run:
    """A fit while it runs, as callbacks see it; attributes not listed here are as in :class:`FitResult`.

    Attributes:
        step: number of steps taken.
        steps: number of steps asked for.
        optimizer: the torch optimiser.
        kl_weight: the factor of the latent sites' log densities in the loss; set it to anneal the KL divergence.
        stop_reason: "" while the fit goes on.
    """

    module: SVIModule
    source: Source
    optimizer: torch.optim.Optimizer
    seed: int
    steps: int
    callbacks: list[Callback]
    step: int = 0
    kl_weight: float = 1.0
    losses: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    held_out_rows: int = 0
    best_step: int = 0
    stop_reason: str = ""
    converged: bool = False
    last_finite_step: int = 0

    def __post_init__(self) -> None:
        self.rows, self.batches, self.started = self.source.rows, batches(self.source, self.seed), time.monotonic()
        # The last parameters and running buffers whose loss and gradient were finite, those of ``last_finite_step``.
        state = self.module.snapshot()
        self.last_finite = {k: state[k] for k in [*self.module.trainable(), *self.module.running_buffers]}

    @property
    def loss(self) -> float:
        """The loss of the last step."""
        return self.losses[-1]

    @property
    def params(self) -> dict[str, Tensor]:
        """A copy of the parameters by name, as the model sees them."""
        return self.module.constrained()

    @property
    def seconds(self) -> float:
        """Seconds spent so far, those before a resume included."""
        return time.monotonic() - self.started

    def stop(self, reason: str, converged: bool = False) -> None:
        """End the fit after this step, for a reason, and say whether the loss has stopped improving."""
        self.stop_reason, self.converged = reason, converged

    def train(self) -> None:
        """Take steps and call the callbacks, until one of them stops the fit or the steps run out."""
        with ExitStack() as stack:
            for callback in self.callbacks:
                callback.on_fit_start(self)
                stack.callback(callback.on_fit_end, self)
            while not self.stop_reason and self.step < self.steps:
                self._advance()
                for callback in self.callbacks:
                    callback.on_step_end(self)
            self.stop_reason = self.stop_reason or "steps"
            # No later loss shows that the last step made parameters that are not finite.
            pairs = {k: (p.detach(), self.last_finite[k]) for k, p in self.module.trainable().items()}
            if bad := [k for k, (now, before) in pairs.items() if all_finite([before]) and not all_finite([now])]:
                self._diverge(DivergenceReport(self.step, "update", parameters=bad))

    def result(self) -> "FitResult":
        """Return what has come of the fit."""
        same = ("params", "held_out_rows", "rows", "seconds", "stop_reason", "converged", "module")
        return FitResult(
            **{name: getattr(self, name) for name in same},
            losses=np.asarray(self.losses, dtype=np.float64),
            held_out=list(self.held_out),
            steps=self.step,
            best_step=self.best_step if self.best_step or self.stop_reason == "diverged" else self.step,
            values=self.module.snapshot(),
        )

    def _advance(self) -> None:
        """Take one step; raise a DivergenceError where its loss or gradient is not finite."""
        batch, random, parameters = next(self.batches), rng_state(), self.module.trainable().values()
        self.optimizer.zero_grad(set_to_none=True)
        self.step, self.module.kl_weight = self.step + 1, self.kl_weight
        try:
            self.losses.append(self.module.loss_and_grads(batch))
        except (ValueError, RuntimeError) as error:
            # Validation and linear algebra refuse a NaN where arithmetic would pass it on.
            self.losses.append(math.nan)
            report = diagnose(self.module, batch, random, self.step, "loss")
            if report.site is None and not report.parameters:  # an error of another cause
                raise
            self._diverge(report, error)
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            raise ValueError("no parameter got a gradient: RenyiELBO, for one, needs PyroModules or pyro.param")
        if not math.isfinite(self.loss) or not all_finite(gradients):
            what = "gradient" if math.isfinite(self.loss) else "loss"
            self._diverge(diagnose(self.module, batch, random, self.step, what))
        weight = self.source.batches * batch.rows / self.rows  # whose mean over an epoch is 1
        if weight != 1.0:
            torch._foreach_mul_(gradients, weight)
        self._keep()
        self.optimizer.step()

    @torch.no_grad()
    def _keep(self) -> None:
        """Keep the parameters, and the buffers that a forward pass changes."""
        state = self.module.state() if self.module.running_buffers else self.module.trainable()
        torch._foreach_copy_(list(self.last_finite.values()), [state[k] for k in self.last_finite])
        self.last_finite_step = self.step - 1

    def _diverge(self, report: DivergenceReport, error: Exception | None = None) -> None:
        self.module.restore(self.last_finite)
        self.best_step = self.last_finite_step
        self.stop("diverged")
        raise DivergenceError(report, self.result()) from error


class DivergenceError(RuntimeError):
    """A loss or gradient is not finite; has a ``report``, and a ``result`` with the last parameters whose were."""

    def __init__(self, report: DivergenceReport, result: "FitResult") -> None:
        super().__init__(f"{report}. Look there, lower the learning rate, or clip gradients; .result is finite")
        self.report, self.result = report, result


@dataclass(frozen=True)
class FitResult:
    """A finished fit.

    Attributes:
        params: every parameter by name, as the model sees it.
        losses: the loss of every step, an estimate of the loss of all rows.
        held_out: (step, loss) of every evaluation on held-out data.
        held_out_rows: number of rows that the held-out losses are of: those of the fit where a plate is named.
        steps: number of steps taken.
        rows: number of rows of the data: the length of the first array.
        seconds: seconds spent, those before a resume included.
        stop_reason: "converged", "rising", "steps", "interrupted", "diverged" or a callback's own.
        converged: whether a stopping rule found that the loss had stopped improving, and was level.
        best_step: the step whose parameters these are.
        module: the loss as an nn.Module, with the parameters.
        values: the unconstrained parameters and the buffers, by name.
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
    best_step: int
    module: SVIModule = field(repr=False)
    values: dict[str, Tensor] = field(repr=False)

    def __str__(self) -> str:
        why = _REASONS.get(self.stop_reason, f"stopped: {self.stop_reason}")
        return f"fit of {self.steps} steps in {self.seconds:.1f} s {why}; parameters of step {self.best_step}"

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Let modules and ``pyro.param`` have this fit's parameters for the length of a block.

        Put everything in it that runs model or guide outside this package, such as ``pyro.infer.Predictive``. What the
        block sets by name stays inside it.
        """
        state = self.module.state()
        kept = {name: state[name].data for name in self.values}
        for name, value in self.values.items():  # memory of its own: what is drawn in the block may be a view of it
            state[name].data = value.clone()
        try:
            with self.module.running():
                yield
        finally:
            for name, value in kept.items():
                state[name].data = value


def build_optimizer(optimizer: Optimizer | None, parameters: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """Return the torch optimiser of all parameters that a function of them, or one of ``pyro.optim``, stands for."""
    if isinstance(optimizer, PyroLRScheduler):
        raise TypeError("optimizer is a scheduler of pyro.optim; pass the optimiser, and Schedule(...) in callbacks")
    if isinstance(optimizer, PyroOptim):
        return _from_pyro(optimizer, parameters)
    make = functools.partial(torch.optim.Adam, lr=0.01) if optimizer is None else optimizer
    built = make(list(parameters.values())) if callable(make) else make
    if not callable(make) or not isinstance(built, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer is or returned a {type(built).__name__}; needed a function of the parameters that returns a "
            "torch optimiser, such as functools.partial(torch.optim.Adam, lr=0.01), or one of pyro.optim"
        )
    return built


def _from_pyro(optimizer: PyroOptim, parameters: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """Return one torch optimiser, with a group for each parameter where options are a function of its name."""
    options, clip = optimizer.pt_optim_args, optimizer.pt_clip_args
    if callable(options):
        built = optimizer.pt_optim_constructor([{"params": [p], **options(name)} for name, p in parameters.items()])
    else:
        built = optimizer.pt_optim_constructor(list(parameters.values()), **options)

    def clip_each(*_: Any) -> None:
        for name, parameter in parameters.items():
            PyroOptim._clip_grad(parameter, **(clip(name) if callable(clip) else clip))

    if clip:
        built.register_step_pre_hook(clip_each)
    return built
