"""Stochastic variational inference for any Pyro model and guide."""

from pyro_zilognormal.svi.callbacks import EarlyStopping, Progress, Schedule
from pyro_zilognormal.svi.checkpoint import Checkpoint, CheckpointError, InUseError
from pyro_zilognormal.svi.data import BatchStream, Minibatches
from pyro_zilognormal.svi.diagnose import DivergenceReport
from pyro_zilognormal.svi.elbo import Batch, SVIModule
from pyro_zilognormal.svi.fit import Callback, DivergenceError, FitResult, Run, fit
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
