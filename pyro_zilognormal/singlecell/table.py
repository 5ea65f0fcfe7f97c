"""The table of a contrast: a row for each gene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_zilognormal.models import expected_fdr, local_false_sign_rate, log_fold_change
from pyro_zilognormal.singlecell.contrasts import Contrast
from pyro_zilognormal.singlecell.draws import summarise
from pyro_zilognormal.singlecell.errors import require
from pyro_zilognormal.singlecell.observed import Arm

COLUMNS = (
    "variable",
    "contrast",
    "log_fc",
    "log_fc_low",
    "log_fc_high",
    "log_fc_sd",
    "log_fc_detection",
    "log_fc_abundance",
    "log_fc_bias",
    "prob_up",
    "lfsr",
    "prob_de",
    "expected_fdr",
    "is_de",
    "detection_test",
    "detection_ref",
    "mean_test",
    "mean_ref",
    "n_test",
    "n_ref",
    "status",
    "predictive_check",
)

_TEXT = ("variable", "contrast", "status", "predictive_check")

# Genes whose draws are looked at at a time: 1,000 draws of as many are 16 MB, some dozen times over.
_GENES_A_BLOCK = 2000
# Fewer positive values than this in both arms together say next to nothing of their spread.
FEWEST_POSITIVE = 3


def contrast_table(
    genes: list[str],
    draws: Mapping[str, Tensor],
    contrast: Contrast,
    arms: Sequence[Arm],
    misfit: dict[str, Any],
    delta: float,
    fdr: float,
    credible: float,
    zero: float = 0.0,
) -> Any:
    """Return the table of one contrast, the surest gene first; changes up to ``zero`` have no sign."""
    columns = {"variable": genes, "contrast": contrast.name}
    columns |= _posterior(draws, contrast, delta, credible, zero) | _observed(*arms) | misfit
    table = require("pandas").DataFrame(columns).astype(dict.fromkeys(_TEXT, object))
    table["is_de"] = (table["expected_fdr"] <= fdr) & (table["status"] != "all_zero")
    return _sorted(table[list(COLUMNS)])


def _posterior(
    draws: Mapping[str, Tensor], contrast: Contrast, delta: float, credible: float, zero: float
) -> dict[str, Any]:
    """Return what the draws say of all genes, of some genes at a time."""
    parts = zip(*(value.split(_GENES_A_BLOCK, dim=1) for value in draws.values()), strict=True)
    some = [_changes(dict(zip(draws, part, strict=True)), contrast, delta, credible, zero) for part in parts]
    found = {name: torch.cat([part[name] for part in some]) for name in some[0]}
    found["expected_fdr"] = expected_fdr(found.pop("error"))
    return {name: values.numpy() for name, values in found.items()}


def _changes(
    draws: Mapping[str, Tensor], contrast: Contrast, delta: float, credible: float, zero: float
) -> dict[str, Tensor]:
    # P(|change| <= delta) would not do to call genes by: one of which nothing is known has large changes both ways.
    change = log_fold_change(draws, contrast.test, contrast.reference)
    total = change.total
    _, low, high = summarise(total, credible)
    return {
        "log_fc": total.mean(0),
        "log_fc_low": low,
        "log_fc_high": high,
        "log_fc_sd": total.std(0),
        "log_fc_detection": change.detection.mean(0),
        "log_fc_abundance": change.abundance.mean(0),
        "prob_up": (total > 0).double().mean(0),
        "lfsr": local_false_sign_rate(total, zero),
        "prob_de": (total.abs() > delta).double().mean(0),
        "error": local_false_sign_rate(total, max(delta, zero)),
    }


def _observed(test: Arm, reference: Arm, everything: Arm) -> dict[str, Any]:
    return {
        "detection_test": test.detection,
        "detection_ref": reference.detection,
        "mean_test": test.mean,
        "mean_ref": reference.mean,
        "n_test": test.cells,
        "n_ref": reference.cells,
        "status": _status(test, reference, everything),
    }


def _status(test: Arm, reference: Arm, everything: Arm) -> Any:
    # Where nobody is in a condition, as with a value of a continuous covariate, all cells speak for it.
    arms = (test, reference) if test.cells and reference.cells else (everything,)
    positive = np.sum([arm.positive for arm in arms], axis=0)
    status = np.array(["ok"] * len(positive), dtype=object)
    status[positive == sum(arm.cells for arm in arms)] = "all_positive"
    status[positive < FEWEST_POSITIVE] = "too_few_positive"
    status[positive == 0] = "all_zero"
    return status


def _sorted(table: Any) -> Any:
    """Sort by what the calls go by; genes that the draws cannot tell apart by their change in units of its sd."""
    size = table["log_fc"].abs() / table["log_fc_sd"]
    order = np.lexsort([-size.to_numpy(), table["expected_fdr"].to_numpy()])
    return table.iloc[order].reset_index(drop=True)
