"""Reference models on the zero-inflated log-normal, with guides whose posteriors are calibrated."""

from pyro_zilognormal.models.hurdle import (
    Condition,
    FoldChange,
    HurdleData,
    HurdleGuide,
    HurdleModel,
    HurdlePriors,
    draw_coefficients,
    expected_fdr,
    fit_hurdle,
    linear_predictor,
    local_false_sign_rate,
    log_fold_change,
)

__all__ = [
    "Condition",
    "FoldChange",
    "HurdleData",
    "HurdleGuide",
    "HurdleModel",
    "HurdlePriors",
    "draw_coefficients",
    "expected_fdr",
    "fit_hurdle",
    "linear_predictor",
    "local_false_sign_rate",
    "log_fold_change",
]
