"""First and second derivatives against finite differences, and the pathwise derivative of a draw."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import kl_divergence

from pyro_zilognormal import ZeroInflatedLogNormal as ZILN
from tests.exactness import METHODS_OF_X, QUANTITIES, compute

OF_PARAMETERS = [n for n in QUANTITIES if n not in (*METHODS_OF_X, "icdf")]
PARAMETERS = ([0.4, -1.0, 0.4], [0.7, 2.0, 0.7], [-0.5, 1.5, 30.0])


def leaves(*columns: list[float]) -> list[Tensor]:
    return [torch.tensor(c, dtype=torch.float64, requires_grad=True) for c in columns]


def check(f: object, args: list[Tensor]) -> None:
    """First and second derivatives against finite differences."""
    assert gradcheck(f, args)
    assert gradgradcheck(f, args)


@pytest.mark.parametrize("kind", ["zi_logits", "zi_probs", "cloglog"])
@pytest.mark.parametrize("name", OF_PARAMETERS)
def test_of_the_parameters(name: str, kind: str) -> None:
    mu, scale, logit = leaves(*PARAMETERS)
    zero = torch.tensor([0.3, 0.8, 0.05], dtype=torch.float64, requires_grad=True) if kind == "zi_probs" else logit
    check(lambda *args: compute(name, args, kind), [mu, scale, zero])


@pytest.mark.parametrize("x", [0.0, 1e-300, 1e-30, 0.3, 2.5, 40.0])
@pytest.mark.parametrize("kind", ["zi_logits", "zi_probs", "cloglog"])
@pytest.mark.parametrize("name", METHODS_OF_X)
def test_at_a_value(name: str, kind: str, x: float) -> None:
    """In the parameters, which AutoLaplace differentiates twice; in x too where it can be moved."""
    mu, scale, zero = leaves([0.4], [0.7], [0.3])
    value = torch.tensor([x], dtype=torch.float64)
    if x > 0.1:
        check(lambda *args: compute(name, args, kind), [mu, scale, zero, value.requires_grad_()])
    else:
        check(lambda *args: compute(name, [*args, value], kind), [mu, scale, zero])


@pytest.mark.parametrize("q", [0.1, 0.62, 0.8, 0.999])
@pytest.mark.parametrize("kind", ["zi_logits", "zi_probs", "cloglog"])
def test_icdf(q: float, kind: str) -> None:
    args = leaves([0.4], [0.7], [0.3], [q])
    check(lambda *a: compute("icdf", a, kind), args)


PAIRS = [((0.4, 0.7, -0.5), (0.1, 1.0, -2.0)), ((-1.0, 2.0, 30.0), (0.0, 0.5, 20.0)), ((0.4, 0.7, 0.3),) * 2]


@pytest.mark.parametrize(("p", "q"), PAIRS, ids=["ordinary", "far zero parts", "equal"])
def test_divergences(p: tuple[float, ...], q: tuple[float, ...]) -> None:
    first, second = leaves(*([a] for a in p)), leaves(*([a] for a in q))
    check(lambda *a: kl_divergence(ZILN(*a[:3]), ZILN(*a[3:])), [*first, *second])
    check(lambda *a: kl_divergence(dist.LogNormal(*a[:2]), ZILN(*a[2:])), [*first[:2], *second])


def test_a_draw_moves_with_mu_and_scale() -> None:
    """Given which draws are zero, x = exp(mu + scale e): dx/dmu = x, dx/dscale = x e; a zero stays where it is."""
    mu, scale, logit = (a.detach().expand(500, 3).clone() for a in leaves(*PARAMETERS))
    torch.manual_seed(0)
    x = ZILN(mu.requires_grad_(), scale.requires_grad_(), logit).rsample()
    by_mu, by_scale = torch.autograd.grad(x.sum(), [mu, scale])
    noise = torch.where(x > 0, (torch.where(x > 0, x, 1.0).log() - mu) / scale, 0.0)
    torch.testing.assert_close(by_mu, x)
    torch.testing.assert_close(by_scale, x * noise, rtol=1e-7, atol=1e-12)
    assert 0 < (x == 0).sum() < x.numel()
