"""Arguments of all shapes for the log density, and the plain formula to compare it with."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from pyro_zilognormal import density
from pyro_zilognormal.density import reference
from pyro_zilognormal.numerics.zero_part import ProbZeroPart, ZeroPart


class Shapes(NamedTuple):
    """Shapes of value, mu, scale and zero part."""

    value: tuple[int, ...]
    mu: tuple[int, ...]
    scale: tuple[int, ...]
    zero: tuple[int, ...]


SHAPES = {
    "full": Shapes((50, 30), (50, 30), (50, 30), (50, 30)),
    "per gene": Shapes((50, 30), (50, 30), (30,), (30,)),
    "all per gene": Shapes((50, 30), (30,), (30,), (30,)),
    "per cell": Shapes((50, 30), (50, 1), (50, 1), (50, 1)),
    "per gene and cell": Shapes((50, 30), (30,), (50, 1), (1, 30)),
    "full zero part": Shapes((50, 30), (30,), (30,), (50, 30)),
    "zero part per gene": Shapes((50, 30), (30,), (50, 30), (30,)),
    "scalars": Shapes((50, 30), (), (), ()),
    "one value": Shapes((), (50, 30), (30,), (50, 30)),
    "values per gene": Shapes((30,), (50, 30), (50, 1), ()),
    "particles": Shapes((50, 30), (3, 1, 30), (3, 1, 30), (3, 1, 1)),
    "outer": Shapes((5, 1, 7, 1), (6, 1, 1), (7, 2), (5, 6, 7, 2)),
    "vector": Shapes((1500,), (1500,), (), (1500,)),
    "one": Shapes((1,), (), (1, 1), ()),
    "nothing": Shapes((), (), (), ()),
}
all_shapes = pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
zero_parts = pytest.mark.parametrize("kind", [ZeroPart, ProbZeroPart])


def arguments(shapes: Shapes, kind: type[ZeroPart] = ZeroPart, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Value, mu, scale and the tensor of the zero part; 60 % of the values are zeros."""
    generator = torch.Generator().manual_seed(0)
    value, mu, scale, zero = (torch.randn(s, generator=generator, dtype=dtype) for s in shapes)
    is_zero = torch.rand(shapes.value, generator=generator) < 0.6
    return [torch.where(is_zero, 0, value.exp()), mu, scale.exp(), 3 * zero if kind is ZeroPart else zero.sigmoid()]


def log_density(kind: type[ZeroPart], value: Tensor, mu: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return density.log_density(value, mu, scale, kind(zero))


def formula(kind: type[ZeroPart], value: Tensor, mu: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    part = kind(zero)
    return reference.log_density(value, mu, scale, part.log_zero, part.log_positive)


@functools.cache
def exact_sums(shapes: Shapes, kind: type[ZeroPart], dtype: torch.dtype, weighted: bool) -> list[tuple[Tensor, Tensor]]:
    """What `both` returns, by the formula in double precision with exact sums; and the sums of the absolute terms."""
    args = arguments(shapes, kind, dtype)
    shape = torch.broadcast_shapes(*(a.shape for a in args))
    _, (value, *gradients) = both(kind, [a.double().expand(shape) for a in args], weighted)
    sums = [(_sum_exactly(g, a.shape), g.abs().sum_to_size(a.shape)) for g, a in zip(gradients, args, strict=True)]
    return [(value, value.abs()), *sums]


def _sum_exactly(terms: Tensor, shape: torch.Size) -> Tensor:
    if terms.shape == shape:
        return terms
    index = torch.arange(math.prod(shape)).reshape(shape).expand(terms.shape)
    sums = [math.fsum(terms[index == i].tolist()) for i in range(math.prod(shape))]
    return torch.tensor(sums, dtype=torch.float64).reshape(shape)


def both(kind: type[ZeroPart], args: list[Tensor], weighted: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Values and gradients in all arguments, by log_density and by the formula."""
    found = []
    for function in (log_density, formula):
        leaves = [a.detach().clone().requires_grad_() for a in args]
        result = function(kind, *leaves)
        weights = torch.linspace(-1, 2, result.numel(), dtype=result.dtype).reshape(result.shape)
        total = (weights * result).sum() if weighted else result.sum()
        found.append([result.detach(), *torch.autograd.grad(total, leaves)])
    return found[0], found[1]


def assert_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    eps = torch.finfo(expected[0].dtype).eps
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=200 * eps, atol=200 * eps, equal_nan=True)
