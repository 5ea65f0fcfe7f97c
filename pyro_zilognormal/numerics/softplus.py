"""log(1 + exp(t)) in steps, each in place: exp(t), of which the derivative is a simple function; then log1p of it.

torch's exp and log1p take less time than its softplus and log_sigmoid, which are not made of the fastest routines.
"""

import torch
from torch import Tensor

# From where on log(1 + exp(t)) is t to the last digit, while exp(t) is finite.
LINEAR = {torch.float16: 10.0}
LINEAR_IN_OTHERS = 40.0


def exp_(t: Tensor) -> Tensor | None:
    """exp(t), in place, of t cut where that might overflow; what was cut off, or None if nothing was."""
    limit, excess = LINEAR.get(t.dtype, LINEAR_IN_OTHERS), None
    if not t.amax().item() <= limit:  # NaN is not
        excess = torch.sub(t, limit).clamp_(min=0)
        t.clamp_(max=limit)
    t.exp_()
    return excess


def softplus_of_exp_(exp_t: Tensor, excess: Tensor | None) -> Tensor:
    """log(1 + exp(t)) in place of exp(t), given what was cut off from t."""
    softplus = exp_t.log1p_()
    return softplus if excess is None else softplus.add_(excess)
