"""Stochastic variational inference for any Pyro model and guide."""

from pyro_zilognormal.svi.callbacks import Callback, EarlyStopping, Progress, Schedule
from pyro_zilognormal.svi.checkpoint import Checkpoint, CheckpointError, InUseError
from pyro_zilognormal.svi.data import Batch, BatchStream, Minibatches
from pyro_zilognormal.svi.diagnose import DivergenceError, DivergenceReport
from pyro_zilognormal.svi.elbo import SVIModule
from pyro_zilognormal.svi.fit import FitResult, Run, fit
from pyro_zilognormal.svi.plots import plot_loss, plot_predictive
from pyro_zilognormal.svi.posterior import (
    PredictiveCheck,
    SiteSummary,
    posterior_draws,
    posterior_predictive,
    posterior_summary,
)

__all__ = [
    "Batch",
    "BatchStream",
    "Callback",
    "Checkpoint",
    "CheckpointError",
    "DivergenceError",
    "DivergenceReport",
    "EarlyStopping",
    "FitResult",
    "InUseError",
    "Minibatches",
    "PredictiveCheck",
    "Progress",
    "Run",
    "SVIModule",
    "Schedule",
    "SiteSummary",
    "fit",
    "plot_loss",
    "plot_predictive",
    "posterior_draws",
    "posterior_predictive",
    "posterior_summary",
]
