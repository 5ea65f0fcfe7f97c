"""Calling genes at an expected false discovery rate makes no more false discoveries than that."""

import pytest
import torch

from pyro_zilognormal.models import HurdleData, expected_fdr, local_false_sign_rate
from tests.calibration.simulations import Experiment, experiment, fitted_log_fc

# log2; a difference in mean of less than 19 % is none.
DELTA = 0.25


def fold_changes(made: Experiment, donors: bool, seed: int, steps: int = 200) -> torch.Tensor:
    """Return draws of log2 fold changes, of shape (draws, genes), under the default priors."""
    rows = torch.stack([torch.ones_like(made.condition), made.condition], 1)
    data = HurdleData.from_cells(made.x, rows, factors=made.donor if donors else None)
    return fitted_log_fc(data, None, seed, steps)


def share_called(log_fc: torch.Tensor) -> float:
    """Return the share of genes said to change in one direction, as differential expression with delta = 0 does."""
    return float((expected_fdr(local_false_sign_rate(log_fc)) <= 0.05).double().mean())


def test_the_default_prior_makes_few_false_discoveries():
    """In 30 steps, as differential expression takes; a prior of effects in most genes makes 4."""
    true = false = 0
    for seed in (0, 4, 5):
        made = experiment(seed, genes=40, share=0.25, donors=6, cells=30)
        called = expected_fdr(local_false_sign_rate(fold_changes(made, donors=True, seed=0, steps=30))) <= 0.05
        true += int((called & (made.log_fc != 0)).sum())
        false += int((called & (made.log_fc == 0)).sum())
    assert false <= 1
    assert true >= 8


@pytest.mark.slow
@pytest.mark.parametrize("seed", [11, 12])
def test_without_effects_donors_keep_calls_away(seed):
    made = experiment(seed, genes=200, share=0.0)
    assert share_called(fold_changes(made, donors=True, seed=0)) <= 0.05
    assert share_called(fold_changes(made, donors=False, seed=0)) > 0.2, "cells of a donor taken for independent"


@pytest.mark.slow
def test_observed_false_discovery_rate_is_at_most_the_expected_one():
    found = []
    for seed in range(5):
        made = experiment(seed, genes=300, share=0.2)
        unchanged = (fold_changes(made, donors=True, seed=seed).abs() <= DELTA).double().mean(0)
        found.append((expected_fdr(unchanged), made.log_fc.abs() <= DELTA))
    for level in (0.01, 0.05, 0.1):
        called = sum(int((fdr <= level).sum()) for fdr, _ in found)
        wrong = sum(int(((fdr <= level) & null).sum()) for fdr, null in found)
        error = (level * (1 - level) / called) ** 0.5
        assert called > 50
        assert wrong / called <= level + 2 * error
