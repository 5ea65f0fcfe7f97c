"""The plate over rows of an AutoGuide, which would else keep the size of the first batch."""

import functools
from collections.abc import Callable
from typing import Any

import pyro
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import unwrap

from pyro_zilognormal.svi.plates import DataPlate


def offer_plate(guide: Callable[..., Any], plate: DataPlate | None, trace: Any) -> Callable[..., Any] | None:
    """Give an AutoGuide a plate over rows that follows the size of the batch, unless it makes its own.

    Args:
        guide: the guide as it came.
        plate: the plate over rows, or None.
        trace: the model's.

    Returns:
        What the guide makes its plates with from now on, or None if that is its own.
    """
    guide = unwrap(guide)
    if plate is None or not isinstance(guide, AutoGuide):
        return None
    if getattr(guide.create_plates, "func", None) is not _row_plate and guide.create_plates is not None:
        return None
    frames = [f for s in trace.nodes.values() for f in s.get("cond_indep_stack", ()) if f.name == plate.name]
    if not frames or frames[0].full_size != plate.rows:
        return None
    guide.create_plates = functools.partial(_row_plate, plate, frames[0].dim)
    return guide.create_plates


def _row_plate(plate: DataPlate, dim: int, *args: Any, **kwargs: Any) -> Any:
    return pyro.plate(plate.name, plate.rows, dim=dim, subsample_size=plate.batch_rows)
