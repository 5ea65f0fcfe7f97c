"""Checks of arguments that are no data: numbers, flags, names, the device, the hyperpriors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from typing import Any

import numpy as np
import torch

from pyro_zilognormal.models import HurdleData, HurdlePriors
from pyro_zilognormal.singlecell.errors import ArgumentTypeError, SingleCellError, reason, shown, unknown
from pyro_zilognormal.svi import Callback, Checkpoint
from pyro_zilognormal.svi.data import whole as whole_number
from pyro_zilognormal.svi.fit import as_callbacks


@contextmanager
def refusing(what: str = "", errors: tuple[type[Exception], ...] = (TypeError, ValueError)) -> Iterator[None]:
    """Raise the errors of other packages as those of this one, with the name of what is refused."""
    try:
        yield
    except errors as error:
        raise SingleCellError(f"{what}{str(error).strip()}") from error


def of_type(name: str, value: Any, kind: Any, needed: str) -> Any:
    """Return a value of a type."""
    if not isinstance(value, kind):
        raise ArgumentTypeError(f"{name} is {shown(value)}; needed {needed}")
    return value


def flag(name: str, value: Any) -> bool:
    """Return True or False."""
    return bool(of_type(name, value, bool | np.bool_, "True or False"))


def text_or_none(name: str, value: Any, needed: str) -> str | None:
    """Return text or None."""
    text: str | None = of_type(name, value, str | None, f"{needed}, or None")
    return text


def items(name: str, value: Any, needed: str) -> list[Any]:
    """Return the elements of a list, or of anything that can be iterated over but text and dicts."""
    try:
        if not isinstance(value, str | bytes | Mapping):
            return list(value)
    except TypeError:
        pass
    raise ArgumentTypeError(f"{name} is {shown(value)}; needed {needed}")


def whole(name: str, value: Any, least: int, most: float = math.inf) -> int:
    """Return a whole number, numpy's or torch's too, as an int."""
    with refusing():
        return whole_number(name, value, least, most)


def real(name: str, value: Any, fits: Any, needed: str) -> float:
    """Return a number for which ``fits`` holds as a float."""
    if not fits(of_type(name, value, Real, needed)) or isinstance(value, bool):
        raise SingleCellError(f"{name} is {value!r}; needed {needed}")
    return float(value)


def nonnegative(name: str, value: Any, unit: str) -> float:
    """Return a finite number of at least 0 as a float."""
    return real(name, value, lambda v: 0 <= v < math.inf, f"a number >= 0, {unit}")


def fraction(name: str, value: Any) -> float:
    """Return a number between 0 and 1 as a float."""
    return real(name, value, lambda v: 0 < v < 1, "a number between 0 and 1")


def check_fractions(delta: Any, fdr: Any, credible: Any, max_error: Any) -> None:
    """Raise for settings of a table that are out of range."""
    nonnegative("delta", delta, "in log2 units")
    fraction("fdr", fdr)
    fraction("credible", credible)
    real("max_error", max_error, lambda v: 0 < v <= 1, "a probability above 0, at most 1")


def matrix_arguments(layer: Any, use_raw: Any, scale: Any, offset: Any, detection_threshold: Any) -> dict[str, Any]:
    """Return which values of an AnnData are meant; scale and offset are checked as they are used."""
    return {
        "layer": text_or_none("layer", layer, "the name of a layer"),
        "use_raw": flag("use_raw", use_raw),
        "scale": scale,
        "offset": offset,
        "detection_threshold": nonnegative("detection_threshold", detection_threshold, "in linear units"),
    }


def check_device(device: Any) -> str:
    """Return the name of a torch device that can be used here."""
    of_type("device", device, str | torch.device, "the name of a torch device, such as 'cpu'")
    try:
        torch.zeros(1, device=device).item()  # which a meta device has not
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SingleCellError(f"device is {device!r}, which cannot be used here: {reason(error)}") from error
    return str(device)


def priors_for(given: Any, data: HurdleData) -> HurdlePriors:
    """Return hyperpriors: those that are given, or the data's with the given changes."""
    of_type("priors", given, HurdlePriors | Mapping | None, "HurdlePriors, or a dict of some of its fields")
    if isinstance(given, HurdlePriors):
        return given
    changed, known = dict(given or {}), HurdlePriors.__dataclass_fields__
    for name in changed.keys() - known:
        raise unknown("priors", name, "fields of HurdlePriors", known)
    with refusing("priors: ", (TypeError, ValueError, RuntimeError)):
        return HurdlePriors.for_data(data, **changed)


def callbacks_of(given: Any, checkpoint: Any) -> list[Callback]:
    """Return the callbacks of a fit, the checkpoint, or that of a path, among them."""
    given = items("callbacks", given, "a list of callbacks")
    with refusing():
        found = as_callbacks(given)
    if checkpoint is None:
        return found
    with refusing("checkpoint: "):
        return [*found, checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)]
