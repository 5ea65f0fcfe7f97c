"""Draws from the posterior of all genes' coefficients."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_zilognormal.models import Condition, HurdleData, linear_predictor
from pyro_zilognormal.svi import FitResult, Minibatches, posterior_draws

_SITES = ("intercept", "effects", "donors", "gate_intercept", "gate_effects", "gate_donors", "log_sigma")


def draw_coefficients(result: FitResult, data: HurdleData, draws: int, seed: int) -> dict[str, Tensor]:
    """Return draws of all coefficients of all genes, each of shape (draws, genes, width), on the CPU."""
    names = [k for k in _SITES if _width(k, data)]
    arguments = data.arguments if data.reduced else (Minibatches(*data.arguments, batch_size=512, plate="rows"),)
    found = posterior_draws(result, *arguments, draws=draws, sites=names, seed=seed)
    return {k: v.cpu() for k, v in found.items()}


def _width(name: str, data: HurdleData) -> int:
    design = data.gate_design if name.startswith("gate_") else data.design
    kind = name.removeprefix("gate_")
    return {"effects": design.shape[1] - 1, "donors": data.donors}.get(kind, 1)


def law_parameters(draws: dict[str, Tensor], condition: Condition) -> tuple[Tensor, Tensor, Tensor]:
    """Return mu, sigma and zi_logits of a condition, each of shape (draws, genes)."""
    mu, gate = linear_predictor(draws, condition), linear_predictor(draws, condition, "gate_")
    return mu, draws["log_sigma"].squeeze(-1).exp(), gate


def summarise(values: Tensor, credible: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the median and the ends of the central credible interval over draws, each of shape (genes,)."""
    levels = torch.tensor([0.5, (1 - credible) / 2, (1 + credible) / 2], dtype=values.dtype)
    middle, low, high = torch.quantile(values, levels, dim=0)
    return middle, low, high
