"""What a run was of, and whether it can be trusted, in numbers."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from pyro_zilognormal.singlecell.check import CREDIBLE, QUANTITIES, inside
from pyro_zilognormal.singlecell.de import HurdleDE
from pyro_zilognormal.singlecell.job import Answer
from pyro_zilognormal.singlecell.misfit import off
from pyro_zilognormal.svi import FitResult
from pyro_zilognormal.svi.digests import describe


def metrics(answer: Answer) -> dict[str, Any]:
    """Return versions, input, settings, calls, convergence, predictive check, timing and warnings in plain values."""
    job, de = answer.job, answer.de
    return {
        "versions": de.versions,
        "input": {"source": job.source, "fingerprint": fingerprint(de)},
        "settings": de.settings | {"delta": job.delta, "fdr": job.fdr, "resume": job.resume, "command": job.command},
        "contrasts": [_calls(contrast.name, answer.of(contrast.name), job.delta) for contrast in answer.contrasts],
        "convergence": convergence(answer.result),
        "predictive_check": checks(answer.check),
        "seconds": {part: round(seconds, 3) for part, seconds in answer.seconds.items()},
        "warnings": answer.warnings,
    }


def fingerprint(de: HurdleDE) -> str:
    """Return a digest of all that the fit has seen: values as read, design, donors, offsets, names of genes.

    Args:
        de: a model, fitted or not.
    """
    seen = [describe(value) for value in de.data.arguments]
    return hashlib.blake2b("\n".join([*seen, *de.genes]).encode(), digest_size=16).hexdigest()


def convergence(result: FitResult) -> dict[str, Any]:
    """Return how the fit ended."""
    return {
        "converged": bool(result.converged),
        "stop_reason": result.stop_reason,
        "steps": result.steps,
        "best_step": result.best_step,
        "skipped_steps": len(result.skipped),
        "loss_last_tenth": float(np.nanmean(result.losses[-max(1, len(result.losses) // 10) :])),
        "fit_seconds": round(result.seconds, 3),
    }


def checks(check: Any) -> dict[str, Any]:
    """Return how many genes lie in the interval of cells drawn anew, condition by condition, and which do not."""
    found: dict[str, Any] = {"credible": CREDIBLE, "genes": check["variable"].nunique()}
    found["conditions"] = list(dict.fromkeys(check["condition"]))
    names = check["variable"].astype(str) + " in " + check["condition"].astype(str)
    for quantity in QUANTITIES:
        within = inside(check, quantity)
        found[f"{quantity}_inside"] = float(within.mean())
        found[f"{quantity}_outside"] = names[~within].tolist()
    return found


def _calls(name: str, table: Any, delta: float) -> dict[str, Any]:
    called = table[table["is_de"]]
    return {
        "contrast": name,
        "n_test": int(table["n_test"].iloc[0]),
        "n_ref": int(table["n_ref"].iloc[0]),
        "up": int((called["log_fc"] > 0).sum()),
        "down": int((called["log_fc"] < 0).sum()),
        "off": table["variable"][off(table, delta)].astype(str).tolist(),
        "status": {str(status): int(number) for status, number in table["status"].value_counts().items()},
    }
