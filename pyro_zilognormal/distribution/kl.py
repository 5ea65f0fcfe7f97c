"""Closed-form Kullback-Leibler divergences, registered with `torch.distributions.kl_divergence`.

KL(p, q) = KL(Bernoulli_p, Bernoulli_q) + (1 - pi_p) KL(Normal_p, Normal_q), because the positive part is a
log-normal and a divergence does not change under x -> log x. A LogNormal is the ZILN with pi = 0.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.distributions import LogNormal
from torch.distributions.kl import register_kl

from pyro_zilognormal.distribution.validation import broadcast_shapes
from pyro_zilognormal.distribution.ziln import ZeroInflatedLogNormal
from pyro_zilognormal.numerics.normal import exp_times, with_slopes
from pyro_zilognormal.numerics.zero_part import ZeroPart

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)


@register_kl(ZeroInflatedLogNormal, ZeroInflatedLogNormal)
@register_kl(LogNormal, ZeroInflatedLogNormal)
@register_kl(ZeroInflatedLogNormal, LogNormal)
def _kl(p: ZeroInflatedLogNormal | LogNormal, q: ZeroInflatedLogNormal | LogNormal) -> Tensor:
    p, q = (_as_ziln(d) if isinstance(d, LogNormal) else d for d in (p, q))
    batch_shape = broadcast_shapes(p=p.batch_shape, q=q.batch_shape)
    (p_loc, p_scale, p_zero), (q_loc, q_scale, q_zero) = p._parameters(), q._parameters()
    positive = _kl_normals(p_loc - q_loc, p_scale, q_scale, p_zero.log_positive)
    return p._full(kl_zero_parts(p_zero, q_zero) + positive, q.loc.dtype).expand(batch_shape)


def _as_ziln(d: LogNormal) -> ZeroInflatedLogNormal:
    return ZeroInflatedLogNormal(d.loc, d.scale, -math.inf, validate_args=False)


def _slopes_of_kl_normals(*inputs_and_output: Tensor) -> Sequence[Tensor]:
    *inputs, output = inputs_and_output
    _, p_scale, q_scale, _ = inputs
    root, rooted, z = _rooted(*inputs)
    growth = 2 * root + rooted  # rooted * growth = w ((p_scale / q_scale)^2 - 1)
    in_p_scale = _scaled_ratio(rooted, growth, p_scale)
    sum_of_squares = rooted * growth + z * z
    apart = _scaled_ratio(rooted, growth, q_scale).clamp(min=0) + z * (z / q_scale)
    in_q_scale = -torch.where(sum_of_squares.isinf(), apart, sum_of_squares / q_scale)
    return _scaled_ratio(root, z, q_scale), in_p_scale, in_q_scale, torch.where(output < math.inf, output, 0)


@with_slopes(_slopes_of_kl_normals)
def _kl_normals(shift: Tensor, p_scale: Tensor, q_scale: Tensor, log_weight: Tensor) -> Tensor:
    """w (excess + (excess^2 + z^2) / 2 - log1p(excess)), p_scale / q_scale = 1 + excess and z = shift / q_scale.

    This is the divergence of two normals times a weight: 0 where that is 0, however far they are apart. Nearly equal
    scales enter through their relative difference, which keeps its digits. The root of the weight multiplies excess
    and z before they are squared.
    """
    excess = (p_scale - q_scale) / q_scale
    log_ratio = torch.where(excess.abs() < 0.5, torch.log1p(excess), p_scale.log() - q_scale.log())
    root, rooted, z = _rooted(shift, p_scale, q_scale, log_weight)
    return root * (rooted - root * log_ratio) + rooted * (rooted / 2) + z * (z / 2)


def _rooted(shift: Tensor, p_scale: Tensor, q_scale: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The root of the weight, and its products with the excess and with z."""
    root = (log_weight / 2).exp()
    return root, _scaled_ratio(root, p_scale - q_scale, q_scale), _scaled_ratio(root, shift, q_scale)


def _scaled_ratio(root: Tensor, a: Tensor, b: Tensor) -> Tensor:
    ratio = a / b
    return torch.where(ratio.isinf(), root * a / b, root * ratio)


def kl_zero_parts(p: ZeroPart, q: ZeroPart) -> Tensor:
    """KL(Bernoulli_p, Bernoulli_q)."""
    difference = q.logits - p.logits
    near = difference.abs() < 1
    far = _kl_term(p.log_zero, q.log_zero) + _kl_term(p.log_positive, q.log_positive)
    return torch.where(near, _kl_near(p.logits, torch.where(near, difference, 0), near), far)


def _kl_term(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p (log p - log q): 0 where p = 0, inf where only q = 0."""
    possible = log_p > -math.inf
    expected = possible & (log_q > -math.inf)
    log_p, log_q = torch.where(expected, log_p, 0), torch.where(expected, log_q, 0)
    return torch.where(expected, exp_times(log_p, log_p - log_q), torch.where(possible, math.inf, 0))


def _kl_near(logits: Tensor, difference: Tensor, near: Tensor) -> Tensor:
    """d^2 times the integral of (1 - u) sigmoid'(l + u d) over u in [0, 1], a sum of positive terms.

    This is Taylor's remainder of softplus. Eight Gauss-Legendre nodes integrate it to 1e-17 for |d| < 1, because
    the nearest pole of sigmoid' is pi away; the plain difference of logarithms would lose all digits as d -> 0.
    """
    logits = torch.where(near, logits, 0)
    total = torch.zeros_like(difference)
    for node, weight in zip((_NODES + 1) / 2, _WEIGHTS / 2, strict=True):
        between = ZeroPart(logits + node * difference)
        total = total + weight * (1 - node) * between.log_variance().exp()
    return difference.square() * total
