"""The linear predictor of all rows and genes, and what its derivatives add up to."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_zilognormal.models._arrow import Arrow


class Rows:
    """Rows of a design, each with a donor: eta_rg = design_r . core_g + tips_g[donor_r].

    Args:
        design: of shape (rows, core).
        donor: of shape (rows,).
        donors: how many donors; 0 for none.
    """

    def __init__(self, design: Tensor, donor: Tensor, donors: int) -> None:
        self.design, self.donor, self.donors = design, donor, donors
        codes = torch.nn.functional.one_hot(donor, max(donors, 1)).to(design)
        self.codes = codes[:, :donors]
        self.products = (design.unsqueeze(-1) * design.unsqueeze(-2)).flatten(1)

    def predict(self, theta: Tensor) -> Tensor:
        """Return eta, of shape (genes, rows), of theta (genes, donors + core)."""
        tips, core = theta.tensor_split([self.donors], -1)
        return core @ self.design.mT + tips @ self.codes.mT

    def score(self, slopes: Tensor) -> Tensor:
        """Return the derivative by theta, of shape (genes, donors + core), from that by eta (genes, rows)."""
        return torch.cat([slopes @ self.codes, slopes @ self.design], -1)

    def information(self, weights: Tensor) -> Arrow:
        """Return the sum over rows of weight * row row', gene by gene, from weights (genes, rows)."""
        size = self.design.shape[1]
        border = [(weights * column) @ self.codes for column in self.design.mT]
        core = (weights @ self.products).unflatten(-1, (size, size))
        return Arrow(weights @ self.codes, torch.stack(border, -2), core)
