"""Draws from the posterior of all genes' coefficients, many at a time."""

from __future__ import annotations

from collections.abc import Iterator

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_zilognormal.models import Condition, HurdleData, linear_predictor
from pyro_zilognormal.svi import FitResult
from pyro_zilognormal.svi.isolation import global_state_kept

_SITES = ("intercept", "effects", "gate_intercept", "gate_effects", "log_sigma")
_DONORS = ("donors", "gate_donors")

# Of the coefficients drawn at a time: some hundred MB of working memory.
_VALUES_A_BLOCK = 1 << 22
# torch.quantile takes 16 million values at most.
_VALUES_A_QUANTILE = 1 << 23


def draw_coefficients(result: FitResult, data: HurdleData, draws: int, seed: int) -> dict[str, Tensor]:
    """Return draws of the coefficients of all genes without those of donors, each of shape (draws, genes, width)."""
    found: dict[str, Tensor] = {}
    start = 0
    for block in draw_blocks(result, data, draws, seed, donors=False):
        for name, values in block.items():
            # Filled as they come: joined at the end, they would be in memory twice.
            found.setdefault(name, values.new_empty(draws, *values.shape[1:]))[start : start + len(values)] = values
        start += len(block["intercept"])
    return found


def draw_blocks(
    result: FitResult, data: HurdleData, draws: int, seed: int, donors: bool
) -> Iterator[dict[str, Tensor]]:
    """Yield draws from the guide, block by block: all draws of a block in one run of it, as particles."""
    width = data.design.shape[1] + data.gate_design.shape[1] + 2 * data.donors + 1
    size = max(1, _VALUES_A_BLOCK // (data.genes * width))
    starts = range(0, draws, size)
    seeds = torch.randint(2**32, (len(starts),), generator=torch.Generator().manual_seed(seed)).tolist()
    for start, own in zip(starts, seeds, strict=True):
        yield _block(result, data, min(size, draws - start), own, donors)


def _block(result: FitResult, data: HurdleData, draws: int, seed: int, donors: bool) -> dict[str, Tensor]:
    with global_state_kept(seed), torch.no_grad(), pyro.plate("draws", draws, dim=-3):
        nodes = poutine.trace(result.guide).get_trace(*data.arguments).nodes
    names = [name for name in (*_SITES, *(_DONORS if donors else ())) if name in nodes]
    return {name: nodes[name]["value"].squeeze(1).cpu() for name in names}


def law_parameters(draws: dict[str, Tensor], condition: Condition) -> tuple[Tensor, Tensor, Tensor]:
    """Return mu, sigma and zi_logits of a condition, each of shape (draws, genes)."""
    mu, gate = linear_predictor(draws, condition), linear_predictor(draws, condition, "gate_")
    return mu, draws["log_sigma"].squeeze(-1).exp(), gate


def summarise(values: Tensor, credible: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the median and the ends of the central credible interval over draws, each of shape (genes,)."""
    levels = torch.tensor([0.5, (1 - credible) / 2, (1 + credible) / 2], dtype=values.dtype)
    parts = values.split(max(1, _VALUES_A_QUANTILE // len(values)), dim=1)
    middle, low, high = torch.cat([torch.quantile(part, levels, dim=0) for part in parts], 1)
    return middle, low, high
