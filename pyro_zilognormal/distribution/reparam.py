"""A latent zero-inflated log-normal as a Bernoulli and a log-normal, for NUTS, AutoGuides and enumeration."""

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

    so the site ``x_gate`` is 1 where x = 0. It can be enumerated (NUTS does so by itself; with SVI use
    `config_enumerate` and `TraceEnum_ELBO`, and hide the site from an AutoGuide), which leaves a continuous latent for
    NUTS, HMC and AutoGuides. Enumeration needs the site's dimensions in plates, not in `.to_event()`. Sites in
    `.expand()`, `.to_event()` and `.mask()` are split too, and so are observed sites, where the two log densities sum
    to that of x.

    Example:
        >>> import pyro, torch
        >>> from pyro_zilognormal import ZeroInflatedLogNormal, ZeroInflatedLogNormalReparam
        >>> def model():
        ...     return pyro.sample("x", ZeroInflatedLogNormal(0.0, 1.0, zi_probs=0.3))
        >>> split = pyro.poutine.reparam(model, config={"x": ZeroInflatedLogNormalReparam()})
        >>> list(pyro.poutine.trace(split).get_trace().nodes)
        ['_INPUT', 'x_gate', 'x_positive', 'x', '_RETURN']

        With an AutoGuide, hide the Bernoulli site from the guide and enumerate it in the model:

        >>> from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate
        >>> from pyro.infer.autoguide import AutoNormal
        >>> guide = AutoNormal(pyro.poutine.block(split, hide=["x_gate"]))
        >>> svi = SVI(config_enumerate(split), guide, pyro.optim.Adam({"lr": 0.01}), TraceEnum_ELBO())
        >>> loss = svi.step()
    """

    def apply(self, msg: ReparamMessage) -> ReparamResult:
        """Replace the site; see :class:`pyro.infer.reparam.reparam.Reparam`."""
        d, mask = _unwrap(msg["name"], msg["fn"])
        if isinstance(d, _PositivePart):  # a config that splits every ZILN also meets the positive parts of this split
            return {"fn": msg["fn"], "value": msg["value"], "is_observed": msg["is_observed"]}
        value, observed, event_dim = msg["value"], msg["is_observed"], msg["fn"].event_dim
        is_zero = positive = None
        positive_mask = mask
        if value is not None:
            is_zero = (value == 0).to(value.dtype)
            positive = torch.where(mask & (value != 0), value, 1)
            # An observed zero carries no information on the positive part; a latent zero only initialises it at 1.
            positive_mask = mask & (value != 0) if observed else mask
        bernoulli = Bernoulli(logits=_bounded(d.zi_logits), validate_args=d._validate_args)
        infer = {"is_observed": observed}
        is_zero = pyro.sample(f"{msg['name']}_gate", _wrap(bernoulli, mask, event_dim), obs=is_zero, infer=infer)
        positive = pyro.sample(
            f"{msg['name']}_positive",
            _wrap(_positive_distribution(d, observed), positive_mask, event_dim),
            obs=positive,
            infer=infer,
        )
        if value is None:
            value = torch.where(is_zero == 1, 0, positive)
        # As in pyro.deterministic: the site stays in the trace and adds nothing to its density.
        return {"fn": Delta(value, event_dim=event_dim).mask(False), "value": value, "is_observed": True}


class _PositivePart(ZeroInflatedLogNormal):
    """The log-normal as the ZILN without zeros."""


def _unwrap(name: str, fn: Any) -> tuple[ZeroInflatedLogNormal, Tensor]:
    """The distribution inside Independent, Masked and Expanded wrappers, and its mask over batch and event shape."""
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


def _positive_distribution(d: ZeroInflatedLogNormal, observed: bool) -> TorchDistribution:
    """LogNormal(mu, scale); if observed, the ZILN without zeros, whose gradients stay finite where NaN is masked."""
    if observed:
        return _PositivePart(d.loc, d.scale, -math.inf, validate_args=d._validate_args)
    return LogNormal(d.loc, d.scale, validate_args=d._validate_args)


def _bounded(logits: Tensor) -> Tensor:
    """Finite logits, since Bernoulli's log_prob is NaN at infinite ones; so large that it is 0 or nearly -inf."""
    bound = math.sqrt(torch.finfo(logits.dtype).max)
    return logits.clamp(-bound, bound)
