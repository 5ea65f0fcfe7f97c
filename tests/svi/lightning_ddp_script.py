"""Train an autoencoder with Lightning, in as many processes as asked for, and save what the first one saw.

The noise of the latent values comes with the data, so that one process and two can be compared.
"""

import sys
import warnings
from pathlib import Path

import lightning
import pyro
import pyro.distributions as dist
import torch
from torch.utils.data import DataLoader, TensorDataset

from pyro_zilognormal import SufficientStatistics
from pyro_zilognormal.models import ZILNVAE, ZILNVAEGuide
from pyro_zilognormal.svi.lightning import LightningSVI

CELLS, GENES, STEPS = 48, 12, 3


class Model(ZILNVAE):
    def forward(self, x, noise):
        super().forward(x)


class Guide(ZILNVAEGuide):
    def forward(self, x, noise):
        q = self.posterior(x)
        z = q.mean + q.stddev * noise
        with pyro.plate("cells", self.cells, subsample_size=len(x)):
            pyro.sample("z", dist.Delta(z, q.log_prob(z).sum(-1), event_dim=1))


class Record(lightning.Callback):
    def __init__(self):
        self.losses, self.gradients = [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients.append({k: p.grad.clone() for k, p in module.named_parameters()})

    def on_train_epoch_end(self, trainer, module):
        self.losses.append(trainer.callback_metrics["train_loss"].item())


def main(out, processes):
    torch.manual_seed(0)
    x, noise = torch.rand(CELLS, GENES).mul(4).floor(), torch.randn(CELLS, 2)
    model = Model(SufficientStatistics.from_cells(x), latent=2, hidden=(8,))
    # Double precision, in which a difference of 1e-6 is no rounding error; no dropout, which would be noise.
    module = LightningSVI(
        model.double(),
        Guide(model, dropout=0.0).double(),
        (x[:4], noise[:4]),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-5),
    )
    record = Record()
    trainer = lightning.Trainer(
        accelerator="cpu",
        strategy="ddp" if processes > 1 else "auto",
        devices=processes,
        max_epochs=STEPS,  # of one batch each: Lightning shuffles the rows of several processes
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[record],
    )
    trainer.fit(module, DataLoader(TensorDataset(x, noise.double()), batch_size=CELLS // processes))
    parameters = dict(module.named_parameters())
    saved = {"losses": record.losses, "gradients": record.gradients, "parameters": parameters, "noise": torch.rand(1)}
    torch.save(saved | {"world_size": trainer.world_size}, out / f"{processes}-{trainer.global_rank}.pt")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
