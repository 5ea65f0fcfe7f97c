"""Merging groups of cells that are reduced already."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from pyro_zilognormal import SufficientStatistics
from pyro_zilognormal.sufficient.rows import as_matrix
from pyro_zilognormal.sufficient.statistics import add_cells, regrouped

RNG = np.random.default_rng(0)
X = RNG.lognormal(2, 1, (300, 4)) * (RNG.random((300, 4)) < [0.0, 0.02, 0.5, 1.0])
FINE = RNG.integers(0, 12, 300)
INTO = np.array([2, 0, 0, 2, 1, 4, 4, 4, 2, 1, 0, 4])  # group 3 stays empty
OFFSET = RNG.normal(0, 0.3, 300)


@pytest.mark.parametrize("shift", [0.0, 1e4], ids=["near 0", "far from 0"])
def test_merged_groups_are_those_of_the_cells(shift: float) -> None:
    offset = OFFSET + shift  # the mean is far larger than the spread: sums of squares would lose all digits
    merged = SufficientStatistics.from_cells(X, FINE, 12, offset).regroup(INTO)
    wanted = SufficientStatistics.from_cells(X, INTO[FINE], 5, offset)
    tolerance = 1e-12 if shift == 0 else 1e-10
    torch.testing.assert_close(merged.value, wanted.value, rtol=tolerance, atol=tolerance)


def test_groups_that_stay_alone_are_the_same_to_the_bit() -> None:
    stats = SufficientStatistics.from_cells(X, FINE, 12, OFFSET)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(stats.regroup(order.argsort()).value, stats.value[order])


@pytest.mark.parametrize(
    ("groups", "error", "says"),
    [
        ([0] * 11, ValueError, r"groups must have shape \(12,\)"),
        ([0] * 11 + [-1], ValueError, r"groups must be in 0\.\.0, got -1 in row 11"),
        ([0.5] * 12, TypeError, "groups must hold whole numbers"),
    ],
)
def test_bad_groups_are_refused(groups: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        SufficientStatistics.from_cells(X, FINE, 12).regroup(groups)


@pytest.mark.parametrize("make", [np.asarray, sp.csr_array])
@pytest.mark.parametrize("offset", [None, OFFSET], ids=["no offset", "offset"])
def test_sums_of_values_and_of_cubes_of_logarithms_come_with_the_five(offset: np.ndarray | None, make: Any) -> None:
    fine = np.zeros((7, 12, 4))
    for part in (slice(0, 130), slice(130, 300)):
        add_cells(fine, as_matrix(make(X[part])), FINE[part], None if offset is None else offset[part])
    total = regrouped(fine, INTO, 5)
    five = SufficientStatistics.from_cells(X, INTO[FINE], 5, offset).value.numpy()
    np.testing.assert_allclose(total[:5].transpose(1, 2, 0), five, rtol=1e-12, atol=1e-12)
    linear = X if offset is None else X / np.exp(offset)[:, None]
    cubes = np.log(linear, out=np.zeros_like(linear), where=linear > 0) ** 3
    for group in range(5):
        own = INTO[FINE] == group
        np.testing.assert_allclose(total[5, group], linear[own].sum(0), rtol=1e-12)
        np.testing.assert_allclose(total[6, group], cubes[own].sum(0), rtol=1e-12, atol=1e-12)
