"""The fast log density against the plain formula: wherever it is used, and that it is not where it cannot be."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, jacrev, jvp, vmap
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from pyro_zilognormal import ZeroInflatedLogNormal as Law
from pyro_zilognormal import _blocks, _density, _formula, _fused, _kernel, _values
from pyro_zilognormal._gate import Gate, LogitGate, ProbGate
from tests.exactness import TOLERANCE, compute, examine, units
from tests.oracle import evaluate
from tests.points import extreme_points, random_points


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


@pytest.fixture(autouse=True)
def used_for_few_entries_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_density, "FEW", 0)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of arguments whenever the fast function is used."""
    calls: list[int] = []

    def with_derivatives(*args: Tensor) -> Tensor:
        calls.append(len(args))
        return original(*args)

    def alone(args: Sequence[Tensor]) -> Tensor:
        calls.append(len(args))
        return evaluate_alone(args)

    original, evaluate_alone = _fused.log_density, _values.evaluate
    monkeypatch.setattr(_fused, "log_density", with_derivatives)
    monkeypatch.setattr(_values, "evaluate", alone)
    return calls


@pytest.fixture(params=[2**21, 256], ids=["one block", "many blocks"])
def block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_blocks, "BYTES", request.param)


@pytest.mark.usefixtures("block_size")
@shapes_of_all
@gates
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients(
    shapes: Shapes, kind: type[Gate], weighted: bool, dtype: torch.dtype, used: list[int]
) -> None:
    actual, expected = both(kind, arguments(shapes, kind, dtype), weighted)
    assert used
    assert_close(actual, expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert a.dtype == e.dtype


ODD = torch.tensor([0.0, -0.0, 5e-324, 1e-300, 1.0, 1e300, math.inf, -1.0, -math.inf, math.nan], dtype=torch.float64)


@pytest.mark.usefixtures("block_size")
@pytest.mark.parametrize("gate", [-math.inf, -800.0, 0.5, 800.0, math.inf])
@pytest.mark.parametrize("shape", [(40, 10), (10,)], ids=["full gate", "gate a column"])
def test_odd_values_and_gates(gate: float, shape: tuple[int, ...], used: list[int]) -> None:
    args = [ODD.expand(40, 10), torch.full((10,), 0.3).double(), torch.tensor(0.7).double()]
    actual, expected = both(LogitGate, [*args, torch.full(shape, gate).double()], True)
    assert used
    assert_close(actual, expected)
    odd = (ODD < 0) | ODD.isnan() | ODD.isinf()
    assert not actual[1][:, odd].any()
    assert not any(g.isnan().any() for g in actual[1:])


@pytest.mark.usefixtures("block_size")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("gate", ["logits", "logarithms"])
def test_against_60_digits(gate: str, dtype: torch.dtype, used: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast function itself, value and derivatives, on whole and partial blocks and both kinds of gate."""
    monkeypatch.setattr(_density, "MUCH", 8 if gate == "logits" else 0)
    for points in (random_points("log_prob", 150, dtype, seed=11), extreme_points("log_prob", dtype, 150, seed=12)):
        exam = examine("log_prob", points, dtype)
        assert exam.worst() <= TOLERANCE, exam.describe(TOLERANCE)
    assert used == 2 * [4 if gate == "logits" else 5]


@pytest.mark.usefixtures("block_size")
@shapes_of_all
@gates
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_alone(shapes: Shapes, kind: type[Gate], dtype: torch.dtype, used: list[int]) -> None:
    args = arguments(shapes, kind, dtype)
    actual, expected = _density.log_density(*args[:3], kind(args[3])), formula(kind, *args)
    assert used
    assert_close([actual], [expected])
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype


@pytest.mark.usefixtures("block_size")
@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, -1.0, 1e300, 0.0, -0.0, 1e-300])
@pytest.mark.parametrize("which", [0, 1, 2, 3], ids=["value", "mu", "scale", "gate"])
@gates
def test_one_odd_number_among_values_alone(which: int, number: float, kind: type[Gate], used: list[int]) -> None:
    args = arguments(SHAPES["full"], kind)
    for at in ((args[0] > 0).nonzero()[0], (args[0] == 0).nonzero()[0]):
        args[which][tuple(at)] = number
    assert_close([_density.log_density(*args[:3], kind(args[3]))], [formula(kind, *args)])
    assert used


@pytest.mark.usefixtures("block_size")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("gate", ["logits", "logarithms"])
def test_values_alone_against_60_digits(
    gate: str, dtype: torch.dtype, used: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_density, "MUCH", 8 if gate == "logits" else 0)
    for points in (random_points("log_prob", 150, dtype, seed=11), extreme_points("log_prob", dtype, 150, seed=12)):
        found = compute("log_prob", [torch.tensor(c, dtype=dtype) for c in points.T])
        for actual, point in zip(found.tolist(), points.tolist(), strict=True):
            exact = evaluate("log_prob", tuple(point))
            assert units(actual, exact.value, exact.conditioning(), dtype, TOLERANCE) <= TOLERANCE, point
    assert used == 2 * [4 if gate == "logits" else 5]


@pytest.mark.usefixtures("block_size")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("differentiated", [False, True])
def test_what_many_rows_share_against_60_digits(differentiated: bool, dtype: torch.dtype, used: list[int]) -> None:
    """Scale and gate of a column serve for many rows, so that their part is computed once."""
    for points in (random_points("log_prob", 150, dtype, seed=11), extreme_points("log_prob", dtype, 150, seed=12)):
        *law, value = (torch.tensor(c, dtype=dtype) for c in points.T)
        found = Law(*(p.requires_grad_(differentiated) for p in law)).log_prob(value.expand(20, -1))
        assert torch.equal(found, found[:1].expand(20, -1))
        for actual, point in zip(found[0].tolist(), points.tolist(), strict=True):
            exact = evaluate("log_prob", tuple(point))
            assert units(actual, exact.value, exact.conditioning(), dtype, TOLERANCE) <= TOLERANCE, point
    assert used == [5, 5]


@pytest.mark.usefixtures("block_size")
@pytest.mark.parametrize("differentiated", [False, True])
def test_infinite_squares_and_gates_that_many_rows_share(differentiated: bool, used: list[int]) -> None:
    value = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(20)[:, None].expand(40, 3)
    mu = torch.full((3,), 1e300, dtype=torch.float64, requires_grad=differentiated)
    for gate in (0.5, -math.inf, math.inf):
        logits = torch.tensor([0.5, gate, -2.0], dtype=torch.float64)
        found = Law(mu, torch.tensor(1e-300, dtype=torch.float64), logits, validate_args=False).log_prob(value)
        assert torch.equal(found[::2], torch.nn.functional.logsigmoid(logits).expand(20, 3))
        assert (found[1::2] == -math.inf).all()
    assert used == [5, 5, 5]


def test_rows_are_counted_for_the_gradient_of_a_gate_that_they_share() -> None:
    value = torch.cat([torch.zeros(300, 4), torch.ones(500, 4)]).double()
    log_zero, log_positive = (torch.full((4,), math.log(0.5)).double().requires_grad_() for _ in range(2))
    law = [torch.zeros(4).double(), torch.ones(4).double()]
    for wanted in ([log_zero, log_positive], [log_zero], [log_positive]):
        needed = [any(a is w for w in wanted) for a in (log_zero, log_positive)]
        with torch.no_grad():
            _, slopes = _kernel.evaluate([value, *law, log_zero, log_positive], [False, False, False, *needed])
        counts = [None if s is None else s.tolist() for s in slopes[3:]]
        assert counts == [4 * [n] if need else None for n, need in zip((300.0, 500.0), needed, strict=True)]


def test_where_zeros_have_an_infinite_z_only_positive_values_feel_it() -> None:
    """(0 - mu) / scale overflows at the zeros, which it must not reach."""
    mu, scale, logits = (
        torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in ([1e300] * 2, [1e-300] * 2, [0.5] * 2)
    )
    result = Law(mu, scale, logits).log_prob(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert result[0] == Law(0.0, 1.0, logits[0]).log_prob(torch.tensor(0.0).double())
    assert result[1] == -math.inf
    for gradient in torch.autograd.grad(result[0], (mu, scale)):
        assert gradient[0] == 0


def test_few_entries_are_left_to_the_formula(used: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_density, "FEW", 1500)
    args = arguments(SHAPES["full"], LogitGate)
    assert_close([Law(*args[1:]).log_prob(args[0])[:49]], [Law(*(a[:49] for a in args[1:])).log_prob(args[0][:49])])
    assert used == [4]


def test_arguments_that_are_views(used: list[int]) -> None:
    for transform in (lambda a: a.t(), lambda a: a[::2, 1:], lambda a: a[:, :1].expand(a.shape)):
        args = [transform(a) for a in arguments(SHAPES["full"], LogitGate)]
        leaves = [a.detach().clone(memory_format=torch.preserve_format).requires_grad_() for a in args]
        total = Law(*leaves[1:]).log_prob(leaves[0])
        gradients = torch.autograd.grad(total, leaves, torch.ones(()).double().expand(total.shape))
        assert_close([total.detach(), *gradients], both(LogitGate, args, False)[1])
    assert used


@pytest.mark.parametrize("kind", [LogitGate, ProbGate])
@pytest.mark.parametrize("wanted", range(4))
def test_only_the_gradients_that_are_wanted(wanted: int, kind: type[Gate]) -> None:
    for shapes in (SHAPES["full"], SHAPES["per gene"]):
        args = arguments(shapes, kind)
        expected = both(kind, args, False)[1][1 + wanted]
        args[wanted].requires_grad_()
        total = _density.log_density(*args[:3], kind(args[3])).sum()
        assert_close(list(torch.autograd.grad(total, args[wanted])), [expected])


@pytest.mark.usefixtures("block_size")
@shapes_of_all
@gates
def test_second_derivatives(shapes: Shapes, kind: type[Gate]) -> None:
    small = Shapes(*(tuple(min(n, 3) for n in s) for s in shapes))
    args = [a.requires_grad_() for a in arguments(small, kind)]
    args[0] = args[0].detach()

    def function(*parameters: Tensor) -> Tensor:
        return _density.log_density(args[0], *parameters[:2], kind(parameters[2]))

    assert gradcheck(function, args[1:])
    assert gradgradcheck(function, args[1:])


def test_arguments_that_depend_on_each_other() -> None:
    """The gradient of one must not also flow through the other; in the second derivative neither."""
    x = torch.tensor([0.0, 0.4, 3.0], dtype=torch.float64)

    def function(t: Tensor) -> Tensor:
        mu = t.sin()
        return Law(mu, (mu + 2).exp(), mu * t).log_prob(x)

    t = torch.tensor([0.3, -0.5, 1.1], dtype=torch.float64, requires_grad=True)
    assert gradcheck(function, t)
    assert gradgradcheck(function, t)


def test_backward_twice_and_after_a_change() -> None:
    args = [a.requires_grad_() for a in arguments(SHAPES["per gene"], LogitGate)]
    total = Law(*args[1:]).log_prob(args[0]).sum()
    first = torch.autograd.grad(total, args, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(total, args, retain_graph=True)))
    with torch.no_grad():
        args[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(total, args)


@pytest.mark.parametrize("shapes", [SHAPES["full"], SHAPES["per gene"], SHAPES["all per gene"]])
def test_backward_passes_in_any_order(shapes: Shapes) -> None:
    """What the first takes over from the forward pass is neither missed by the next nor shared with the caller."""
    args = [a.requires_grad_() for a in arguments(shapes, LogitGate)]
    weights = {"ones": torch.ones(()), "mean": torch.full((), 1 / 1500), "rows": torch.arange(50.0)[:, None]}
    grads = {name: w.double().expand(50, 30) for name, w in weights.items()} | {
        "copied": torch.full((50, 30), -2.0).double()
    }
    plain = formula(LogitGate, *args)
    expected = {name: torch.autograd.grad(plain, args, g, retain_graph=True) for name, g in grads.items()}
    for order in itertools.permutations(grads):
        result = Law(*args[1:]).log_prob(args[0])
        for name in order:
            found = torch.autograd.grad(result, args, grads[name], retain_graph=True)
            for f, e in zip(found, expected[name], strict=True):
                torch.testing.assert_close(f, e, rtol=1e-11, atol=1e-11)
                f.zero_()


def test_batched_gradients() -> None:
    args = [a.requires_grad_() for a in arguments(Shapes((4,), (4,), (), (4,)), LogitGate)]
    result = Law(*args[1:]).log_prob(args[0])
    rows = torch.eye(4, dtype=torch.float64)
    one_by_one = [torch.autograd.grad(result, args, row, retain_graph=True) for row in rows]
    batched = torch.autograd.grad(result, args, rows, is_grads_batched=True)
    assert_close(list(batched), [torch.stack(g) for g in zip(*one_by_one, strict=True)])


def test_without_gradients(used: list[int]) -> None:
    args = arguments(SHAPES["full"], LogitGate)
    expected = Law(*args[1:]).log_prob(args[0])
    args[1].requires_grad_()
    with torch.no_grad():
        assert torch.equal(Law(*args[1:]).log_prob(args[0]), expected)
    with torch.inference_mode():
        inside = Law(*(a.clone() for a in args[1:])).log_prob(args[0])
    assert torch.equal(inside, expected)
    assert len(used) == 3
    mixed = Law(torch.zeros(3), 1.0, 0.0).log_prob(torch.ones(3, dtype=torch.float64))
    assert mixed.dtype == torch.float64
    assert len(used) == 3


def test_checkpointing_gives_the_same() -> None:
    args = [a.requires_grad_() for a in arguments(SHAPES["full"], LogitGate)]

    def function(*a: Tensor) -> Tensor:
        return Law(*a[1:]).log_prob(a[0]).sum()

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
def test_transforms_see_the_formula(name: str, used: list[int]) -> None:
    args = arguments(Shapes((20,), (20,), (20,), (20,)), LogitGate)
    expected = formula(LogitGate, *args)
    plain_calls = {"func.grad": 1, "jacrev": 1}.get(name, 0)  # what is outside the transform
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        actual = ELSEWHERE[name](lambda x, *p: Law(*p).log_prob(x), *args)
    torch.testing.assert_close(actual, expected, rtol=1e-14, atol=1e-14)
    assert len(used) == plain_calls


def test_few_tensors_are_as_large_as_the_data() -> None:
    """Forward and backward allocate the log density, a gradient for each argument, and less than one of these."""
    args = [a.requires_grad_() for a in arguments(Shapes(*[(2000, 1000)] * 4), LogitGate)]
    args[0].requires_grad_(False)
    bytes_of_one = args[0].numel() * args[0].element_size()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = Law(*args[1:], validate_args=True).log_prob(args[0])
        gradients = torch.autograd.grad(result, args[1:], torch.ones((), dtype=torch.float64).expand(result.shape))
    peak = level = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    assert len(gradients) == 3
    assert 4 * bytes_of_one <= peak < 5 * bytes_of_one
