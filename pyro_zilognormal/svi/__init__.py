"""Stochastic variational inference for any Pyro model and guide."""

from pyro_zilognormal.svi.batch import Batch
from pyro_zilognormal.svi.checkpoint import Checkpoint
from pyro_zilognormal.svi.divergence import DivergenceError, DivergenceReport, SkipBadSteps
from pyro_zilognormal.svi.fit import fit
from pyro_zilognormal.svi.minibatches import Minibatches
from pyro_zilognormal.svi.objective import Objective
from pyro_zilognormal.svi.plots import plot_loss, plot_predictive
from pyro_zilognormal.svi.posterior import SiteSummary, posterior_draws, posterior_summary
from pyro_zilognormal.svi.predictive import PredictiveCheck, posterior_predictive
from pyro_zilognormal.svi.progress import Progress
from pyro_zilognormal.svi.result import FitResult
from pyro_zilognormal.svi.run import Run
from pyro_zilognormal.svi.saved import CheckpointError, SavedFit
from pyro_zilognormal.svi.schedule import Schedule
from pyro_zilognormal.svi.stopping import EarlyStopping
from pyro_zilognormal.svi.stream import BatchStream

__all__ = [
    "Batch",
    "BatchStream",
    "Checkpoint",
    "CheckpointError",
    "DivergenceError",
    "DivergenceReport",
    "EarlyStopping",
    "FitResult",
    "Minibatches",
    "Objective",
    "PredictiveCheck",
    "Progress",
    "Run",
    "SavedFit",
    "Schedule",
    "SiteSummary",
    "SkipBadSteps",
    "fit",
    "plot_loss",
    "plot_predictive",
    "posterior_draws",
    "posterior_predictive",
    "posterior_summary",
]
