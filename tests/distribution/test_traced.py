"""The log density in functions that the user compiles, where an operator of ours stands for the formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyro_zilognormal import compiled
from pyro_zilognormal.density import choice as _density
from pyro_zilognormal.density import reference as _formula
from tests.distribution.traced_cases import (
    COLUMNS,
    LOSSES,
    OPERATOR,
    ROWS,
    SHAPES,
    WEIGHTS,
    Recorder,
    assert_same,
    data,
    density,
    leaves_of,
)
from tests.exactness import TOLERANCE, examine
from tests.points import extreme_points, random_points

# torch.compile looks at the .grad of what is not a leaf.
pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


@pytest.mark.parametrize("outside", [False, True], ids=["in the support", "not all in the support"])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients(
    shapes: tuple[tuple[int, ...], ...], loss: Callable[[Tensor], Tensor], outside: bool
) -> None:
    x = data()
    if outside:
        x[0, :3] = torch.tensor([-1.0, math.inf, math.nan])
    inputs = [x.requires_grad_(), *leaves_of(*shapes)]
    recorder = Recorder()

    def total(*arguments: Tensor) -> Tensor:
        found = density(*arguments)
        return loss(torch.where(found.isfinite(), found, 0) if outside else found)

    found = []
    for function in (total, torch.compile(total, backend=recorder, fullgraph=True)):
        result = function(*inputs)
        found.append((result, *torch.autograd.grad(result, inputs, retain_graph=True)))
        found.append((result, *torch.autograd.grad(result, inputs)))
    assert OPERATOR in recorder.code
    for fast in found[1:]:
        assert_same(fast, found[0])


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_default_backend(loss: Callable[[Tensor], Tensor], dynamic: bool) -> None:
    inputs = [data(), *leaves_of(*SHAPES["by column"])]

    def total(*arguments: Tensor) -> Tensor:
        return loss(density(*arguments))

    expected = total(*inputs)
    result = torch.compile(total, dynamic=dynamic, fullgraph=True)(*inputs)
    assert_same([result], [expected])
    assert_same(torch.autograd.grad(result, inputs[1:]), torch.autograd.grad(expected, inputs[1:]))


def transposed(x: Tensor) -> Tensor:
    return x.T.contiguous().T


LAYOUTS = {
    "transposed values": (transposed, lambda w: w),
    "transposed weights": (lambda x: x, transposed),
    "expanded weights": (transposed, lambda w: w[:, :1].expand(w.shape)),
    "expanded values": (lambda x: x[:1].expand(x.shape), lambda w: w),
    "every other column": (lambda x: torch.stack([x, x], -1).flatten(1)[:, ::2], lambda w: w),
}


@pytest.mark.parametrize("way", ["eager", "inductor", "compiled()"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("shapes", [((COLUMNS,), (COLUMNS,), (COLUMNS,)), SHAPES["by column"], SHAPES["full"]])
def test_layouts(shapes: tuple[tuple[int, ...], ...], layout: tuple[Callable[..., Tensor], ...], way: str) -> None:
    x, weights = layout[0](data()), layout[1](WEIGHTS)
    leaves = leaves_of(*shapes)

    def total(*arguments: Tensor) -> Tensor:
        return (weights * density(*arguments)).sum()

    expected = torch.autograd.grad(total(x, *leaves), leaves)
    function = torch.compile(total, backend=way) if way != "compiled()" else compiled()(total)
    with compiled() if way == "compiled()" else nullcontext():
        found = torch.autograd.grad(function(x, *leaves), leaves)
    assert_same(found, expected)


@pytest.mark.parametrize("layout", [lambda x: x, transposed], ids=["by rows", "by columns"])
@pytest.mark.parametrize("gate", ["logits", "logarithms"])
@pytest.mark.parametrize("outside", [False, True], ids=["in the support", "not all in the support"])
def test_the_operators_as_torch_demands(gate: str, outside: bool, layout: Callable[[Tensor], Tensor]) -> None:
    """Schema, strides and autograd, by torch's own checks."""
    x = data()
    if outside:
        x[0, 0] = -1.0
    x = layout(x)
    mu, log_scale, logits = leaves_of(*SHAPES["by column"])
    scale = log_scale.detach().exp().requires_grad_()
    logs = [torch.nn.functional.logsigmoid(s * logits.detach()).requires_grad_() for s in (1, -1)]
    gates = [logits] if gate == "logits" else logs
    wanted = [False, True, True] + [True] * len(gates)
    torch.library.opcheck(torch.ops.pyro_zilognormal.log_density.default, (x, mu, scale, gates, wanted))
    arguments = [a.detach() for a in (x, mu, scale, *gates)]
    slopes = [torch.ones_like(a) for a in arguments[1:]]
    for grad in (WEIGHTS, torch.ones((), dtype=x.dtype).expand(x.shape)):
        torch.library.opcheck(
            torch.ops.pyro_zilognormal.log_density_gradients.default, (grad, arguments, slopes, wanted)
        )


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_values_out_of_the_support_have_no_gradient(backend: str) -> None:
    """Though the gradient that comes back there is infinite, or NaN."""
    x, leaves = data(), leaves_of(*SHAPES["full"])
    x[0, :3] = torch.tensor([-1.0, math.inf, math.nan])

    def total(*arguments: Tensor) -> Tensor:
        return density(*arguments).square().sum()

    found = torch.autograd.grad(torch.compile(total, backend=backend)(x, *leaves), leaves)
    assert_same(found, torch.autograd.grad(total(x, *leaves), leaves))
    assert not any(slope[0, :3].any() for slope in found)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_a_parameter_that_is_written_into_an_argument(backend: str) -> None:
    """Through a view, so that torch.compile does not see at first that the argument depends on it."""

    def total(mu: Tensor, *others: Tensor) -> Tensor:
        loc = torch.zeros(ROWS, COLUMNS, dtype=mu.dtype)
        loc[:, :50].add_(mu)
        return density(data(), loc, *others).sum()

    mu, *rest = leaves_of((50,), (COLUMNS,), (COLUMNS,))
    for others in (rest, [r.detach() for r in rest]):
        torch._dynamo.reset()
        found = torch.autograd.grad(torch.compile(total, backend=backend)(mu, *others), mu)
        assert_same([found], [torch.autograd.grad(total(mu, *others), mu)])


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_checkpointing_gives_the_same(backend: str) -> None:
    inputs = leaves_of(*SHAPES["by column"])

    def total(*leaves: Tensor) -> Tensor:
        return checkpoint(density, data(), *leaves, use_reentrant=False).sum()

    found = torch.autograd.grad(torch.compile(total, backend=backend)(*inputs), inputs)
    assert_same(found, torch.autograd.grad(total(*inputs), inputs))


def test_second_derivatives() -> None:
    """Where the backend lets them be, as those that run what is recorded do."""
    inputs, found = leaves_of(*SHAPES["by column"]), []
    compiled = torch.compile(density, backend=Recorder(), fullgraph=True)
    for function in (density, compiled):
        slopes = torch.autograd.grad(function(data(), *inputs).sum(), inputs, create_graph=True)
        found.append(torch.autograd.grad(sum(s.square().sum() for s in slopes), inputs))
    assert_same(*found)


def test_a_batch_of_gradients() -> None:
    inputs, weights, found = leaves_of(*SHAPES["by column"]), torch.stack([WEIGHTS, 2 * WEIGHTS]), []
    for function in (density, torch.compile(density, backend=Recorder(), fullgraph=True)):
        found.append(torch.autograd.grad(function(data(), *inputs), inputs, weights, is_grads_batched=True))
    assert_same(*found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_against_60_digits(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_zilognormal._traced.LARGE", 0)
    recorder = Recorder()
    compiled = torch.compile(_density.log_density, backend=recorder, fullgraph=True, dynamic=False)
    monkeypatch.setattr("pyro_zilognormal.distribution.log_density", compiled)
    for points in (random_points("log_prob", 150, dtype, seed=11), extreme_points("log_prob", dtype, 150, seed=12)):
        exam = examine("log_prob", points, dtype)
        assert exam.worst() <= TOLERANCE, exam.describe(TOLERANCE)
    assert OPERATOR in recorder.code


def test_the_formula_is_what_the_operator_returns() -> None:
    x, (mu, log_scale, logits) = data(), leaves_of(*SHAPES["by column"])
    with torch.no_grad():
        arguments = (x, mu, log_scale.exp())
        found = torch.ops.pyro_zilognormal.log_density(*arguments, [logits], [False] * 4)
        assert len(found) == 1
        torch.testing.assert_close(found[0], _formula.log_density(*arguments, logits), rtol=1e-12, atol=1e-12)
