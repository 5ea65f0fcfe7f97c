"""What a fitted autoencoder says of cells: latent values, expression, held-out likelihood, changes between groups."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import Normal
from torch import Tensor

from pyro_zilognormal.models.hurdle.effects import expected_fdr, local_false_sign_rate
from pyro_zilognormal.models.vae.guide import ZILNVAEGuide
from pyro_zilognormal.models.vae.model import ZILNVAE
from pyro_zilognormal.svi import FitResult, Minibatches, PredictiveCheck, posterior_predictive
from pyro_zilognormal.svi.data import FullData, as_source
from pyro_zilognormal.svi.elbo import isolated

# Cells that are in memory at a time.
_CELLS = 512


@dataclass(frozen=True, eq=False)
class Latent:
    """The latent values of cells, each of shape (cells, latent).

    Attributes:
        mean: posterior means, the embedding.
        sd: posterior standard deviations.
    """

    mean: Tensor
    sd: Tensor


@dataclass(frozen=True, eq=False)
class GroupChange:
    """How the mean expression differs between two groups of cells, gene by gene.

    Attributes:
        draws: of the log2 ratio of means, of shape (draws, genes).
        error: probability that the change is not of the likelier sign and larger than delta, of shape (genes,).
        expected_fdr: expected share of errors among the genes that are at least as certain, of shape (genes,).
    """

    draws: Tensor
    error: Tensor
    expected_fdr: Tensor


class FittedVAE:
    """A fitted :class:`ZILNVAE`, in eval mode; its methods go through the cells a minibatch at a time.

    ``data`` are the arguments of model and guide (values, batch, covariates, offset), as far as the model has them, or
    one ``Minibatches`` or ``BatchStream`` of them. Cells may be those of training or new ones.

    Args:
        result: of ``svi.fit`` with a :class:`ZILNVAE` and its guide, by any optimiser and loss.

    Attributes:
        result: the same; ``svi.posterior_draws`` and all else of ``svi`` work on it.

    Raises:
        TypeError: the fit of another model or guide.
    """

    def __init__(self, result: FitResult) -> None:
        owners = dict(result.module.owners)
        model, guide = owners.get("model"), owners.get("guide")
        if not isinstance(model, ZILNVAE) or not isinstance(guide, ZILNVAEGuide):
            came = f"{type(model).__name__} and {type(guide).__name__}"
            raise TypeError(f"result is the fit of {came}; needed that of a ZILNVAE and a ZILNVAEGuide")
        self.result, self.model, self.guide = result, model, guide

    def latent(self, *data: Any) -> Latent:
        """Return posterior mean and sd of the latent values of cells."""
        with self._batches(data) as batches:
            found = [self.guide.posterior(*arguments) for arguments in batches]
        return Latent(torch.cat([q.mean for q in found]), torch.cat([q.stddev for q in found]))

    def normalized_expression(
        self, *data: Any, batches: Sequence[int] | None = None, draws: int = 25, seed: int = 0
    ) -> Tensor:
        """Return the denoised expression of cells, E[X] given the cell, as in the given batches.

        Args:
            data: the cells.
            batches: in which batches to decode the cells, whose mean is taken; None for all, so that cells of all
                batches are alike. Covariates and offsets are 0.
            draws: draws of each latent value.
            seed: of the draws.

        Returns:
            Posterior means, of shape (cells, genes), in the unit of x.
        """
        codes = self._codes(batches)
        with self._batches(data, seed) as cells:
            return torch.cat(
                [self._mean(self.guide.posterior(*a), self._alike(len(a[0]), codes), draws) for a in cells]
            )

    def impute(self, *data: Any, draws: int = 25, seed: int = 0) -> Tensor:
        """Return the values of cells, with E[X] given the cell in the place of zeros, of shape (cells, genes).

        E[X], zeros included, is that of the cell's own batch, covariates and offset.
        """
        filled = []
        with self._batches(data, seed) as cells:
            for x, *conditions in cells:
                mean = self._mean(self.guide.posterior(x, *conditions), [conditions], draws)
                filled.append(torch.where(x == 0, mean.to(x), x))
        return torch.cat(filled)

    def log_likelihood(self, *data: Any, particles: int = 100, seed: int = 0) -> Tensor:
        r"""Return an estimate of the log likelihood of each cell, of shape (cells,), by importance weighting.

        .. math:: \log \frac{1}{K} \sum_k \frac{p(x \mid z_k) \, p(z_k)}{q(z_k \mid x)}, \qquad z_k \sim q(z \mid x)

        It is a lower bound in the mean, tighter with more particles K (Burda et al. 2016).
        """
        found = []
        with self._batches(data, seed) as cells:
            for x, *conditions in cells:
                q, total = self.guide.posterior(x, *conditions), torch.tensor(-math.inf)
                for _ in range(particles):
                    z = q.sample()
                    gain = self.model.prior.log_prob(z) - q.log_prob(z).sum(-1)
                    joint = self.model.likelihood(z, *conditions).log_prob(x.to(z)).sum(-1) + gain
                    total = torch.logaddexp(total.to(joint), joint)
                found.append(total - math.log(particles))
        return torch.cat(found)

    def predictive_check(self, *data: Any, draws: int = 200, seed: int = 0) -> PredictiveCheck:
        """Return the posterior predictive check of each gene: zero fraction, mean, sd and quantiles.

        Cells are replicated from their own latent values; see :func:`~pyro_zilognormal.svi.posterior_predictive`.
        """
        return posterior_predictive(self.result, *data, draws=draws, seed=seed)["x"]

    def differential_expression(
        self,
        test: Any,
        reference: Any,
        *,
        delta: float = 0.25,
        batches: Sequence[int] | None = None,
        draws: int = 200,
        seed: int = 0,
    ) -> GroupChange:
        """Compare the mean expression of two groups of cells.

        A draw weights the cells of each group at random (Rubin's Bayesian bootstrap), draws their latent values, and
        takes the ratio of the weighted means of E[X], all decoded in one batch; the batches take turns. Its spread is
        that of cells and batches: conclusions are about the donors at hand. To compare conditions between donors, use
        the regression.

        Args:
            test: the arguments of the test group, a tuple, or ``Minibatches``.
            reference: those of the reference group.
            delta: changes of at most this many log2 units are of no interest.
            batches: in which batches to decode the cells, in turn; None for all.
            draws: number of draws.
            seed: of the draws.

        Returns:
            Draws of the change, and what they say of its size and sign.

        Raises:
            ValueError: a negative delta.
        """
        if not delta >= 0:
            raise ValueError(f"delta is {delta}; needed a number of at least 0, in log2 units")
        codes = self._codes(batches)
        ends = [self._group_means(group, codes, draws, seed + i) for i, group in enumerate((test, reference))]
        change = torch.log2(ends[0]) - torch.log2(ends[1])
        error = local_false_sign_rate(change, zero=delta)
        return GroupChange(change, error, expected_fdr(error))

    def _group_means(self, group: Any, codes: Sequence[int], draws: int, seed: int) -> Tensor:
        """Return draws of the mean expression of a group, of shape (draws, genes)."""
        center = self.model.genes.center
        total, weight = center.new_zeros(draws, len(center), dtype=torch.float64), center.new_zeros(draws, 1)
        with self._batches(group if isinstance(group, tuple) else (group,), seed) as cells:
            for arguments in cells:
                q, alike = self.guide.posterior(*arguments), self._alike(len(arguments[0]), codes)
                weights = total.new_empty(draws, len(q.mean)).exponential_()
                for draw, each in enumerate(weights):
                    total[draw] += each @ self._mean(q, [alike[draw % len(alike)]], 1).double()
                weight = weight + weights.sum(-1, keepdim=True)
        return total / weight

    def _mean(self, q: Normal, conditions: Sequence[Sequence[Tensor | None]], draws: int) -> Tensor:
        """Return E[X] of cells, the mean over draws of z and over the conditions to decode them in."""
        total = torch.zeros_like(self.model.genes.center)
        for _ in range(draws):
            z = q.sample()
            for each in conditions:
                total = total + self.model.likelihood(z, *each).mean
        return total / (draws * len(conditions))

    def _alike(self, cells: int, codes: Sequence[int]) -> list[tuple[Tensor, Tensor | None]]:
        """Return conditions that cells are alike in: each of some batches, with covariates, and no offset, of 0."""
        like, width = self.model.genes.center, self.model.conditions.covariates
        covariates = like.new_zeros(cells, width) if width else None
        return [(torch.full((cells,), code, device=like.device), covariates) for code in codes]

    def _codes(self, batches: Sequence[int] | None) -> Sequence[int]:
        known = range(self.model.conditions.batches)
        if batches is not None and (not batches or not set(batches) <= set(known)):
            raise ValueError(f"batches is {batches!r}; needed some of 0 to {known[-1]}, or None for all")
        return known if batches is None else batches

    @contextmanager
    def _batches(self, data: tuple[Any, ...], seed: int = 0) -> Iterator[Iterator[tuple[Any, ...]]]:
        """Yield the arguments of minibatches in the order of the cells, for a block in which the fit is in place."""
        source = as_source(data, {})
        if isinstance(source, FullData):
            source = Minibatches(*data, batch_size=_CELLS, plate="cells")
        if isinstance(source, Minibatches):
            source.shuffle = False
        module = self.result.module
        with isolated(seed), self.result.scope(), module.evaluating(held_out=False), torch.no_grad():
            yield (batch.args for batch in source.epoch(0, seed))
