"""Fit the autoencoder with settings that suit it, and read what the fit says of cells."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import Normal
from torch import Tensor, nn

from pyro_zilognormal import svi
from pyro_zilognormal.models.hurdle.effects import expected_fdr, local_false_sign_rate
from pyro_zilognormal.models.vae.model import ZILNVAE, ZILNVAEGuide
from pyro_zilognormal.svi.data import FullData, as_source
from pyro_zilognormal.svi.elbo import isolated

_LEARNING_RATE = 1e-3
# Of the effects of batch and covariates on genes, one weight each: at the rate of the networks, z explains them first.
_RATE_OF_EFFECTS = 1e-2
# In units of 1 / fan-in, the precision of the Normal prior of weights that weight decay stands for.
_PRECISION = 2.0
_EVERY, _PATIENCE = 100, 5
# Cells that are in memory at a time.
_CELLS = 512


class KLWarmUp(svi.Callback):
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

    def on_fit_start(self, run: svi.Run) -> None:
        self.on_step_end(run)

    def on_step_end(self, run: svi.Run) -> None:
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
    callbacks: Sequence[svi.Callback | Callable[[svi.Run], Any]] = (),
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
        >>> x = pbmc68k_reduced().values[:, :20]
        >>> model = ZILNVAE(SufficientStatistics.from_cells(x[:600]), latent=2)
        >>> data = svi.Minibatches(x[:600], batch_size=128, plate="cells")
        >>> fitted = fit_vae(model, ZILNVAEGuide(model), data, held_out=x[600:], steps=20)
        >>> fitted.latent(x).mean.shape
        torch.Size([700, 2])
    """
    called = [*callbacks, KLWarmUp(warm_up)]
    if held_out is not None:
        called.append(svi.EarlyStopping(held_out, every=_EVERY, patience=_PATIENCE, warm_up=warm_up))
    optimizer = functools.partial(_adam, model=model)
    return FittedVAE(svi.fit(model, guide, *data, steps=steps, optimizer=optimizer, seed=seed, callbacks=called))


def _adam(parameters: Iterable[nn.Parameter], model: ZILNVAE) -> torch.optim.Optimizer:
    """Return Adam with the prior of the decoder's weights and the learning rate of effects on genes."""
    layers = (layer for layer in model.modules() if isinstance(layer, nn.Linear))
    options = {id(layer.weight): {"weight_decay": _PRECISION * layer.in_features} for layer in layers}
    if model.decoder.shift is not None:
        options[id(model.decoder.shift.weight)]["lr"] = _RATE_OF_EFFECTS
    return torch.optim.Adam([{"params": [p]} | options.get(id(p), {}) for p in parameters], lr=_LEARNING_RATE)


@dataclass(frozen=True, eq=False)
class Latent:
    """Posterior means of the latent values of cells, the embedding, and sds, each of shape (cells, latent)."""

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
    one ``Minibatches`` or ``BatchStream`` of them. Cells may be those of training or new ones. ``seed`` is that of the
    draws, ``draws`` their number, and ``batches`` those in which to decode the cells; None for all, so that cells of
    all batches are alike. Covariates and offsets are then 0.

    Args:
        result: of ``svi.fit`` with a :class:`ZILNVAE` and its guide, by any optimiser and loss.

    Attributes:
        result: the same; ``svi.posterior_draws`` and all else of ``svi`` work on it.

    Raises:
        TypeError: the fit of another model or guide.
    """

    def __init__(self, result: svi.FitResult) -> None:
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
        """Return the denoised expression of cells, E[X] given the cell, in the mean over the given batches.

        Returns:
            Posterior means, of shape (cells, genes), in the unit of x.

        Raises:
            ValueError: batches that the model has not.
        """
        codes = self._codes(batches)
        with self._batches(data, seed) as cells:
            found = [self._mean(self.guide.posterior(*a), self._alike(len(a[0]), codes), draws) for a in cells]
        return torch.cat(found)

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
                q, joint = self.guide.posterior(x, *conditions), []
                for _ in range(particles):
                    z = q.sample()
                    gain = self.model.prior.log_prob(z) - q.log_prob(z).sum(-1)
                    joint.append(self.model.likelihood(z, *conditions).log_prob(x.to(z)).sum(-1) + gain)
                found.append(torch.stack(joint).logsumexp(0) - math.log(particles))
        return torch.cat(found)

    def predictive_check(self, *data: Any, draws: int = 200, seed: int = 0) -> svi.PredictiveCheck:
        """Return the posterior predictive check of each gene: zero fraction, mean, sd and quantiles.

        Cells are replicated from their own latent values; see :func:`~pyro_zilognormal.svi.posterior_predictive`.
        """
        return svi.posterior_predictive(self.result, *data, draws=draws, seed=seed)["x"]

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

        Returns:
            Draws of the change, and what they say of its size and sign.

        Raises:
            ValueError: a negative delta, or batches that the model has not.
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
            source = svi.Minibatches(*data, batch_size=_CELLS, plate="cells")
        if isinstance(source, svi.Minibatches):
            source.shuffle = False
        module = self.result.module
        with isolated(seed), self.result.scope(), module.evaluating(held_out=False), torch.no_grad():
            yield (batch.args for batch in source.epoch(0, seed))
