"""The training loop."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor

from pyro_zilognormal.svi.batch import Source
from pyro_zilognormal.svi.checks import check_seconds, check_whole
from pyro_zilognormal.svi.data import as_source
from pyro_zilognormal.svi.divergence import DivergenceError
from pyro_zilognormal.svi.isolation import global_state_kept, handlers_hidden
from pyro_zilognormal.svi.losses import compiles
from pyro_zilognormal.svi.objective import Objective
from pyro_zilognormal.svi.result import FitResult
from pyro_zilognormal.svi.run import Fault, Run

# What fits in progress train. A nested fit of the same would change it under their feet.
_IN_TRAINING: set[int] = set()


def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *data: Any,
    steps: int,
    optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer] | None = None,
    loss: ELBO | Callable[..., Tensor] | None = None,
    seed: int = 0,
    max_seconds: float | None = None,
    callbacks: Sequence[Callable[[Run], Any]] = (),
) -> FitResult:
    """Fit a guide to a model by stochastic variational inference.

    Parameters made by ``pyro.param`` and ``pyro.module`` belong to this fit alone: it neither reads nor
    writes Pyro's global store. Parameters of modules are trained in place, as everywhere in torch, so fitting
    the same module again goes on from where it is; the result keeps its own copy. Seeds, default dtype and
    validation flags are as they were afterwards, also after an error.

    Args:
        model: a Pyro model: a function, an nn.Module or PyroModule, or a method of one.
        guide: its guide, with the same arguments.
        data: arguments of model and guide. Numpy arrays and CSR matrices become tensors. One
            :class:`Minibatches` or :class:`BatchStream` instead of them trains on minibatches. Rows of data that come
            all at once are counted by the plates of the observed sites: of each the leftmost plate that is as long as
            the first axis of some argument; the most count. One :class:`Minibatches` of all rows names the plate.
        steps: how many steps to take at most, those before a resume included.
        optimizer: a function of the parameters that returns a torch optimiser; Adam with a learning rate of
            0.01 if None.
        loss: a loss of ``pyro.infer`` or a function of ``(model, guide, *data)``; ``Trace_ELBO()`` if None.
        seed: from 0 to 2^32 - 1; starts torch's, numpy's and Python's generators and the shuffling.
        max_seconds: stop this call after so many seconds; a resumed fit has them anew.
        callbacks: called in order with the :class:`Run` after each step: functions, or
            :class:`EarlyStopping`, :class:`Checkpoint`, :class:`Schedule`, :class:`Progress`,
            :class:`SkipBadSteps`.

    Returns:
        The parameters, the losses and why it stopped.

    Raises:
        DivergenceError: at a loss or gradient that is not finite, or parameters that are not at the end; holds
            the last good state.
        TypeError: for arguments of the wrong kind.
        ValueError: for arguments out of range, or a model that does not suit the minibatches.

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
    _check(model, guide, loss, steps, seed, max_seconds, callbacks)
    with global_state_kept(seed), handlers_hidden(), torch.enable_grad():
        source = as_source(data)
        objective = Objective(model, guide, Trace_ELBO() if loss is None else loss, source.plate, source.rows)
        _check_loss(objective.loss, source)
        modules = _trained(objective)
        _claim(modules)
        try:
            chosen = optimizer or functools.partial(torch.optim.Adam, lr=0.01)
            run = Run(objective, source, chosen, seed, steps, tuple(callbacks))
            with run.stack:
                return _train(run, max_seconds)
        finally:
            _IN_TRAINING.difference_update(modules)


def _train(run: Run, max_seconds: float | None) -> FitResult:
    _call(run, "start")
    _call(run, "identify")
    _call(run, "resume")
    _call(run, "ready")
    while not run.stop_reason and run.step < run.steps:
        _raise_if(run.advance(), run)
        for callback in run.callbacks:
            callback(run)
        if not run.stop_reason and max_seconds is not None and run.seconds_of_call >= max_seconds:
            run.stop("max_seconds")
        _call(run, "after")
    if not run.stop_reason:
        run.stop("steps")
    _call(run, "finish")
    _call(run, "end")
    _raise_if(run.final_fault(), run)
    return _result(run)


def _raise_if(fault: Fault | None, run: Run) -> None:
    if fault is not None:
        report, error = fault
        run.back_to_good()
        run.stop("diverged")
        raise DivergenceError(report, _result(run)) from error


def _call(run: Run, hook: str) -> None:
    for callback in run.callbacks:
        if hasattr(callback, hook):
            getattr(callback, hook)(run)


def _result(run: Run) -> FitResult:
    return FitResult(
        params=run.params,
        losses=np.asarray(run.losses, dtype=np.float64),
        held_out=list(run.held_out),
        held_out_rows=run.held_out_rows,
        steps=run.step,
        rows=run.rows,
        seconds=run.seconds,
        stop_reason=run.stop_reason,
        converged=run.converged,
        skipped=list(run.skipped),
        best_step=run.best_step if run.best_step or run.stop_reason == "diverged" else run.step,
        objective=run.objective,
        smoothed=list(run.smoothed),
        values=run.objective.snapshot(),
    )


def _trained(objective: Objective) -> set[int]:
    # A guide's parameters may be yet to come; a model without parameters may serve many fits at once.
    parameters = {id(p) for p in objective.owners.parameters() if p.requires_grad}
    return parameters | ({id(objective.owners["guide"])} if "guide" in objective.owners else set())


def _claim(modules: set[int]) -> None:
    if modules & _IN_TRAINING:
        raise ValueError(
            "model or guide is a module that a fit in progress is training; pass a new one, or a copy.deepcopy of it"
        )
    _IN_TRAINING.update(modules)


def _check_loss(loss: Any, source: Source) -> None:
    if compiles(loss) and source.batches > 1:
        raise ValueError(
            f"loss is a {type(loss).__name__}, which makes constants of the rows and the plate scale of the first "
            f"minibatch; pass all data in one call, or use {type(loss).__name__.removeprefix('Jit')}()"
        )


def _check(model: Any, guide: Any, loss: Any, steps: Any, seed: Any, max_seconds: float | None, callbacks: Any) -> None:
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise TypeError(f"callbacks is {callbacks!r}; needed a list or tuple of functions of the run")
    for name, value in (("model", model), ("guide", guide)):
        if not callable(value):
            raise TypeError(f"{name} is a {type(value).__name__}; needed a function or module that can be called")
    for name, value in (("model", model), ("guide", guide), ("loss", loss), *(("callbacks", c) for c in callbacks)):
        if isinstance(value, type):
            raise TypeError(f"{name} holds the class {value.__name__}; needed an instance, as {value.__name__}(...) is")
    if loss is not None and not callable(loss) and not hasattr(loss, "loss_and_grads"):
        raise TypeError(
            f"loss is a {type(loss).__name__}; needed a loss of pyro.infer, such as Trace_ELBO(), or a function of "
            "model, guide and data"
        )
    check_whole("steps", steps, 1)
    check_whole("seed", seed, 0, 2**32 - 1)
    check_seconds("max_seconds", max_seconds)
