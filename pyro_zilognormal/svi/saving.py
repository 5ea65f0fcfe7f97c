"""What a checkpoint keeps of a run."""

from typing import Any

import torch
from torch import Tensor

from pyro_zilognormal.svi.forms import finite, pairs, same_form, whole
from pyro_zilognormal.svi.holdings import module_numbers, set_module_numbers
from pyro_zilognormal.svi.isolation import global_state_kept
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
    values = run.objective.snapshot()
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
        "values": values,
        # For whoever reads the file without the model; a run is resumed from the unconstrained values.
        "constrained": {k: v for k, v in run.params.items() if not _equal(v, values[k])},
        "numbers": {part: module_numbers(run.objective.owner(part)) for part in ("model", "guide")},
        "good": list(run.good.copies),
        "optimizer": run.optimizer.state_dict(),
        "random": rng_state(),
        "callbacks": [c.state_dict() for c in run.stateful],
    }


def check_state(run: Run, state: dict[str, Any]) -> None:
    """Raise an error unless ``state`` is one that this run could come to; changes nothing.

    Args:
        run: the run, before its first step.
        state: what a file holds.

    Raises:
        ValueError: naming what is of another kind, shape or range.
    """
    ours = state_of(run)
    same_form(dict.fromkeys(state), dict.fromkeys(ours), "the state")
    step = state["step"]
    whole(step, "step")
    for name in ("good_step", "in_a_row"):
        whole(state[name], name, step)
    same_form(state["losses"], torch.empty(step, dtype=torch.float64), "losses")
    for name in ("held_out", "smoothed"):
        pairs(state[name], name, step)
    same_form(state["skipped"], [0] * min(len(state["skipped"]), step), "skipped")
    for name in ("seconds", "kl_weight"):
        finite(state[name], name)
    same_form(state["stopped"], [state["stopped"][0] if isinstance(state["stopped"][0], str) else "", False], "stopped")
    for name in ("values", "good"):
        same_form(state[name], ours[name], name)
    _check_numbers(run, state["numbers"], ours["numbers"])
    _check_optimizer(run, state["optimizer"], ours["optimizer"])
    _check_random(state["random"])
    run.reader.check_state(state["reader"], _check_random)
    same_form([None] * len(state["callbacks"]), [None] * len(run.stateful), "callbacks")
    for callback, saved in zip(run.stateful, state["callbacks"], strict=True):
        if hasattr(callback, "check_state"):
            callback.check_state(run, saved)


def load_state(run: Run, state: dict[str, Any]) -> None:
    """Go on from where a run was whose state :func:`state_of` returned; takes no training step."""
    # What may still fail goes first: nothing of the model is changed until all else is done.
    for callback, saved in zip(run.stateful, state["callbacks"], strict=True):
        callback.load_state_dict(saved)
    run.optimizer.load_state_dict(state["optimizer"])
    run.reader.load_state_dict(state["reader"])
    run.step, run.good_step, run.bad_in_a_row = state["step"], state["good_step"], state["in_a_row"]
    run.losses, run.skipped = state["losses"].tolist(), state["skipped"]
    run.held_out, run.smoothed = ([(s, v) for s, v in state[name]] for name in ("held_out", "smoothed"))
    run.go_on_from(state["seconds"])
    run.kl_weight = state["kl_weight"]
    run.objective.restore(state["values"])
    run.good.load(state["good"])
    for part, owner in run.objective.owners.items():
        set_module_numbers(owner, state["numbers"][part])
    reason, converged = state["stopped"]
    if reason not in ("", "steps", "max_seconds", "interrupted"):
        run.stop(reason, converged)
    set_rng_state(state["random"])


def _equal(seen: Tensor, value: Tensor) -> bool:
    return seen.shape == value.shape and torch.equal(seen, value)


def _check_numbers(run: Run, saved: Any, ours: dict[str, Any]) -> None:
    same_form(dict.fromkeys(saved), dict.fromkeys(ours), "numbers")
    for part, owner in run.objective.owners.items():
        parts = dict(owner.named_modules())
        for name, value in saved[part].items():
            path, _, short = name.rpartition(".")
            # One that came to be while the run went on is made again, but nothing else of a module is replaced.
            fresh = path in parts and short.isidentifier() and short[:1] != "_" and not hasattr(parts[path], short)
            same_form(value, ours[part].get(name, value if fresh and type(value) in (bool, int, float) else None), name)


def _check_optimizer(run: Run, saved: Any, ours: dict[str, Any]) -> None:
    same_form(dict.fromkeys(saved), dict.fromkeys(ours), "optimizer")
    same_form(saved["param_groups"], ours["param_groups"], "optimizer groups")
    for i, (group, mine) in enumerate(zip(saved["param_groups"], ours["param_groups"], strict=True)):
        if group["params"] != mine["params"]:
            raise ValueError(f"optimizer group {i} is of parameters {group['params']}; needed {mine['params']}")
        for name, value in group.items():
            if isinstance(value, float):
                finite(value, f"optimizer group {i} {name}")
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    for key, held in saved["state"].items():
        whole(key, "optimizer parameter", len(parameters) - 1)
        for name, value in held.items():
            _check_moment(value, parameters[key], f"optimizer state {name!r} of parameter {key}")


def _check_moment(value: Any, parameter: Tensor, where: str) -> None:
    """Raise a ValueError unless a value is a number, or has one for each element of a parameter, or of its axes."""
    if isinstance(value, Tensor):
        full = value.dim() == parameter.dim() and all(n in (1, m) for n, m in zip(value.shape, parameter.shape))  # noqa: B905
        if value.dim() > 0 and not full:
            raise ValueError(f"{where} has shape {tuple(value.shape)}; needed {tuple(parameter.shape)}")
    elif value is not None:
        finite(value, where)


def _check_random(state: Any) -> None:
    with global_state_kept():
        set_rng_state(state)
