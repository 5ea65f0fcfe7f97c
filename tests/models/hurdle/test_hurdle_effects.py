"""Fold changes against the distribution's own means, and the error rates of their signs."""

import math

import pytest
import torch

from pyro_zilognormal import ZeroInflatedLogNormal
from pyro_zilognormal.models import (
    Condition,
    cell_parameters,
    expected_fdr,
    local_false_sign_rate,
    log_fold_change,
)

DRAWS, GENES = 40, 6
PAIRS = {
    "effect": (Condition([1, 1, 0]), Condition([1, 0, 0])),
    "interaction": (Condition([1, 0.3, -2]), Condition([1, -1, 0.5])),
    "own zero design": (Condition([1, 1, 0], [1, 2]), Condition([1, 0, 0], [1, -1])),
    "own designs": (Condition([1, 1, 0], [1, 2], [1]), Condition([1, 0, 0], [1, -1], [1])),
}
pairs = pytest.mark.parametrize("pair", PAIRS)
PARTS = ("total", "detection", "dispersion", "abundance")


def draws(zero_effects=2, scales=3):
    generator = torch.Generator().manual_seed(3)
    widths = {"intercept": 1, "effects": 2, "zero_intercept": 1, "zero_effects": zero_effects, "log_sigma": scales}
    found = {k: torch.randn(DRAWS, GENES, w, dtype=torch.float64, generator=generator) for k, w in widths.items()}
    return found | {"zero_slope": 1 + 0.3 * torch.randn(DRAWS, 1, 1, dtype=torch.float64, generator=generator)}


def case(pair):
    own_zero, own_scale = pair in ("own zero design", "own designs"), pair == "own designs"
    return draws(1 if own_zero else 2, 1 if own_scale else 3), *PAIRS[pair]


@pairs
def test_it_is_the_ratio_of_the_means(pair):
    found, test, reference = case(pair)
    cells = [cell_parameters(found, c) for c in (test, reference)]
    a, b = (ZeroInflatedLogNormal(c.mu, c.scale, c.zi_logits) for c in cells)
    change = log_fold_change(found, test, reference)
    torch.testing.assert_close(change.total, (a.mean / b.mean).log2(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(cells[0].log_mean, a.mean.log(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(change.detection, ((1 - a.zi_probs) / (1 - b.zi_probs)).log2())
    torch.testing.assert_close(change.abundance, (a.loc - b.loc) / math.log(2), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(change.dispersion, (a.scale**2 - b.scale**2) / (2 * math.log(2)))
    torch.testing.assert_close(change.detection + change.abundance + change.dispersion, change.total)


@pairs
def test_the_other_way_round_it_changes_sign(pair):
    found, test, reference = case(pair)
    there, back, none = (log_fold_change(found, *c) for c in ((test, reference), (reference, test), (test, test)))
    for part in PARTS:
        torch.testing.assert_close(getattr(there, part), -getattr(back, part), rtol=0, atol=1e-12)
        assert (getattr(none, part) == 0).all()


def test_without_rows_of_their_own_zero_part_and_sigma_have_the_log_means():
    row = [1, 2, -1]
    same = [cell_parameters(draws(), c) for c in (Condition(row), Condition(row, row, row))]
    for own in ("log_mean", "zi_logits", "scale", "mu"):
        assert torch.equal(*(getattr(cell, own) for cell in same))


@pytest.mark.parametrize("odds", [-800.0, -40.0, 40.0, 800.0])
def test_silent_genes_have_a_finite_change(odds):
    """Far beyond where 1 - pi rounds to 0 the ratio of detection is that of the odds."""
    found = draws() | {"zero_intercept": torch.full((DRAWS, GENES, 1), odds, dtype=torch.float64)}
    change = log_fold_change(found, *PAIRS["effect"])
    assert change.total.isfinite().all()
    effect = found["zero_effects"][..., 0] - found["zero_slope"][..., 0] * found["effects"][..., 0]
    expected = -effect / math.log(2) if odds > 0 else torch.zeros(DRAWS, GENES).double()
    torch.testing.assert_close(change.detection, expected, rtol=1e-9, atol=1e-9)


def test_false_signs():
    change = torch.tensor([[1.0, -1.0, 0.0, 0.0, 2.0], [2.0, -3.0, 0.0, 1.0, -1.0]])
    # A draw of exactly 0 has neither sign.
    assert local_false_sign_rate(change).tolist() == [0.0, 0.0, 1.0, 0.5, 0.5]
    many = draws()["effects"][..., 0]
    rate = local_false_sign_rate(many)
    torch.testing.assert_close(rate, local_false_sign_rate(-many), rtol=0, atol=0)
    torch.testing.assert_close(rate, torch.minimum((many >= 0).double().mean(0), (many <= 0).double().mean(0)))
    assert (rate <= 0.5).all()


def test_draws_that_are_not_numbers_give_no_sign():
    change = torch.tensor([[float("nan"), float("nan")], [1.0, float("nan")]])
    assert local_false_sign_rate(change).tolist() == [0.5, 1.0]


def by_hand(error):
    """The mean error of all genes that have no larger one."""
    return [sum(e for e in error if e <= own) / sum(e <= own for e in error) for own in error]


@pytest.mark.parametrize(
    "error",
    [
        [0.0, 0.5, 0.25],
        [0.3, 0.3, 0.3],
        [0.0, 0.1, 0.1, 0.0, 0.4, 0.1],
        [1.0, 0.0, 1.0, 0.5, 0.5],
        [0.2],
        [],
        torch.rand(50, generator=torch.Generator().manual_seed(1)).mul(8).round().div(8).tolist(),
    ],
    ids=["plain", "ties", "two ties", "ends", "one", "none", "many ties"],
)
def test_expected_fdr_with_ties(error):
    found = expected_fdr(torch.tensor(error, dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor(by_hand(error), dtype=torch.float64))
    # Genes of equal error are called together, and calls grow with the error that is allowed.
    order = torch.tensor(error).argsort()
    assert (found[order].diff() >= -1e-15).all()
    assert (found <= torch.tensor(error, dtype=torch.float64) + 1e-15).all()


def test_calls_have_the_expected_share_of_errors():
    """If each gene's error comes true with its probability, the called ones are wrong as often as claimed."""
    generator = torch.Generator().manual_seed(2)
    error = torch.rand(200_000, generator=generator, dtype=torch.float64).square()
    wrong = torch.rand(200_000, generator=generator, dtype=torch.float64) < error
    for level in (0.01, 0.05, 0.1):
        called = expected_fdr(error) <= level
        share = wrong[called].double().mean().item()
        assert share == pytest.approx(level, abs=4 * math.sqrt(level / called.sum().item()))
