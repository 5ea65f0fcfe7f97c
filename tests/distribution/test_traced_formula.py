"""The log density in functions that the user compiles, where the operator cannot serve, or not be compiled itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_zilognormal import ZeroInflatedLogNormal as Law
from pyro_zilognormal.density import compilation
from pyro_zilognormal.density import reference as _formula
from tests.distribution.traced_cases import (
    COLUMNS,
    LOSSES,
    OPERATOR,
    SHAPES,
    Recorder,
    assert_same,
    data,
    density,
    leaves_of,
)

# torch.compile looks at the .grad of what is not a leaf.
pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_sizes_that_only_the_data_tell() -> None:
    """The formula, where torch.compile cannot know how many entries there are."""
    mu, log_scale, logits = (leaf.detach() for leaf in leaves_of((COLUMNS,), (COLUMNS,), (COLUMNS,)))

    def some(x: Tensor, rows: Tensor) -> Tensor:
        law = Law(mu, log_scale.exp(), zi_probs=logits.sigmoid(), validate_args=False)
        return law.log_prob(x[rows]).sum()

    x = data()
    found = torch.compile(some, backend="eager", fullgraph=True)(x, x[:, 0] > 0)
    assert_same([found], [some(x, x[:, 0] > 0)])


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
    assert_same([found], [function(*inputs)])


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_transforms_of_what_is_compiled(transform: Callable[..., Any]) -> None:
    inputs = [data(), *(leaf.detach() for leaf in leaves_of(*SHAPES["by column"]))]

    def total(mu: Tensor) -> Tensor:
        return density(inputs[0], mu, *inputs[2:]).sum()

    mu = inputs[1] if transform is torch.func.grad else torch.stack([inputs[1]] * 2)
    found = transform(torch.compile(total, backend="eager"))(mu)
    assert_same([found], [transform(total)(mu)])


def test_export_sees_the_formula() -> None:
    class Module(torch.nn.Module):
        def forward(self, *arguments: Tensor) -> Tensor:
            return density(*arguments)

    inputs = (data(), *(leaf.detach() for leaf in leaves_of(*SHAPES["by column"])))
    exported = torch.export.export(Module(), inputs, strict=True)
    assert "ops.pyro_zilognormal" not in exported.graph_module.print_readable(print_output=False)
    assert_same([exported.module()(*inputs)], [density(*inputs)])


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
    assert_same(*found)
