"""Handlers that make a model of all rows right for a minibatch of them, and weight its latent sites."""

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample


class DataPlate(Messenger):
    """Scale the sites of the data plate from a minibatch to all rows, and tell the plate which rows it sees.

    Two ways to write the plate are understood. ``pyro.plate(name, N, subsample_size=len(x))`` is scaled by
    Pyro itself; the handler makes its indices those of the minibatch, so that parameters held for every row
    line up with the data. ``pyro.plate(name, len(x))`` knows only the batch; the handler scales its sites by
    N / len(x).

    Args:
        name: the plate over rows.
        rows: N, the number of rows in all.
    """

    def __init__(self, name: str, rows: int) -> None:
        super().__init__()
        self.name, self.rows = name, rows
        self.batch_rows: int = rows
        self.indices: torch.Tensor | None = None

    def _process_message(self, msg: Any) -> None:
        if site_is_subsample(msg):
            if msg["name"] == self.name:
                self._set_indices(msg)
            return
        frame = next((f for f in msg["cond_indep_stack"] if f.name == self.name), None)
        if frame is None:
            return
        if msg["type"] == "sample":
            self._scale(msg, frame)
        elif msg["type"] == "param" and msg["kwargs"].get("event_dim") is not None:
            self._check_row_parameters(msg, frame)

    def _set_indices(self, msg: Any) -> None:
        law, told, rows = msg["fn"], msg["value"], self._known_rows(msg)
        if rows is None:
            return
        if told is None and law.subsample_size != self.batch_rows:
            raise ValueError(_SUBSAMPLE_SIZE.format(self.name, self.rows, self.batch_rows))
        if told is not None and not torch.equal(torch.as_tensor(told).cpu(), rows.cpu()):
            raise ValueError(_OTHER_ROWS.format(self.name))
        msg["value"], msg["done"] = rows, True

    def _postprocess_message(self, msg: Any) -> None:
        # A replay has put those of the guide in their place, other ones if its plate has the size of the batch.
        if site_is_subsample(msg) and msg["name"] == self.name:
            rows = self._known_rows(msg)
            msg["value"] = msg["value"] if rows is None else rows

    def _known_rows(self, msg: Any) -> torch.Tensor | None:
        """Return the rows of a plate, if they are those of a minibatch that is known."""
        return None if self.batch_rows == self.rows or msg["fn"].size != self.rows else self.indices

    def _scale(self, msg: Any, frame: Any) -> None:
        if frame.full_size == self.rows:
            if frame.size != self.batch_rows != self.rows:
                raise ValueError(_SUBSAMPLE_SIZE.format(self.name, self.rows, self.batch_rows))
            return
        if frame.full_size != self.batch_rows:
            raise ValueError(_PLATE_SIZE.format(self.name, frame.full_size, self.rows, self.batch_rows))
        msg["scale"] = msg["scale"] * (self.rows / self.batch_rows)

    def _check_row_parameters(self, msg: Any, frame: Any) -> None:
        if frame.full_size != self.rows and self.batch_rows != self.rows:
            raise ValueError(_BATCH_SIZED.format(msg["name"], self.name, self.name, self.rows))
        if self.indices is None:
            raise ValueError(_NO_INDICES.format(msg["name"]))


class NoRowParameters(Messenger):
    """Refuse parameters that hold a value for every row of the training data, while held-out data are looked
    at.

    Args:
        rows: how many rows the training data have. A plate of that size is taken for the plate over rows.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def _process_message(self, msg: Any) -> None:
        if msg["type"] == "param" and msg["kwargs"].get("event_dim") is not None:
            for frame in msg["cond_indep_stack"]:
                if frame.vectorized and frame.full_size == self.rows:
                    raise ValueError(_HELD_OUT_ROWS.format(msg["name"], frame.name))


class GivenRows(Messenger):
    """Take note of the plates that are told which rows they see, ``pyro.plate(..., subsample=rows)``.

    Attributes:
        rows: by plate, the rows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, torch.Tensor] = {}

    def _process_message(self, msg: Any) -> None:
        if site_is_subsample(msg) and isinstance(msg["value"], torch.Tensor) and not msg["done"]:
            self.rows[msg["name"]] = msg["value"]


class LatentScale(Messenger):
    """Multiply the log densities of latent sites, in model and guide alike, by ``weight``: a KL weight."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def _process_message(self, msg: Any) -> None:
        if msg["type"] == "sample" and not msg["is_observed"] and not site_is_subsample(msg):
            msg["scale"] = msg["scale"] * self.weight


def check_given_rows(guide: Any, given: dict[str, torch.Tensor]) -> None:
    """Raise a ValueError where the guide draws rows of a plate that the model is told.

    Pyro would give the model the guide's rows, silently, so that these and the data were of different rows.

    Args:
        guide: the guide's trace.
        given: by plate, the rows that the model was told.
    """
    for name, rows in given.items():
        node = guide.nodes.get(name)
        if node is not None and site_is_subsample(node) and not torch.equal(node["value"].cpu(), rows.cpu()):
            raise ValueError(_GIVEN_ROWS.format(name))


_SUBSAMPLE_SIZE = (
    "plate {0!r} is declared with {1} rows, but its subsample_size is not the {2} rows of this minibatch; "
    "write pyro.plate({0!r}, {1}, subsample_size=len(x)), so that a last short batch is right too"
)
_PLATE_SIZE = (
    "plate {0!r} is declared with size {1}; it needs {2}, the number of rows in all, or {3}, the rows of "
    "this minibatch. Name the plate over the rows of the data in plate=, or correct its size"
)
_HELD_OUT_ROWS = (
    "parameter {0!r} holds a value for every row of plate {1!r}: held-out rows have none. Stop on the "
    "training loss (EarlyStopping() without held_out), or use a guide that computes its local values from "
    "the data"
)
_BATCH_SIZED = (
    "parameter {0!r} holds a value for every row, but plate {1!r} is declared with the size of a minibatch, "
    "so that all minibatches would share them; write pyro.plate({2!r}, {3}, subsample_size=len(x))"
)
_NO_INDICES = (
    "parameter {0!r} holds a value for every row, but nothing says which rows these are (a BatchStream does "
    "not); use Minibatches of all rows, or a guide that computes its local values from the data"
)
_OTHER_ROWS = (
    "plate {0!r} is told other rows (subsample=) than those of this minibatch; give Minibatches the rows, "
    "torch.arange(N), as one more array, or write subsample_size=len(x) in the plate"
)
_GIVEN_ROWS = (
    "plate {0!r} is told its rows in the model (subsample=), but the guide draws rows of its own, which would take "
    "their place; pass Minibatches(..., plate={0!r}) with subsample_size=len(x) in the plate, or give an AutoGuide "
    "create_plates= that makes the plate of the same rows"
)
