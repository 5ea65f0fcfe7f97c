"""Train the gate's law of each gene by itself, before all is trained together.

A gate that is nearly always shut or open in a condition has a skewed posterior, far from the Normal at its mode, and
the gradient of one draw is too noisy to bend it within a few hundred steps. Given the hyperparameters the gates
of all genes are small logistic regressions, whose many draws a step cost next to nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_zilognormal.models._conditional import Conditional
from pyro_zilognormal.models._rows import Rows

# Of the guide a step, in pairs of opposite noise.
_DRAWS = 16

# In units of posterior standard deviations at the start; it falls to 0 over the steps.
_LEARNING_RATE = 0.05


@torch.enable_grad()
def settle_gate(law: Conditional, value: Tensor, rows: Rows, prior: tuple[Tensor, Tensor], steps: int = 300) -> None:
    """Move the law to the posterior of the gate's coefficients given their prior, all slab.

    Args:
        law: of the gate, moved in place.
        value: statistics of shape (rows, genes, 5).
        rows: the gate's design.
        prior: mean and 1/sd^2 of each coefficient, each of shape (donors + core,) or (genes, donors + core).
        steps: of Adam.
    """
    zeros, positives = value[..., 0].mT, value[..., 1].mT
    optimizer = torch.optim.Adam(law.parameters(), lr=_LEARNING_RATE)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1.0 / steps, steps)
    noise = torch.Generator(device=value.device).manual_seed(0)
    for _ in range(steps):
        q = law(*prior)
        half = torch.randn(_DRAWS // 2, *q.shape(), dtype=value.dtype, device=value.device, generator=noise)
        theta = q.law.bent(torch.cat([half, -half]))
        eta = rows.predict(theta)
        fit = (zeros * logsigmoid(eta) + positives * logsigmoid(-eta)).sum(-1)
        log_prior = -((theta - prior[0]).square() * prior[1]).sum(-1) / 2
        loss = (q.frozen.log_prob(theta) - fit - log_prior).mean(0).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
    optimizer.zero_grad()
