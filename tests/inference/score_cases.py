"""Guides with latent ZILNs in every wrapping, and their exact ELBO by quadrature, written without the package.

A model has `COPIES` independent copies of two latents x_1, x_2. Each case lays them out in another way (plates, expand,
to_event, masks, scales); its exact ELBO is a sum over the atom and Gauss-Hermite nodes of log x,
which autograd differentiates. The likelihood is bounded in x, so all estimators have finite variance.
"""

import contextlib
import math
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from pyro_zilognormal import ZeroInflatedLogNormal as ZILN

COPIES = 20
START = {
    "mu": torch.tensor([0.3, -0.4], dtype=torch.double),
    "log_scale": torch.tensor([-0.5, 0.1], dtype=torch.double),
    "zero": torch.tensor([0.2, -0.7], dtype=torch.double),
}
PROBS = torch.tensor([0.55, 0.3], dtype=torch.double)
PRIOR = {
    "mu": torch.tensor([0.0, 0.2], dtype=torch.double),
    "scale": torch.tensor([1.0, 0.8], dtype=torch.double),
    "logits": torch.tensor([-0.3, 0.4], dtype=torch.double),
}
DATA = torch.tensor([1.2, 0.4], dtype=torch.double)
NEIGHBOUR = 0.3  # P(b = 1) of the discrete site, which shifts both observations by SHIFT
SHIFT = 0.8
NOISE = 0.5


@dataclass(frozen=True)
class Case:
    """How the two latents of a copy are laid out."""

    wrap: str = "plate"  # plate, expand, event, feeding
    mask: tuple = (True, True)
    poutine_mask: bool = False
    mask_outside_event: bool | None = None
    scale: float = 1.0
    subsample: bool = False
    probs: bool = False
    enumerated: bool = False

    def start(self):
        return {**START, "zero": PROBS} if self.probs else START

    def guide(self, copies=COPIES, has_rsample=True, distribution=ZILN):
        def guide():
            p = {name: pyro.param(name, value.clone()) for name, value in self.start().items()}
            with self._plates(copies) as index:
                self._latents(self._maker(p, distribution, has_rsample), index, copies)

        return guide

    def model(self, copies=COPIES):
        def prior(k):
            return ZILN(PRIOR["mu"][k], PRIOR["scale"][k], PRIOR["logits"][k])

        def model():
            with self._plates(copies) as index:
                x = self._latents(lambda k, shift=None: prior(k), index, copies)
                mean = squash(x) + (self._shift() if self.wrap == "plate" else self._shift().unsqueeze(-1))
                d = dist.Normal(mean, NOISE)
                obs = DATA[index].expand(copies, -1)
                pyro.sample("y", d if self.wrap == "plate" else d.to_event(1), obs=obs)

        return model

    def _maker(self, p, distribution, has_rsample):
        """k, shift -> the guide's distribution of x_k, where `shift` is what another site feeds."""

        def make(k, shift=None):
            loc, scale, zero = p["mu"][k], p["log_scale"][k].exp(), p["zero"][k]
            if shift is not None:
                loc, zero = loc + 0.5 * shift, zero + feed(shift, self.probs)
            return distribution(loc, scale, **{"zi_probs" if self.probs else "zi_logits": zero}).has_rsample_(
                has_rsample
            )

        return make

    @contextlib.contextmanager
    def _plates(self, copies):
        with poutine.scale(scale=self.scale), pyro.plate("copies", copies, dim=-2 if self.wrap == "plate" else -1):
            if self.wrap == "plate":
                with pyro.plate("pair", 2, subsample_size=1 if self.subsample else None, dim=-1) as index:
                    yield index
            else:
                yield slice(None)

    def _latents(self, make, index, copies):
        """x_1 and x_2 along the last dimension."""
        mask = torch.tensor(self.mask)
        if self.wrap == "plate":
            with poutine.mask(mask=mask[index]) if self.poutine_mask else contextlib.nullcontext():
                d = make(index)
                return pyro.sample("x", d if self.poutine_mask or all(self.mask) else d.mask(mask[index]))
        if self.wrap == "event":
            return pyro.sample("x", self._event(make(index), mask))
        first = pyro.sample("x0", self._row(make(0), mask[0], copies))
        second = make(1, squash(first)) if self.wrap == "feeding" else make(1)
        return torch.stack([first, pyro.sample("x1", self._row(second, mask[1], copies))], -1)

    def _row(self, d, mask, copies):
        d = d.expand([copies]) if self.wrap == "expand" else d
        return d if all(self.mask) else d.mask(mask)

    def _event(self, d, mask):
        if self.mask_outside_event is None:
            return d.to_event(1)
        # A mask outside the event is for the event as a whole.
        return d.to_event(1).mask(mask[0]) if self.mask_outside_event else d.mask(mask).to_event(1)

    def _shift(self):
        if not self.enumerated:
            return torch.zeros((), dtype=torch.double)
        b = pyro.sample("b", dist.Bernoulli(torch.tensor(NEIGHBOUR).double()), infer={"enumerate": "parallel"})
        return SHIFT * b

    def exact(self, params):
        """The ELBO of one copy."""
        logits = params["zero"].logit() if self.probs else params["zero"]
        scale = params["log_scale"].exp()
        x0, w0, q0 = nodes(params["mu"][0], scale[0], logits[0])
        if self.wrap == "feeding":
            shift = squash(x0)
            zero1 = (
                (params["zero"][1] + feed(shift, self.probs)).logit() if self.probs else logits[1] + feed(shift, False)
            )
            x1, w1, q1 = nodes(params["mu"][1] + 0.5 * shift, scale[1].expand_as(shift), zero1)
        else:
            x1, w1, q1 = (part.unsqueeze(0) for part in nodes(params["mu"][1], scale[1], logits[1]))
        x0, w0, q0 = (part.unsqueeze(1) for part in (x0, w0, q0))
        mask = (self.mask[0],) * 2 if self.mask_outside_event else self.mask
        total = self._log_likelihood(x0, x1)
        for k, (x, q) in enumerate([(x0, q0), (x1, q1)]):
            if mask[k]:
                total = total + log_density(x, *(PRIOR[key][k] for key in ("mu", "scale", "logits"))) - q
        return self.scale * (w0 * w1 * total).sum()

    def _log_likelihood(self, x0, x1):
        shifts = [(0.0, 1 - NEIGHBOUR), (SHIFT, NEIGHBOUR)] if self.enumerated else [(0.0, 1.0)]
        table = [[log_normal(DATA[k] - squash(x) - s) for k, x in enumerate((x0, x1))] for s, _ in shifts]
        logs = [math.log(p) for _, p in shifts]
        if self.wrap == "plate":  # a neighbour for each of the pair
            return sum(log_sum([row[k] + w for row, w in zip(table, logs, strict=True)]) for k in range(2))
        return log_sum([row[0] + row[1] + w for row, w in zip(table, logs, strict=True)])


def log_sum(terms):
    return torch.logsumexp(torch.stack(torch.broadcast_tensors(*terms)), 0)


def squash(x):
    return 2 * x / (1 + x)


def feed(shift, probs):
    return 0.15 * shift if probs else 1.2 * shift - 0.5


def log_normal(z):
    return -0.5 * (z / NOISE) ** 2 - math.log(NOISE * math.sqrt(2 * math.pi))


def log_density(x, mu, scale, logits):
    positive = torch.where(x > 0, x, 1.0)
    z = (positive.log() - mu) / scale
    above = (
        torch.log(torch.sigmoid(-logits)) - positive.log() - torch.log(scale) - 0.5 * math.log(2 * math.pi) - z * z / 2
    )
    return torch.where(x > 0, above, torch.log(torch.sigmoid(logits)))


def nodes(mu, scale, logits, number=120):
    """The atom and the nodes of the positive part: x, weights that sum to 1, log q(x); nodes in the last dimension."""
    t, w = (torch.tensor(a) for a in np.polynomial.hermite_e.hermegauss(number))
    pi = torch.sigmoid(logits).unsqueeze(-1)
    x = torch.cat([torch.zeros_like(pi), torch.exp(mu.unsqueeze(-1) + scale.unsqueeze(-1) * t)], -1)
    weights = torch.cat([pi, (1 - pi) * w / w.sum()], -1)
    return x, weights, log_density(x, mu.unsqueeze(-1), scale.unsqueeze(-1), logits.unsqueeze(-1))


def exact_gradient(case):
    """The gradient of minus the ELBO of one copy, in the order of `gradients`."""
    params = {name: value.clone().requires_grad_() for name, value in case.start().items()}
    return torch.cat(torch.autograd.grad(-case.exact(params), list(params.values())))


def gradients(loss, model, guide, steps, copies=COPIES):
    """Estimates of the gradient of the loss of one copy, one row a step, through `loss_and_grads` as SVI calls it."""
    pyro.clear_param_store()
    rows = []
    for _ in range(steps):
        loss.loss_and_grads(model, guide)
        leaves = [pyro.get_param_store()._params[name] for name in START]
        rows.append(
            torch.cat([torch.zeros(2).double() if leaf.grad is None else leaf.grad for leaf in leaves]) / copies
        )
        for leaf in leaves:
            leaf.grad = None
    return torch.stack(rows)


def z_scores(estimates, exact):
    """How many standard errors the mean of the estimates is from the exact value."""
    return (estimates.mean(0) - exact) / (estimates.std(0) / len(estimates) ** 0.5)
