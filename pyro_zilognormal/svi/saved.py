"""Checkpoint files: the newest whole one, and what is in it for whoever reads it without the data."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_zilognormal.svi import storage
from pyro_zilognormal.svi.forms import finite, pairs, same_form, whole

FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be resumed from: of other data or another model, or with no readable file."""


@dataclass(frozen=True)
class SavedFit:
    """What a checkpoint says of a fit, with all tensors on the CPU.

    Attributes:
        step: how many steps had been taken.
        params: every parameter by name as the model sees it, as it was after that step; not the best ones, which a
            resumed fit goes back to when it ends.
        losses: the loss of every step.
        held_out: (step, loss) of every evaluation on held-out data.
        smoothed: (step, loss) of every evaluation of the smoothed training loss.
        skipped: the steps left out because their loss or gradient was not finite.
        seconds: seconds spent.
        stop_reason: why it had stopped, "" if it had not.
        converged: whether it had converged.
        identity: what the fit was of: data, sites, parameters, settings, each as text under its name.
    """

    step: int
    params: dict[str, Tensor]
    losses: npt.NDArray[np.float64]
    held_out: list[tuple[int, float]]
    smoothed: list[tuple[int, float]]
    skipped: list[int]
    seconds: float
    stop_reason: str
    converged: bool
    identity: dict[str, str]


def previous(path: Path) -> Path:
    """Return where the file before the last is kept."""
    return path.with_name(path.name + ".previous")


def fresh(path: Path) -> Path:
    """Return where a file is before it takes the place of the last."""
    return path.with_name(path.name + ".new")


def newest(path: Path) -> tuple[dict[str, Any] | None, bool]:
    """Return the content of the newest whole file, None if there is none, and whether the last one is damaged.

    Args:
        path: of the last file.

    Raises:
        CheckpointError: if there are files, but none is whole.
    """
    faults = []
    for file in (path, fresh(path), previous(path)):
        if file.exists():
            try:
                content = _checked(storage.read(file))
            except storage.CorruptFileError as error:
                faults.append((file, error))
                continue
            told = "; ".join(f"{f}: {e}" for f, e in faults)
            if faults:
                warnings.warn(f"checkpoint damaged, using the one before: {told}", stacklevel=3)
            return content, any(f == path for f, _ in faults)
    if faults:
        told = "; ".join(f"{f}: {e}" for f, e in faults)
        raise CheckpointError(
            f"no checkpoint can be read: {told}. Delete the files, or pass resume=False to start anew"
        )
    return None, False


def open_saved(path: Path) -> SavedFit:
    """Return what the newest whole file says; raise a CheckpointError if it does not hold the state of a fit."""
    content, _ = newest(path)
    if content is None:
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        return _saved(content["run"], content["fingerprint"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path} does not hold the state of a fit: {error}") from error


def _saved(state: dict[str, Any], identity: dict[str, str]) -> SavedFit:
    step = state["step"]
    whole(step, "step")
    same_form(state["losses"], torch.empty(step, dtype=torch.float64), "losses")
    for name in ("held_out", "smoothed"):
        pairs(state[name], name, step)
    for value in state["skipped"]:
        whole(value, "skipped", step)
    finite(state["seconds"], "seconds")
    reason, converged = state["stopped"]
    params = {k: state["constrained"].get(k, v) for k, v in state["values"].items() if not k.startswith("buffer ")}
    for kind, values in (
        (Tensor, params.values()),
        (str, [reason, *identity, *identity.values()]),
        (bool, [converged]),
    ):
        if not all(isinstance(v, kind) for v in values):
            raise TypeError(f"needed nothing but {kind.__name__} among {[type(v).__name__ for v in values]}")
    return SavedFit(
        step=step,
        params=params,
        losses=state["losses"].numpy(),
        held_out=[(s, v) for s, v in state["held_out"]],
        smoothed=[(s, v) for s, v in state["smoothed"]],
        skipped=state["skipped"],
        seconds=state["seconds"],
        stop_reason=reason,
        converged=converged,
        identity=identity,
    )


def _checked(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise storage.CorruptFileError(f"it is not a checkpoint of format {FORMAT}")
    if not isinstance(content.get("fingerprint"), dict) or not isinstance(content.get("run"), dict):
        raise storage.CorruptFileError("it lacks the parts of a checkpoint")
    return content
