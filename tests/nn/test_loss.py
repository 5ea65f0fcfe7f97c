"""The loss is the negative log-likelihood, whatever the parameters, and fits into torch's machinery."""

import mpmath as mp
import numpy as np
import pytest
import torch

from pyro_zilognormal import ZeroInflatedLogNormal
from pyro_zilognormal.nn import ZILNHead, ziln_distribution, ziln_loss
from pyro_zilognormal.nn.loss import raw_scale
from tests import oracle

SCALES = (1e-4, 1e-2, 0.5, 1.0, 3.0, 25.0, 1e4)
LOGITS = (-1e4, -20.0, -1.0, 0.0, 3.0, 40.0, 1e4)
TARGETS = (0.0, 1e-30, 0.7, 1.0, 50.0, 1e30)
DTYPES = (torch.float32, torch.float64)


def grid(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Params of shape (n, 3) and targets of shape (n,): every scale with every zero inflation and target."""
    raw = raw_scale(torch.tensor(SCALES, dtype=torch.float64))
    rows = torch.cartesian_prod(torch.tensor([-2.0, 0.3]).double(), raw, torch.tensor(LOGITS).double(), values())
    return rows[:, :3].to(dtype).requires_grad_(), rows[:, 3].to(dtype)


def values() -> torch.Tensor:
    return torch.tensor(TARGETS, dtype=torch.float64)


def random_case(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    params = torch.randn(n, 3, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.randn(n, generator=generator, dtype=torch.float64).exp()
    return params, target * (torch.rand(n, generator=generator) < 0.5)


def assert_within_ulps(actual: torch.Tensor, expected: torch.Tensor, ulps: int) -> None:
    a, b = actual.detach().numpy(), expected.detach().numpy()
    assert (np.abs(a - b) <= ulps * np.spacing(np.abs(b))).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_minus_log_prob(dtype: torch.dtype) -> None:
    params, target = grid(dtype)
    mu, raw, logits = params.detach().unbind(-1)
    exact = raw.double() + torch.log1p(torch.exp(-raw.double().abs())) - raw.double().clamp(max=0)
    exact = torch.where(raw > 0, exact, torch.log1p(raw.double().exp()))
    scale = ziln_distribution(params).scale
    assert_within_ulps(scale, exact.to(dtype), 2)
    expected = -ZeroInflatedLogNormal(mu, scale, logits).log_prob(target)
    assert_within_ulps(ziln_loss(params, target, "none"), expected, 2)


def test_agrees_with_the_oracle() -> None:
    params, target = grid(torch.float64)
    loss = ziln_loss(params, target, "none").tolist()
    for (mu, raw, logit), y, found in zip(params.tolist(), target.tolist(), loss, strict=True):
        zero = oracle.zero_from_logits(mp.mpf(logit))
        expected = -oracle.log_prob(mp.mpf(mu), mp.log1p(mp.exp(raw)), zero, mp.mpf(y))
        assert found == pytest.approx(float(expected), rel=1e-13, abs=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_finite_and_right(dtype: torch.dtype) -> None:
    params, target = grid(dtype)
    (found,) = torch.autograd.grad(ziln_loss(params, target, "sum"), params)
    assert found.isfinite().all()
    mu, raw, logits = params.detach().double().unbind(-1)
    y, scale = target.double(), torch.log1p(raw.exp()).where(raw < 30, raw)
    positive = y > 0
    z = (y.where(positive, 1).log() - mu) / scale
    in_mu = (-z / scale).where(positive, 0)
    in_raw = (raw.sigmoid() * (1 - z) * (1 + z) / scale).where(positive, 0)
    in_logits = logits.sigmoid().where(positive, -(-logits).sigmoid())
    expected = torch.stack([in_mu, in_raw, in_logits], -1)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16, torch.bfloat16])
def test_all_finite_outputs_stand_for_a_distribution(dtype: torch.dtype) -> None:
    values = torch.tensor([-6e4, -800.0, -50.0, 0.0, 50.0, 6e4]).to(dtype)
    d = ziln_distribution(torch.cartesian_prod(values, values, values))  # which validates
    assert d.scale.min() > 0
    assert not d.mean.isnan().any()


def test_reductions_and_weights() -> None:
    params, target = random_case(50)
    loss, weight = ziln_loss(params, target, "none"), torch.arange(50.0).double()
    assert loss.shape == (50,)
    for reduction, expected in {"mean": loss.mean(), "sum": loss.sum()}.items():
        torch.testing.assert_close(ziln_loss(params, target, reduction), expected, rtol=1e-14, atol=0)
    weighted = {"none": weight * loss, "sum": weight @ loss, "mean": weight @ loss / weight.sum()}
    for reduction, expected in weighted.items():
        torch.testing.assert_close(ziln_loss(params, target, reduction, weight), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("missing", [torch.nan, -1.0, torch.inf])
def test_a_target_of_weight_0_does_not_count(missing: float) -> None:
    params, target = random_case(50)
    weight = (torch.arange(50) > 9).double()
    expected = ziln_loss(params[10:], target[10:])
    target[:10] = missing
    loss = ziln_loss(params, target, weight=weight)
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    (gradient,) = torch.autograd.grad(loss, params)
    assert (gradient[:10] == 0).all()
    assert gradient.isfinite().all()


P, Y = torch.zeros(4, 3), torch.ones(4)
BAD = {
    "two outputs": ((torch.zeros(4, 2), Y), r"params must have shape \(..., 3\).*got \(4, 2\)"),
    "a scalar": ((torch.tensor(0.0), Y), r"params must have shape"),
    "a column": ((P, Y[:, None]), r"target must have the shape .*\(4,\), got \(4, 1\).*reshape"),
    "a number": ((P, torch.tensor(1.0)), r"target must have the shape"),
    "reduction": ((P, Y, "avg"), r"reduction must be one of .* got 'avg'"),
    "shape of weight": ((P, Y, "mean", torch.ones(1)), r"weight must have the shape .*\(4,\), got \(1,\)"),
    "negative weight": ((P, Y, "mean", -Y), r"weight must not be negative, got -1"),
    "refund": ((P, -20 * Y), r"-20.0 at index \(0,\)"),
    "NaN": ((P, torch.nan * Y), r"nan at index \(0,\)"),
    "diverged": ((torch.nan * P, Y), r"loc .*nan"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    arguments, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        ziln_loss(*arguments)


@pytest.mark.parametrize("name", ["params", "target", "weight"])
@pytest.mark.parametrize("value", [[0.0], np.zeros((4, 3)), 2.0, "x"], ids=str)
def test_what_is_no_tensor_is_named(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=rf"^{name} must be a torch\.Tensor, got {type(value).__name__}"):
        ziln_loss(**{"params": P, "target": Y, "weight": Y, name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [3, 20_000])
def test_double_backward(n: int) -> None:
    """Also where the kernel for many entries is in charge."""
    params, target = random_case(n)
    (slope,) = torch.autograd.grad(ziln_loss(params, target, "sum"), params, create_graph=True)
    (found,) = torch.autograd.grad(slope[:, 0].sum(), params)
    positive, scale = (target > 0).double(), ziln_distribution(params.detach()).scale
    torch.testing.assert_close(found[:, 0], positive / scale**2, rtol=1e-12, atol=0)
    if n == 3:
        assert torch.autograd.gradgradcheck(lambda p: ziln_loss(p, target), params)


@pytest.mark.usefixtures("quiet_compiler")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile(backend: str) -> None:
    head, x = ZILNHead(4, dtype=torch.float64), torch.linspace(-1, 1, 200).double().reshape(50, 4)
    _, target = random_case(50)
    weight = target + 1

    def loss(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return ziln_loss(head.params(x), y, weight=w) - head(x).log_prob(y).mean()

    compiled = torch.compile(loss, backend=backend, fullgraph=True)
    found, expected = (f(x, target, weight) for f in (compiled, loss))
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
    for got, wanted in zip(*(torch.autograd.grad(f, head.parameters()) for f in (found, expected)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast(half: torch.dtype) -> None:
    head, x = ZILNHead(8).start_at(torch.tensor([0.0, 3.0, 50.0])), torch.linspace(-1, 1, 400).reshape(50, 8)
    target = random_case(50)[1].float()
    expected = torch.autograd.grad(ziln_loss(head.params(x), target), head.parameters())
    with torch.autocast("cpu", half):
        params = head.params(x)
        assert params.dtype == half
        loss = ziln_loss(params, target)
        assert loss.dtype == head(x).loc.dtype == torch.float32
    found = torch.autograd.grad(loss, head.parameters())
    assert loss == ziln_loss(params.float(), target)
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0.05, atol=0.05)


def test_is_least_at_the_moments() -> None:
    _, target = random_case(400)
    head = ZILNHead(1, dtype=torch.float64).start_at(target)
    loss = ziln_loss(head.params(torch.zeros(400, 1, dtype=torch.float64)), target, "sum")
    (slope,) = torch.autograd.grad(loss, head.bias)
    torch.testing.assert_close(slope[:2], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-11)
    n_zero = (target == 0).sum().item()
    half_a_row = 400 * (n_zero + 0.5) / 401 - n_zero  # by which the share of zeros is smoothed
    assert slope[2].item() == pytest.approx(half_a_row, rel=1e-9)
