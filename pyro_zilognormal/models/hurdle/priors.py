"""Priors of the hurdle regression, in the units of the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_zilognormal.models.hurdle.data import HurdleData

Pair = tuple[float | Tensor, float | Tensor]


@dataclass(frozen=True)
class HurdlePriors:
    """Hyperpriors of a hurdle regression: what the genes of one experiment have in common.

    A field that ends in ``_mean`` is (mean, sd) of a Normal, for the mean of a coefficient across genes. One that ends
    in ``_sd`` is (median, spread) of a LogNormal(log median, spread), for a standard deviation across genes; it keeps
    away from 0, where variational and sampled posteriors break down. Each is a number or a tensor; those of effects
    may have one element for each column of the design but the first.

    Attributes:
        intercept_mean: of log x where it is positive, at the reference, in log units of x.
        intercept_sd: likewise.
        effects_sd: of the positive part's coefficients, natural log fold changes per unit of the column.
        donors_sd: of the donors' effects on the positive part.
        log_sigma_mean: of log sigma.
        log_sigma_sd: likewise.
        zero_intercept_mean: of the log odds of a zero at the reference.
        zero_intercept_sd: likewise.
        zero_effects_sd: of the zero part's coefficients, log odds ratios per unit of the column.
        zero_donors_sd: of the donors' effects on the zero part.
        effects_share: (median, spread) of a logit-Normal for the share of genes that a column of the design affects:
            effects are spike and slab, so that genes without effects do not pass for genes with small ones; None for a
            Normal prior of the effects of all genes.
        spike_sd: sd of the effects in unaffected genes, a difference of no interest: a natural log fold change or log
            odds ratio, per unit of a column that holds -1, 0 and 1 alone, per standard deviation of any other.

    Raises:
        TypeError: a field that is not a pair.
        ValueError: numbers out of range.

    Example:
        >>> HurdlePriors(effects_sd=(0.2, 0.5)).effects_share
        (0.1, 1.5)
    """

    intercept_mean: Pair = (0.0, 10.0)
    intercept_sd: Pair = (1.0, 1.0)
    effects_sd: Pair = (0.3, 1.0)
    donors_sd: Pair = (0.2, 1.0)
    log_sigma_mean: Pair = (-0.5, 1.0)
    log_sigma_sd: Pair = (0.3, 1.0)
    zero_intercept_mean: Pair = (0.0, 3.0)
    zero_intercept_sd: Pair = (1.5, 1.0)
    zero_effects_sd: Pair = (0.5, 1.0)
    zero_donors_sd: Pair = (0.3, 1.0)
    effects_share: Pair | None = (0.1, 1.5)
    spike_sd: float = 0.01

    def __post_init__(self) -> None:
        spike = self.spike_sd
        if isinstance(spike, bool) or not (isinstance(spike, int | float) and 0 < spike < math.inf):
            raise ValueError(f"spike_sd is {spike!r}; needed a finite number > 0")
        for name, value in vars(self).items():
            if name != "spike_sd" and not (name == "effects_share" and value is None):
                _check_pair(name, value)

    @classmethod
    def for_data(cls, data: HurdleData, **changed: Any) -> HurdlePriors:
        """Return the defaults in the units of the data.

        The mean intercept is centred at the data's, the mean of log x - offset over all positive values, with an sd of
        2.5 of theirs, at least 2.5. A column that holds only -1, 0 and 1 is a code, whose effect is a log ratio as it
        stands; the effect of any other is taken per standard deviation of the column.

        Args:
            data: the data to fit.
            changed: fields that replace the defaults.

        Returns:
            The priors.

        Example:
            >>> data = HurdleData.from_cells(torch.tensor([[0.0], [100.0], [100.0]]), torch.ones(3, 1))
            >>> HurdlePriors.for_data(data, effects_sd=(0.2, 0.5)).intercept_mean
            (4.605170185988092, 2.5)
        """
        count, mean, squares = (v.reshape(-1) for v in data.as_groups().value.unbind(-1)[1:4])
        total = count.sum().clamp(min=1)
        centre = (count * mean).sum() / total
        sd = ((squares.sum() + (count * (mean - centre).square()).sum()) / total).sqrt()
        scaled: dict[str, Any] = {"intercept_mean": (float(centre), max(2.5, 2.5 * float(sd)))}
        for name, design in [("effects_sd", data.design), ("zero_effects_sd", data.zero_design)]:
            median, spread = getattr(cls, name)
            scaled[name] = (median / column_units(design), spread)
        return cls(**scaled | changed)


def column_units(design: Tensor) -> Tensor:
    """Return the size of a step of each column but the first: 1 for codes, else its standard deviation."""
    effects = design[:, 1:]
    coded = (effects.abs().eq(1) | effects.eq(0)).all(0)
    sd = (effects - effects.mean(0)).square().mean(0).sqrt()
    return torch.where(coded | (sd == 0), 1.0, sd)


def _check_pair(name: str, value: object) -> None:
    spread = "sd" if name.endswith("_mean") else "median and spread"
    if not (isinstance(value, tuple) and len(value) == 2):
        raise TypeError(f"{name} is {value!r}; needed a pair of numbers or tensors")
    first, second = (torch.as_tensor(v, dtype=torch.float64) for v in value)
    low = -math.inf if name.endswith("_mean") else 0.0
    high = 1.0 if name == "effects_share" else math.inf
    if not (((low < first) & (first < high)).all() and ((second > 0) & second.isfinite()).all()):
        below = ", and a median < 1" if name == "effects_share" else ""
        raise ValueError(f"{name} is {value!r}; needed finite numbers, with {spread} > 0{below}")
