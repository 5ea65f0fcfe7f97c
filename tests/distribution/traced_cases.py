"""Functions of the log density for users to compile, and arguments for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from pyro_zilognormal import ZeroInflatedLogNormal as Law

ROWS, COLUMNS = 700, 100  # above the size from which on the operator serves
OPERATOR = "torch.ops.pyro_zilognormal.log_density"


class Recorder:
    """A backend that runs what is recorded as it is, and keeps the code."""

    def __init__(self) -> None:
        self.code = ""

    def __call__(self, graph: GraphModule, _inputs: Sequence[Tensor]) -> Callable[..., Any]:
        self.code += graph.print_readable(print_output=False)
        return graph.forward


def data(dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, COLUMNS, generator=generator, dtype=dtype).exp()
    return torch.where(torch.rand(ROWS, COLUMNS, generator=generator) < 0.5, 0, x)


def leaves_of(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def density(x: Tensor, mu: Tensor, log_scale: Tensor, logits: Tensor) -> Tensor:
    return Law(mu, log_scale.exp(), logits, validate_args=False).log_prob(x)


SHAPES = {
    "full": ((ROWS, COLUMNS), (ROWS, COLUMNS), (ROWS, COLUMNS)),
    "by column": ((ROWS, COLUMNS), (COLUMNS,), (COLUMNS,)),
    "one": ((), (), ()),
    "by row": ((ROWS, 1), (ROWS, 1), (ROWS, COLUMNS)),
}
WEIGHTS = torch.rand(ROWS, COLUMNS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda found: -found.sum(),
    "scaled": lambda found: (3 * found).sum(),
    "weighted": lambda found: (WEIGHTS * found).sum(),
    "rows": lambda found: (found.sum(-1).exp() + found.mean(-1)).sum(),
}


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-8)
