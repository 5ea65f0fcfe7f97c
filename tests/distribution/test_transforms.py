"""The distribution under torch's own machinery: compile, func, jit, autograd corners, other devices."""

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch.func import hessian, jacfwd, jacrev, vmap

from pyro_zilognormal import ZeroInflatedLogNormal
from tests.distribution.density_cases import SHAPES, Shapes, arguments

ARGUMENTS = tuple(
    torch.tensor(values, dtype=torch.float64)
    for values in ([0.0, 1e-30, 1.0, 2.5], [0.3, -1.0, 0.0, 2.0], [0.5, 30.0, 1.0, 0.1], [-1.0, 0.0, 200.0, -200.0])
)
METHODS = ["log_prob", "cdf", "log_cdf", "log_survival_function"]
Function = Callable[..., torch.Tensor]


def of(method: str, **more: bool) -> Function:
    def function(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return getattr(ZeroInflatedLogNormal(*parameters, **more), method)(x)

    return function


@pytest.mark.usefixtures("quiet_compiler")
@pytest.mark.parametrize("validate", [None, True, False])
def test_compile(validate: bool | None) -> None:
    function = of("log_prob", validate_args=validate)
    compiled = torch.compile(function, fullgraph=True)
    arguments = [a.clone().requires_grad_() for a in ARGUMENTS]
    expected, actual = function(*arguments), compiled(*arguments)
    torch.testing.assert_close(actual, expected, rtol=1e-14, atol=0)
    for wanted, got in zip(*(torch.autograd.grad(f.sum(), arguments) for f in (expected, actual)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-13, atol=0)


@pytest.mark.usefixtures("quiet_compiler")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("shapes", [SHAPES["full"], SHAPES["per gene"]], ids=["full", "per gene"])
def test_compile_a_sum(shapes: Shapes, backend: str) -> None:
    """As in a training step, of more entries than are left to the formula."""
    x, *parameters = arguments(shapes)
    x, parameters = x.repeat(20, 1), [p.repeat(20, 1) if p.dim() > 1 else p for p in parameters]
    leaves = [x, *(p.requires_grad_() for p in parameters)]
    function = of("log_prob")
    compiled = torch.compile(lambda *args: function(*args).sum(), backend=backend, fullgraph=True)
    for _ in range(2):
        actual, expected = compiled(*leaves), function(*leaves).sum()
        torch.testing.assert_close(actual, expected, rtol=1e-13, atol=0)
        for got, wanted in zip(*(torch.autograd.grad(f, parameters) for f in (actual, expected)), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("quiet_compiler")
@pytest.mark.parametrize("shape", [(7, 3), (3,), (1, 3)], ids=["full", "per gene", "one row"])
def test_export_serves_any_number_of_rows(shape: tuple[int, ...]) -> None:
    class LogProb(torch.nn.Module):
        def forward(self, x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
            return ZeroInflatedLogNormal(*parameters).log_prob(x)

    rows = torch.export.Dim("rows", max=10_000)

    def inputs(n: int) -> tuple[torch.Tensor, ...]:
        size = (n, *shape[1:]) if shape[0] == 7 else shape
        return torch.rand(n, 3).mul(2).round(), torch.zeros(size), torch.ones(size), torch.full(size, 0.3)

    dynamic = ({0: rows}, *[{0: rows} if shape[0] == 7 else None] * 3)
    exported = torch.export.export(LogProb(), inputs(7), dynamic_shapes={"x": dynamic[0], "parameters": dynamic[1:]})
    for n in (2, 5, 30, 10_000):
        x, *parameters = inputs(n)
        torch.testing.assert_close(exported.module()(x, *parameters), LogProb()(x, *parameters))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    """A head in half precision and a scale in float32: the loss is in float32, and all train."""
    head, log_scale = torch.nn.Linear(4, 2), torch.nn.Parameter(torch.zeros(()))
    x = torch.tensor([0.0, 1.5, 0.0])
    with torch.autocast("cpu", dtype=dtype):
        mu, logits = head(torch.ones(3, 4)).unbind(-1)
        d = ZeroInflatedLogNormal(mu, log_scale.exp(), logits)
        loss = -d.log_prob(x).sum()
    assert mu.dtype == dtype
    assert d.loc.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(
        -loss, ZeroInflatedLogNormal(mu.float(), log_scale.exp(), logits.float()).log_prob(x).sum()
    )
    loss.backward()
    for parameter in (*head.parameters(), log_scale):
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


@pytest.mark.usefixtures("quiet_compiler")
def test_compile_a_bound_method() -> None:
    d = ZeroInflatedLogNormal(*ARGUMENTS[1:])
    torch.testing.assert_close(torch.compile(d.log_prob, fullgraph=True)(ARGUMENTS[0]), d.log_prob(ARGUMENTS[0]))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch has no batching rule for log_ndtr
@pytest.mark.parametrize("method", METHODS)
def test_vmap(method: str) -> None:
    torch.testing.assert_close(vmap(of(method))(*ARGUMENTS), of(method)(*ARGUMENTS), rtol=1e-14, atol=0)
    in_dims = (0, None, None, None)
    scalars = [a[0] for a in ARGUMENTS[1:]]
    torch.testing.assert_close(vmap(of(method), in_dims)(ARGUMENTS[0], *scalars), of(method)(ARGUMENTS[0], *scalars))


def test_vmap_of_draws() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draw = vmap(lambda mu: ZeroInflatedLogNormal(mu, 1.0, 0.0).sample((100,)), randomness="different")(
            torch.zeros(3)
        )
    assert draw.shape == (3, 100)
    assert len(draw.unique(dim=0)) == 3


@pytest.mark.parametrize("method", METHODS)
def test_jacobians_agree_with_autograd(method: str) -> None:
    arguments = [a.clone().requires_grad_() for a in ARGUMENTS]
    expected = torch.autograd.grad(of(method)(*arguments).sum(), arguments[1:])
    for transform in (jacrev, jacfwd):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            jacobians = transform(of(method), argnums=(1, 2, 3))(*ARGUMENTS)
        for wanted, jacobian in zip(expected, jacobians, strict=True):
            torch.testing.assert_close(jacobian.diagonal(), wanted, rtol=1e-12, atol=1e-300)


def test_hessian_agrees_with_the_formulas() -> None:
    x, mu, scale, logits = ARGUMENTS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        second = hessian(lambda *p: of("log_prob")(x, *p).sum(), argnums=(0, 1, 2))(mu, scale, logits)
    positive = x > 0
    z = (torch.where(positive, x, 1).log() - mu) / scale
    variance = torch.sigmoid(logits) * torch.sigmoid(-logits)
    torch.testing.assert_close(second[0][0].diagonal(), torch.where(positive, -1 / scale**2, 0))
    torch.testing.assert_close(second[0][1].diagonal(), torch.where(positive, -2 * z / scale**2, 0))
    torch.testing.assert_close(second[1][1].diagonal(), torch.where(positive, (1 - 3 * z**2) / scale**2, 0))
    torch.testing.assert_close(second[2][2].diagonal(), -variance)
    assert not second[0][2].any()


def test_jit_trace() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(of("log_prob"), ARGUMENTS)
    other = (ARGUMENTS[0].flip(0), *(a * 0.5 for a in ARGUMENTS[1:]))
    torch.testing.assert_close(traced(*other), of("log_prob")(*other), rtol=1e-14, atol=0)


@pytest.mark.parametrize("method", [*METHODS, "icdf"])
def test_meta_device(method: str) -> None:
    arguments = [a.to("meta") for a in ARGUMENTS]
    assert of(method)(*arguments).shape == (4,)
    assert ZeroInflatedLogNormal(*arguments[1:]).sample((2,)).device.type == "meta"


def test_a_module_moves_across_devices_and_dtypes() -> None:
    class Gene(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mu = torch.nn.Parameter(torch.zeros(2))

        def forward(self) -> ZeroInflatedLogNormal:
            return ZeroInflatedLogNormal(self.mu, 1.0, 0.0)

    module = Gene()
    assert module().sample().dtype == torch.float32
    assert module.double()().sample().dtype == torch.float64
    assert module.to("meta")().sample().device.type == "meta"


@pytest.mark.parametrize("value", [math.nan, -1.0, math.inf, 0.0])
@pytest.mark.parametrize("event", [0, 1])
def test_what_is_behind_a_mask_reaches_neither_value_nor_gradient(value: float, event: int) -> None:
    parameters = [a.clone().requires_grad_() for a in ARGUMENTS[1:]]
    mask = torch.tensor([True, False, True, True])
    x = torch.where(mask, ARGUMENTS[0], value)
    d = ZeroInflatedLogNormal(*parameters, validate_args=True)
    masked = d.mask(mask).to_event(event) if event else d.mask(mask)
    total = masked.log_prob(x).sum()
    clean = torch.where(mask, d.log_prob(ARGUMENTS[0]), 0).sum()
    torch.testing.assert_close(total, clean, rtol=0, atol=0)
    for got, wanted in zip(*(torch.autograd.grad(f, parameters) for f in (total, clean)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    outer = d.expand((2, 4)).to_event(1).mask(torch.tensor([True, False]))
    rows = torch.stack([ARGUMENTS[0], torch.full((4,), value, dtype=torch.float64)])
    assert torch.equal(outer.log_prob(rows), torch.stack([d.log_prob(ARGUMENTS[0]).sum(), torch.zeros(()).double()]))


@pytest.mark.parametrize("logits", [-math.inf, math.inf])
@pytest.mark.parametrize("x", [0.0, 1e-300, 1.0, 1e300])
def test_no_nan_at_infinite_logits(logits: float, x: float) -> None:
    parameters = [torch.tensor(p, dtype=torch.float64, requires_grad=True) for p in (0.3, 0.7, logits)]
    d = ZeroInflatedLogNormal(*parameters)
    value = d.log_prob(torch.tensor(x, dtype=torch.float64))
    gradient = torch.autograd.grad(value, parameters)
    assert not any(g.isnan() for g in (value, *gradient))
    assert value == -math.inf if (x == 0) == (logits < 0) else value.isfinite()
