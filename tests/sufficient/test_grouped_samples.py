"""Draws of group statistics are distributed as the statistics of drawn cells."""

import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from pyro_zilognormal import GroupedZeroInflatedLogNormal, SufficientStatistics, ZeroInflatedLogNormal

DRAWS = 40_000
SIGMAS = 4.5  # standard errors; about 60 comparisons are made


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(7)


def group_of(count: int, logits: float = -0.4, dtype: torch.dtype = torch.double) -> GroupedZeroInflatedLogNormal:
    mu, scale, zi_logits = (torch.tensor(v, dtype=dtype) for v in (1.2, 0.7, logits))
    return GroupedZeroInflatedLogNormal(mu, scale, zi_logits, total_count=count)


def assert_mean(sample: Tensor, expected: float) -> None:
    error = sample.std() / math.sqrt(len(sample))
    assert abs(sample.mean() - expected) < SIGMAS * error, (sample.mean(), expected, error)


def assert_uniform(u: Tensor) -> None:
    """Moments of u to the fourth, and a Kolmogorov-Smirnov statistic below what chance allows once in 100,000."""
    for power in (1, 2, 3, 4):
        assert_mean(u**power, 1 / (power + 1))
    assert scipy.stats.kstest(u.numpy(), "uniform").pvalue > 1e-5


@pytest.mark.parametrize("count", [2, 5, 30, 1000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_each_part_has_its_distribution(count: int, dtype: torch.dtype) -> None:
    pi = 1 / (1 + math.exp(0.4))
    n_zero, n_pos, mean, m2, offset_sum = group_of(count, dtype=dtype).sample(torch.Size((DRAWS,))).double().unbind(-1)
    assert torch.equal(n_zero + n_pos, torch.full_like(n_pos, count))
    assert not offset_sum.any()
    assert_mean(n_pos, count * (1 - pi))
    assert_mean((n_pos - count * (1 - pi)) ** 2, count * pi * (1 - pi))
    if count < 10:
        assert_mean((n_pos == count).double(), (1 - pi) ** count)
    some, two = n_pos > 0, n_pos > 1
    z = (mean - 1.2)[some] * n_pos[some].sqrt() / 0.7
    assert_uniform(torch.special.ndtr(z))
    u = torch.from_numpy(scipy.stats.chi2.cdf((m2 / 0.49)[two].numpy(), (n_pos - 1)[two].numpy()))
    assert_uniform(u)
    assert_mean((u - 0.5) * ((mean - 1.2)[two] * n_pos[two].sqrt()), 0.0)  # mean and m2 are independent
    assert not m2[~two].any()
    assert not mean[~some].any()


@pytest.mark.parametrize("count", [1, 3, 20])
def test_draws_are_statistics_of_drawn_cells(count: int) -> None:
    """Averages of functions of the five, log_prob among them, against those of reduced cells."""
    groups = 20_000
    ours = group_of(count).sample(torch.Size((groups,)))
    cell = ZeroInflatedLogNormal(*(torch.tensor(v).double() for v in (1.2, 0.7, -0.4)))
    x, group = cell.sample(torch.Size((groups * count, 1))), torch.arange(groups).repeat_interleave(count)
    theirs = SufficientStatistics.from_cells(x, group).value[:, 0]
    score = group_of(count).log_prob
    for function in (
        lambda s: s[..., 1],
        lambda s: s[..., 1] ** 2,
        lambda s: s[..., 2],
        lambda s: s[..., 2] ** 2,
        lambda s: s[..., 3],
        lambda s: s[..., 3] ** 2,
        lambda s: s[..., 1] * s[..., 2],
        lambda s: s[..., 1] * s[..., 3],
        score,
    ):
        a, b = function(ours), function(theirs)
        error = math.sqrt((a.var() + b.var()).item() / groups)
        assert abs(a.mean() - b.mean()) <= SIGMAS * error


@pytest.mark.parametrize(("logits", "positive"), [(-math.inf, 6.0), (math.inf, 0.0)])
def test_certain_zeros_and_no_zeros(logits: float, positive: float) -> None:
    draws = group_of(6, logits).sample(torch.Size((50,)))
    assert (draws[:, 1] == positive).all()
    assert group_of(6, logits).log_prob(draws).isfinite().all()


def test_shapes_and_dtypes_of_draws() -> None:
    many = GroupedZeroInflatedLogNormal(torch.zeros(4), 1.0, 0.0, total_count=torch.tensor([[0], [1], [9]]))
    assert many.batch_shape == (3, 4)
    assert many.sample().shape == (3, 4, 5)
    assert many.sample(torch.Size((2,))).shape == (2, 3, 4, 5)
    assert many.expand((6, 3, 4)).sample().shape == (6, 3, 4, 5)
    assert many.to_event(1).sample().shape == (3, 4, 5)
    assert not many.sample()[0].any()  # no cells, no statistics
    assert many.sample().dtype == torch.float32
    for dtype in (torch.float16, torch.bfloat16):
        draws = group_of(70_000, dtype=dtype).sample()
        assert draws.dtype == torch.float32
        assert draws[:2].sum() == 70_000
    expanded = group_of(50).expand((1000,)).sample()
    assert len(expanded[:, 2].unique()) == 1000  # each its own draw


def test_draws_are_valid_seeded_and_without_gradient() -> None:
    mu = torch.zeros(3, requires_grad=True)
    grouped = GroupedZeroInflatedLogNormal(mu, 1.0, 2.0, total_count=4)
    draws = grouped.sample(torch.Size((500,)))
    assert not draws.requires_grad
    assert grouped.support.check(draws).all()
    torch.manual_seed(7)
    assert torch.equal(grouped.sample(torch.Size((500,))), draws)
    with pytest.raises(NotImplementedError):
        grouped.rsample()
