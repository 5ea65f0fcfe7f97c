"""Zero-inflated log-normal data whose parameters are known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_zilognormal.distribution import ZeroInflatedLogNormal


@dataclass(frozen=True, eq=False)
class SimulatedZILN:
    """Simulated values and the truth behind them.

    Attributes:
        values: cells x genes, >= 0, exactly zero with probability sigmoid(zi_logits).
        mu: the mean of log x where x is positive; broadcasts to the shape of `values`.
        scale: the standard deviation of log x where x is positive; likewise.
        zi_logits: the log odds that a value is zero; likewise.
    """

    values: Tensor
    mu: Tensor
    scale: Tensor
    zi_logits: Tensor


def simulate_ziln(
    n_cells: int,
    n_genes: int,
    *,
    seed: int = 0,
    mu: Tensor | float | None = None,
    scale: Tensor | float | None = None,
    zi_logits: Tensor | float | None = None,
    dtype: torch.dtype | None = None,
) -> SimulatedZILN:
    r"""Draw cells x genes from the zero-inflated log-normal, and return the parameters too.

    .. math:: x_{cg} = 0 \text{ with probability } \sigma(l_{cg}), \quad
              \text{else } x_{cg} = \exp(\mu_{cg} + s_{cg} \varepsilon_{cg}), \; \varepsilon_{cg} \sim N(0, 1)

    A parameter that is left out is drawn for each gene, over about the range of normalised single-cell data:
    mu ~ N(1.5, 0.7), log scale ~ N(log 0.6, 0.3) and zi_logits ~ N(0.5, 2), given by mean and standard deviation.
    A parameter may differ from cell to cell, which makes groups: `mu=group_mu[group]`.

    A separate generator draws in float64 whatever `dtype` is; the global random state is neither read nor
    changed. The same seed gives the same noise whichever parameters are given. Positive draws are clamped to the
    range of `dtype`, so that they stay positive and finite.

    Args:
        n_cells: number of rows.
        n_genes: number of columns.
        seed: seed of the generator.
        mu: mean of log x where x > 0; of a shape that broadcasts to (n_cells, n_genes).
        scale: standard deviation of log x where x > 0, > 0; of such a shape.
        zi_logits: log odds of a zero; of such a shape. -inf gives no zeros, +inf only zeros.
        dtype: dtype of the results; by default torch's default dtype.

    Returns:
        A :class:`SimulatedZILN`.

    Raises:
        ValueError: a parameter does not broadcast, is NaN or is outside its range.

    Example:
        >>> data = simulate_ziln(1000, 3, seed=1, zi_logits=0.0)
        >>> data.values.shape, data.mu.shape
        (torch.Size([1000, 3]), torch.Size([1, 3]))
        >>> round(data.values.eq(0).double().mean().item(), 1)
        0.5
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    noise = torch.Generator().manual_seed(seed)
    shape = torch.Size((n_cells, n_genes))
    uniform = torch.rand(shape, generator=noise, dtype=torch.float64)
    normal = torch.randn(shape, generator=noise, dtype=torch.float64)
    drawn = torch.randn((3, 1, n_genes), generator=noise, dtype=torch.float64)
    given = {
        "mu": 1.5 + 0.7 * drawn[0] if mu is None else mu,
        "scale": 0.6 * (0.3 * drawn[1]).exp() if scale is None else scale,
        "zi_logits": 0.5 + 2 * drawn[2] if zi_logits is None else zi_logits,
    }
    truth = {k: torch.as_tensor(v, dtype=torch.float64, device="cpu").detach() for k, v in given.items()}
    ZeroInflatedLogNormal(**truth, validate_args=True).expand(shape)  # raises for what are no parameters
    bounds = torch.finfo(dtype)
    positive = (truth["mu"] + truth["scale"] * normal).exp().clamp(bounds.tiny, bounds.max)
    values = positive.masked_fill(uniform < truth["zi_logits"].sigmoid(), 0.0)
    return SimulatedZILN(values.to(dtype), **{name: value.to(dtype) for name, value in truth.items()})
