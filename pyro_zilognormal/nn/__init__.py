"""The zero-inflated log-normal as a loss, a layer, metrics and a scikit-learn estimator. No Pyro model is needed."""

from typing import TYPE_CHECKING, Any

from pyro_zilognormal.nn.loss import ZILNHead, ziln_distribution, ziln_loss
from pyro_zilognormal.nn.metrics import Calibration, crps, crps_skill, decile_calibration, normalized_gini

if TYPE_CHECKING:
    from pyro_zilognormal.nn.regressor import ZILNRegressor

__all__ = [
    "Calibration",
    "ZILNHead",
    "ZILNRegressor",
    "crps",
    "crps_skill",
    "decile_calibration",
    "normalized_gini",
    "ziln_distribution",
    "ziln_loss",
]


def __getattr__(name: str) -> Any:
    """Import scikit-learn only for those who use the estimator."""
    if name == "ZILNRegressor":
        from pyro_zilognormal.nn.regressor import ZILNRegressor

        return ZILNRegressor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
