"""What posterior draws say of a condition and of two: parameters of a cell, log fold changes, error rates of signs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_zilognormal.models.hurdle.components import log_scale

_LOG_2 = math.log(2.0)


@dataclass(frozen=True, eq=False)
class Condition:
    """A row of the designs: what to predict for.

    Attributes:
        design: row of the log mean's design, of shape (columns,), starting with 1.
        zero_design: row of the zero part's; that of the log mean if None.
        scale_design: row of log sigma's; that of the log mean if None.
        levels: values of the variables that make the row, by name; others have their defaults.
    """

    design: Any
    zero_design: Any = None
    scale_design: Any = None
    levels: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The levels in words, or "reference" without any."""
        return ", ".join(f"{name}={level}" for name, level in self.levels.items()) or "reference"

    def __sub__(self, other: Condition) -> tuple[Condition, Condition]:
        """Return the pair (self, other), a contrast: ``cond(...) - cond(...)`` as in pertpy."""
        return self, other


@dataclass(frozen=True)
class FoldChange:
    """Draws of log2 of a ratio of means, E[X | test] / E[X | reference], each of shape (draws, genes).

    Attributes:
        total: the whole, the difference of the log means.
        detection: the part of the share of positive values, log2 P(X > 0 | test) / P(X > 0 | reference).
        dispersion: the part of sigma, (sigma_test^2 - sigma_reference^2) / (2 log 2).
    """

    total: Tensor
    detection: Tensor
    dispersion: Tensor

    @property
    def abundance(self) -> Tensor:
        """The part of the geometric mean where positive, (mu_test - mu_reference) / log 2."""
        return self.total - self.detection - self.dispersion


@dataclass(frozen=True)
class CellParameters:
    """Draws of the parameters of a cell, each of shape (draws, genes).

    Attributes:
        log_mean: log E[X].
        zi_logits: log odds of a zero.
        scale: sigma, the sd of log X where X > 0.
    """

    log_mean: Tensor
    zi_logits: Tensor
    scale: Tensor

    @property
    def mu(self) -> Tensor:
        """Mean of log X where X > 0."""
        return location(self.log_mean, self.scale, self.zi_logits)


def location(log_mean: Tensor, scale: Tensor, zi_logits: Tensor) -> Tensor:
    """Return mu of the ZILN of a log mean: log E[X] - log P(X > 0) - sigma^2 / 2."""
    return log_mean - logsigmoid(-zi_logits) - scale.square() / 2


def cell_parameters(draws: Mapping[str, Tensor], condition: Condition, random: Sequence[int] = ()) -> CellParameters:
    """Return the parameters of a cell of a condition, draw by draw.

    Args:
        draws: of the sites of :class:`HurdleModel`, from :func:`draw_coefficients`.
        condition: rows of the designs.
        random: which elements of the random effects the cell has, from ``data.random_elements``; none leaves them at 0.

    Returns:
        The draws of its parameters.

    Raises:
        ValueError: draws without an intercept, or a row whose length is not the number of coefficients.

    Example:
        >>> draws = {name: torch.zeros(1, 1, 1) for name in ("intercept", "zero_intercept", "log_sigma", "zero_slope")}
        >>> cell = cell_parameters(draws, Condition([1]))
        >>> cell.log_mean.item(), round(cell.mu.item(), 3)
        (0.0, 0.193)
    """
    own = condition.design
    log_mean = _predict(draws, "", own)
    zero = _predict(draws, "zero_", own if condition.zero_design is None else condition.zero_design)
    log_sigma = _predict(draws, "log_sigma", own if condition.scale_design is None else condition.scale_design)
    for element in random:
        log_mean = log_mean + draws["random"][..., element]
        zero = zero + draws["zero_random"][..., element]
    return CellParameters(log_mean, zero - draws["zero_slope"].squeeze(-1) * log_mean, log_scale(log_sigma).exp())


def log_fold_change(draws: Mapping[str, Tensor], test: Condition, reference: Condition) -> FoldChange:
    r"""Return log2 fold changes of the mean between two conditions, draw by draw.

    .. math:: \log_2 \frac{E[X \mid a]}{E[X \mid b]}
        = \underbrace{\log_2 \frac{1 - \pi_a}{1 - \pi_b}}_{\text{detection}}
        + \underbrace{\frac{\mu_a - \mu_b}{\log 2}}_{\text{abundance}}
        + \underbrace{\frac{\sigma_a^2 - \sigma_b^2}{2 \log 2}}_{\text{dispersion}}

    for random effects of 0 and cells of equal offset. It is finite also for genes without a positive value in a
    condition.

    Args:
        draws: of the sites of :class:`HurdleModel`, from :func:`draw_coefficients`.
        test: the condition in the numerator.
        reference: the condition in the denominator.

    Returns:
        The draws of the total and of its parts.

    Raises:
        ValueError: draws without an intercept, or a row whose length is not the number of coefficients.

    Example:
        >>> draws = {name: torch.zeros(1, 1, 1) for name in ("intercept", "zero_intercept", "zero_slope")}
        >>> draws |= {"effects": torch.ones(1, 1, 1), "zero_effects": torch.zeros(1, 1, 1)}
        >>> change = log_fold_change(draws | {"log_sigma": torch.zeros(1, 1, 2)}, Condition([1, 1]), Condition([1, 0]))
        >>> round(change.total.item(), 3), change.detection.item(), change.dispersion.item()
        (1.443, 0.0, 0.0)
    """
    a, b = cell_parameters(draws, test), cell_parameters(draws, reference)
    detection = (logsigmoid(-a.zi_logits) - logsigmoid(-b.zi_logits)) / _LOG_2
    dispersion = (a.scale.square() - b.scale.square()) / (2 * _LOG_2)
    return FoldChange((a.log_mean - b.log_mean) / _LOG_2, detection, dispersion)


def _predict(draws: Mapping[str, Tensor], part: str, row: Any) -> Tensor:
    """Return the linear predictor of a part for a row of its design, of shape (draws, genes)."""
    names = ["log_sigma"] if part == "log_sigma" else [f"{part}intercept", f"{part}effects"]
    if names[0] not in draws:
        raise ValueError(f"draws: no {names[0]} among {sorted(draws)}; needed those of all sites of the model")
    coefficients = torch.cat([draws[name] for name in names if name in draws], -1)
    row = torch.as_tensor(row, dtype=torch.float64)
    if row.shape != coefficients.shape[-1:]:
        raise ValueError(
            f"condition: a row of shape {tuple(row.shape)} for the {coefficients.shape[-1]} coefficients of "
            f"{' and '.join(names)}; needed one number for each column of the design"
        )
    return coefficients @ row.to(coefficients)


def local_false_sign_rate(draws: Tensor, zero: float = 0.0) -> Tensor:
    """Return the posterior probability that the likelier sign of a change is wrong, of shape (genes,).

    min(P(change >= 0), P(change <= 0)), Stephens (2017), "False discovery rates: a new deal".

    Args:
        draws: of a change, of shape (draws, genes).
        zero: changes up to this size count as 0, of neither sign. With sparse effects let it be a few times their
            ``spike_sd``: those of unaffected genes are nearly 0, with a random sign.

    Example:
        >>> local_false_sign_rate(torch.tensor([[1.0], [2.0], [-1.0], [3.0]])).tolist()
        [0.25]
    """
    # A draw that is NaN has neither sign.
    up, down = ((draws * sign > zero).double().mean(0) for sign in (1, -1))
    return 1 - torch.maximum(up, down)


def expected_fdr(error: Tensor) -> Tensor:
    """Return, for each gene, the expected share of errors among the genes that are at least as certain.

    The mean of the posterior error probabilities of all genes that have no larger one (Newton et al. 2004): calling all
    genes with at most 0.05 makes an expected share of errors of at most 5 %.

    Args:
        error: posterior error probabilities, of shape (genes,): a local false sign rate, or 1 - P(abs(change) > delta).

    Raises:
        ValueError: another shape, or values that are not probabilities.

    Example:
        >>> expected_fdr(torch.tensor([0.0, 0.5, 0.25])).tolist()
        [0.0, 0.25, 0.125]
    """
    if error.dim() != 1 or not ((error >= 0) & (error <= 1)).all():
        raise ValueError(f"error of shape {tuple(error.shape)}; needed one probability for each gene")
    ordered, order = error.double().sort(stable=True)
    running = ordered.cumsum(0) / torch.arange(1, len(error) + 1)
    # Genes of equal error share the largest of their running means: they are called together.
    last = torch.searchsorted(ordered, ordered, right=True) - 1
    return torch.empty_like(running).scatter(0, order, running[last])
