"""Ranks of truths among posterior draws are uniform, and intervals of fold changes hold what they say."""

import numpy as np
import pytest
from scipy import stats

from tests.calibration.ranks import DRAWS, LEVELS, collect, coverage

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks():
    return collect(60)


def test_ranks_are_uniform(ranks):
    # Elements of a replicate share their hyperparameters: one of each replicate makes independent ranks.
    one = {name: found[:, 0] for name, found in ranks.items()}
    jittered = {
        name: (found + np.random.default_rng(1).random(len(found))) / (DRAWS + 1) for name, found in one.items()
    }
    p = {name: stats.kstest(found, "uniform").pvalue for name, found in jittered.items()}
    assert min(p.values()) > 0.001 / len(p), p


@pytest.mark.parametrize("level", LEVELS)
def test_intervals_of_fold_changes_cover(ranks, level):
    share, error = coverage(ranks["log_fc"], level)
    assert abs(share - level) < 0.02 + 2 * error
