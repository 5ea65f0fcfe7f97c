"""Moments and quantiles of draws that are not held."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_zilognormal.svi.batch import Batch
from pyro_zilognormal.svi.quantiles import quantiles_of
from pyro_zilognormal.svi.sampling import Sampler


@dataclass
class Streamed:
    """Moments of draws, one draw at a time, and quantiles filled in later."""

    mean: Tensor
    squares: Tensor
    quantiles: Tensor
    count: int = 0

    def add(self, value: Tensor) -> None:
        """Take one more draw into account, by Welford's update, which has no difference of large sums."""
        self.count += 1
        delta = value.double() - self.mean
        self.mean += delta / self.count
        self.squares += delta * (value.double() - self.mean)


@dataclass(frozen=True)
class Block:
    """One block of rows, and the sites to be summarised in it."""

    sampler: Sampler
    batch: Batch
    number: int
    names: list[str]

    def draw(self, draw: int) -> dict[str, Tensor]:
        return values_of(self.sampler, self.batch, draw, self.number, self.names, {})[0]

    def summarise(self, draws: int, levels: list[float], sampled: list[str], max_bytes: int) -> dict[str, Streamed]:
        first = self.draw(0)
        found = {k: _empty(v, len(levels)) for k, v in first.items()}
        sizes = {k: first[k].numel() for k in sampled}
        for number, wanted in enumerate(passes_of(sizes, max(1, max_bytes // (8 * draws)))):
            held = {item: torch.empty(draws, item[2] - item[1], dtype=torch.float64) for item in wanted}
            for draw in range(draws):
                values = self.draw(draw)
                for (name, start, stop), columns in held.items():
                    columns[draw] = values[name].flatten()[start:stop]
                for name in values if number == 0 else ():
                    found[name].add(values[name])
            for (name, start, stop), columns in held.items():
                found[name].quantiles[:, start:stop] = quantiles_of(columns, levels)
        return found


def passes_of(sizes: dict[str, int], room: int) -> list[list[tuple[str, int, int]]]:
    """Share out elements (site, start, stop) among passes of at most ``room`` elements; at least one pass."""
    passes: list[list[tuple[str, int, int]]] = [[]]
    left = room
    for name, size in sizes.items():
        start = 0
        while start < size:
            if left == 0:
                passes.append([])
                left = room
            stop = min(size, start + left)
            passes[-1].append((name, start, stop))
            left -= stop - start
            start = stop
    return passes


def _empty(value: Tensor, levels: int) -> Streamed:
    zero = torch.zeros_like(value, dtype=torch.float64)
    return Streamed(zero, zero.clone(), torch.zeros(levels, value.numel(), dtype=torch.float64))


def values_of(
    sampler: Sampler, batch: Batch, draw: int, block: int, names: list[str], fixed: dict[str, Tensor]
) -> tuple[dict[str, Tensor], Any]:
    if all(k in sampler.guide_sites for k in names):
        guide = sampler.guide_trace(batch, draw, block, fixed)
        return {k: guide.nodes[k]["value"] for k in names}, guide
    guide, model = sampler.traces(batch, draw, block, fixed)
    return {k: model.nodes[k]["value"] for k in names}, guide
