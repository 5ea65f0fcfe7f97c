"""Fit a hurdle regression with settings that suit its guide."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.infer import Trace_ELBO

from pyro_zilognormal.models.data import HurdleData
from pyro_zilognormal.models.hurdle import HurdleRegression
from pyro_zilognormal.svi import FitResult, Minibatches, Run, fit

# What a step of small data costs is overhead, which several draws share; more numbers cost time of their own.
_MOST_DRAWS, _FREE_NUMBERS = 8, 50_000

# In units of posterior standard deviations at the start.
_LEARNING_RATE = 0.01


# Nats: less than moves one coefficient of a gene by 0.2 of its posterior standard deviation.
_NEGLIGIBLE = 0.02


class _Anneal:
    """Lower the learning rate to nothing over the steps, and say at the end whether the loss had stopped falling."""

    def __init__(self, genes: int) -> None:
        self.negligible = _NEGLIGIBLE * genes

    def __call__(self, run: Run) -> None:
        for group in run.optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * (1 - run.step / run.steps)
        if run.step == run.steps and _settled(run.losses, self.negligible):
            run.stop("converged", converged=True)


def _settled(losses: Sequence[float], negligible: float) -> bool:
    """Whether the last fifth of the losses is no lower than the fifth before it, but for noise or next to nothing."""
    window = len(losses) // 5
    last = torch.tensor(losses[-2 * window :], dtype=torch.float64).reshape(2, window)
    gain = float(last[0].mean() - last[1].mean())
    # From successive differences, which a trend within the window does not inflate.
    noise = math.sqrt(float(last.diff(dim=1).square().mean(1).sum()) / 2 / window)
    return gain <= max(3 * noise, negligible)


def fit_hurdle(
    regression: HurdleRegression,
    data: HurdleData,
    *,
    steps: int = 200,
    batch_size: int = 512,
    seed: int = 0,
    callbacks: Sequence[Callable[[Run], Any]] = (),
) -> FitResult:
    """Fit the guide, on all groups at once or on minibatches of cells.

    It is ``svi.fit`` with Adam at a learning rate that falls from 0.01 to 0, in units of posterior standard deviations,
    and as many draws of the guide a step as come nearly free: 8 for small data, 1 for 2,000 genes of 20 donors.
    The start is the posterior mode already, so that few steps are needed; the result has converged if the loss
    no longer falls in the last fifth of them, by more than noise or 0.02 nats a gene.

    Args:
        regression: made from ``data``.
        data: groups, or cells.
        steps: how many; for minibatches make that several epochs.
        batch_size: cells in a minibatch; not used where rows are groups.
        seed: of the fit.
        callbacks: as those of ``svi.fit``, called before the last step is judged.

    Returns:
        The result of ``svi.fit``, which says whether it converged.

    Raises:
        ValueError: for fewer than 10 steps, and data of other genes, donors or columns than the regression's.

    Example:
        >>> import torch
        >>> from pyro_zilognormal.datasets import pbmc68k_reduced
        >>> data = HurdleData.from_cells(pbmc68k_reduced().values[:, :3], torch.ones(700, 1))
        >>> fit_hurdle(HurdleRegression(data), data).stop_reason
        'converged'
    """
    if data.sizes != regression.sizes:
        raise ValueError(f"data has {data.sizes}, the regression {regression.sizes}; needed one made from such data")
    if steps < 10:
        raise ValueError(f"steps is {steps}; needed at least 10, to see whether the loss has settled")
    rows = len(data.design) if data.reduced else batch_size
    numbers = data.genes * max(rows, data.donors + data.design.shape[1])
    draws = min(max(_FREE_NUMBERS // numbers, 1), _MOST_DRAWS)
    arguments = data.arguments if data.reduced else (Minibatches(*data.arguments, batch_size=batch_size, plate="rows"),)
    adam = functools.partial(torch.optim.Adam, lr=_LEARNING_RATE)
    return fit(
        regression.model,
        regression.guide,
        *arguments,
        steps=steps,
        optimizer=adam,
        loss=Trace_ELBO(num_particles=draws, vectorize_particles=draws > 1, max_plate_nesting=2),
        seed=seed,
        callbacks=[*callbacks, _Anneal(data.genes)],
    )
