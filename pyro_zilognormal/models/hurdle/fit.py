"""Fit a hurdle regression with settings that suit its guide, and draw coefficients from the result."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_zilognormal.models.hurdle.data import HurdleData
from pyro_zilognormal.models.hurdle.guide import HurdleGuide
from pyro_zilognormal.models.hurdle.model import HurdleModel
from pyro_zilognormal.svi import Callback, FitResult, Minibatches, Run, fit

# The cost of a step of small data is overhead, which several draws share; draws of more numbers cost time.
_MOST_DRAWS, _FREE_NUMBERS = 8, 50_000

# In units of posterior standard deviations at the start.
_LEARNING_RATE = 0.01

# Nats a gene: less than a shift of one coefficient by 0.2 of its posterior standard deviation costs.
_NEGLIGIBLE = 0.02

# Numbers in the factors of the precisions that are drawn from at a time: some hundred MB of working memory.
_NUMBERS_A_BLOCK = 1 << 23
_DRAWS_A_FACTOR = 20


def fit_hurdle(
    model: HurdleModel,
    guide: HurdleGuide,
    data: HurdleData,
    *,
    steps: int = 200,
    batch_size: int = 512,
    seed: int = 0,
    callbacks: Sequence[Callback | Callable[[Run], Any]] = (),
) -> FitResult:
    """Fit the guide, on all groups at once or on minibatches of cells.

    This is ``svi.fit`` with Adam at a learning rate that falls from 0.01 to 0, in units of posterior
    standard deviations, and as many draws of the guide a step as cost little: 8 for small data, 1 for
    2,000 genes of 20 donors. The guide starts near the posterior, so few steps are needed; the result has converged if
    the loss no longer falls in the last fifth of them, by more than noise or 0.02 nats a gene.

    Args:
        model: made from ``data``.
        guide: made from ``model`` and ``data``.
        data: groups, or cells.
        steps: number of steps; for minibatches enough for several epochs.
        batch_size: cells in a minibatch; not used where rows are groups.
        seed: of the fit.
        callbacks: as those of ``svi.fit``, called before convergence is judged.

    Returns:
        The result of ``svi.fit``, which says whether it converged.

    Raises:
        TypeError: data that are not :class:`HurdleData`.
        ValueError: fewer than 10 steps, or data of other rows, genes, levels or columns than the model's.

    Example:
        >>> from pyro_zilognormal.datasets import pbmc68k_reduced
        >>> data = HurdleData.from_cells(pbmc68k_reduced().values[:, :3], torch.ones(700, 1))
        >>> model = HurdleModel(data)
        >>> fit_hurdle(model, HurdleGuide(model, data), data).stop_reason
        'converged'
    """
    model.check_sizes(data)
    if steps < 10:
        raise ValueError(f"steps is {steps}; needed at least 10, to see whether the loss still falls")
    rows = len(data.design) if data.reduced else batch_size
    numbers = data.genes * max(rows, model.hierarchy.coefficients.width**2)
    particles = min(max(_FREE_NUMBERS // numbers, 1), _MOST_DRAWS)
    arguments = data.arguments if data.reduced else (Minibatches(*data.arguments, batch_size=batch_size, plate="rows"),)
    return fit(
        model,
        guide,
        *arguments,
        steps=steps,
        optimizer=functools.partial(torch.optim.Adam, lr=_LEARNING_RATE),
        loss=Trace_ELBO(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=2),
        seed=seed,
        callbacks=[*callbacks, functools.partial(_anneal, negligible=_NEGLIGIBLE * data.genes)],
    )


def _anneal(run: Run, negligible: float) -> None:
    """Lower the learning rate to 0 over the steps, and say after the last whether the loss has converged."""
    for group in run.optimizer.param_groups:
        group["lr"] = _LEARNING_RATE * (1 - run.step / run.steps)
    if run.step == run.steps and _converged(run.losses, negligible):
        run.stop("converged", converged=True)


def _converged(losses: Sequence[float], negligible: float) -> bool:
    """Whether the last fifth of the losses is no lower than the fifth before it, but for noise or ``negligible``."""
    window = len(losses) // 5
    last = torch.tensor(losses[-2 * window :], dtype=torch.float64).reshape(2, window)
    gain = float(last[0].mean() - last[1].mean())
    # From successive differences, which a trend within the window does not inflate.
    noise = math.sqrt(float(last.diff(dim=1).square().mean(1).sum()) / 2 / window)
    return gain <= max(3 * noise, negligible)


@torch.no_grad()
def draw_coefficients(
    result: FitResult, data: HurdleData, draws: int, seed: int = 0, random: bool = False
) -> dict[str, Tensor]:
    """Return posterior draws of the coefficients of all genes, of the designs as they were given.

    The model's own intercepts are those of the average of the distinct rows; here they are those of a row of 0. Twenty
    draws share the sds of the random effects and the hyperparameters, which are costly to draw, so that of 1,000 draws
    these have 50 values.

    Args:
        result: of a fit with a :class:`HurdleGuide`.
        data: the data that it was fitted to.
        draws: number of draws.
        seed: of the draws; torch's generator is left as it was.
        random: whether to return the random effects too.

    Returns:
        Draws of shape (draws, genes, width), on the CPU, of the sites ``intercept``, ``effects``, ``log_sigma``,
        ``zero_intercept``, ``zero_effects``, and ``random`` and ``zero_random``, as far as the model has them;
        ``zero_slope``, the same for all genes, has shape (draws, 1, 1).

    Example:
        >>> data = HurdleData.from_cells(torch.rand(50, 3).round(decimals=1), torch.ones(50, 1))
        >>> model = HurdleModel(data)
        >>> result = fit_hurdle(model, HurdleGuide(model, data), data, steps=10)
        >>> draw_coefficients(result, data, draws=20)["log_sigma"].shape
        torch.Size([20, 3, 1])
    """
    names = ["intercept", "effects", "log_sigma", "zero_intercept", "zero_effects", "zero_slope"]
    names += ["random", "zero_random"] if random else []
    owners = cast(Mapping[str, Any], result.module.owners)
    model, guide = owners["model"], owners["guide"]
    width = guide.hierarchy.coefficients.width
    size = max(1, _NUMBERS_A_BLOCK // (data.genes * width * (width + _DRAWS_A_FACTOR)))
    found: dict[str, Tensor] = {}
    with torch.random.fork_rng([data.design.device] if data.design.is_cuda else []), result.scope():
        torch.manual_seed(seed)
        for start in range(0, draws, size * _DRAWS_A_FACTOR):
            stop = min(start + size * _DRAWS_A_FACTOR, draws)
            sites = guide.sample_coefficients(-(-(stop - start) // _DRAWS_A_FACTOR), _DRAWS_A_FACTOR)
            sites = model.at_origin(sites)
            for name in (n for n in names if n in sites):
                block = sites[name][: stop - start].cpu()
                # Filled as they come: to join them at the end would hold them in memory twice.
                found.setdefault(name, block.new_empty(draws, *block.shape[1:]))[start:stop] = block
    return found
