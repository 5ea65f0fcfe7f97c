"""Calling genes at an expected false discovery rate makes no more false discoveries than that."""

import pytest
import torch

from pyro_zilognormal.models import HurdleData, HurdlePriors, expected_fdr
from tests.calibration.simulations import Experiment, experiment, fitted_log_fc

pytestmark = pytest.mark.slow

# log2; a difference in mean of less than 19 % is none.
DELTA = 0.25


def errors(made: Experiment, donors: bool, seed: int) -> torch.Tensor:
    """Return each gene's posterior probability that its fold change is no larger than DELTA."""
    rows = torch.stack([torch.ones_like(made.condition), made.condition], 1)
    data = HurdleData.from_cells(made.x, rows, donor=made.donor if donors else None)
    log_fc = fitted_log_fc(data, HurdlePriors.for_data(data, effects_share=(0.1, 1.5)), seed)
    return (log_fc.abs() <= DELTA).double().mean(0)


def test_without_effects_donors_keep_calls_away():
    made = experiment(11, genes=200, share=0.0)
    called = expected_fdr(errors(made, donors=True, seed=0)) <= 0.05
    naive = expected_fdr(errors(made, donors=False, seed=0)) <= 0.05
    assert called.double().mean() <= 0.05
    assert naive.double().mean() > 0.2, "cells of a donor taken for independent"


def test_observed_false_discovery_rate_is_at_most_the_expected_one():
    found = []
    for seed in range(3):
        made = experiment(seed, genes=300, share=0.2)
        found.append((expected_fdr(errors(made, donors=True, seed=seed)), made.log_fc.abs() <= DELTA))
    for level in (0.01, 0.05, 0.1):
        called = sum(int((fdr <= level).sum()) for fdr, _ in found)
        wrong = sum(int(((fdr <= level) & null).sum()) for fdr, null in found)
        error = (level * (1 - level) / called) ** 0.5
        assert called > 50
        assert wrong / called <= level + 2 * error
