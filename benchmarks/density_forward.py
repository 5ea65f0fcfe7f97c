"""The log density alone, without gradients, against torch's LogNormal on positive data, which torch.log is fast on.

What that takes depends on whether temporaries as large as the data are mapped in anew, as they are in a process of its
own, or lie in memory that the allocator has kept, as in one that has handled larger tensors before. Both are measured.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch
from density_cases import Data, Step, ours
from density_measures import LIMITS, Row, Timer, of_shape, ratio_row

from pyro_zilognormal import compiled

SHAPES = tuple(dict.fromkeys(shape for shape, _ in LIMITS))


def forward_alone(timer: Timer, compile_too: bool) -> list[Row]:
    """For each shape: here, in a process of its own, and within `compiled()`."""
    rows = here(timer, torch.get_num_threads())
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(here, timer, torch.get_num_threads()).result()
    rows += [row._replace(what=f"{row.what}, in a process of its own") for row in found]
    return rows + (switched(timer) if compile_too else [])


def here(timer: Timer, threads: int) -> list[Row]:
    torch.set_num_threads(threads)
    return [_row(timer, shape, "forward alone", log_prob) for shape in SHAPES]


def switched(timer: Timer) -> list[Row]:
    return [_row(timer, shape, "forward alone within compiled()", compiled()(log_prob)) for shape in SHAPES]


def log_prob(data: Data) -> torch.Tensor:
    return ours(*data.parameters).log_prob(data.x)


def _row(timer: Timer, shape: str, what: str, function: Callable[[Data], torch.Tensor]) -> Row:
    data = of_shape(shape)
    positive = torch.where(data.x > 0, data.x, 1)
    theirs = no_grad(lambda: log_normal(data).log_prob(positive))
    found = timer(no_grad(lambda: function(data)), theirs)
    return ratio_row(f"{shape}, {what}", "torch LogNormal, positive data", found, 1.0)


def log_normal(data: Data) -> torch.distributions.LogNormal:
    return torch.distributions.LogNormal(*data.parameters[:2], validate_args=False)


def no_grad(function: Callable[[], object]) -> Step:
    def step() -> None:
        with torch.no_grad():
            function()

    return step
