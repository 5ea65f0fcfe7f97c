"""Log fold changes of the mean from posterior draws, their parts, and error rates of their signs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

_LOG_2 = math.log(2.0)


@dataclass(frozen=True, eq=False)
class Condition:
    """A row of the designs: what to predict for.

    Attributes:
        design: row of the positive part's design, of shape (columns,), starting with 1.
        zero_design: row of the zero part's, of shape (zero columns,); that of the positive part if None.
        levels: values of the variables that make the row, by name; others have their defaults.
    """

    design: Any
    zero_design: Any = None
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
        detection: the part of the share of positive values, log2 P(X > 0 | test) / P(X > 0 | reference).
        abundance: the part of the mean of log x where positive, (mu_test - mu_reference) / log 2.
    """

    detection: Tensor
    abundance: Tensor

    @property
    def total(self) -> Tensor:
        """log2 of the ratio of means, the sum of both parts. sigma is the same in both conditions and cancels."""
        return self.detection + self.abundance


def log_fold_change(draws: Mapping[str, Tensor], test: Condition, reference: Condition) -> FoldChange:
    r"""Return log2 fold changes of the mean between two conditions, draw by draw.

    .. math:: \log_2 \frac{E[X \mid a]}{E[X \mid b]}
        = \underbrace{\log_2 \frac{1 - \pi_a}{1 - \pi_b}}_{\text{detection}}
        + \underbrace{\frac{\mu_a - \mu_b}{\log 2}}_{\text{abundance}}

    for a donor whose effects are 0 and cells of equal offset. It is finite also for genes without a positive value in
    a condition.

    Args:
        draws: of the sites of :class:`HurdleModel`, from :func:`draw_coefficients`.
        test: the condition in the numerator.
        reference: the condition in the denominator.

    Returns:
        The draws of both parts.

    Raises:
        ValueError: draws without an intercept, or a row whose length is not the number of coefficients.

    Example:
        >>> draws = {"intercept": torch.zeros(1, 1, 1), "effects": torch.ones(1, 1, 1)}
        >>> draws |= {"zero_intercept": torch.zeros(1, 1, 1), "zero_effects": torch.zeros(1, 1, 1)}
        >>> change = log_fold_change(draws, Condition([1, 1]), Condition([1, 0]))
        >>> change.detection.item(), round(change.abundance.item(), 3)
        (0.0, 1.443)
    """
    log_odds = [linear_predictor(draws, c, "zero") for c in (test, reference)]
    means = [linear_predictor(draws, c) for c in (test, reference)]
    detection = (logsigmoid(-log_odds[0]) - logsigmoid(-log_odds[1])) / _LOG_2
    return FoldChange(detection, (means[0] - means[1]) / _LOG_2)


def linear_predictor(
    draws: Mapping[str, Tensor], condition: Condition, part: Literal["positive", "zero"] = "positive"
) -> Tensor:
    """Return the linear predictor of a condition, draw by draw.

    Args:
        draws: of the sites of :class:`HurdleModel`.
        condition: rows of the designs.
        part: ``"positive"`` for mu, the mean of log x where positive; ``"zero"`` for the log odds of a zero.

    Returns:
        A tensor of shape (draws, genes).

    Raises:
        ValueError: another part, draws without its intercept, or a row whose length is not the number of coefficients.

    Example:
        >>> draws = {"intercept": torch.tensor([[[1.0]]]), "effects": torch.tensor([[[0.5]]])}
        >>> linear_predictor(draws, Condition([1, 2]))
        tensor([[2.]])
    """
    if part not in ("positive", "zero"):
        raise ValueError(f"part is {part!r}; needed 'positive' or 'zero'")
    prefix = "zero_" if part == "zero" else ""
    given = condition.zero_design if prefix and condition.zero_design is not None else condition.design
    row = torch.as_tensor(given, dtype=torch.float64)
    if f"{prefix}intercept" not in draws:
        raise ValueError(f"draws: no {prefix}intercept among {sorted(draws)}; needed those of all sites of the model")
    coefficients = torch.cat([draws[prefix + k] for k in ("intercept", "effects") if prefix + k in draws], -1)
    if row.shape != coefficients.shape[-1:]:
        raise ValueError(
            f"condition: a row of shape {tuple(row.shape)} for the {coefficients.shape[-1]} coefficients of the {part} "
            "part; needed one number for each column of the design"
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
