"""Differential expression in one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pyro_zilognormal.models import HurdlePriors
from pyro_zilognormal.singlecell.contrasts import Contrast, parse_contrasts
from pyro_zilognormal.singlecell.de import HurdleDE
from pyro_zilognormal.singlecell.writing import write_results
from pyro_zilognormal.svi import Checkpoint, Run


def differential_expression(
    adata: Any,
    formula: str,
    contrast: Any,
    *,
    donor: str | None = None,
    layer: str | None = None,
    use_raw: bool = False,
    scale: str = "linear",
    offset: Any = None,
    detection_threshold: float = 0.0,
    delta: float = 0.25,
    fdr: float = 0.05,
    credible: float = 0.95,
    key_added: str = "ziln_de",
    copy: bool = False,
    seed: int = 0,
    steps: int | None = None,
    draws: int = 1000,
    priors: HurdlePriors | Mapping[str, Any] | None = None,
    callbacks: Sequence[Callable[[Run], Any]] = (),
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    device: str = "cpu",
) -> Any:
    """Fit all genes of an AnnData and compare conditions: :class:`HurdleDE`, ``fit``, ``test`` and
    :func:`write_results` in one."""
    de = HurdleDE(
        adata,
        formula,
        donor=donor,
        layer=layer,
        use_raw=use_raw,
        scale=scale,
        offset=offset,
        detection_threshold=detection_threshold,
        priors=priors,
        draws=draws,
        device=device,
    )
    found = parse_contrasts(de.cells.design, contrast)
    de.fit(seed=seed, steps=steps, callbacks=callbacks, checkpoint=checkpoint)
    table = de.test(found, delta=delta, fdr=fdr, credible=credible)
    if not copy:
        write_results(adata, table, result_parameters(de, found, delta, fdr, credible), key_added)
    return table


def result_parameters(
    de: HurdleDE, contrasts: Sequence[Contrast], delta: float, fdr: float, credible: float
) -> dict[str, Any]:
    """Return settings and contrasts in plain values, as :func:`write_results` takes them."""
    ends = {
        "test_levels": [c.test.levels.get(c.column or "", c.test.name) for c in contrasts],
        "reference_levels": [c.reference.levels.get(c.column or "", c.reference.name) for c in contrasts],
        "columns": [c.column or "" for c in contrasts],
    }
    arrays = {name: np.asarray([str(v) for v in values], dtype=object) for name, values in ends.items()}
    fit = {"converged": bool(de.result.converged), "stop_reason": de.result.stop_reason} if de.result else {}
    return de.settings | {"delta": delta, "fdr": fdr, "credible": credible} | fit | arrays
