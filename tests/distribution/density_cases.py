"""Arguments of all shapes for the fast log density, and the plain formula to compare it with."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from pyro_zilognormal.density import choice as _density
from pyro_zilognormal.density import reference as _formula
from pyro_zilognormal.numerics.zero_part import Gate, LogitGate, ProbGate


class Shapes(NamedTuple):
    """Shapes of value, mu, scale and gate."""

    value: tuple[int, ...]
    mu: tuple[int, ...]
    scale: tuple[int, ...]
    gate: tuple[int, ...]


SHAPES = {
    "full": Shapes((50, 30), (50, 30), (50, 30), (50, 30)),
    "per gene": Shapes((50, 30), (50, 30), (30,), (30,)),
    "all per gene": Shapes((50, 30), (30,), (30,), (30,)),
    "per cell": Shapes((50, 30), (50, 1), (50, 1), (50, 1)),
    "per gene and cell": Shapes((50, 30), (30,), (50, 1), (1, 30)),
    "full gate": Shapes((50, 30), (30,), (30,), (50, 30)),
    "gene gate": Shapes((50, 30), (30,), (50, 30), (30,)),
    "scalars": Shapes((50, 30), (), (), ()),
    "one value": Shapes((), (50, 30), (30,), (50, 30)),
    "values per gene": Shapes((30,), (50, 30), (50, 1), ()),
    "particles": Shapes((50, 30), (3, 1, 30), (3, 1, 30), (3, 1, 1)),
    "outer": Shapes((5, 1, 7, 1), (6, 1, 1), (7, 2), (5, 6, 7, 2)),
    "vector": Shapes((1500,), (1500,), (), (1500,)),
    "one": Shapes((1,), (), (1, 1), ()),
    "nothing": Shapes((), (), (), ()),
}
shapes_of_all = pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
gates = pytest.mark.parametrize("kind", [LogitGate, ProbGate])


def arguments(shapes: Shapes, kind: type[Gate], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Value, mu, scale and gate; the values are zero or not, and a few of them odd."""
    generator = torch.Generator().manual_seed(0)
    value, mu, scale, gate = (torch.randn(s, generator=generator, dtype=dtype) for s in shapes)
    zero = torch.rand(shapes.value, generator=generator) < 0.6
    gate = 3 * gate if kind is LogitGate else torch.sigmoid(gate)
    return [torch.where(zero, 0, value.exp()), mu, scale.exp(), gate]


def formula(kind: type[Gate], value: Tensor, mu: Tensor, scale: Tensor, tensor: Tensor) -> Tensor:
    gate = kind(tensor)  # type: ignore[call-arg]
    return _formula.log_density(value, mu, scale, gate.log_zero, gate.log_positive)


def both(kind: type[Gate], args: list[Tensor], weighted: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Values and gradients in all arguments, by log_density and by the formula."""
    found = []
    for function in (lambda v, m, s, g: _density.log_density(v, m, s, kind(g)), lambda *a: formula(kind, *a)):
        leaves = [a.detach().clone().requires_grad_() for a in args]
        result = function(*leaves)
        weights = torch.linspace(-1, 2, result.numel(), dtype=result.dtype).reshape(result.shape)
        total = (weights * result).sum() if weighted else result.sum()
        found.append([result.detach(), *torch.autograd.grad(total, leaves)])
    return found[0], found[1]


def assert_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    eps = torch.finfo(expected[0].dtype).eps
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=200 * eps, atol=200 * eps, equal_nan=True)
