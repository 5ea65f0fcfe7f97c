"""What a checkpoint keeps of a run."""

from typing import Any

import torch

from pyro_zilognormal.svi.rng import rng_state, set_rng_state
from pyro_zilognormal.svi.run import Run


def state_of(run: Run) -> dict[str, Any]:
    """Return everything a resumed run needs, as tensors, numbers, text, and containers of them."""
    late = [k for k in run.objective.trainable() if k not in run.first_parameters]
    if late:
        raise RuntimeError(
            f"parameters {late} first appeared after the first run of model and guide; such a run "
            "cannot be resumed. Make every parameter in the first run, or fit without a Checkpoint"
        )
    return {
        "step": run.step,
        "reader": run.reader.state_dict(),
        "losses": torch.tensor(run.losses, dtype=torch.float64),
        "held_out": [list(pair) for pair in run.held_out],
        "smoothed": [list(pair) for pair in run.smoothed],
        "good_step": run.good_step,
        "skipped": list(run.skipped),
        "in_a_row": run.bad_in_a_row,
        "seconds": run.seconds,
        "kl_weight": run.kl_weight,
        "stopped": [run.stop_reason, run.converged],
        "values": run.objective.snapshot(),
        "good": list(run.good.copies),
        "optimizer": run.optimizer.state_dict(),
        "random": rng_state(),
        "callbacks": [c.state_dict() for c in run.stateful],
    }


def load_state(run: Run, state: dict[str, Any]) -> None:
    """Go on from where a run was whose state :func:`state_of` returned; takes no training step."""
    run.step, run.good_step, run.bad_in_a_row = state["step"], state["good_step"], state["in_a_row"]
    run.losses, run.skipped = state["losses"].tolist(), state["skipped"]
    run.held_out = [(int(s), float(v)) for s, v in state["held_out"]]
    run.smoothed = [(int(s), float(v)) for s, v in state["smoothed"]]
    run.go_on_from(state["seconds"])
    run.kl_weight = state["kl_weight"]
    run.objective.restore(state["values"])
    run.good.load(state["good"])
    run.optimizer.load_state_dict(state["optimizer"])
    for callback, saved in zip(run.stateful, state["callbacks"], strict=True):
        callback.load_state_dict(saved)
    reason, converged = state["stopped"]
    if reason not in ("", "steps", "max_seconds", "interrupted"):
        run.stop(reason, converged)
    run.reader.load_state_dict(state["reader"])
    set_rng_state(state["random"])
