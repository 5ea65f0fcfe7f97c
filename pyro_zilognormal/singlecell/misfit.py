"""Where a gene's cells are not as the model has them, and what that makes of its fold change."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_zilognormal.singlecell.check import QUANTITIES, inside


def misfit_columns(test: Any, reference: Any, genes: int) -> dict[str, Any]:
    """Return the columns of a contrast's table that tell of misfit.

    Args:
        test: the predictive check of the test condition, or None if no cell is in it.
        reference: the same for the reference.
        genes: how many.
    """
    if test is None or reference is None:
        return {"log_fc_bias": np.zeros(genes), "predictive_check": np.full(genes, "no_cells", dtype=object)}
    spreads = [(check["sd_log"].to_numpy(), check["sd_log_freedom"].to_numpy()) for check in (test, reference)]
    return {"log_fc_bias": log_fc_bias(*spreads), "predictive_check": outside(test, reference)}


def outside(test: Any, reference: Any) -> NDArray[Any]:
    """Return, for each gene, which quantities lie outside of what is predicted in either condition; "ok" if none."""
    wrong = {name: ~(inside(test, name) & inside(reference, name)) for name in QUANTITIES}
    said = ["+".join(name for name in QUANTITIES if wrong[name][gene]) or "ok" for gene in range(len(test))]
    return np.array(said, dtype=object)


def log_fc_bias(
    test: tuple[NDArray[np.float64], NDArray[np.float64]], reference: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> NDArray[np.float64]:
    r"""Return what log_fc is too high by because the model gives both conditions one sigma.

    .. math:: b = \frac{s_b^2 - s_a^2}{2 \log 2}, \qquad \left(1 - \frac{\mathrm{se}(b)^2}{b^2}\right)_+ b

    for log2 E[X] has the term sigma^2 / (2 log 2), which cancels in the model, and not in cells whose spread s
    differs. It is shrunk by the positive-part James-Stein factor, so that little is made of few values.

    Args:
        test: the sd of log x in the test condition, and its degrees of freedom, each of shape (genes,).
        reference: the same for the reference.

    Returns:
        In log2 units; 0 where a condition has too few positive values to have a spread.

    Example:
        >>> spread = lambda sd, freedom: (np.array([sd]), np.array([freedom]))
        >>> log_fc_bias(spread(0.3, 128.0), spread(0.66, 189.0)).round(2)
        array([0.24])
    """
    (sd_a, freedom_a), (sd_b, freedom_b) = test, reference
    told = (freedom_a > 0) & (freedom_b > 0)
    a, b = (np.where(told, sd, 1.0) ** 2 for sd in (sd_a, sd_b))
    na, nb = (np.where(told, n, 1.0) for n in (freedom_a, freedom_b))
    gap = (b - a) / (2 * math.log(2))
    # Of the gap if there were none: both estimate the pooled variance.
    pooled = (na * a + nb * b) / (na + nb)
    variance = (pooled / (2 * math.log(2))) ** 2 * (2 / na + 2 / nb)
    kept = 1 - variance / np.maximum(gap**2, np.finfo(float).tiny)
    return np.where(told, np.maximum(kept, 0.0) * gap, 0.0)


def off(table: Any, delta: float) -> NDArray[np.bool_]:
    """Return which genes' fold changes, once the bias is taken out, lie outside of their own intervals.

    Args:
        table: what :meth:`HurdleDE.test` returns.
        delta: a bias of at most so many log2 units is of no interest.
    """
    large = table["log_fc_bias"].abs().to_numpy() > delta
    mended = (table["log_fc"] - table["log_fc_bias"]).to_numpy()
    return large & ((mended < table["log_fc_low"].to_numpy()) | (mended > table["log_fc_high"].to_numpy()))
