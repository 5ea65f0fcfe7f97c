"""What made a result: versions and settings."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import platform
from collections.abc import Mapping
from typing import Any

import torch

from pyro_zilognormal._version import __version__
from pyro_zilognormal.models import HurdleData, HurdlePriors
from pyro_zilognormal.singlecell.errors import SingleCellError, unknown

_REPORTED = ("torch", "pyro-ppl", "numpy", "scipy", "pandas", "anndata", "formulaic")


# Of genes that a column of the design affects, a tenth give or take: calls are honest only with sparse effects.
_SHARE = (0.1, 1.5)


def versions() -> dict[str, str]:
    """Return the versions of what computes."""
    found = {name: importlib.metadata.version(name) for name in _REPORTED}
    return {"pyro-zilognormal": __version__, "python": platform.python_version()} | found


def sizes(data: HurdleData, shape: tuple[int, int]) -> dict[str, int]:
    """Return how much there is of everything: cells and genes, rows that were fitted, and donors."""
    return {"n_cells": shape[0], "n_genes": shape[1], "n_rows": len(data.design), "n_donors": data.donors}


def make_priors(given: HurdlePriors | Mapping[str, Any] | None, data: HurdleData) -> HurdlePriors:
    """Return the priors that are given, or the data's, with sparse effects, and with those that are given.

    Raises:
        UnknownNameError: a name that is no prior.
    """
    if isinstance(given, HurdlePriors):
        return given
    known = HurdlePriors.__dataclass_fields__
    for name in given or {}:
        if name not in known:
            raise unknown("priors", name, "fields of HurdlePriors", known)
    return HurdlePriors.for_data(data, **({"effects_share": _SHARE} | dict(given or {})))


def nearly_zero(priors: HurdlePriors) -> float:
    """Return the log2 fold change that genes without effects may have, whose sign says nothing: 5 sds of two spikes."""
    return 0.0 if priors.effects_share is None else 5 * math.sqrt(2) * priors.spike_sd / math.log(2)


def check_device(device: Any) -> str:
    """Return the name of a device that torch can compute on.

    Raises:
        SingleCellError: there is no such device.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        said = str(error).strip().splitlines()[0]
        raise SingleCellError(f"device is {device!r}, which cannot be used here ({said}); pass 'cpu'") from error
    return str(device)


def on_device(data: HurdleData, device: str) -> HurdleData:
    """Return the data on a device of torch."""
    fields = {f.name: getattr(data, f.name) for f in dataclasses.fields(data)}
    moved: dict[str, Any] = {
        name: value.to(device) for name, value in fields.items() if isinstance(value, torch.Tensor)
    }
    return dataclasses.replace(data, **moved)


def check_fractions(delta: Any, fdr: Any, credible: Any) -> None:
    """Raise for settings of a table that are out of range."""
    if isinstance(delta, bool) or not isinstance(delta, int | float) or not 0 <= delta < float("inf"):
        raise SingleCellError(f"delta is {delta!r}; needed a number >= 0, in log2 units")
    for name, value in (("fdr", fdr), ("credible", credible)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise SingleCellError(f"{name} is {value!r}; needed a number between 0 and 1")


def check_draws(draws: Any) -> int:
    """Return a number of draws that tails can be told from."""
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 100:
        raise SingleCellError(f"draws is {draws!r}; needed a whole number of at least 100")
    return draws
