"""Fit a hurdle regression with settings that suit its guide, and draw coefficients from the result."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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

# Numbers drawn at a time: some hundred MB of working memory.
_NUMBERS_A_BLOCK = 1 << 21
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


def draw_coefficients(
    result: FitResult,
    data: HurdleData,
    draws: int,
    seed: int = 0,
    random: int = 0,
    genes: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Return posterior draws of the coefficients, of the designs as they were given.

    The model's own intercepts are those of the average of the distinct rows; here they are those of a row of 0. Twenty
    draws share the sds of the random effects and the hyperparameters, which are costly to draw, so that of 1,000 draws
    these have 50 values.

    Args:
        result: of a fit with a :class:`HurdleGuide`.
        data: the data that it was fitted to.
        draws: number of draws.
        seed: of the draws; torch's generator is left as it was.
        random: of how many draws, the first ones, to return the random effects too.
        genes: which genes, all if None. A gene has the same draws whichever others are drawn.

    Returns:
        Draws of shape (draws, genes, width), on the CPU, of the sites ``intercept``, ``effects``, ``log_sigma``,
        ``zero_intercept``, ``zero_effects``, and of shape (random, genes, width) of ``random`` and ``zero_random``, as
        far as the model has them; ``zero_slope``, the same for all genes, has shape (draws, 1, 1).

    Raises:
        ValueError: genes that the data do not have, or none, or more draws with random effects than draws.

    Example:
        >>> data = HurdleData.from_cells(torch.rand(50, 3).round(decimals=1), torch.ones(50, 1))
        >>> model = HurdleModel(data)
        >>> result = fit_hurdle(model, HurdleGuide(model, data), data, steps=10)
        >>> draw_coefficients(result, data, draws=20)["log_sigma"].shape
        torch.Size([20, 3, 1])
    """
    wanted = torch.arange(data.genes) if genes is None else torch.tensor(genes, dtype=torch.int64)
    if not len(wanted) or not _inside(wanted, slice(0, data.genes)).all():
        raise ValueError(f"genes is {genes}; needed numbers from 0 to {data.genes - 1}, at least one")
    if not 0 <= random <= draws:
        raise ValueError(f"random is {random}; needed a number of draws from 0 to {draws}, all of them")
    found: dict[str, Tensor] = {}
    for some, block in draw_blocks(result, data, draws, seed, random, wanted):
        inside = _inside(wanted, some)
        slope = block.pop("zero_slope")  # the same in all blocks
        for name, value in block.items():
            # Filled as they come: to join them at the end would hold them in memory twice.
            every = found.setdefault(name, value.new_empty(len(value), len(wanted), value.shape[-1]))
            every[:, inside] = value[:, wanted[inside] - some.start]
    return found | {"zero_slope": slope}


def draw_blocks(
    result: FitResult, data: HurdleData, draws: int, seed: int = 0, random: int = 0, genes: Tensor | None = None
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Yield some genes and their draws, block after block, so that memory does not grow with genes times draws.

    Args:
        result, data, draws, seed, random: see :func:`draw_coefficients`.
        genes: blocks that have none of these are left out; None leaves out no block.
    """
    owners = cast(Mapping[str, Any], result.module.owners)
    model, guide, sds = owners["model"], owners["guide"], -(-draws // _DRAWS_A_FACTOR)
    block = guide.hierarchy.coefficients
    size = max(1, _NUMBERS_A_BLOCK // (draws * block.width))
    with _drawing(result, data, seed):
        hyper = guide.sample_hyperparameters(sds)
        seeds = torch.randint(2**62, (-(-data.genes // size),)).tolist()
    for own_seed, start in zip(seeds, range(0, data.genes, size), strict=True):
        some = slice(start, min(start + size, data.genes))
        if genes is None or _inside(genes, some).any():
            with _drawing(result, data, own_seed):
                sites = guide.sample_coefficients(hyper, -(-draws // sds), -(-random // sds), some)
                sites = model.at_origin(sites)
            number = {name: random if name in ("random", "zero_random") else draws for name in sites}
            yield some, {k: sites[k][: number[k]].cpu() for k in [*block.slices, "zero_slope"] if k in sites}


@contextlib.contextmanager
def _drawing(result: FitResult, data: HurdleData, seed: int) -> Iterator[None]:
    """Let the guide have the parameters of the fit, and torch's generator that seed, within."""
    devices = [data.design.device] if data.design.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices), result.scope():
        torch.manual_seed(seed)
        yield


def _inside(genes: Tensor, some: slice) -> Tensor:
    return (genes >= some.start) & (genes < some.stop)
