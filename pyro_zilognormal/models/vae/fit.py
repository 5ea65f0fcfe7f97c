"""Fit the autoencoder with settings that suit it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from pyro_zilognormal.models.vae.guide import ZILNVAEGuide
from pyro_zilognormal.models.vae.model import ZILNVAE
from pyro_zilognormal.models.vae.results import FittedVAE
from pyro_zilognormal.svi import Callback, EarlyStopping, Run, fit

_LEARNING_RATE = 1e-3
# Of the effects of batch and covariates on genes, one weight each: at the rate of the networks, z explains them first.
_RATE_OF_EFFECTS = 1e-2
# In units of 1 / fan-in, the precision of the Normal prior of weights that weight decay stands for.
_PRECISION = 2.0
_EVERY, _PATIENCE = 100, 5


class KLWarmUp(Callback):
    """Raise the weight of the KL divergence from 0 to 1 over the first steps.

    At the start the decoder makes little of z; a full KL divergence would then turn latent dimensions off for good.

    Args:
        steps: at which step the weight is 1.

    Example:
        >>> KLWarmUp(400).steps
        400
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_fit_start(self, run: Run) -> None:
        self.on_step_end(run)

    def on_step_end(self, run: Run) -> None:
        run.kl_weight = min(1.0, (run.step + 1) / (self.steps + 1))

    def settings(self) -> dict[str, Any]:
        return {"steps": self.steps}


def fit_vae(
    model: ZILNVAE,
    guide: ZILNVAEGuide,
    *data: Any,
    held_out: Any = None,
    steps: int = 5000,
    warm_up: int = 500,
    seed: int = 0,
    callbacks: Sequence[Callback | Callable[[Run], Any]] = (),
) -> FittedVAE:
    """Fit model and guide until held-out cells are no better explained, and go back to the best parameters.

    This is ``svi.fit`` with a weight of the KL divergence that rises to 1, Adam, and early stopping. The learning rate
    is 0.01 for the effects of batch and covariates on genes, and 0.001 for all else. Weight decay gives the decoder's
    weights a Normal prior of variance 1 / (2 fan-in) (Neal 1996): the loss is that of all cells, so that few cells are
    fitted by a smoother decoder.

    Args:
        model: the model.
        guide: the guide made from it.
        data: the arguments of model and guide, or one ``Minibatches(..., plate="cells")`` of them.
        held_out: cells to stop by, in one argument as those of ``data``; None takes all steps.
        steps: number of steps at most.
        warm_up: steps until the KL divergence has its full weight.
        seed: of the fit.
        callbacks: as those of ``svi.fit``.

    Returns:
        The fit, with its methods.

    Example:
        >>> from pyro_zilognormal import SufficientStatistics
        >>> from pyro_zilognormal.datasets import pbmc68k_reduced
        >>> from pyro_zilognormal.svi import Minibatches
        >>> x = pbmc68k_reduced().values[:, :20]
        >>> model = ZILNVAE(SufficientStatistics.from_cells(x[:600]), latent=2)
        >>> data = Minibatches(x[:600], batch_size=128, plate="cells")
        >>> fitted = fit_vae(model, ZILNVAEGuide(model), data, held_out=x[600:], steps=20)
        >>> fitted.latent(x).mean.shape
        torch.Size([700, 2])
    """
    called = [*callbacks, KLWarmUp(warm_up)]
    if held_out is not None:
        called.append(EarlyStopping(held_out, every=_EVERY, patience=_PATIENCE, warm_up=warm_up))
    optimizer = functools.partial(_adam, options=_options(model))
    return FittedVAE(fit(model, guide, *data, steps=steps, optimizer=optimizer, seed=seed, callbacks=called))


def _options(model: ZILNVAE) -> dict[int, dict[str, float]]:
    """Return what Adam does otherwise for a parameter, by its id: its learning rate, or the precision of its prior."""
    layers = (layer for layer in model.modules() if isinstance(layer, nn.Linear))
    options = {id(layer.weight): {"weight_decay": _PRECISION * layer.in_features} for layer in layers}
    if model.decoder.shift is not None:
        options[id(model.decoder.shift.weight)]["lr"] = _RATE_OF_EFFECTS
    return options


def _adam(parameters: Iterable[nn.Parameter], options: dict[int, dict[str, float]]) -> torch.optim.Optimizer:
    return torch.optim.Adam([{"params": [p]} | options.get(id(p), {}) for p in parameters], lr=_LEARNING_RATE)
