"""What model and guide compute, tried once with made-up parameters, so that another formula is seen."""

import math

import pyro
import torch
from torch import Tensor

from pyro_zilognormal.svi.batch import Batch
from pyro_zilognormal.svi.isolation import global_state_kept
from pyro_zilognormal.svi.modules import evaluating
from pyro_zilognormal.svi.objective import Objective
from pyro_zilognormal.svi.run import Run
from pyro_zilognormal.svi.stream import generators_kept

PREFIX = "log density of "
_SEED = 20_240_229


def tried_densities(run: Run) -> dict[str, str]:
    """Return the log density of each site on the first batch, summed, as text, under a name that can be read.

    Parameters and buffers have values that depend on their shapes alone, since those of a module may have been trained
    before; draws have a seed of their own. Nothing is found where model or guide do not run with these.

    Args:
        run: the run, before its first step.
    """
    with global_state_kept(_SEED), generators_kept(run.source):
        for generator in getattr(run.source, "generators", []):
            generator.manual_seed(_SEED)
        try:
            return _densities(run.objective, next(run.source.epoch(0, run.seed)))
        except (ArithmeticError, IndexError, RuntimeError, ValueError):
            return {}


@torch.no_grad()
def _densities(objective: Objective, batch: Batch) -> dict[str, str]:
    torch.distributions.Distribution.set_default_validate_args(False)
    pyro.enable_validation(False)
    found = {}
    with evaluating(objective), objective.holding(_made_up(objective)), objective.running(batch.args, batch.indices):
        for part, trace in zip(("guide", "model"), objective.traces(*batch.args), strict=True):
            trace.compute_log_prob()
            for name, node in trace.nodes.items():
                if node["type"] == "sample":
                    total = node["log_prob_sum"]
                    found[f"{PREFIX}{part} site {name!r} on {total.device.type}"] = repr(float(total))
    return found


def _made_up(objective: Objective) -> dict[str, Tensor]:
    """Return parameters and buffers made of their shapes alone."""
    generator, values = torch.Generator().manual_seed(_SEED), {}
    for name, value in objective.snapshot().items():
        if not name.startswith("buffer "):
            values[name] = (torch.randn(value.shape, generator=generator, dtype=torch.float64) / 2).to(value)
        else:
            values[name] = torch.full_like(value, 0.5 if value.is_floating_point() else 0)
    return values


def close(saved: str, now: str) -> bool:
    """Whether two log densities, as text, differ by no more than another device's or version's rounding."""
    return saved == now or math.isclose(float(saved), float(now), rel_tol=1e-4, abs_tol=1e-8)
