"""Second derivatives, backward passes again and in any order, and what differentiates by other means."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, jacrev, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from pyro_zilognormal import ZeroInflatedLogNormal as ZILN
from pyro_zilognormal.density import blockwise
from pyro_zilognormal.numerics.zero_part import ZeroPart
from tests.distribution.density_cases import (
    SHAPES,
    Shapes,
    all_shapes,
    arguments,
    assert_close,
    formula,
    log_density,
    zero_parts,
)

pytestmark = pytest.mark.usefixtures("kernel_for_few_entries_too")


@all_shapes
@zero_parts
def test_second_derivatives(shapes: Shapes, kind: type[ZeroPart], monkeypatch: pytest.MonkeyPatch) -> None:
    """In many blocks; one block is a case of few."""
    monkeypatch.setattr(blockwise, "BYTES", 64)
    small = Shapes(*(tuple(min(n, 3) for n in s) for s in shapes))
    args = [a.requires_grad_() for a in arguments(small, kind)]
    args[0] = args[0].detach()

    def function(*parameters: Tensor) -> Tensor:
        return log_density(kind, args[0], *parameters)

    assert gradcheck(function, args[1:])
    assert gradgradcheck(function, args[1:])


def test_arguments_that_depend_on_each_other() -> None:
    """The gradient of one must not also flow through the other; in the second derivative neither."""
    x = torch.tensor([0.0, 0.4, 3.0], dtype=torch.float64)

    def function(t: Tensor) -> Tensor:
        mu = t.sin()
        return ZILN(mu, (mu + 2).exp(), mu * t).log_prob(x)

    t = torch.tensor([0.3, -0.5, 1.1], dtype=torch.float64, requires_grad=True)
    assert gradcheck(function, t)
    assert gradgradcheck(function, t)


def test_backward_twice_and_after_a_change() -> None:
    args = [a.requires_grad_() for a in arguments(SHAPES["per gene"])]
    total = ZILN(*args[1:]).log_prob(args[0]).sum()
    first = torch.autograd.grad(total, args, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(total, args, retain_graph=True)))
    with torch.no_grad():
        args[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(total, args)


@pytest.mark.parametrize("shapes", [SHAPES["full"], SHAPES["per gene"], SHAPES["all per gene"]])
def test_backward_passes_in_any_order(shapes: Shapes) -> None:
    """What the first takes over from the forward pass is neither missed by the next nor shared with the caller."""
    args = [a.requires_grad_() for a in arguments(shapes)]
    weights = {"ones": torch.ones(()), "mean": torch.full((), 1 / 1500), "rows": torch.arange(50.0)[:, None]}
    grads = {name: w.double().expand(50, 30) for name, w in weights.items()} | {
        "copied": torch.full((50, 30), -2.0).double()
    }
    plain = formula(ZeroPart, *args)
    expected = {name: torch.autograd.grad(plain, args, g, retain_graph=True) for name, g in grads.items()}
    for order in itertools.permutations(grads):
        result = ZILN(*args[1:]).log_prob(args[0])
        for name in order:
            found = torch.autograd.grad(result, args, grads[name], retain_graph=True)
            for f, e in zip(found, expected[name], strict=True):
                torch.testing.assert_close(f, e, rtol=1e-11, atol=1e-11)
                f.zero_()


def test_batched_gradients() -> None:
    args = [a.requires_grad_() for a in arguments(Shapes((4,), (4,), (), (4,)))]
    result = ZILN(*args[1:]).log_prob(args[0])
    rows = torch.eye(4, dtype=torch.float64)
    one_by_one = [torch.autograd.grad(result, args, row, retain_graph=True) for row in rows]
    batched = torch.autograd.grad(result, args, rows, is_grads_batched=True)
    assert_close(list(batched), [torch.stack(g) for g in zip(*one_by_one, strict=True)])


def test_checkpointing_gives_the_same() -> None:
    args = [a.requires_grad_() for a in arguments(SHAPES["full"])]

    def function(*a: Tensor) -> Tensor:
        return ZILN(*a[1:]).log_prob(a[0]).sum()

    expected = torch.autograd.grad(function(*args), args)
    actual = torch.autograd.grad(checkpoint(function, *args, use_reentrant=False), args)
    assert all(map(torch.equal, actual, expected))


class Subclass(torch.Tensor):
    pass


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


def _under_jvp(f: Any, *args: Tensor) -> Tensor:
    return jvp(f, args, tuple(torch.ones_like(a) for a in args))[0]


def _in_dual_numbers(f: Any, *args: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(args[0], forward_ad.make_dual(args[1], torch.ones_like(args[1])), *args[2:]))[0]


def _in_a_mode(f: Any, *args: Tensor) -> Tensor:
    with Mode():
        return f(*args)


ELSEWHERE = {
    "vmap": lambda f, *a: vmap(f)(*a),
    "func.grad": lambda f, *a: (grad(lambda *b: f(*b).sum(), argnums=1)(*a), f(*a))[1],
    "jacrev": lambda f, *a: (jacrev(lambda m: f(a[0], m, *a[2:]))(a[1]), f(*a))[1],
    "jvp": _under_jvp,
    "dual numbers": _in_dual_numbers,
    "a subclass": lambda f, *a: f(a[0], a[1].as_subclass(Subclass), *a[2:]).as_subclass(torch.Tensor),
    "a dispatch mode": _in_a_mode,
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_transforms_see_the_formula(name: str, kernel_calls: list[int]) -> None:
    args = arguments(Shapes((20,), (20,), (20,), (20,)))
    expected = formula(ZeroPart, *args)
    plain_calls = {"func.grad": 1, "jacrev": 1}.get(name, 0)  # what is outside the transform
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        actual = ELSEWHERE[name](lambda x, *p: ZILN(*p).log_prob(x), *args)
    torch.testing.assert_close(actual, expected, rtol=1e-14, atol=1e-14)
    assert len(kernel_calls) == plain_calls
