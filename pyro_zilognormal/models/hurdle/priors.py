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
    in ``_sd`` or ``_spread`` is (median, spread) of a LogNormal(log median, spread), for a standard deviation across
    genes; it keeps away from 0, where variational and sampled posteriors break down. Each is a number or a tensor;
    those of effects may have one element for each column of the design but the first.

    Attributes:
        intercept_mean: of the log mean, log E[X], at the reference.
        intercept_sd: likewise.
        effects_share: (median, spread) of a logit-Normal for the share of genes that a column of the design affects:
            effects are a scale mixture of Normals, of which the narrowest takes all other genes.
        spike_sd: sd of the effects in unaffected genes, a difference of no interest: a natural log fold change per unit
            of a column that holds -1, 0 and 1 alone, per standard deviation of any other.
        random_sd: for each random-effects factor, of the median over genes of the sd of its levels, in log units.
        random_spread: of the sd over genes of the log of that sd.
        log_sigma_mean: of log sigma at the reference.
        log_sigma_sd: likewise.
        log_sigma_effects_mean: of the change of log sigma per unit of a column.
        log_sigma_effects_sd: likewise.
        zero_slope: mean and sd of the fall of the log odds of a zero per unit of the log mean, 1 for rare counts.
        zero_intercept_mean: of the log odds of a zero in genes whose log mean is the first element of
            ``intercept_mean``.
        zero_effects_mean: of the change of the log odds of a zero, per unit of a column, beyond that of the log mean.
        zero_sd: as ``random_sd``, of a gene's deviations from the first, and likewise from the second, per unit of a
            column.
        zero_spread: likewise.
        zero_random_sd: as ``random_sd``, of the log odds of a zero beyond what the log mean explains.
        zero_random_spread: likewise.

    Raises:
        TypeError: a field that is not a pair.
        ValueError: numbers out of range.

    Example:
        >>> HurdlePriors(random_sd=(0.3, 0.5)).effects_share
        (0.1, 1.5)
    """

    intercept_mean: Pair = (0.0, 10.0)
    intercept_sd: Pair = (1.0, 1.0)
    effects_share: Pair = (0.1, 1.5)
    spike_sd: float = 0.01
    random_sd: Pair = (0.15, 1.0)
    random_spread: Pair = (0.7, 0.5)
    log_sigma_mean: Pair = (-0.5, 1.0)
    log_sigma_sd: Pair = (0.3, 1.0)
    log_sigma_effects_mean: Pair = (0.0, 0.2)
    log_sigma_effects_sd: Pair = (0.1, 1.0)
    zero_slope: Pair = (1.0, 0.5)
    zero_intercept_mean: Pair = (0.0, 3.0)
    zero_effects_mean: Pair = (0.0, 1.0)
    zero_sd: Pair = (0.2, 1.0)
    zero_spread: Pair = (0.7, 0.5)
    zero_random_sd: Pair = (0.1, 1.0)
    zero_random_spread: Pair = (0.7, 0.5)

    def __post_init__(self) -> None:
        spike = self.spike_sd
        if isinstance(spike, bool) or not (isinstance(spike, int | float) and 0 < spike < math.inf):
            raise ValueError(f"spike_sd is {spike!r}; needed a finite number > 0")
        for name, value in vars(self).items():
            if name != "spike_sd":
                _check_pair(name, value)

    @classmethod
    def for_data(cls, data: HurdleData, **changed: Any) -> HurdlePriors:
        """Return the defaults in the units of the data.

        The mean intercept is centred at the mean over genes of their log mean, zeros included, with an sd of 2.5 of
        theirs, at least 2.5. A column that holds only -1, 0 and 1 is a code, whose effect is a log
        ratio as it stands; the effect of any other is taken per standard deviation of the column.

        Args:
            data: the data to fit.
            changed: fields that replace the defaults.

        Returns:
            The priors.

        Example:
            >>> data = HurdleData.from_cells(torch.tensor([[0.0], [100.0], [100.0]]), torch.ones(3, 1))
            >>> HurdlePriors.for_data(data, random_sd=(0.2, 0.5)).intercept_mean  # log(200 / 3)
            (4.199705077879927, 2.5)
        """
        log_means = _log_means(data.as_groups().value)
        centre, sd = (float(log_means.mean()), float(log_means.std(correction=0))) if len(log_means) else (0.0, 0.0)
        scaled: dict[str, Any] = {"intercept_mean": (centre, max(2.5, 2.5 * sd))}
        zero, scale = (column_units(design).cpu() for design in (data.zero_design, data.scale_design))
        for name, unit in [("zero_effects_mean", zero), ("log_sigma_effects_mean", scale)]:
            mean, sd = getattr(cls, name)
            scaled[name] = mean / unit, sd / unit
        median, spread = cls.log_sigma_effects_sd
        scaled["log_sigma_effects_sd"] = median / scale, spread
        return cls(**scaled | changed)


def column_units(design: Tensor) -> Tensor:
    """Return the size of a step of each column but the first: 1 for codes, else its standard deviation."""
    effects = design[:, 1:]
    coded = (effects.abs().eq(1) | effects.eq(0)).all(0)
    sd = (effects - effects.mean(0)).square().mean(0).sqrt()
    return torch.where(coded | (sd == 0), 1.0, sd)


def _log_means(value: Tensor) -> Tensor:
    """Return the log mean of each gene that has a positive value, those of a ZILN with its pooled moments."""
    zeros, count, mean, squares = value.unbind(-1)[:4]
    zeros, count, mean, squares = (v[:, count.sum(0) > 0] for v in (zeros, count, mean, squares))
    total = count.sum(0)
    centre = (count * mean).sum(0) / total
    variance = (squares + count * (mean - centre).square()).sum(0) / total
    return (total / (total + zeros.sum(0))).log() + centre + variance / 2


def _check_pair(name: str, value: object) -> None:
    normal = name.endswith("_mean") or name == "zero_slope"
    if not (isinstance(value, tuple) and len(value) == 2):
        raise TypeError(f"{name} is {value!r}; needed a pair of numbers or tensors")
    first, second = (torch.as_tensor(v, dtype=torch.float64) for v in value)
    low = -math.inf if normal else 0.0
    high = 1.0 if name == "effects_share" else math.inf
    if not (((low < first) & (first < high)).all() and ((second > 0) & second.isfinite()).all()):
        spread, below = "sd" if normal else "median and spread", ", and a median < 1" if high == 1 else ""
        raise ValueError(f"{name} is {value!r}; needed finite numbers, with {spread} > 0{below}")
