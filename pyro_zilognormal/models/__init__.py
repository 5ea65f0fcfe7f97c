"""Reference models on the zero-inflated log-normal, with guides whose posterior can be trusted."""

from pyro_zilognormal.models.data import HurdleData
from pyro_zilognormal.models.fitting import fit_hurdle
from pyro_zilognormal.models.fold_change import (
    Condition,
    FoldChange,
    expected_fdr,
    linear_predictor,
    local_false_sign_rate,
    log_fold_change,
)
from pyro_zilognormal.models.hurdle import HurdleRegression
from pyro_zilognormal.models.priors import HurdlePriors

__all__ = [
    "Condition",
    "FoldChange",
    "HurdleData",
    "HurdlePriors",
    "HurdleRegression",
    "expected_fdr",
    "fit_hurdle",
    "linear_predictor",
    "local_false_sign_rate",
    "log_fold_change",
]
