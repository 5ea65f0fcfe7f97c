"""A latent zero-inflated log-normal as a Bernoulli gate and a log-normal, for NUTS, AutoGuides and enumeration."""

import math
from typing import Any

import pyro
import torch
from pyro.distributions import Bernoulli, Delta, LogNormal, MaskedDistribution, TorchDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.infer.reparam.reparam import Reparam, ReparamMessage, ReparamResult
from torch import Tensor
from torch.distributions import Independent

from pyro_zilognormal.distribution.ziln import ZeroInflatedLogNormal


class ZeroInflatedLogNormalReparam(Reparam):
    r"""Split a site x ~ ZeroInflatedLogNormal(mu, scale, zi_logits) into two.

    .. math::
        x_{gate} \sim \operatorname{Bernoulli}(\text{logits}=\text{zi\_logits}), \qquad
        x_{positive} \sim \operatorname{LogNormal}(\text{mu}, \text{scale}), \qquad
        x = (1 - x_{gate})\, x_{positive}

    so ``gate = 1`` means x = 0. The gate can be enumerated (NUTS does so by itself; with SVI use `config_enumerate`
    and `TraceEnum_ELBO`, and hide the gate from an AutoGuide), which leaves a continuous latent that NUTS, HMC and
    AutoGuides handle. Enumeration needs the gate's dimensions in plates, not in `.to_event()`. Works through
    `.expand()`, `.to_event()` and `.mask()`, and on observed sites, where the two log densities sum to the one of x.

    Example:
        >>> import pyro, torch
        >>> from pyro_zilognormal import ZeroInflatedLogNormal, ZeroInflatedLogNormalReparam
        >>> def model():
        ...     return pyro.sample("x", ZeroInflatedLogNormal(0.0, 1.0, zi_probs=0.3))
        >>> split = pyro.poutine.reparam(model, config={"x": ZeroInflatedLogNormalReparam()})
        >>> list(pyro.poutine.trace(split).get_trace().nodes)
        ['_INPUT', 'x_gate', 'x_positive', 'x', '_RETURN']

        With an AutoGuide, hide the gate from the guide and enumerate it in the model:

        >>> from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate
        >>> from pyro.infer.autoguide import AutoNormal
        >>> guide = AutoNormal(pyro.poutine.block(split, hide=["x_gate"]))
        >>> svi = SVI(config_enumerate(split), guide, pyro.optim.Adam({"lr": 0.01}), TraceEnum_ELBO())
        >>> loss = svi.step()
    """

    def apply(self, msg: ReparamMessage) -> ReparamResult:
        """Replace the site; see :class:`pyro.infer.reparam.reparam.Reparam`."""
        law, mask = _unwrap(msg["name"], msg["fn"])
        if isinstance(law, _PositivePart):  # a config that splits every ZILN it meets has met our own
            return {"fn": msg["fn"], "value": msg["value"], "is_observed": msg["is_observed"]}
        value, observed, event_dim = msg["value"], msg["is_observed"], msg["fn"].event_dim
        gate_law = Bernoulli(logits=_bounded(law.zi_logits), validate_args=law._validate_args)
        positive_law = _positive_law(law, observed)
        gate = positive = None
        seen = mask
        if value is not None:
            gate = (value == 0).to(value.dtype)
            # An observed zero says nothing of the positive part; a latent one only has no initial value for it.
            seen = mask & (value != 0) if observed else mask
            positive = torch.where(mask & (value != 0), value, 1)
        infer = {"is_observed": observed}
        gate = pyro.sample(f"{msg['name']}_gate", _wrap(gate_law, mask, event_dim), obs=gate, infer=infer)
        positive = pyro.sample(
            f"{msg['name']}_positive", _wrap(positive_law, seen, event_dim), obs=positive, infer=infer
        )
        if value is None:
            value = torch.where(gate == 1, 0, positive)
        # As pyro.deterministic does: the site stays in the trace and adds nothing to its density.
        return {"fn": Delta(value, event_dim=event_dim).mask(False), "value": value, "is_observed": True}


class _PositivePart(ZeroInflatedLogNormal):
    """The log-normal as the ZILN without zeros."""


def _unwrap(name: str, fn: Any) -> tuple[ZeroInflatedLogNormal, Tensor]:
    """The law inside Independent, Masked and Expanded wrappers, with its mask over batch and event dimensions."""
    mask = torch.ones((), dtype=torch.bool)
    while not isinstance(fn, ZeroInflatedLogNormal):
        if isinstance(fn, MaskedDistribution):
            outer = torch.as_tensor(fn._mask)
            mask = mask & outer.reshape(outer.shape + (1,) * fn.event_dim)
        if isinstance(fn, ExpandedDistribution):
            fn = fn.base_dist.expand(fn.batch_shape)
        elif isinstance(fn, (Independent, MaskedDistribution)):
            fn = fn.base_dist
        else:
            raise TypeError(
                f"ZeroInflatedLogNormalReparam: site {name!r} is a {type(fn).__name__}, and only a "
                "ZeroInflatedLogNormal, perhaps in .expand(), .to_event() or .mask(), can be split. "
                "Give this site another reparameterizer or none; of a site with obs_mask, split "
                f"'{name}_observed' and '{name}_unobserved'."
            )
    return fn, mask


def _wrap(fn: TorchDistribution, mask: Tensor, event_dim: int) -> TorchDistribution:
    return (fn if mask.dim() == 0 and bool(mask) else fn.mask(mask)).to_event(event_dim)


def _positive_law(law: ZeroInflatedLogNormal, observed: bool) -> TorchDistribution:
    """LogNormal(mu, scale); if observed as the ZILN without zeros, whose gradients stay finite at NaN behind a mask."""
    if observed:
        return _PositivePart(law.loc, law.scale, -math.inf, validate_args=law._validate_args)
    return LogNormal(law.loc, law.scale, validate_args=law._validate_args)


def _bounded(logits: Tensor) -> Tensor:
    """Bernoulli's log_prob is NaN at infinite logits; at these it is 0 or as good as -inf."""
    bound = math.sqrt(torch.finfo(logits.dtype).max)
    return logits.clamp(-bound, bound)
