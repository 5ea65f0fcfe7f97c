"""Overhead of `pyro_zilognormal.svi.fit` over a bare `pyro.infer.SVI.step` loop, on a step of about 6 ms.

The two are timed in turn, block by block, so that a change of the machine's speed meets both alike, in seconds of this
process alone, which other processes do not lengthen. A block of the fit is compared with the mean of the blocks of the
bare loop before and after it; the figure is the median of these ratios. Exits with 1 if it is above 3 %.

    python benchmarks/svi_overhead.py
"""

import argparse
import functools
import itertools
import statistics
import sys
import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from pyro_zilognormal.svi import Progress, Run, fit

LIMIT = 1.03


def two_latents(x: torch.Tensor) -> None:
    """Independent columns of normal data with unknown location and scale."""
    with pyro.plate("columns", x.shape[1], dim=-1):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", len(x), dim=-2):
            pyro.sample("x", dist.Normal(loc, scale), obs=x)


def one_latent(x: torch.Tensor) -> None:
    """The same with known scale: Pyro steps one optimiser a parameter, so few parameters favour it."""
    with pyro.plate("columns", x.shape[1], dim=-1):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(x), dim=-2):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


CASES = {"two latent sites": (two_latents, (500, 200)), "one latent site": (one_latent, (800, 300))}


class Clock:
    """A callback that times blocks of steps, and lets a bare loop have its turn after each."""

    def __init__(self, bare: SVI, x: torch.Tensor, block: int) -> None:
        self.bare, self.x, self.block = bare, x, block
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.since = 0.0

    def __call__(self, run: Run) -> None:
        """End a block of the fit, time a block of the bare loop, and begin the next block of the fit."""
        if run.step % self.block:
            return
        if self.theirs:
            self.ours.append(time.process_time() - self.since)
        self.theirs.append(self._bare_block())
        self.since = time.process_time()

    def _bare_block(self) -> float:
        start = time.process_time()
        for _ in range(self.block):
            self.bare.step(self.x)
        return time.process_time() - start


def measure(model: Callable[[torch.Tensor], None], x: torch.Tensor, blocks: int, block: int) -> tuple[float, float]:
    """Return seconds a step of the bare loop, and the median ratio of ours to it."""
    pyro.clear_param_store()  # the bare loop shares Pyro's store, so the cases would meet in it
    bare = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    bare.step(x)
    clock = Clock(bare, x, block)
    fit(
        model,
        AutoNormal(model),
        x,
        steps=block * (blocks + 1),
        optimizer=functools.partial(torch.optim.Adam, lr=0.01),
        callbacks=[Progress(), clock],
    )
    around = [(before + after) / 2 for before, after in itertools.pairwise(clock.theirs)]
    ratios = [ours / theirs for ours, theirs in zip(clock.ours, around, strict=True)]
    return statistics.median(clock.theirs) / block, statistics.median(ratios)


def overheads(blocks: int = 60, block: int = 20) -> dict[str, dict[str, float]]:
    """Seconds of a bare step, and the ratio of ours to it, of each case, on one thread."""
    torch.set_num_threads(1)
    found = {}
    for name, (model, shape) in CASES.items():
        step, ratio = measure(model, torch.randn(shape), blocks, block)
        found[name] = {"bare_seconds": step, "ratio": ratio}
    return found


def main() -> int:
    """Print the figures; return 1 where the overhead is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=60)
    parser.add_argument("--block", type=int, default=20)
    found = overheads(**vars(parser.parse_args()))
    for name, case in found.items():
        added = f"{100 * (case['ratio'] - 1):+.1f} %"
        print(f"{name}: bare SVI.step {1e3 * case['bare_seconds']:.2f} ms; fit, with Progress, {added}")
    return int(max(case["ratio"] for case in found.values()) > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
