"""The three linear predictors of a group, log mean, log odds of a zero and log sigma, and their likelihood."""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot, pad

from pyro_zilognormal.models.hurdle.arrowhead import Arrowhead, Layout
from pyro_zilognormal.models.hurdle.components import Block, log_scale
from pyro_zilognormal.models.hurdle.data import HurdleData

# Pairs of predictors, in the order of the elements of `GroupLikelihood.information`.
PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


class Predictors:
    """The matrices that make the predictors from all coefficients of a gene, theta, the same for all genes."""

    def __init__(self, groups: HurdleData, block: Block) -> None:
        slices = block.slices
        rows = groups.design.new_zeros(3, len(groups.design), block.width)
        codes = [one_hot(f, k) for f, k in zip(groups.factors.mT, groups.levels, strict=True)]
        levels = torch.cat([*codes, groups.factors[:, :0]], 1).to(rows)
        parts = {
            "random": (0, levels),
            "intercept": (0, groups.design[:, :1]),
            "effects": (0, groups.design[:, 1:]),
            "zero_random": (1, levels),
            "zero_intercept": (1, groups.zero_design[:, :1]),
            "zero_effects": (1, groups.zero_design[:, 1:]),
            "log_sigma": (2, groups.scale_design),
        }
        for name, (part, matrix) in parts.items():
            if name in slices:
                rows[part][:, slices[name]] = matrix
        self.fixed = rows

    def matrices(self, slope: Tensor) -> Tensor:
        """Return the matrices given the slope of the zero part, of shape (3, rows, width)."""
        log_mean, zero, log_sigma = self.fixed
        return torch.stack([log_mean, zero - slope * log_mean, log_sigma])


class GroupLikelihood:
    """The likelihood of all genes' groups as a function of their predictors, each of shape (genes, rows).

    The information is the expected one, so that it is never negative: a score step up the log posterior always climbs.
    """

    def __init__(self, groups: HurdleData) -> None:
        self.zeros, self.positives, self.mean, self.squares = (v.mT for v in groups.value.unbind(-1)[:4])
        self.cells = self.zeros + self.positives

    def of_genes(self, some: slice) -> GroupLikelihood:
        """Return the likelihood of some genes."""
        found = copy.copy(self)
        for name in ("zeros", "positives", "mean", "squares", "cells"):
            setattr(found, name, getattr(self, name)[some])
        return found

    @classmethod
    def of_positives(cls, y: Tensor) -> GroupLikelihood:
        """Return the likelihood of single positive values, each a group of its own, given their logarithms."""
        likelihood = cls.__new__(cls)
        likelihood.zeros = likelihood.squares = torch.zeros_like(y)
        likelihood.positives = likelihood.cells = torch.ones_like(y)
        likelihood.mean = y
        return likelihood

    def log_density(self, log_mean: Tensor, zero: Tensor, log_sigma: Tensor) -> Tensor:
        """Return the log density of each gene, of shape (genes,), without its constant."""
        return self.log_densities(log_mean, zero, log_sigma).sum(-1)

    def log_densities(self, log_mean: Tensor, zero: Tensor, log_sigma: Tensor) -> Tensor:
        """Return the log density of each row, of shape (genes, rows), without its constant."""
        scale = log_scale(log_sigma)
        _, squares = self._residuals(log_mean, zero, scale)
        counts = self.zeros * logsigmoid(zero) + self.positives * (logsigmoid(-zero) - scale)
        return counts - squares / 2

    def derivatives(self, log_mean: Tensor, zero: Tensor, log_sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return the score by the predictors, (3, genes, rows), and the information of `PAIRS`, (6, genes, rows)."""
        scale = log_scale(log_sigma)
        variance, pi = (2 * scale).exp(), zero.sigmoid()
        slope = (2 * (log_sigma - scale)).exp()  # of the log scale by log sigma
        residual, squares = self._residuals(log_mean, zero, scale)
        count, pull = self.positives, self.positives * residual / variance
        score = [pull, self.zeros - self.cells * pi + pi * pull, slope * (squares - count - count * residual)]
        weight = count / variance
        information = [
            weight,
            pi * weight,
            -slope * count,
            self.cells * pi * (1 - pi) + pi.square() * weight,
            -slope * pi * count,
            slope.square() * count * (2 + variance),
        ]
        return torch.stack(score), torch.stack(information)

    def _residuals(self, log_mean: Tensor, zero: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return the residual of the mean of log x, and the sum of squared residuals of log x in units of sigma^2."""
        variance = (2 * scale).exp()
        residual = self.mean - (log_mean - logsigmoid(-zero) - variance / 2)
        return residual, (self.squares + self.positives * residual.square()) / variance


class Quadratic:
    """Products of the matrices, by which score and information of the predictors become those of theta."""

    def __init__(self, matrices: Tensor, layout: Layout) -> None:
        self.matrices, self.layout = matrices, layout

    @functools.cached_property
    def products(self) -> Tensor:
        """Products of elements of the rows of two matrices, of shape (6 rows, numbers)."""
        filled = pad(self.matrices, (0, 1))
        first, second = filled[..., self.layout.rows], filled[..., self.layout.columns]
        each = [first[a] * second[b] if a == b else first[a] * second[b] + first[b] * second[a] for a, b in PAIRS]
        return torch.cat(each)

    def predict(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the predictors, each of shape (genes, rows)."""
        log_mean, zero, log_sigma = (theta @ matrix.mT for matrix in self.matrices)
        return log_mean, zero, log_sigma

    def score(self, score: Tensor) -> Tensor:
        """Return the derivative by theta, of shape (genes, width)."""
        return torch.einsum("agr,arq->gq", score, self.matrices)

    def information(self, information: Tensor) -> Arrowhead:
        """Return the information on theta of all genes."""
        return Arrowhead(self.layout, information.transpose(0, 1).flatten(1) @ self.products)
