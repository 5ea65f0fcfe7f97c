"""One step of EM for what genes have in common, given each gene's coefficients as Normal."""

from __future__ import annotations

from torch import Tensor

from pyro_zilognormal.models._blocks import Component, Normal


def em_step(
    component: Component, theta: Tensor, variance: Tensor, slab: Tensor, values: dict[str, Tensor]
) -> dict[str, Normal]:
    """Return mean and standard deviation of a component's hyperparameters.

    Args:
        component: the component.
        theta: its elements' posterior means were the prior all slab, of shape (genes, width).
        variance: their posterior variances.
        slab: the probability of each that it is not nearly 0.
        values: the hyperparameters so far.
    """
    found: dict[str, Normal] = {}
    mean, precision = component.moments(values)
    if component.mean is not None:
        prior_mean, prior_sd = component.mean
        information = theta.shape[0] * precision + prior_sd.pow(-2)
        mean = (theta.sum(0) * precision + prior_mean * prior_sd.pow(-2)) / information
        found[f"{component.name}_mean"] = mean, information.rsqrt()
    if component.logit_share is not None:
        found[f"{component.name}_logit_share"] = _logit_share(component.logit_share, slab)
    # An element tells of the slab as far as it belongs to it, and as its data have resolved it.
    told = slab * (1 - variance * precision).clamp(min=0).square()
    squares = (theta - mean).square() + variance
    found[f"{component.name}_log_sd"] = _log_sd(component.log_sd, squares, slab, told)
    return found


def _logit_share(prior: Normal, slab: Tensor) -> Normal:
    """Return a Newton step's fixed point of the share given each element's probability, and its sd."""
    middle, sd = prior
    share = ((slab.sum(0) + 0.5) / (len(slab) + 1)).clamp(1e-6, 1 - 1e-6)
    information = len(slab) * share * (1 - share)
    at = (information * share.logit() + middle * sd.pow(-2)) / (information + sd.pow(-2))
    told = (slab - 0.5).square().mul(4).sum(0) * share * (1 - share)
    return at, (told + sd.pow(-2)).rsqrt()


def _log_sd(prior: Normal, squares: Tensor, slab: Tensor, told: Tensor) -> Normal:
    """Return the mode of log sd given expected squares, and its sd; complete data tell 2 of it an element."""
    middle, sd = prior
    if len(middle) == 1:
        squares, slab, told = (v.reshape(-1, 1) for v in (squares, slab, told))
    complete, before = 2 * slab.sum(0), sd.pow(-2)
    at = (complete * ((slab * squares).sum(0) / slab.sum(0)).log() / 2 + before * middle) / (complete + before)
    return at, (2 * told.sum(0) + before).rsqrt()
