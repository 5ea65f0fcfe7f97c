"""Cells drawn from a known linear decoder."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_zilognormal import SufficientStatistics
from pyro_zilognormal.models import ZILNVAE, FittedVAE, ZILNVAEGuide, fit_vae
from pyro_zilognormal.svi import Minibatches, Run

GENES, LATENT = 40, 3


@dataclass(frozen=True)
class Planted:
    z: Tensor
    batch: Tensor
    x: Tensor
    mean: Tensor  # E[X] of each cell, as in batch 0
    shift: Tensor  # of mu in batch 1


@functools.cache
def planted(cells=1200, seed=0):
    """Return cells of two batches of a 3-dimensional subspace; batch 1 has other means."""
    noise = torch.Generator().manual_seed(seed)
    z, batch = torch.randn(cells // 2, 2, LATENT, generator=noise), torch.arange(cells) % 2
    z = (z - z.mean(0)).flatten(0, 1)  # batches of one mean of z: a difference would be taken for a shift
    loadings, zero_loadings = 0.8 * torch.randn(2, LATENT, GENES, generator=noise)
    shift, center = 0.7 * torch.randn(GENES, generator=noise), 1 + torch.randn(GENES, generator=noise)
    mu, logits = center + z @ loadings, z @ zero_loadings - 0.5
    positive = torch.rand(cells, GENES, generator=noise) > logits.sigmoid()
    x = (mu + batch[:, None] * shift + 0.5 * torch.randn(cells, GENES, generator=noise)).exp() * positive
    return Planted(z, batch, x, (mu + 0.125).exp() * (-logits).sigmoid(), shift)


def small(x, **options):
    """Return a model of these cells and its guide."""
    torch.manual_seed(0)
    options = {"latent": 2, "hidden": (16,)} | options
    model = ZILNVAE(SufficientStatistics.from_cells(x), **options)
    return model, ZILNVAEGuide(model)


def faster(run: Run) -> None:
    """Let all learning rates fall from 0.01, so that 600 steps are enough."""
    for group in run.optimizer.param_groups:
        group["lr"] = 0.01 * (1 - run.step / run.steps)


@functools.cache
def fitted() -> FittedVAE:
    """Return a linear model fitted to the first 1,000 planted cells, which tests leave as it is."""
    cells = planted()
    x, batch = cells.x[:1000], cells.batch[:1000]
    model, guide = small(x, latent=LATENT, components=1, batches=2, hidden=(32,), linear=True)
    data = Minibatches(x, batch, batch_size=128, plate="cells")
    held_out = cells.x[1000:], cells.batch[1000:]
    return fit_vae(model, guide, data, held_out=held_out, steps=600, warm_up=50, callbacks=[faster])
