"""The distribution of a group's statistics is that of its cells: values, slopes, infinities, shapes, errors."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from pyro_zilognormal import GroupedZeroInflatedLogNormal, SufficientStatistics, ZeroInflatedLogNormal
from pyro_zilognormal.datasets import pbmc68k_reduced
from tests.sufficient.cases import COLUMNS, GROUP, GROUPS, OFFSET, X

CELLS = torch.from_numpy(X)
GROUP_OF = torch.from_numpy(GROUP)
OFFSETS = torch.from_numpy(OFFSET)
STATS = SufficientStatistics.from_cells(X, GROUP, GROUPS, OFFSET).value
INF = math.inf
FORWARD_MODE_LOADS_JIT = "ignore:.*torch.jit.script. is deprecated:DeprecationWarning"


def parameters(seed: int = 0, shape: tuple[int, ...] = (GROUPS, COLUMNS)) -> list[Tensor]:
    """mu and zi_logits of the shape, scale of its columns alone."""
    rng = torch.Generator().manual_seed(seed)
    mu, logits = (2 * torch.randn(shape, generator=rng, dtype=torch.double) for _ in range(2))
    scale = 0.3 + torch.rand(shape[-1:], generator=rng, dtype=torch.double)
    return [p.requires_grad_() for p in (mu, scale, logits)]


def by_cells(mu: Tensor, scale: Tensor, logits: Tensor, **kwargs: Any) -> Tensor:
    """The sum over the cells of each group, of shape (..., groups, columns)."""
    shape = torch.broadcast_shapes(mu.shape, scale.shape, logits.shape, (GROUPS, COLUMNS))
    mu, scale, logits = (p.expand(shape)[..., GROUP_OF, :] for p in (mu, scale, logits))
    each = ZeroInflatedLogNormal(mu + OFFSETS[:, None], scale, logits, **kwargs).log_prob(CELLS)
    return torch.zeros(shape, dtype=each.dtype).index_add(-2, GROUP_OF, each)


def grouped(*parameters: Tensor, **kwargs: Any) -> Tensor:
    return GroupedZeroInflatedLogNormal(*parameters, **kwargs).log_prob(STATS)


def changed(**new: Any) -> list[Tensor]:
    """Parameters of which some are replaced by numbers or tensors."""
    mu, scale, logits = parameters()
    given = {"mu": mu, "scale": scale, "logits": logits}
    for name, value in new.items():
        given[name] = torch.as_tensor(value, dtype=torch.double).expand(given[name].shape).clone().requires_grad_()
    return list(given.values())


# A scale of 1e-150 squares to 1e-300; a scale of 1e150 leaves the log-determinant alone.
POINTS: dict[str, Callable[[], list[Tensor]]] = {
    **{f"random {seed}": lambda seed=seed: parameters(seed) for seed in range(5)},
    **{f"logits {v}": lambda v=v: changed(logits=v) for v in (0.0, 1e-9, -30.0, 30.0, -800.0, 800.0, -1e6, 1e6)},
    **{f"scale {v}": lambda v=v: changed(scale=v) for v in (1e-3, 1e-23, 1e-150, 1e3, 1e23, 1e150)},
    **{f"mu {v}": lambda v=v: changed(mu=v) for v in (-700.0, 700.0, 1e8, -1e100)},
    "all by group": lambda: parameters(1, (GROUPS, 1)),
    "particles": lambda: parameters(2, (3, GROUPS, COLUMNS)),
    "one of each": lambda: parameters(3, (1,)),
}


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_log_prob_is_the_sum_over_the_cells(point: Callable[[], list[Tensor]]) -> None:
    ours, theirs = grouped(*point()), by_cells(*point())
    assert theirs.isfinite().all()
    torch.testing.assert_close(ours, theirs.expand(ours.shape), rtol=1e-10, atol=1e-10)


def slopes(function: Callable[..., Tensor], at: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(function(*at).sum(), at)


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_gradients_are_those_of_the_cells(point: Callable[[], list[Tensor]]) -> None:
    for ours, theirs in zip(slopes(grouped, point()), slopes(by_cells, point()), strict=True):
        assert not theirs.isnan().any()  # infinite where a slope of 1e450 overflows
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings(FORWARD_MODE_LOADS_JIT)
@pytest.mark.parametrize("seed", range(3))
def test_second_derivatives_are_those_of_the_cells(seed: int) -> None:
    at = tuple(p.detach() for p in parameters(seed))
    ours = torch.autograd.functional.hessian(lambda *p: grouped(*p).sum(), at)
    theirs = torch.autograd.functional.hessian(lambda *p: by_cells(*p).sum(), at)
    functional = torch.func.hessian(lambda *p: grouped(*p).sum(), (0, 1, 2))(*at)
    for i in range(3):
        for j in range(3):
            torch.testing.assert_close(ours[i][j], theirs[i][j], rtol=1e-10, atol=1e-9)
            torch.testing.assert_close(functional[i][j], ours[i][j])


@pytest.mark.filterwarnings(FORWARD_MODE_LOADS_JIT)
def test_gradcheck_to_second_order_in_both_modes_and_batched() -> None:
    mu, logits = (p[:, :3].detach().requires_grad_() for p in parameters()[::2])
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=torch.double, requires_grad=True)

    def few(*at: Tensor) -> Tensor:
        return GroupedZeroInflatedLogNormal(*at).log_prob(STATS[:, :3])

    assert gradcheck(few, (mu, scale, logits), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(few, (mu, scale, logits), check_batched_grad=True)
    for shape in [(), (3,), (GROUPS, 1), (2, 1, 1)]:  # each alone, with a gradient summed over what was broadcast
        for i in range(3):
            fixed = [p.detach() for p in (mu, scale, logits)]
            fixed[i] = torch.full(shape, 0.7, dtype=torch.double, requires_grad=True)
            assert gradcheck(few, fixed, check_forward_ad=True)
            fixed[i - 1] = torch.full((2, 1, 1), 0.7, dtype=torch.double)  # a larger one beside it
            assert gradcheck(few, fixed, check_forward_ad=True)


def test_vmap_over_any_parameter_is_a_loop() -> None:
    at = [p.detach() for p in parameters(4, (3, GROUPS, COLUMNS))]
    at[1] = torch.rand(3, COLUMNS, dtype=torch.double) + 0.5
    for dims in [(0, 0, 0), (0, None, None), (None, 0, None), (None, None, 0)]:
        given = [p if d == 0 else p[0] for p, d in zip(at, dims, strict=True)]
        batched = torch.func.vmap(grouped, in_dims=dims)(*given)
        loop = [grouped(*(p[i] if d == 0 else p for p, d in zip(given, dims, strict=True))) for i in range(3)]
        torch.testing.assert_close(batched, torch.stack(loop))


def test_vmap_over_the_value_is_a_loop() -> None:
    d = GroupedZeroInflatedLogNormal(*(p.detach() for p in parameters()))
    values = torch.stack([STATS, STATS + STATS[:1] * torch.tensor([1, 0, 0, 0, 0]).double()])
    torch.testing.assert_close(torch.func.vmap(d.log_prob)(values), d.log_prob(values))


# Infinities: (n_zero, n_pos, mean, m2, offset_sum), (mu, scale, logits), and the log_prob and slope in the logits.
HALF = 0.5 * math.log(2 * math.pi)
NONE = (0, 0, 0, 0, 0)
EDGES = {
    "no cells": (NONE, (0.3, 0.5, 0.2), 0.0, 0.0),
    "no cells, pi = 0": (NONE, (0.3, 0.5, -INF), 0.0, 0.0),
    "no cells, pi = 1": (NONE, (0.3, 0.5, INF), 0.0, 0.0),
    "no cells, tiny scale": (NONE, (1e300, 1e-300, 0.0), 0.0, 0.0),
    "zeros, pi = 1": ((7, 0, 0, 0, 0), (0.3, 0.5, INF), 0.0, 0.0),
    "zeros, pi = 0": ((7, 0, 0, 0, 0), (0.3, 0.5, -INF), -INF, 7.0),
    "one zero, pi = 0": ((1, 0, 0, 0, 0), (0.3, 0.5, -INF), -INF, 1.0),
    "zeros, tiny scale": ((7, 0, 0, 0, 0), (1e300, 1e-300, 0.0), -7 * math.log(2), 3.5),
    "positives, pi = 0": ((0, 1, 0, 0, 0), (0.0, 1.0, -INF), -HALF, 0.0),
    "positives, pi = 1": ((0, 3, 0, 1, 0), (0.0, 1.0, INF), -INF, -3.0),
    "one positive, pi = 1": ((0, 1, 0, 0, 0), (0.0, 1.0, INF), -INF, -1.0),
    "both, pi = 1": ((2, 3, 0, 1, 0), (0.0, 1.0, INF), -INF, -3.0),
    "both, pi = 0": ((2, 3, 0, 1, 0), (0.0, 1.0, -INF), -INF, 2.0),
    "at the mean, tiny scale": ((0, 2, 1, 0, 0), (1.0, 1e-300, -INF), 2 * (math.log(1e300) - HALF - 1), 0.0),
    "subnormal scale": ((0, 1, 0, 0, 0), (0.0, 5e-324, -INF), -math.log(5e-324) - HALF, 0.0),
    "beside it, tiny scale": ((0, 1, 0, 0, 0), (1e-200, 1e-200, -INF), math.log(1e200) - HALF - 0.5, 0.0),
    "far from the mean, tiny scale": ((0, 1, 1, 0, 0), (0.0, 1e-200, 0.0), -INF, -0.5),
    "spread, tiny scale": ((0, 2, 0, 1, 0), (0.0, 1e-200, 0.0), -INF, -1.0),
    "silent": ((1000, 0, 0, 0, 0), (0.0, 1.0, 40.0), -1000 * math.log1p(math.exp(-40)), 1000 / (1 + math.exp(40))),
    "always on": ((0, 1, 0, 0, 0), (0.0, 1.0, -40.0), -HALF - math.log1p(math.exp(-40)), -1 / (1 + math.exp(40))),
}


def at_edge(value: tuple, at: tuple, dtype: torch.dtype = torch.double) -> tuple[Tensor, list[Tensor]]:
    tensors = [torch.tensor(v, dtype=dtype, requires_grad=True) for v in at]
    return GroupedZeroInflatedLogNormal(*tensors).log_prob(torch.tensor(value, dtype=dtype)), tensors


SECOND_OVERFLOWS = {"subnormal scale", "beside it, tiny scale"}  # to inf - inf


@pytest.mark.parametrize("name", EDGES)
def test_edges(name: str) -> None:
    value, at, log_prob, slope = EDGES[name]
    ours, tensors = at_edge(value, at)
    assert ours.item() == pytest.approx(log_prob, rel=1e-12, abs=0)
    gradient = torch.autograd.grad(ours, tensors, create_graph=True)
    assert gradient[2].item() == pytest.approx(slope, rel=1e-12, abs=0)
    assert not any(g.isnan() for g in gradient)
    if ours.isfinite() and name not in SECOND_OVERFLOWS:
        second = torch.autograd.grad(sum(g for g in gradient if g.isfinite()), tensors)
        assert not any(g.isnan() for g in second)


@pytest.mark.parametrize("name", [name for name in EDGES if "scale" not in name])
def test_edges_in_float32(name: str) -> None:
    value, at, log_prob, slope = EDGES[name]
    ours, tensors = at_edge(value, at, torch.float32)
    assert ours.item() == pytest.approx(log_prob, rel=1e-5, abs=0)
    gradient = torch.autograd.grad(ours, tensors)
    assert gradient[2].item() == pytest.approx(slope, rel=1e-5, abs=0)
    assert not any(g.isnan() for g in gradient)


@pytest.mark.parametrize("name", [name for name in EDGES if "scale" not in name and name[:3] != "one"])
def test_edges_agree_with_cells(name: str) -> None:
    """Cells of these statistics: zeros, and positive values around the mean."""
    (n_zero, n_pos, mean, m2, _), at, log_prob, _ = EDGES[name]
    y = mean + math.sqrt(m2 / 2) * np.array([-1.0, 1.0, 0.0])[: int(n_pos)] if m2 else np.full(int(n_pos), mean)
    x = torch.from_numpy(np.concatenate([np.zeros(n_zero), np.exp(y)]))
    d = ZeroInflatedLogNormal(*(torch.tensor(v, dtype=torch.double) for v in at))
    assert d.log_prob(x).sum().item() == pytest.approx(log_prob, rel=1e-12, abs=0)


@pytest.mark.parametrize("position", range(3))
def test_a_nan_parameter_shows(position: int) -> None:
    at = [0.1, 0.5, 0.3]
    at[position] = math.nan
    value = torch.tensor([[2.0, 3, 1, 1, 0], [2, 0, 0, 0, 0], [0, 3, 1, 1, 0]])
    assert GroupedZeroInflatedLogNormal(*at, validate_args=False).log_prob(value).isnan().all()


def test_nan_statistics_show_without_validation() -> None:
    d = GroupedZeroInflatedLogNormal(0.1, 0.5, 0.3, validate_args=False)
    for i in range(5):
        value = torch.tensor([2.0, 3, 1, 1, 0])
        value[i] = math.nan
        assert d.log_prob(value).isnan(), i


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("of_value", [torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype, of_value: torch.dtype) -> None:
    mu, scale, logits = (p.detach().to(dtype).requires_grad_() for p in parameters())
    ours = GroupedZeroInflatedLogNormal(mu, scale, logits).log_prob(STATS.to(of_value))
    assert ours.dtype == torch.promote_types(dtype, of_value)
    exact = grouped(mu.double(), scale.double(), logits.double())
    error = 1e-10 if of_value == torch.float64 else 1e-5
    torch.testing.assert_close(ours.double(), exact, rtol=error, atol=100 * error)
    for p, gradient in zip((mu, scale, logits), torch.autograd.grad(ours.sum(), (mu, scale, logits)), strict=True):
        assert gradient.dtype == p.dtype


def test_the_layout_of_the_value_does_not_matter() -> None:
    at = parameters()
    for value in (STATS.contiguous(), STATS.transpose(0, 1).contiguous().transpose(0, 1)):
        torch.testing.assert_close(GroupedZeroInflatedLogNormal(*at).log_prob(value), grouped(*at), rtol=1e-14, atol=0)


def test_the_real_data_too() -> None:
    """pbmc68k_reduced by cell type, against its cells."""
    data = pbmc68k_reduced()
    x = data.values.double()
    kinds, group = np.unique(np.asarray(data.cell_type), return_inverse=True)
    stats = SufficientStatistics.from_cells(x, group)
    mu, scale, logits = parameters(5, (len(kinds), x.shape[1]))
    ours = GroupedZeroInflatedLogNormal(mu, scale, logits).log_prob(stats.value)
    each = ZeroInflatedLogNormal(mu[group], scale, logits[group]).log_prob(x)
    theirs = torch.zeros_like(ours).index_add(0, torch.from_numpy(group), each)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
