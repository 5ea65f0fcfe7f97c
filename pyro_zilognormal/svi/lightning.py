"""Any Pyro model and guide as a LightningModule; needs the extra ``pyro-zilognormal[lightning]``."""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_zilognormal.svi.data import as_batch
from pyro_zilognormal.svi.elbo import SVIModule, isolated
from pyro_zilognormal.svi.fit import Optimizer, build_optimizer

try:
    from lightning import LightningModule
except ImportError as error:
    raise ImportError("this needs Lightning: pip install 'pyro-zilognormal[lightning]'") from error


class LightningSVI(LightningModule):
    """A model and a guide that ``lightning.Trainer`` trains on the batches of any loader, in one process or many.

    It logs ``train_loss``, and ``val_loss`` of a loader of held-out rows, in eval mode. Set ``module.svi.kl_weight`` in
    a Lightning callback to anneal the KL divergence. A last batch that is short counts as much as a whole one: use
    ``drop_last=True`` in a loader that shuffles. In distributed training each process draws noise of its own.

    Args:
        model, guide, loss, optimizer: as for :func:`pyro_zilognormal.svi.fit`.
        example: the arguments of one batch, a tensor or a tuple, on which model and guide make their parameters, here.
        plate: the name of the model's plate over rows, as for :class:`pyro_zilognormal.svi.Minibatches`.
        rows: N, the number of rows in all; needed with ``plate``.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("rows", len(x)):
        ...         pyro.sample("x", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0), obs=x)
        >>> module = LightningSVI(model, lambda x: None, torch.ones(4), plate="rows", rows=20)
        >>> list(module.svi.trainable())
        ['m']
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        example: Any,
        optimizer: Optimizer | None = None,
        loss: ELBO | Callable[..., Tensor] | None = None,
        plate: str | None = None,
        rows: int = 1,
    ) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.svi = SVIModule(model, guide, loss, plate, rows)
        with isolated():
            self.svi.setup(as_batch(example))

    def on_train_start(self) -> None:
        """Seed the processes apart: all would draw the same noise, for other rows."""
        if self.trainer.world_size > 1:
            pyro.set_rng_seed((torch.initial_seed() + self.global_rank) % 2**32)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        given = as_batch(batch)
        loss = self.svi(given)
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=given.rows)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss of held-out rows, scaled to as many rows as are trained on."""
        given = as_batch(batch)
        self.log("val_loss", self.svi.evaluate(given), sync_dist=True, batch_size=given.rows)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser of all parameters."""
        return build_optimizer(self.optimizer, self.svi.trainable())
