"""The distribution of a group's statistics in Pyro: shapes, wrappers, errors, validation."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pyro_zilognormal import GroupedZeroInflatedLogNormal, SufficientStatistics
from pyro_zilognormal.sufficient.distribution import _versions
from tests.sufficient.cases import COLUMNS, GROUPS, X
from tests.sufficient.test_grouped import INF, STATS, grouped, parameters


def test_shapes() -> None:
    d = GroupedZeroInflatedLogNormal(*parameters())
    assert d.batch_shape == (GROUPS, COLUMNS)
    assert d.event_shape == (5,)
    assert d.loc.shape == d.scale.shape == d.zi_logits.shape == d.batch_shape
    wide = d.expand((3, GROUPS, COLUMNS))
    assert wide.batch_shape == (3, GROUPS, COLUMNS)
    assert wide.loc.shape == wide.batch_shape
    assert torch.equal(wide.log_prob(STATS), d.log_prob(STATS).expand(3, -1, -1))
    assert d.expand(d.batch_shape).log_prob(STATS).shape == d.batch_shape
    assert "batch_shape: (5, 7)" in repr(d)


def test_log_prob_broadcasts_value_and_parameters_both_ways() -> None:
    one = GroupedZeroInflatedLogNormal(0.1, 0.5, 0.3)
    assert one.log_prob(STATS).shape == (GROUPS, COLUMNS)
    many = GroupedZeroInflatedLogNormal(torch.zeros(4, 1, 1).double(), 0.5, 0.3)
    assert many.log_prob(STATS).shape == (4, GROUPS, COLUMNS)
    assert many.log_prob(STATS[0, 0]).shape == (4, 1, 1)
    assert one.expand((2, 3)).log_prob(STATS[0, 0]).shape == (2, 3)


def test_to_event_and_mask() -> None:
    d, plain = GroupedZeroInflatedLogNormal(*parameters()), grouped(*parameters())
    event = d.to_event(1)
    assert event.batch_shape == (GROUPS,)
    assert event.event_shape == (COLUMNS, 5)
    torch.testing.assert_close(event.log_prob(STATS), plain.sum(-1))
    mask = torch.arange(GROUPS)[:, None] % 2 == 0
    torch.testing.assert_close(d.mask(mask).log_prob(STATS), plain * mask)
    assert d.to_event(2).mask(False).log_prob(STATS) == 0
    torch.testing.assert_close(d.mask(mask).to_event(2).log_prob(STATS), (plain * mask).sum())


def test_it_can_be_copied_and_stored() -> None:
    d = GroupedZeroInflatedLogNormal(*(p.detach() for p in parameters()), total_count=9)
    for again in (copy.deepcopy(d), pickle.loads(pickle.dumps(d)), copy.deepcopy(d.expand((2, GROUPS, COLUMNS)))):
        assert torch.equal(again.log_prob(STATS), d.log_prob(STATS).expand(again.batch_shape))
        assert again.total_count == 9


# Errors.

BAD_VALUES = {
    "negative zeros": ([-1.0, 2, 0, 1, 0], "got .-1.0, 2.0"),
    "negative positives": ([1.0, -2, 0, 1, 0], "counts whole and nonnegative"),
    "a fraction": ([0.5, 2, 0, 1, 0], "counts whole"),
    "negative m2": ([1.0, 2, 0, -1e-9, 0], "m2 nonnegative"),
    "mean of nothing": ([1.0, 0, 1, 0, 0], "mean, m2 and offset_sum 0 where n_pos is 0"),
    "spread of one": ([1.0, 1, 1, 1, 0], "at index"),
    "offset of nothing": ([1.0, 0, 0, 0, 1], r"1 of 2 are invalid"),
    "NaN": ([1.0, 2, math.nan, 1, 0], "all finite"),
    "inf": ([1.0, 2, 0, math.inf, 0], "all finite"),
}


@pytest.mark.parametrize(("statistics", "words"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_bad_values(statistics: list[float], words: str) -> None:
    good = torch.tensor([1.0, 2, 0, 1, 0])
    value = torch.stack([good, torch.tensor(statistics)])
    d = GroupedZeroInflatedLogNormal(0.0, 1.0, 0.0)
    for checked in (d, d.expand((2,)), d.expand((2,)).to_event(1), d.mask(torch.tensor(True))):
        with pytest.raises(ValueError, match=words):
            checked.log_prob(value)
    assert GroupedZeroInflatedLogNormal.support.check(value).tolist() == [True, False]
    GroupedZeroInflatedLogNormal(0.0, 1.0, 0.0, validate_args=False).log_prob(value)


Grouped = GroupedZeroInflatedLogNormal


def score(value: Any) -> Any:
    return standard().log_prob(value)


BAD_CALLS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "four entries": (lambda: score(torch.zeros(3, 4)), ValueError, r"last dimension, got shape \(3, 4\)"),
    "no dimension": (lambda: score(torch.tensor(1.0)), ValueError, r"got shape \(\)"),
    "a number": (lambda: score(1.0), ValueError, "got the number 1"),
    "statistics themselves": (lambda: score(SufficientStatistics.from_cells(X)), TypeError, "value must be"),
    "cells": (lambda: score(torch.rand(9, 7)), ValueError, "SufficientStatistics"),
    "shapes": (lambda: Grouped(torch.zeros(3), 1.0, 0.0).log_prob(torch.zeros(4, 5)), ValueError, "do not broadcast"),
    "gradient": (lambda: score(torch.zeros(5).requires_grad_()), ValueError, r"value\.detach\(\)"),
    "scale": (lambda: Grouped(0.0, 0.0, 0.0), ValueError, "scale .* constraint GreaterThan"),
    "NaN logits": (lambda: Grouped(0.0, 1.0, math.nan), ValueError, "zi_logits .* constraint Real"),
    "infinite mu": (lambda: Grouped(math.inf, 1.0, 0.0), ValueError, "mu.* and be finite"),
    "one NaN of many": (lambda: Grouped(torch.tensor([0.0, math.nan]), 1.0, 0.0), ValueError, r"at index \(1,\)"),
    "inf and -inf": (lambda: Grouped(torch.tensor([INF, -INF]), 1.0, 0.0), ValueError, "2 of 2"),
    "unlike parameters": (lambda: Grouped(torch.zeros(2), torch.ones(3), 0.0), ValueError, "do not broadcast"),
    "negative count": (lambda: Grouped(0.0, 1.0, 0.0, -1), ValueError, "total_count must hold whole numbers .* got -1"),
    "half a count": (lambda: Grouped(0.0, 1.0, 0.0, torch.tensor([1.5])), ValueError, "total_count must hold whole"),
    "NaN count": (lambda: Grouped(0.0, 1.0, 0.0, math.nan), ValueError, "total_count must hold whole"),  # type: ignore[arg-type]
    "count's shape": (lambda: Grouped(torch.zeros(2), 1.0, 0.0, torch.ones(3)), ValueError, r"total_count \(3,\)"),
    "limit": (lambda: Grouped(0.0, 1.0, 0.0, limit=-1.0), ValueError, "parameter limit .*-1"),
    "draws": (lambda: Grouped(0.0, 1.0, 0.0, 9, limit=1.0).sample(), NotImplementedError, "with a limit there are no"),
    "no count": (lambda: standard().sample(), ValueError, r"Pass total_count="),
    "shrink": (lambda: Grouped(torch.zeros(2), 1.0, 0.0).expand((1,)), ValueError, "cannot expand"),
}


def standard(**kwargs: Any) -> GroupedZeroInflatedLogNormal:
    return GroupedZeroInflatedLogNormal(0.0, 1.0, 0.0, **kwargs)


@pytest.mark.parametrize(("call", "error", "words"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        call()
    assert type(caught.value) is error


def test_infinite_logits_of_both_signs_are_valid() -> None:
    d = GroupedZeroInflatedLogNormal(0.0, 1.0, torch.tensor([INF, -INF]))
    assert d.log_prob(torch.tensor([[3.0, 0, 0, 0, 0], [0, 1, 0, 0, 0]])).isfinite().all()


def test_huge_parameters_whose_sum_overflows_are_valid() -> None:
    GroupedZeroInflatedLogNormal(torch.full((3,), 3e38), 1.0, 0.0)


def test_a_value_is_checked_anew_after_it_was_changed() -> None:
    value = torch.tensor([[1.0, 2, 0, 1, 0]])
    standard().log_prob(value)
    standard().log_prob(value)
    value[0, 0] = -1
    for _ in range(2):
        with pytest.raises(ValueError, match=r"got \[-1\.0"):
            standard().log_prob(value)
    value[0, 0] = 1
    standard().log_prob(value)
    with torch.inference_mode():
        frozen = torch.tensor([[-1.0, 2, 0, 1, 0]])
        with pytest.raises(ValueError, match=r"got \[-1\.0"):
            standard().log_prob(frozen)


def test_a_value_is_checked_once_and_not_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    support = type(GroupedZeroInflatedLogNormal.support)
    check = support.check
    monkeypatch.setattr(support, "check", lambda self, value: calls.append(1) or check(self, value))
    value = torch.tensor([[1.0, 2, 0, 1, 0]])
    for _ in range(3):
        standard().log_prob(value)
    assert len(calls) == 1
    before = len(_versions)
    del value
    assert len(_versions) == before - 1


def test_the_global_switch_is_followed() -> None:
    bad, d = torch.tensor([-1.0, 2, 0, 1, 0]), standard()
    explicit = standard(validate_args=True)
    try:
        GroupedZeroInflatedLogNormal.set_default_validate_args(False)
        d.log_prob(bad)
        d.expand((2,)).log_prob(bad)
        GroupedZeroInflatedLogNormal(0.0, -1.0, 0.0)
        with pytest.raises(ValueError, match="value must hold"):
            explicit.expand((2,)).log_prob(bad)
    finally:
        GroupedZeroInflatedLogNormal.set_default_validate_args(True)
    with pytest.raises(ValueError, match="value must hold"):
        d.log_prob(bad)
