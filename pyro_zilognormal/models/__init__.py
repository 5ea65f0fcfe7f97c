"""Reference models on the zero-inflated log-normal, with guides whose posteriors are calibrated."""

from pyro_zilognormal.models.hurdle.data import HurdleData
from pyro_zilognormal.models.hurdle.effects import (
    CellParameters,
    Condition,
    FoldChange,
    cell_parameters,
    expected_fdr,
    local_false_sign_rate,
    log_fold_change,
)
from pyro_zilognormal.models.hurdle.fit import draw_coefficients, fit_hurdle
from pyro_zilognormal.models.hurdle.guide import HurdleGuide
from pyro_zilognormal.models.hurdle.model import HurdleModel
from pyro_zilognormal.models.hurdle.priors import HurdlePriors
from pyro_zilognormal.models.vae.fit import FittedVAE, GroupChange, KLWarmUp, Latent, fit_vae
from pyro_zilognormal.models.vae.model import ZILNVAE, ZILNVAEGuide

__all__ = [
    "ZILNVAE",
    "CellParameters",
    "Condition",
    "FittedVAE",
    "FoldChange",
    "GroupChange",
    "HurdleData",
    "HurdleGuide",
    "HurdleModel",
    "HurdlePriors",
    "KLWarmUp",
    "Latent",
    "ZILNVAEGuide",
    "cell_parameters",
    "draw_coefficients",
    "expected_fdr",
    "fit_hurdle",
    "fit_vae",
    "local_false_sign_rate",
    "log_fold_change",
]
