"""Whether a loss is level because there is nothing to gain, or because the learning rate has become too low."""

from collections.abc import Sequence
from typing import Any

import torch

from pyro_zilognormal.svi.trends import trend

# A learning rate below this share of its peak is low.
_LOW = 0.1


def highest_rate(optimizer: torch.optim.Optimizer) -> float:
    """Return the highest learning rate of an optimiser's groups."""
    return float(max(group["lr"] for group in optimizer.param_groups))


def why_level(losses: Sequence[float], rates: Sequence[float], most: int, least: float, errors: float) -> str:
    """Say why losses are level: "converged", "slowed down" where they clearly fell until the rate was too low, or "".

    An optimiser such as Adam moves a parameter by about its rate at each step, so that the sum of the rates tells how
    far a fit can have come. It looks at the last steps before the rate came down below a tenth of its peak: half of
    those until then, but at most ``most``. Once the rates since then have led as far, the losses since then tell
    enough. Until then there is no telling, "", unless the rate has become too low for that to come.

    Args:
        losses: of every step.
        rates: of every step.
        most: how many steps to look at at most.
        least: the smallest fall that counts.
        errors: by how many standard errors a fall is no chance.
    """
    rate = torch.tensor(rates, dtype=torch.float64)
    since = int((rate >= _LOW * rate.max()).nonzero().max()) + 1
    start = max(since // 2, since - most)
    way = float(rate[start:since].sum())
    slope, error = trend(losses[start:since])
    fell = -slope * (since - start) > least and -slope > errors * error
    if since == len(rate) or not fell or rate[since:].sum() >= way:
        return "converged"
    return "" if rates[-1] * most > _LOW * way else "slowed down"


def check_rates(rates: Any) -> None:
    """Raise a ValueError unless ``rates`` are learning rates as a checkpoint keeps them."""
    kind = isinstance(rates, torch.Tensor) and rates.dtype == torch.float64 and rates.dim() == 1
    if not (kind and bool(torch.isfinite(rates).all())):
        raise ValueError("rates are no tensor of finite learning rates, one a step")
