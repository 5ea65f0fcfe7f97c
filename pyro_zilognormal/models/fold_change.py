"""Log fold changes of the mean from posterior draws, their parts, and what may be said of their sign."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

_LOG_2 = math.log(2.0)


@dataclass(frozen=True)
class Condition:
    """A row of the designs: what to predict for.

    Attributes:
        design: the positive part's row, of shape (columns,), starting with 1.
        gate_design: the gate's row, of shape (gate columns,); that of the positive part if None.
    """

    design: Any
    gate_design: Any = None


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

    for a donor whose effects are 0 and cells of equal offset. It is finite also for genes silent in a condition.

    Args:
        draws: of the sites of :class:`HurdleRegression`, from ``svi.posterior_draws``.
        test: the condition above.
        reference: the condition below.

    Returns:
        The draws of both parts.

    Raises:
        ValueError: for draws without an intercept, and a row whose length is not the number of coefficients.

    Example:
        >>> draws = {"intercept": torch.zeros(1, 1, 1), "effects": torch.ones(1, 1, 1)}
        >>> draws |= {"gate_intercept": torch.zeros(1, 1, 1), "gate_effects": torch.zeros(1, 1, 1)}
        >>> change = log_fold_change(draws, Condition([1, 1]), Condition([1, 0]))
        >>> change.detection.item(), round(change.abundance.item(), 3)
        (0.0, 1.443)
    """
    gates = [linear_predictor(draws, c, "gate_") for c in (test, reference)]
    means = [linear_predictor(draws, c) for c in (test, reference)]
    detection = (logsigmoid(-gates[0]) - logsigmoid(-gates[1])) / _LOG_2
    return FoldChange(detection, (means[0] - means[1]) / _LOG_2)


def linear_predictor(draws: Mapping[str, Tensor], condition: Condition, part: str = "") -> Tensor:
    """Return mu of a condition, or the log odds of a zero where ``part`` is ``"gate_"``, of shape (draws, genes)."""
    given = condition.gate_design if part and condition.gate_design is not None else condition.design
    row = torch.as_tensor(given, dtype=torch.float64)
    if f"{part}intercept" not in draws:
        raise ValueError(f"draws: no {part}intercept among {sorted(draws)}; needed those of all sites of a regression")
    sites = [draws[part + k] for k in ("intercept", "effects") if part + k in draws]
    coefficients = torch.cat(sites, -1)
    if row.shape != coefficients.shape[-1:]:
        raise ValueError(
            f"condition: a row of shape {tuple(row.shape)} for the {'gate' if part else 'positive part'}'s "
            f"{coefficients.shape[-1]} coefficients; needed one number for each column of the design"
        )
    return coefficients @ row.to(coefficients)


def local_false_sign_rate(draws: Tensor, zero: float = 0.0) -> Tensor:
    """Return the posterior probability that the sign is not the likelier one, of shape (genes,).

    min(P(change >= 0), P(change <= 0)), Stephens (2017), "False discovery rates: a new deal".

    Args:
        draws: of a change, of shape (draws, genes).
        zero: changes up to this size count as 0, of neither sign. With sparse effects let it be some times their
            ``spike_sd``: those of unaffected genes are nearly 0 and have a sign at random.

    Example:
        >>> local_false_sign_rate(torch.tensor([[1.0], [2.0], [-1.0], [3.0]])).tolist()
        [0.25]
    """
    # What is not a number has no sign to be sure of.
    up, down = ((draws * sign > zero).double().mean(0) for sign in (1, -1))
    return 1 - torch.maximum(up, down)


def expected_fdr(error: Tensor) -> Tensor:
    """Return, for each gene, the expected share of errors among the genes at least as sure as it.

    The mean of the posterior error probabilities of all genes that have no larger one (Newton et al. 2004): calling all
    genes with at most 0.05 makes an expected share of errors of at most 5 %.

    Args:
        error: posterior error probabilities, of shape (genes,): a local false sign rate, or 1 - P(abs(change) > delta).

    Raises:
        ValueError: for another shape, or values that are not probabilities.

    Example:
        >>> expected_fdr(torch.tensor([0.0, 0.5, 0.25])).tolist()
        [0.0, 0.25, 0.125]
    """
    if error.dim() != 1 or not ((error >= 0) & (error <= 1)).all():
        raise ValueError(f"error of shape {tuple(error.shape)}; needed one probability for each gene")
    ordered, order = error.double().sort(stable=True)
    running = ordered.cumsum(0) / torch.arange(1, len(error) + 1)
    # Genes of equal error share the largest of their running means: none may be called without the others.
    last = torch.searchsorted(ordered, ordered, right=True) - 1
    return torch.empty_like(running).scatter(0, order, running[last])
