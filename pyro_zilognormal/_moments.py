"""Mean, variance, mode and entropy in log space, where they overflow only if the true value does."""

import torch
from torch import Tensor

from pyro_zilognormal._gate import Gate
from pyro_zilognormal._normal import HALF_LOG_2PI


def log_mean(loc: Tensor, scale: Tensor, gate: Gate) -> Tensor:
    """log E[X] = log(1 - pi) + mu + scale^2 / 2."""
    return gate.log_positive + loc + scale.square() / 2


def log_variance(loc: Tensor, scale: Tensor, gate: Gate) -> Tensor:
    """log Var[X] = 2 mu + scale^2 + log((1 - pi) expm1(scale^2) + pi (1 - pi))."""
    square = scale.square()
    within = gate.log_positive + square + torch.log(-torch.expm1(-square))
    return 2 * loc + square + torch.logaddexp(within, gate.log_variance())


def mode(loc: Tensor, scale: Tensor, gate: Gate) -> Tensor:
    """0 if log P(X = 0) is at least the log density at its peak, exp(mu - scale^2), else that peak."""
    peak = loc - scale.square()
    log_density = gate.log_positive - peak - scale.log() - HALF_LOG_2PI - scale.square() / 2
    return torch.where(gate.log_zero >= log_density, 0, peak.exp())


def entropy(loc: Tensor, scale: Tensor, gate: Gate) -> Tensor:
    """H(Bernoulli(pi)) + (1 - pi) (mu + 1/2 + log(scale sqrt(2 pi)))."""
    return gate.entropy() + gate.positive * (loc + 0.5 + scale.log() + HALF_LOG_2PI)
