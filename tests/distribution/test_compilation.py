"""The switch that compiles the log density: what it changes, what it leaves alone, what it does with no compiler."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_zilognormal import ZeroInflatedLogNormal as Law
from pyro_zilognormal import compiled
from pyro_zilognormal.density import autograd as _fused
from pyro_zilognormal.density import choice as _density
from pyro_zilognormal.density import compilation
from pyro_zilognormal.density import reference as _formula
from pyro_zilognormal.density.quick_log import quick_log
from pyro_zilognormal.svi import fit
from tests.exactness import TOLERANCE, examine
from tests.points import extreme_points, random_points

ROWS, COLUMNS = 700, 100  # above the size from which on it is worth compiling


pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by 1 whenever the log density is evaluated without compilation, on many entries."""
    calls: list[int] = []
    original = _fused.log_density

    def log_density(*arguments: Tensor) -> Tensor:
        result = original(*arguments)
        calls.extend([1] * (result.numel() >= compilation.LARGE))
        return result

    monkeypatch.setattr(_fused, "log_density", log_density)
    return calls


def data() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, COLUMNS, generator=generator).exp()
    return torch.where(torch.rand(ROWS, COLUMNS, generator=generator) < 0.5, 0, x)


def model(x: Tensor) -> None:
    with pyro.plate("columns", COLUMNS):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        logits = pyro.sample("logits", dist.Normal(0.0, 3.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", Law(mu, scale, logits), obs=x)


LAW = {"mu": 0.3, "scale": 0.8, "logits": -0.4}


def losses() -> Tensor:
    guide = pyro.infer.autoguide.AutoNormal(model)
    return torch.tensor(fit(model, guide, data(), steps=5, seed=3).losses)


def test_a_fit_is_compiled_and_stays_the_same(fused: list[int]) -> None:
    plain = losses()
    assert len(fused) >= 5
    fused.clear()
    validate = Distribution._validate_args
    with compiled():
        torch.testing.assert_close(losses(), plain, rtol=1e-5, atol=0)
        assert not fused
        assert Distribution._validate_args == validate
    losses()
    assert len(fused) >= 5  # off again


def test_odd_values_and_gradients(fused: list[int]) -> None:
    x = data().double()
    x[0, :4] = torch.tensor([-1.0, math.inf, math.nan, 1e-30])
    leaves = [torch.zeros(COLUMNS), torch.ones(COLUMNS), torch.zeros(ROWS, COLUMNS)]
    leaves = [leaf.double().requires_grad_() for leaf in leaves]
    found = []
    for context in (warnings.catch_warnings(), compiled()):
        with context:
            result = Law(*leaves, validate_args=False).log_prob(x)
            found.append((result, *torch.autograd.grad(result.nan_to_num(0, 0, 0).sum(), leaves)))
    assert len(fused) == 1
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-10, equal_nan=True)
    with compiled(), pytest.raises(ValueError, match="in the support"):
        Law(*leaves, validate_args=True).log_prob(x)


SHAPES = {
    "full": ((ROWS, COLUMNS), (ROWS, COLUMNS), (ROWS, COLUMNS)),
    "a column": ((COLUMNS,), (COLUMNS,), (COLUMNS,)),
    "one": ((), (), ()),
    "full mu": ((ROWS, COLUMNS), (COLUMNS,), (1, COLUMNS)),
    "full gate": ((ROWS, 1), (), (ROWS, COLUMNS)),
}


@pytest.mark.parametrize("rows", [ROWS, 1])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_gradients_of_every_kind(shapes: tuple[tuple[int, ...], ...], rows: int) -> None:
    """Of a sum, again, with weights, and second derivatives."""
    generator = torch.Generator().manual_seed(2)
    leaves = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    x, weights = data()[:rows].double(), torch.rand(ROWS, COLUMNS, generator=generator, dtype=torch.float64)
    x = x if rows == ROWS else x[0]
    found = []
    for context in (warnings.catch_warnings(), compiled()):
        with context:
            density = Law(leaves[0], leaves[1].exp(), leaves[2]).log_prob(x)
            sums = [torch.autograd.grad(-density.sum(), leaves, retain_graph=True) for _ in range(2)]
            weighted = torch.autograd.grad(
                density, leaves, weights.flatten()[: density.numel()].view(density.shape), retain_graph=True
            )
            slope = torch.autograd.grad(density.sum(), leaves, create_graph=True)
            second = torch.autograd.grad(sum(s.square().sum() for s in slope), leaves)
            found.append([density, *sums[0], *sums[1], *weighted, *second])
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-11, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("gate", ["logits", "logarithms"])
def test_against_60_digits(gate: str, dtype: torch.dtype, fused: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "LARGE", 0)
    monkeypatch.setattr(_density, "FEW", 0)
    monkeypatch.setattr(_density, "MUCH", 8 if gate == "logits" else 0)
    for points in (random_points("log_prob", 150, dtype, seed=11), extreme_points("log_prob", dtype, 150, seed=12)):
        with compiled():
            exam = examine("log_prob", points, dtype)
        assert exam.worst() <= TOLERANCE, exam.describe(TOLERANCE)
        assert not fused


ODD = {
    "a negative value": ("x", -1.0),
    "an infinite value": ("x", math.inf),
    "a missing value": ("x", math.nan),
    "a subnormal value": ("x", 1e-40),
    "a subnormal scale": ("scale", 1e-40),
    "an immense scale": ("scale", 1e38),
    "an infinite scale": ("scale", math.inf),
    "no scale": ("scale", 0.0),
    "a negative scale": ("scale", -1.0),
    "a missing scale": ("scale", math.nan),
    "an infinite mu": ("mu", math.inf),
    "a missing mu": ("mu", math.nan),
    "infinite logits": ("logits", -math.inf),
    "missing logits": ("logits", math.nan),
}


@pytest.mark.parametrize(("which", "number"), ODD.values(), ids=ODD)
def test_one_odd_number_changes_nothing_else(which: str, number: float) -> None:
    """Where it is not provided for in the loop, all is done without compilation; the result is the same either way."""
    arguments = {"x": data(), **{k: torch.full((ROWS, COLUMNS), v) for k, v in LAW.items()}}
    positive, zero = (arguments["x"] > 0).nonzero()[0], (arguments["x"] == 0).nonzero()[0]
    for at in (positive, zero) if which != "x" else (positive,):
        arguments[which][tuple(at)] = number
    found = []
    for context in (warnings.catch_warnings(), compiled()):
        leaves = [arguments[k].clone().requires_grad_() for k in ("mu", "scale", "logits")]
        with context:
            result = Law(*leaves, validate_args=False).log_prob(arguments["x"])
            found.append((result, *torch.autograd.grad(result.sum(), leaves)))
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("shape", [(COLUMNS, ROWS), (10, 10)], ids=["all", "a scale of its own for each column"])
def test_transposed_and_expanded_arguments(shape: tuple[int, int], fused: list[int]) -> None:
    """Each number is read from where it lies."""
    generator = torch.Generator().manual_seed(5)
    base = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    x, scale = data().double(), base.mT.exp()
    x, scale = (x.T.contiguous().T, scale) if shape[0] == COLUMNS else (x.view(ROWS, 10, 10), scale)
    mu = torch.zeros(x.mT.shape, dtype=torch.float64).mT.requires_grad_()
    found = []
    for context in (warnings.catch_warnings(), compiled()):
        fused.clear()
        with context:
            result = Law(mu, scale, torch.zeros((), dtype=torch.float64).expand(scale.shape)).log_prob(x)
            found.append((result, *torch.autograd.grad(result.sum(), [mu, base], retain_graph=True)))
    assert not fused
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-11, atol=1e-8)


def test_the_quick_logarithm() -> None:
    """At numbers all over the range, and close to 1, to 1.5 units in the last place; of other dtypes torch's own."""
    generator = torch.Generator().manual_seed(4)
    info = torch.finfo(torch.float32)
    spread = torch.empty(10**6, dtype=torch.float64).uniform_(
        math.log(info.tiny), math.log(info.max), generator=generator
    )
    near = torch.empty(10**6, dtype=torch.float64).uniform_(-0.5, 0.5, generator=generator)
    x = torch.cat(
        [spread.exp().clamp(info.tiny, info.max).float(), (1 + near).float(), torch.tensor([info.tiny, 1, info.max])]
    )
    exact = x.double().log()
    unit = torch.finfo(torch.float32).eps * 2.0 ** torch.floor(torch.log2(exact.abs().clamp(min=1e-30)))
    assert ((quick_log(x).double() - exact).abs() / unit).max() <= 1.5
    assert torch.equal(quick_log(x.double()), exact)


def test_small_evaluations_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("torch.compile was called")

    monkeypatch.setattr(torch, "compile", never)
    with compiled():
        Law(torch.zeros(10), 1.0, 0.0).log_prob(torch.ones(10))


def test_without_a_compiler_there_is_one_warning(fused: list[int]) -> None:
    import torch._inductor.config

    expected = losses()
    fused.clear()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", RuntimeWarning)
        with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}), compiled():
            torch.testing.assert_close(losses(), expected, rtol=0, atol=0)
    ours = [str(w.message) for w in seen if "compiled()" in str(w.message)]
    assert len(ours) == 1
    assert "torch.compile failed" in ours[0]
    assert "Install a C++ compiler" in ours[0]
    assert len(fused) >= 5


def test_the_formula_takes_either_kind_of_gate() -> None:
    x, logits = data(), torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))
    logs = torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)
    law = torch.tensor(0.3), torch.tensor(0.7)
    torch.testing.assert_close(_formula.log_density(x, *law, logits), _formula.log_density(x, *law, *logs))
