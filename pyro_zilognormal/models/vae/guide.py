"""The guide of the autoencoder: an encoder gives the approximate posterior of a cell's latent value."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from pyro.nn import PyroModule
from pyro.nn.module import to_pyro_module_
from torch import Tensor

from pyro_zilognormal.models.vae.model import ZILNVAE
from pyro_zilognormal.models.vae.networks import Encoder


class ZILNVAEGuide(PyroModule):
    """The amortised posterior of a :class:`ZILNVAE`: Normal, with mean and sd from an encoder of the cell.

    The encoder reads a cell's sufficient statistics, the pattern of its zeros and log x where x > 0, less what the
    model expects by the cell's batch, covariates and offset. There is no parameter of a cell, so memory does not grow
    with the cells, and new cells need no training.

    Args:
        model: the model, whose sizes and units it takes.
        dropout: share of hidden units that are left out at random in training.

    Raises:
        TypeError: a model that is not a :class:`ZILNVAE`.

    Example:
        >>> import torch
        >>> from pyro_zilognormal import SufficientStatistics
        >>> x = torch.rand(20, 4)
        >>> model = ZILNVAE(SufficientStatistics.from_cells(x), latent=2)
        >>> ZILNVAEGuide(model).posterior(x).mean.shape
        torch.Size([20, 2])
    """

    def __init__(self, model: ZILNVAE, dropout: float = 0.2) -> None:
        super().__init__()
        if not isinstance(model, ZILNVAE):
            raise TypeError(f"model is a {type(model).__name__}; needed ZILNVAE(statistics)")
        self.cells, self.conditions = model.cells, model.conditions
        self._model = (model,)  # not a module of the guide: its parameters are the model's
        self.encoder = Encoder(model.genes, model.latent, model.hidden, dropout)
        to_pyro_module_(self)

    def forward(
        self,
        x: Tensor,
        batch: Tensor | None = None,
        covariates: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> None:
        """Draw the latent values of cells; the arguments are those of the model."""
        with pyro.plate("cells", max(self.cells, len(x)), subsample_size=len(x)):
            pyro.sample("z", self.posterior(x, batch, covariates, offset).to_event(1))

    def posterior(
        self,
        x: Tensor,
        batch: Tensor | None = None,
        covariates: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> dist.Normal:
        """Return the distribution of the latent values of cells, of shape (cells, latent)."""
        x = self.encoder.genes.values(x)
        conditions = self.conditions(len(x), batch, covariates, offset, x)
        return dist.Normal(*self.encoder(x, *self._model[0].decoder.typical(conditions, offset)))
