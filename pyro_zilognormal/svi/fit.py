"""The training loop, what it is in the middle of, and what it returns."""

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

from pyro_zilognormal.svi.callbacks import Callback, as_callbacks
from pyro_zilognormal.svi.checkpoint import Checkpoint
from pyro_zilognormal.svi.data import Source, as_source, batches, whole
from pyro_zilognormal.svi.diagnose import DivergenceError, DivergenceReport, all_finite, diagnose
from pyro_zilognormal.svi.elbo import SVIModule, isolated, torch_rng_state

_REASONS = {
    "converged": "converged: the loss stopped improving",
    "rising": "stopped because the held-out loss rose: more steps overfit, or the learning rate is too high",
    "steps": "ran out of steps before it was found to have converged",
    "interrupted": "was interrupted",
    "diverged": "diverged: a loss or gradient was not finite",
}

# What an optimizer may be: a function of the parameters, or one of pyro.optim.
Optimizer: TypeAlias = Callable[[Iterable[Any]], torch.optim.Optimizer] | PyroOptim


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
        args: positional arguments of model and guide, whose numpy arrays and CSR matrices become tensors, or one
            :class:`Minibatches` or :class:`BatchStream` of them.
        steps: the number of steps to take at most, those before a resume included.
        optimizer: a function of the parameters that returns a torch optimiser, such as
            ``functools.partial(torch.optim.Adam, lr=0.01)``, which is the default, or an optimiser of ``pyro.optim``.
        loss: a loss of ``pyro.infer`` or a function of ``(model, guide, *args, **kwargs)`` that returns a
            differentiable scalar; ``Trace_ELBO()`` if None.
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
    # A checkpoint comes last, when every other callback has had its turn.
    called = sorted(as_callbacks(callbacks), key=lambda callback: isinstance(callback, Checkpoint))
    with isolated(seed), torch.enable_grad():
        source = as_source(args, kwargs)
        module = SVIModule(model, guide, loss, source.plate, source.rows)
        module.setup(next(source.epoch(0, seed)))
        run = Run(module, source, build_optimizer(optimizer, module.trainable()), seed, steps, called)
        run.train()
        return run.result()


@dataclass(eq=False)
class Run:
    """A fit while it runs, as callbacks see it.

    ``losses``, ``held_out``, ``held_out_rows``, ``best_step``, ``rows``, ``stop_reason`` ("" while it goes on),
    ``converged`` and ``module`` are as in :class:`FitResult`.

    Attributes:
        step: number of steps taken.
        steps: number of steps asked for.
        optimizer: the torch optimiser.
    """

    module: SVIModule
    source: Source
    optimizer: torch.optim.Optimizer
    seed: int
    steps: int
    callbacks: list[Callback]
    step: int = 0
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

    @property
    def kl_weight(self) -> float:
        """The factor of the latent sites' log densities in the loss; set it to anneal the KL divergence."""
        return self.module.kl_weight

    @kl_weight.setter
    def kl_weight(self, weight: float) -> None:
        self.module.kl_weight = float(weight)  # a checkpoint holds no numpy numbers

    @property
    def finished(self) -> bool:
        """Whether no further step will be taken."""
        return bool(self.stop_reason) or self.step >= self.steps

    def stop(self, reason: str, converged: bool = False) -> None:
        """End the fit after this step, for a reason, and say whether the loss has stopped improving."""
        self.stop_reason, self.converged = reason, converged

    def train(self) -> None:
        """Take steps and call the callbacks, until one of them stops the fit or the steps run out."""
        with ExitStack() as stack:
            for callback in self.callbacks:
                callback.on_fit_start(self)
                stack.callback(callback.on_fit_end, self)
            while not self.finished:
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
        return FitResult(
            params=self.params,
            losses=np.asarray(self.losses, dtype=np.float64),
            held_out=list(self.held_out),
            held_out_rows=self.held_out_rows,
            steps=self.step,
            rows=self.rows,
            seconds=self.seconds,
            stop_reason=self.stop_reason,
            converged=self.converged,
            best_step=self.best_step if self.best_step or self.stop_reason == "diverged" else self.step,
            module=self.module,
            values=self.module.snapshot(),
        )

    def _advance(self) -> None:
        """Take one step; raise a DivergenceError where its loss or gradient is not finite."""
        batch, random, parameters = next(self.batches), torch_rng_state(), self.module.trainable().values()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        try:
            self.losses.append(self.module.loss_and_grads(batch))
        except (ValueError, RuntimeError) as error:
            # Validation and linear algebra refuse a NaN where arithmetic would pass it on.
            self.losses.append(math.nan)
            report = diagnose(self.module, batch, random, self.step, "loss")
            if report.site is None and not report.parameters:  # an error of another cause
                raise
            self._diverge(report, error)
        self.module.check_no_new_parameters()
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
        with self.module.holding(self.values):
            yield


def build_optimizer(optimizer: Optimizer | None, parameters: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """Return the torch optimiser of all parameters that a function of them, or one of ``pyro.optim``, stands for."""
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
    if isinstance(optimizer, PyroLRScheduler):
        raise TypeError("optimizer is a scheduler of pyro.optim; pass the optimiser, and Schedule(...) in callbacks")
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
