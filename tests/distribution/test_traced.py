"""The log density in functions that the user compiles: an operator of ours, wherever it may stand for the formula."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils.checkpoint import checkpoint

from pyro_zilognormal import ZeroInflatedLogNormal as Law
from pyro_zilognormal import _density, _formula, compilation, compiled
from tests.exactness import TOLERANCE, examine
from tests.points import extreme_points, random_points

ROWS, COLUMNS = 700, 100  # above the size from which on the operator serves
OPERATOR = "torch.ops.pyro_zilognormal.log_density"


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """torch.compile imports deprecated parts of torch.jit; and it looks at the .grad of what is not a leaf."""
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
        yield
    torch._dynamo.reset()


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
        for plain, other in zip(found[0], fast, strict=True):
            torch.testing.assert_close(other, plain, rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_default_backend(loss: Callable[[Tensor], Tensor], dynamic: bool) -> None:
    inputs = [data(), *leaves_of(*SHAPES["by column"])]

    def total(*arguments: Tensor) -> Tensor:
        return loss(density(*arguments))

    expected = total(*inputs)
    result = torch.compile(total, dynamic=dynamic, fullgraph=True)(*inputs)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-8)
    for fast, plain in zip(
        torch.autograd.grad(result, inputs[1:]), torch.autograd.grad(expected, inputs[1:]), strict=True
    ):
        torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-8)


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
    for fast, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-8)


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
    for fast, plain in zip(found, torch.autograd.grad(total(x, *leaves), leaves), strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-8)
        assert not fast[0, :3].any()


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
        torch.testing.assert_close(found, torch.autograd.grad(total(mu, *others), mu), rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_checkpointing_gives_the_same(backend: str) -> None:
    inputs = leaves_of(*SHAPES["by column"])

    def total(*leaves: Tensor) -> Tensor:
        return checkpoint(density, data(), *leaves, use_reentrant=False).sum()

    found = torch.autograd.grad(torch.compile(total, backend=backend)(*inputs), inputs)
    for fast, plain in zip(found, torch.autograd.grad(total(*inputs), inputs), strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-8)


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_sizes_that_only_the_data_tell() -> None:
    """The formula, where torch.compile cannot know how many entries there are."""
    mu, log_scale, logits = (leaf.detach() for leaf in leaves_of((COLUMNS,), (COLUMNS,), (COLUMNS,)))

    def some(x: Tensor, rows: Tensor) -> Tensor:
        law = Law(mu, log_scale.exp(), zi_probs=logits.sigmoid(), validate_args=False)
        return law.log_prob(x[rows]).sum()

    x = data()
    found = torch.compile(some, backend="eager", fullgraph=True)(x, x[:, 0] > 0)
    torch.testing.assert_close(found, some(x, x[:, 0] > 0), rtol=1e-10, atol=1e-8)


def test_it_leaves_the_settings_of_others_alone() -> None:
    """Recompilation that the user forbids is the user's own, and each warning is shown as often as asked for."""
    inputs = [data(), *leaves_of(*SHAPES["by column"])]
    step = torch.compile(lambda *a: density(*a).sum(), backend="eager")
    step(*inputs)
    with torch.compiler.set_stance("fail_on_recompile"), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(3):
            torch.autograd.grad(step(*inputs), inputs[1:])
            warnings.warn("a word of the user's", UserWarning, stacklevel=1)
    assert [str(w.message) for w in seen] == ["a word of the user's"]


@torch._dynamo.config.patch(recompile_limit=1)
def test_kinds_of_arguments_beyond_what_torch_compiles() -> None:
    for shapes in SHAPES.values():
        arguments = [data(), *(leaf.detach() for leaf in leaves_of(*shapes))]
        arguments[2] = arguments[2].exp()
        found, *_ = torch.ops.pyro_zilognormal.log_density(*arguments[:3], arguments[3:], [False] * 4)
        torch.testing.assert_close(found, _formula.log_density(*arguments), rtol=1e-10, atol=1e-10)
    assert not compilation._UNASKED.failed


def test_second_derivatives() -> None:
    """Where the backend lets them be, as those that run what is recorded do."""
    inputs, found = leaves_of(*SHAPES["by column"]), []
    compiled = torch.compile(density, backend=Recorder(), fullgraph=True)
    for function in (density, compiled):
        slopes = torch.autograd.grad(function(data(), *inputs).sum(), inputs, create_graph=True)
        found.append(torch.autograd.grad(sum(s.square().sum() for s in slopes), inputs))
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-8)


def test_a_batch_of_gradients() -> None:
    inputs, weights, found = leaves_of(*SHAPES["by column"]), torch.stack([WEIGHTS, 2 * WEIGHTS]), []
    for function in (density, torch.compile(density, backend=Recorder(), fullgraph=True)):
        found.append(torch.autograd.grad(function(data(), *inputs), inputs, weights, is_grads_batched=True))
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-8)


def gradient(x: Tensor, *leaves: Tensor) -> Tensor:
    return torch.func.grad(lambda mu: density(x, mu, *leaves[1:]).sum())(leaves[0])


def along(x: Tensor, *leaves: Tensor) -> Tensor:
    return torch.func.jvp(lambda mu: density(x, mu, *leaves[1:]), (leaves[0],), (torch.ones_like(leaves[0]),))[1]


def batch(x: Tensor, *leaves: Tensor) -> Tensor:
    return torch.func.vmap(lambda shift: density(x, leaves[0] + shift, *leaves[1:]).sum())(x[0, :3])


@pytest.mark.parametrize("function", [gradient, along, batch])
def test_transforms_see_the_formula(function: Callable[..., Tensor]) -> None:
    inputs = [data(), *(leaf.detach() for leaf in leaves_of(*SHAPES["by column"]))]
    recorder = Recorder()
    found = torch.compile(function, backend=recorder, fullgraph=True)(*inputs)
    assert OPERATOR not in recorder.code
    torch.testing.assert_close(found, function(*inputs), rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_transforms_of_what_is_compiled(transform: Callable[..., Any]) -> None:
    inputs = [data(), *(leaf.detach() for leaf in leaves_of(*SHAPES["by column"]))]

    def total(mu: Tensor) -> Tensor:
        return density(inputs[0], mu, *inputs[2:]).sum()

    mu = inputs[1] if transform is torch.func.grad else torch.stack([inputs[1]] * 2)
    found = transform(torch.compile(total, backend="eager"))(mu)
    torch.testing.assert_close(found, transform(total)(mu), rtol=1e-10, atol=1e-8)


def test_export_sees_the_formula() -> None:
    class Module(torch.nn.Module):
        def forward(self, *arguments: Tensor) -> Tensor:
            return density(*arguments)

    inputs = (data(), *(leaf.detach() for leaf in leaves_of(*SHAPES["by column"])))
    exported = torch.export.export(Module(), inputs, strict=True)
    assert "ops.pyro_zilognormal" not in exported.graph_module.print_readable(print_output=False)
    torch.testing.assert_close(exported.module()(*inputs), density(*inputs), rtol=1e-10, atol=1e-8)


UNSUITED = {
    "few entries": lambda inputs: [inputs[0][:100], *inputs[1:]],
    "several dtypes": lambda inputs: [inputs[0], *(i.float() for i in inputs[1:])],
}


@pytest.mark.parametrize("change", UNSUITED.values(), ids=UNSUITED)
def test_what_does_not_suit_sees_the_formula(change: Callable[[list[Tensor]], list[Tensor]]) -> None:
    inputs = change([data(), *leaves_of(*SHAPES["one"])])
    recorder = Recorder()
    found = torch.compile(density, backend=recorder, fullgraph=True)(*inputs)
    assert OPERATOR not in recorder.code
    torch.testing.assert_close(found, density(*inputs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_without_a_compiler(loss: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is recorded may run where nothing can be compiled."""

    def broken(*_: Any, **__: Any) -> Any:
        raise torch._dynamo.exc.TorchDynamoException("no compiler")

    monkeypatch.setattr(compilation, "_compiled", broken)
    monkeypatch.setattr(compilation, "_UNASKED", compilation._Switch())
    inputs, found = [data(), *leaves_of(*SHAPES["by column"])], []
    for function in (density, torch.compile(density, backend="eager", fullgraph=True)):
        found.append(torch.autograd.grad(loss(function(*inputs)), inputs[1:]))
    assert compilation._UNASKED.failed
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-8)


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
