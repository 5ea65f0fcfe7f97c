"""The networks of the autoencoder: what a cell is conditioned on, the encoder and the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, softplus

from pyro_zilognormal.sufficient import SufficientStatistics

# The share of a gene's spread that no z explains: else sigma, and the loss, would fall without bound in a gene of which
# positive values are equal, such as single counts.
_UNEXPLAINED = 0.1
_LEAST_SD = 1e-4  # of z
_LEAST_RATE = 1e-30  # of -log P(X = 0): softplus(-104) is 0 in float32, and has no logarithm
# Positive values that the spread of all genes counts as, in that of a gene.
_PRIOR_VALUES = 10


class GeneStatistics(nn.Module):
    """Where the positive values and zeros of each gene lie: units of the networks, and where they start.

    ``center`` and ``spread`` are mean and sd of log x where x > 0, ``zi_logits`` the log odds of a zero, each of shape
    (genes,). Genes of few positive values borrow the spread of the others.
    """

    center: Tensor
    spread: Tensor
    zi_logits: Tensor

    def __init__(self, statistics: SufficientStatistics) -> None:
        super().__init__()
        zeros, positives, mean, m2, _ = (field.sum(0) for field in statistics.value.unbind(-1))
        common = m2.sum() / positives.sum().clamp(min=1)
        spread = ((m2 + _PRIOR_VALUES * common) / (positives + _PRIOR_VALUES)).sqrt()
        spread = torch.where(spread > 0, spread, 1)  # all positive values of all genes are alike
        found = {"center": mean, "spread": spread, "zi_logits": torch.log((zeros + 0.5) / (positives + 0.5))}
        for name, value in found.items():
            self.register_buffer(name, value.to(torch.get_default_dtype()))

    def values(self, x: Tensor) -> Tensor:
        """Return values of cells in the networks' dtype; raise a ValueError for another shape."""
        genes = len(self.center)
        if x.dim() != 2 or x.shape[1] != genes:
            raise ValueError(f"x has shape {tuple(x.shape)}; needed (cells, {genes}), a column for each gene")
        return x.to(self.center.dtype)


@dataclass(frozen=True)
class Conditions:
    """What is known of a cell beside its values: its batch, one-hot, and its covariates, side by side."""

    batches: int
    covariates: int

    @property
    def width(self) -> int:
        """The number of columns."""
        return (self.batches if self.batches > 1 else 0) + self.covariates

    def __call__(
        self, cells: int, batch: Tensor | None, covariates: Tensor | None, offset: Tensor | None, like: Tensor
    ) -> Tensor:
        """Return a tensor of shape (cells, width); refuse arguments that the model was not made for."""
        if offset is not None and offset.shape != (cells,):
            raise ValueError(
                f"offset has shape {tuple(offset.shape)}; needed ({cells},), a log size factor of each cell"
            )
        came = None if covariates is None else tuple(covariates.shape)
        if came != ((cells, self.covariates) if self.covariates else None):
            needed = f"shape {(cells, self.covariates)}" if self.covariates else "None"
            raise ValueError(f"covariates: got {came}; needed {needed}, as the model has covariates={self.covariates}")
        parts = [] if self.batches == 1 else [one_hot(self._codes(cells, batch), self.batches)]
        parts += [] if covariates is None else [covariates]
        return torch.cat([like.new_empty(cells, 0), *(part.to(like) for part in parts)], -1)

    def _codes(self, cells: int, batch: Tensor | None) -> Tensor:
        """Return the batch of each cell, checked."""
        known = f"as the model has batches={self.batches}"
        if batch is None or batch.shape != (cells,) or batch.is_floating_point():
            came = None if batch is None else f"{batch.dtype} of shape {tuple(batch.shape)}"
            raise ValueError(f"batch: got {came}; needed whole numbers of shape ({cells},), {known}")
        least, most = (int(end) for end in batch.aminmax()) if cells else (0, 0)
        if not 0 <= least <= most < self.batches:
            raise ValueError(f"batch: got values from {least} to {most}; needed 0 to {self.batches - 1}, {known}")
        return batch.long()


def perceptron(width: int, hidden: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Return layers of Linear, LayerNorm, ReLU and Dropout: no running statistics, which processes would share."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.LayerNorm(size), nn.ReLU(), nn.Dropout(dropout)]
        width = size
    return nn.Sequential(*layers)


def exposed(mu: Tensor, zi_logits: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return mu and the zero part's logits of cells of another depth, by the log size factor o of each cell.

    As for Poisson counts, P(X = 0) is taken to the power exp(o), and E[X] is multiplied by exp(o): what fewer zeros add
    to the mean, mu lacks, so that single counts stay single counts.
    """
    if offset is None:
        return mu, zi_logits
    log_size = offset.to(mu).unsqueeze(-1)
    rate = softplus(-zi_logits).clamp(min=_LEAST_RATE)  # -log P(X = 0)
    rates = torch.stack([rate, rate * log_size.exp()])
    before, after = torch.log(-torch.expm1(-rates))  # log P(X > 0)
    return mu + log_size + before - after, -rates[1] - after


class Encoder(nn.Module):
    """Mean and sd of z given a cell: what its conditions leave of its log x where x > 0, and of its pattern of zeros.

    The score of the likelihood at z = 0 is linear in these residuals. Batch, covariates and offset enter by nothing
    else: the weights of a network for them would have to undo what they do to each gene.
    """

    def __init__(self, genes: GeneStatistics, latent: int, hidden: Sequence[int], dropout: float):
        super().__init__()
        self.genes = genes
        self.body = perceptron(2 * len(genes.center), hidden, dropout)
        self.mean, self.spread = nn.Linear(hidden[-1], latent), nn.Linear(hidden[-1], latent)

    def forward(self, x: Tensor, mu: Tensor, zi_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and sd, each of shape (cells, latent), given mu and logits that conditions lead to expect."""
        positive = x > 0
        log = torch.where(positive, x, 1).log()  # a logarithm of zeros is slow
        log = torch.where(positive, (log - mu) / self.genes.spread, 0)
        hidden = self.body(torch.cat([log, positive.to(log) - torch.sigmoid(-zi_logits)], -1))
        mean, spread = self.mean(hidden).to(x), self.spread(hidden).to(x)  # autocast may have made them shorter
        return mean, softplus(spread) + _LEAST_SD


class Decoder(nn.Module):
    """Parameters of the ZILN given z. Without hidden layers, mu and the zero part's logits are linear in z."""

    def __init__(self, genes: GeneStatistics, latent: int, width: int, hidden: Sequence[int]):
        super().__init__()
        self.genes, number = genes, len(genes.center)
        self.body = perceptron(latent + width, hidden) if hidden else None
        self.heads = nn.Linear(hidden[-1] if hidden else latent, 2 * number)
        self.shift = nn.Linear(width, 2 * number, bias=False) if width else None
        self.log_scale = nn.Parameter(torch.zeros(number))
        with torch.no_grad():  # start near the distribution of each gene over all cells, of any batch
            if self.shift is not None:
                self.shift.weight.zero_()
            self.heads.bias.copy_(torch.cat([torch.zeros(number), genes.zi_logits]))

    def forward(self, z: Tensor, conditions: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return mu, scale and logits of P(X = 0); mu and logits have a row for each row of z."""
        hidden = z
        if self.body is not None:
            hidden = self.body(torch.cat([z, conditions.expand(*z.shape[:-1], -1)], -1))
        mu, zi_logits = self._located(self.heads(hidden), conditions, offset)
        return mu, self.genes.spread * torch.hypot(self.log_scale.exp(), z.new_tensor(_UNEXPLAINED)), zi_logits

    def typical(self, conditions: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return mu and logits of P(X = 0) that cells have by their conditions, whatever their z."""
        start = torch.cat([torch.zeros_like(self.genes.center), self.genes.zi_logits])
        return self._located(start, conditions, offset)

    def _located(self, heads: Tensor, conditions: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
        heads = heads if self.shift is None else heads + self.shift(conditions)
        location, zi_logits = heads.to(self.genes.center).chunk(2, -1)
        return exposed(self.genes.center + self.genes.spread * location, zi_logits, offset)
