"""Checks of arguments that are no data: numbers, flags, names, the device, the hyperpriors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_zilognormal.models import HurdleData, HurdlePriors
from pyro_zilognormal.singlecell.errors import ArgumentTypeError, SingleCellError, shown, unknown
from pyro_zilognormal.svi import Callback, Checkpoint
from pyro_zilognormal.svi.data import whole as whole_number
from pyro_zilognormal.svi.fit import as_callbacks


@contextmanager
def _refusing(what: str = "") -> Iterator[None]:
    """Raise the errors of ``svi`` as those of this package, with the name of what is refused."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise SingleCellError(f"{what}{error}") from error


def whole(name: str, value: Any, least: int, most: float = math.inf) -> int:
    """Return a whole number, numpy's or torch's too, as an int."""
    with _refusing():
        return whole_number(name, value, least, most)


def real(name: str, value: Any, fits: Any, needed: str) -> float:
    """Return a number for which ``fits`` holds as a float."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise ArgumentTypeError(f"{name} is {shown(value)}; needed {needed}")
    if not fits(value):
        raise SingleCellError(f"{name} is {value!r}; needed {needed}")
    return float(value)


def nonnegative(name: str, value: Any, unit: str) -> float:
    """Return a finite number of at least 0 as a float."""
    return real(name, value, lambda v: 0 <= v < math.inf, f"a number >= 0, {unit}")


def flag(name: str, value: Any) -> bool:
    """Return True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ArgumentTypeError(f"{name} is {shown(value)}; needed True or False")
    return bool(value)


def text_or_none(name: str, value: Any, needed: str) -> str | None:
    """Return text or None."""
    if not isinstance(value, str | None):
        raise ArgumentTypeError(f"{name} is {shown(value)}; needed {needed}, or None")
    return value


def items(name: str, value: Any, needed: str) -> list[Any]:
    """Return the elements of a list, or of anything that can be iterated over but text and dicts."""
    try:
        if not isinstance(value, str | bytes | Mapping):
            return list(value)
    except TypeError:
        pass
    raise ArgumentTypeError(f"{name} is {shown(value)}; needed {needed}")


def check_fractions(delta: Any, fdr: Any, credible: Any, max_error: Any = 0.2) -> None:
    """Raise for settings of a table that are out of range."""
    nonnegative("delta", delta, "in log2 units")
    for name, value in (("fdr", fdr), ("credible", credible)):
        real(name, value, lambda v: 0 < v < 1, "a number between 0 and 1")
    real("max_error", max_error, lambda v: 0 < v <= 1, "a probability above 0, at most 1")


def check_device(device: Any) -> str:
    """Return the name of a torch device that can be used here."""
    if not isinstance(device, str | torch.device):
        raise ArgumentTypeError(f"device is {shown(device)}; needed the name of a torch device, such as 'cpu'")
    try:
        torch.zeros(1, device=device).item()  # which a meta device has not
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = str(error).strip().splitlines()[0]
        raise SingleCellError(f"device is {device!r}, which cannot be used here ({said}); pass 'cpu'") from error
    return str(device)


def on_device(data: HurdleData, device: str) -> HurdleData:
    """Return data on a device."""
    moved: dict[str, Any] = {name: value.to(device) for name, value in vars(data).items() if isinstance(value, Tensor)}
    return dataclasses.replace(data, **moved)


def priors_for(given: Any, data: HurdleData) -> HurdlePriors:
    """Return hyperpriors: those that are given, or the data's with the given changes."""
    if isinstance(given, HurdlePriors):
        return given
    if not isinstance(given, Mapping | None):
        raise ArgumentTypeError(f"priors is {shown(given)}; needed HurdlePriors, or a dict of some of its fields")
    changed, known = dict(given or {}), HurdlePriors.__dataclass_fields__
    for name in changed.keys() - known:
        raise unknown("priors", name, "fields of HurdlePriors", known)
    try:
        return HurdlePriors.for_data(data, **changed)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SingleCellError(f"priors: {str(error).strip()}") from error


def negligible(priors: HurdlePriors) -> float:
    """Return the log2 fold change below which genes without effects may lie: 5 sds of the difference of two spikes."""
    return 5 * math.sqrt(2) * priors.spike_sd / math.log(2)


def callbacks_of(given: Any, checkpoint: Any) -> list[Callback]:
    """Return the callbacks of a fit, the checkpoint, or that of a path, among them."""
    found = items("callbacks", given, "a list of callbacks")
    with _refusing():
        found = as_callbacks(found)
    if checkpoint is None:
        return found
    with _refusing("checkpoint: "):
        return [*found, checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)]
