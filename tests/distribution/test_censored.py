"""A detection limit: exact, reduced exactly, and estimates whose intervals hold what they say."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import logsigmoid

from pyro_zilognormal import (
    GroupedZeroInflatedLogNormal,
    LeftCensoredZeroInflatedLogNormal,
    SufficientStatistics,
    ZeroInflatedLogNormal,
)

KNOWN = pytest.mark.parametrize("known", [False, True], ids=["zeros censored", "zeros known"])
PARAMETERS = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (0.4, 0.7, -0.5, 0.6)]
X = torch.tensor([0.0, 1e-9, 0.3, 0.59, 0.61, 5.0], dtype=torch.float64)


def log_prob(x: Tensor, loc: Tensor, scale: Tensor, logits: Tensor, limit: Tensor, known: bool) -> Tensor:
    return LeftCensoredZeroInflatedLogNormal(loc, scale, logits, limit, zeros_known=known).log_prob(x)


@KNOWN
def test_derivatives(known: bool) -> None:
    def function(*parameters: Tensor) -> Tensor:
        return log_prob(X, *parameters, known)

    assert gradcheck(function, PARAMETERS)
    assert gradgradcheck(function, PARAMETERS)


@KNOWN
def test_probabilities_add_up(known: bool) -> None:
    d = LeftCensoredZeroInflatedLogNormal(*(p.detach() for p in PARAMETERS), zeros_known=known)
    zero = d.uncensored.zi_probs if known else 0.0
    above = d.log_survival_function(d.limit).exp()
    torch.testing.assert_close(d.log_prob_censored.exp() + zero + above, torch.ones_like(above), rtol=1e-15, atol=0)
    torch.testing.assert_close(d.cdf(d.limit), 1 - above)
    below = d.limit * (1 - 1e-12)
    assert d.cdf(below) == zero
    assert d.cdf(torch.tensor(-1.0)) == 0


@KNOWN
def test_a_censored_value_may_be_recorded_in_any_way_but_as_a_known_zero(known: bool) -> None:
    d = LeftCensoredZeroInflatedLogNormal(0.4, 0.7, -0.5, 0.6, zeros_known=known)
    ways = d.log_prob(torch.tensor([0.6, 0.3, 1e-9, 0.0]))
    assert torch.equal(ways[:3], d.log_prob_censored.expand(3))
    assert ways[3] == (d.uncensored.log_prob(0.0) if known else d.log_prob_censored)


@KNOWN
def test_at_a_limit_of_0_nothing_is_censored(known: bool) -> None:
    d, plain = LeftCensoredZeroInflatedLogNormal(0.4, 0.7, -0.5, 0.0, known), ZeroInflatedLogNormal(0.4, 0.7, -0.5)
    x, q = X.float(), torch.linspace(0, 1, 9)
    for name, at in (("log_prob", x), ("cdf", x), ("log_cdf", x), ("log_survival_function", x), ("icdf", q)):
        torch.testing.assert_close(getattr(d, name)(at), getattr(plain, name)(at), rtol=0, atol=0)


@KNOWN
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_no_nan_over_the_whole_range(known: bool, dtype: torch.dtype) -> None:
    """Parameters and limits of all sizes that the dtype has, values at both sides of the limit."""
    generator, info = torch.Generator().manual_seed(7), torch.finfo(dtype)

    def draw(low: float, high: float) -> Tensor:
        return torch.empty(15_000, dtype=torch.float64).uniform_(low, high, generator=generator)

    low, high = math.log(info.tiny) - 10, math.log(info.max) - 1e-3
    sign = draw(-1, 1).sign()
    columns = [sign * draw(low, high).exp(), draw(low, high).exp(), draw(-1, 1).sign() * draw(low, high).exp()]
    near = [draw(-5, 5), draw(-3, 3).exp(), draw(-30, 30)]
    mixed = [torch.where(draw(-1, 1) > 0, a, b) for a, b in zip(columns, near, strict=True)]
    parameters = [p.to(dtype).requires_grad_() for p in (*mixed, draw(low, high).exp())]
    limit = parameters[-1].detach()
    for x in (torch.zeros_like(limit), limit / 2, limit, (2 * limit).clamp(max=info.max)):
        value = log_prob(x, *parameters, known)
        assert not value.isnan().any()
        for slope in torch.autograd.grad(value.sum(), parameters, allow_unused=True):
            assert slope is None or not slope.isnan().any()


# One number a limit: cells of a group share a limit, and are reduced to how many lie up to it and the rest's moments.

N, LIMITS = 400, torch.tensor([0.0, 0.3, 0.5, 1.2], dtype=torch.float64)


def test_one_number_a_limit_keeps_the_reduction_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    x = ZeroInflatedLogNormal(torch.zeros(3).double(), 0.8, -1.0).sample((N,))
    group = torch.randint(len(LIMITS), (N,), generator=generator)
    x = torch.where(x <= LIMITS[group, None], 0, x)
    stats = SufficientStatistics.from_cells(x, group, n_groups=len(LIMITS))
    leaves = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in ([0.1, 0.2, 0.3], 0.7, -0.8)]
    reduced = GroupedZeroInflatedLogNormal(*leaves, limit=LIMITS[:, None]).log_prob(stats.value).sum()
    cells = log_prob(x, *leaves, LIMITS[group, None], False).sum()
    torch.testing.assert_close(reduced, cells, rtol=1e-12, atol=0)
    for a, b in zip(torch.autograd.grad(reduced, leaves), torch.autograd.grad(cells, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


# Maximum likelihood, many data sets at once: a row of theta = (loc, log scale, logits) each.

LogLikelihood = Callable[[Tensor], Tensor]


def information(log_likelihood: LogLikelihood, theta: Tensor) -> tuple[Tensor, Tensor]:
    """The score and the observed information of each data set."""
    theta = theta.detach().requires_grad_()
    (score,) = torch.autograd.grad(log_likelihood(theta).sum(), theta, create_graph=True)
    rows = [torch.autograd.grad(s.sum(), theta, retain_graph=True)[0] for s in score.unbind(1)]
    return score.detach(), -torch.stack(rows, 1)


def fit(log_likelihood: LogLikelihood, start: Tensor, steps: int = 40) -> tuple[Tensor, Tensor]:
    """Estimates and their standard errors, by Newton's method with halved steps where the likelihood falls."""
    theta = start
    for _ in range(steps):
        score, info = information(log_likelihood, theta)
        values, vectors = torch.linalg.eigh(info)
        inverse = vectors / values.abs().clamp(min=1e-3)[:, None] @ vectors.mT
        step, now = (inverse @ score[..., None])[..., 0].clamp(-1, 1), log_likelihood(theta)
        for _ in range(6):
            step = torch.where((log_likelihood(theta + step) < now - 1e-12)[:, None], step / 2, step)
        theta = theta + step
    score, info = information(log_likelihood, theta)
    assert (score.abs().amax(1) < 1e-4).double().mean() > 0.99
    return theta, torch.linalg.inv(info).diagonal(dim1=1, dim2=2).sqrt()


def simulate(repeats: int, n: int, pi: float, limit: float) -> tuple[Tensor, Tensor]:
    """Of each data set the statistics of cells up to the limit and above, and the number of structural zeros."""
    zero = torch.rand(repeats, n) < pi
    x = torch.randn(repeats, n, dtype=torch.float64).exp()
    x = torch.where(zero | (x <= limit), 0, x)
    return SufficientStatistics.from_cells(x.mT).value[0], zero.sum(1).double()


def likelihood(statistics: Tensor, zeros: Tensor, limit: float, known: bool, has_zeros: bool) -> LogLikelihood:
    def grouped(loc: Tensor, scale: Tensor, logits: Tensor | float, value: Tensor) -> Tensor:
        return GroupedZeroInflatedLogNormal(loc, scale, logits, limit=limit, validate_args=False).log_prob(value)

    def function(theta: Tensor) -> Tensor:
        loc, scale = theta[:, 0], theta[:, 1].exp()
        if not has_zeros:
            return grouped(loc, scale, -math.inf, statistics)
        if not known:
            return grouped(loc, scale, theta[:, 2], statistics)
        positive = torch.cat([(statistics[:, 0] - zeros)[:, None], statistics[:, 1:]], 1)
        others = statistics[:, :2].sum(1) - zeros
        coin = zeros * logsigmoid(theta[:, 2]) + others * logsigmoid(-theta[:, 2])
        return grouped(loc, scale, -math.inf, positive) + coin

    return function


def estimate(repeats: int, n: int, pi: float, limit: float, known: bool) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(5)
    truth = torch.tensor([0.0, 0.0] + ([math.log(pi / (1 - pi))] if pi else []), dtype=torch.float64)
    statistics, zeros = simulate(repeats, n, pi, limit)
    start = torch.tensor([0.3, -0.3, -1.0], dtype=torch.float64)[: len(truth)].expand(repeats, -1)
    return truth, *fit(likelihood(statistics, zeros, limit, known, bool(pi)), start)


def test_the_example_of_brms_1428_is_recovered() -> None:
    """mu 0, sigma 1, p 0.2, n 200 and a limit of 0.5, where zeros are told from values below the limit."""
    truth, theta, error = estimate(1, 200, 0.2, 0.5, known=True)
    assert ((theta - truth).abs() <= 2 * error).all(), (theta, error)


@pytest.mark.slow
@pytest.mark.parametrize("censored", [0.1, 0.3, 0.45, 0.6])
@pytest.mark.parametrize(
    ("share_of_zeros", "known", "n"),
    [(0.0, False, 200), (0.2, True, 200), (0.5, False, 10_000)],
    ids=["no zeros", "zeros known", "zeros not known"],
)
def test_intervals_hold_what_they_say(share_of_zeros: float, known: bool, n: int, censored: float) -> None:
    """95 % Wald intervals of 2,000 data sets. Zeros that look like small values take more cells than 200."""
    pi = 0.2 if known else share_of_zeros * censored
    below = censored if known else (censored - pi) / (1 - pi)
    limit = math.exp(torch.special.ndtri(torch.tensor(below, dtype=torch.float64)).item())
    truth, theta, error = estimate(2000, n, pi, limit, known)
    coverage = ((theta - truth).abs() <= 1.96 * error).double().mean(0)
    assert ((coverage >= 0.93) & (coverage <= 0.97)).all(), coverage
