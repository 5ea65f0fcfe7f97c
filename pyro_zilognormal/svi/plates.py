"""The plate over rows: scaled from a batch to all rows, with the indices of the batch."""

from typing import TYPE_CHECKING, Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

if TYPE_CHECKING:
    from pyro_zilognormal.svi.elbo import SVIModule

HELD_OUT = (
    "{0} holds values for every row, of {1}; held-out rows have none. Use EarlyStopping() without held_out, or a guide "
    "that computes local values from the data"
)
_SUBSAMPLE_SIZE = (
    "plate {0!r} is declared with {1} rows, but its subsample_size is not the {2} rows of this batch; "
    "write pyro.plate({0!r}, {1}, subsample_size=len(x))"
)


class BatchHandler(Messenger):
    """Scale the plate over rows from a batch to all rows, give it the batch's indices, and weight latent sites.

    ``pyro.plate(name, N, subsample_size=len(x))`` is scaled by Pyro itself, and gets the indices of the batch, so
    that parameters held for every row line up with the data. ``pyro.plate(name, len(x))`` knows only the batch, and
    its sites are scaled by N / len(x) here.
    """

    def __init__(self, module: "SVIModule") -> None:
        super().__init__()
        self.module = module

    def _process_message(self, msg: Any) -> None:
        if site_is_subsample(msg):
            indices = self._indices(msg)
            if indices is None:
                return
            if msg["value"] is not None and not torch.equal(torch.as_tensor(msg["value"]), indices):
                raise ValueError(
                    f"plate {msg['name']!r} is given other rows (subsample=) than those of this batch; pass "
                    "torch.arange(N) to Minibatches as one more array, or write subsample_size=len(x) in the plate"
                )
            if msg["fn"].subsample_size not in (None, len(indices)):
                raise ValueError(_SUBSAMPLE_SIZE.format(self.module.plate, self.module.rows, len(indices)))
            msg["value"], msg["done"] = indices, True
            return
        frame = next((f for f in msg["cond_indep_stack"] if f.vectorized and self._over_rows(f)), None)
        if msg["type"] == "sample":
            if frame is not None and self.module.plate is not None:
                msg["scale"] = msg["scale"] * self._scale(frame)
            if not msg["is_observed"] and self.module.kl_weight != 1.0 and not self.module.held_out:
                msg["scale"] = msg["scale"] * self.module.kl_weight
        elif msg["type"] == "param" and frame is not None and msg["kwargs"].get("event_dim") is not None:
            self._check_row_parameter(msg, frame)

    def _postprocess_message(self, msg: Any) -> None:
        if site_is_subsample(msg):  # a replay has put the indices of the guide's plate in their place
            indices = self._indices(msg)
            msg["value"] = msg["value"] if indices is None else indices

    def _indices(self, msg: Any) -> Tensor | None:
        module, batch = self.module, self.module.batch
        if batch is None or msg["name"] != module.plate or msg["fn"].size != module.rows or batch.rows == module.rows:
            return None
        return batch.indices

    def _over_rows(self, frame: Any) -> bool:
        if self.module.plate is None:
            return self.module.held_out and frame.full_size == self.module.rows
        return frame.name == self.module.plate

    def _scale(self, frame: Any) -> float:
        rows, batch = self.module.rows, self.module.batch
        if batch is None or frame.full_size == rows:
            if batch is not None and frame.size != batch.rows != rows:
                raise ValueError(_SUBSAMPLE_SIZE.format(self.module.plate, rows, batch.rows))
            return 1.0
        if frame.full_size != batch.rows:
            raise ValueError(
                f"plate {frame.name!r} is declared with size {frame.full_size}; needed {rows}, the number of rows in "
                f"all, or {batch.rows}, the rows of this batch. Name the plate over rows in plate=, or correct its size"
            )
        return rows / batch.rows

    def _check_row_parameter(self, msg: Any, frame: Any) -> None:
        rows, batch = self.module.rows, self.module.batch
        if self.module.held_out and frame.full_size == rows:
            raise ValueError(HELD_OUT.format(f"parameter {msg['name']!r}", [frame.name]))
        if batch is not None and (batch.indices is None or (batch.rows != rows and frame.full_size != rows)):
            raise ValueError(
                f"parameter {msg['name']!r} holds a value for every row, and a batch must say which rows it holds: use "
                f"Minibatches, with a plate pyro.plate({self.module.plate!r}, {rows}, subsample_size=len(x)), or "
                "compute local values from the data"
            )
