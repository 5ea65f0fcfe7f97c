r"""What higher derivatives of the log likelihood say of the posterior: its curvature, mean and skewness at a mode.

To the next order beyond Laplace's approximation the density of the white noise w is proportional to
exp(-sum_i w_i^2 / 2 + sum_ijk k_ijk w_i w_j w_k / 6), whose mean is sum_j k_ijj / 2 and whose third cumulants are k_ijk
(Tierney and Kadane 1986; Rue, Martino and Chopin 2009, section 3.2.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_zilognormal.models.hurdle.arrowhead import Factor
from pyro_zilognormal.models.hurdle.predictors import PAIRS, GroupLikelihood, Quadratic

# Of standard Normal noise e, the sinh-arcsinh transform of skewness s is near e + s sqrt(1 + e^2): its mean and third
# cumulant by s. The mean of arsinh(e)^2, and its covariance with e^2.
_MEAN_BY_SKEWNESS, _CUMULANT_BY_SKEWNESS = 1.354531, 1.694673
_MEAN_BY_COUPLING, _CUMULANT_BY_COUPLING = 0.633159, 0.922911
# Beyond these the expansion says too little.
_LARGEST_SHIFT, _LARGEST_SHAPE = 1.0, 0.5
# Numbers of an array of genes x groups x coefficients in work at a time.
_NUMBERS_A_BLOCK = 1 << 21


@dataclass(frozen=True)
class Correction:
    """Shift of the white noise, of shape (genes, width), and skewness and coupling of its core."""

    shift: Tensor
    skewness: Tensor  # of shape (genes, core)
    coupling: Tensor  # of shape (genes, core, core), strictly upper


def no_correction(vector: Tensor, core: int) -> Correction:
    """Return that of a Normal vector, of shape (genes, width), whose last elements are core."""
    genes = len(vector)
    return Correction(torch.zeros_like(vector), vector.new_zeros(genes, core), vector.new_zeros(genes, core, core))


def observed_information(likelihood: GroupLikelihood, predictors: Sequence[Tensor]) -> Tensor:
    """Return minus the second derivatives by the predictors, those of `PAIRS`, of shape (6, genes, rows)."""
    found = []
    for some in _blocks(predictors[0].shape):
        second = Derivatives(likelihood.of_genes(some), [p[some] for p in predictors]).second.detach()
        found.append(torch.stack([-second[pair] for pair in PAIRS]))
    return torch.cat(found, 1)


def find_correction(
    likelihood: GroupLikelihood, quadratic: Quadratic, theta: Tensor, factor: Factor, core: int
) -> Correction:
    """Return the correction of a Normal at the mode theta, whose precision has the lower factor ``factor``."""
    predictors, found = quadratic.predict(theta), []
    for some in _blocks((*predictors[0].shape, theta.shape[1])):
        third = Derivatives(likelihood.of_genes(some), [p[some] for p in predictors])
        white = factor[some].whiten(quadratic.matrices.unsqueeze(2).expand(-1, -1, len(third.at[0]), -1))
        found.append(_correct(third, white.transpose(1, 2), core))
    shift, skewness, coupling = map(torch.cat, zip(*found, strict=True))
    return Correction(shift, skewness, coupling)


def _correct(third: Derivatives, white: Tensor, core: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return shift, skewness and coupling, from the predictors of unit noise, of shape (3, genes, rows, width)."""
    mean = third.cumulants(torch.einsum("agri,bgri->abgr", white, white), white) / 2
    last = white[..., -core:]
    each = [third.cumulants(w.unsqueeze(0) * w.unsqueeze(1), last) for w in last.unbind(-1)]
    cumulants = torch.stack(each, -1)  # k_ijj
    skewness = cumulants.diagonal(dim1=-2, dim2=-1) / _CUMULANT_BY_SKEWNESS
    coupling = cumulants.triu(1) / _CUMULANT_BY_COUPLING
    skewness, coupling = (v.clamp(-_LARGEST_SHAPE, _LARGEST_SHAPE) for v in (skewness, coupling))
    shift = mean.clamp(-_LARGEST_SHIFT, _LARGEST_SHIFT)
    shift[:, -core:] -= _MEAN_BY_SKEWNESS * skewness + _MEAN_BY_COUPLING * coupling.sum(-1)
    return shift, skewness, coupling


class Derivatives:
    """Second and third derivatives of the log likelihood by the predictors of each group, of shape (genes, rows)."""

    @torch.enable_grad()
    def __init__(self, likelihood: GroupLikelihood, predictors: list[Tensor]) -> None:
        self.at = [p.detach().requires_grad_() for p in predictors]
        score, _ = likelihood.derivatives(*self.at)
        rows = [torch.stack(torch.autograd.grad(s.sum(), self.at, create_graph=True)) for s in score]
        self.second = torch.stack(rows)  # of shape (3, 3, genes, rows)

    @torch.enable_grad()
    def cumulants(self, outer: Tensor, white: Tensor) -> Tensor:
        """Return sum_abc T_abc white_a outer_bc, of shape (genes, width), T the third derivatives."""
        along = torch.autograd.grad((self.second * outer).sum(), self.at, retain_graph=True)
        return torch.einsum("agr,agri->gi", torch.stack(along), white)


def _blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield slices of the genes, the first dimension of arrays of that shape."""
    size = max(1, _NUMBERS_A_BLOCK // max(1, torch.Size(shape[1:]).numel()))
    for start in range(0, shape[0], size):
        yield slice(start, start + size)
