"""What the data of a fit stand for: all at once, shuffled minibatches of arrays, or a stream of batches."""

from collections.abc import Iterator
from typing import Any

import torch

from pyro_zilognormal.svi.arrays import as_tensor, is_array
from pyro_zilognormal.svi.batch import Batch, Source
from pyro_zilognormal.svi.minibatches import Minibatches
from pyro_zilognormal.svi.objective import Objective
from pyro_zilognormal.svi.stream import BatchStream


class FullData:
    """All data in one call of model and guide; numpy arrays and CSR matrices become dense tensors."""

    def __init__(self, *data: Any) -> None:
        self.args = tuple(
            as_tensor(value, f"data argument {i}") if is_array(value) else value for i, value in enumerate(data)
        )
        lengths = [len(a) for a in self.args if isinstance(a, torch.Tensor) and a.dim() > 0]
        self.rows = lengths[0] if lengths else 1
        self.batches = 1
        self.plate: str | None = None

    def epoch(self, number: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the one batch."""
        if skip == 0:
            yield Batch(self.args, self.rows, indices=torch.arange(self.rows))

    def arguments(self) -> list[Any]:
        """Return the arguments of model and guide."""
        return list(self.args)


def count_rows(source: Source, objective: Objective) -> int:
    """Return how many rows a source has; where data come all at once, the model's plates tell."""
    if isinstance(source, FullData):
        source.rows = objective.count_rows(*source.args)
    return source.rows


def as_source(data: tuple[Any, ...]) -> Source:
    """Return the source of batches that ``data``, the positional arguments of a fit, stand for."""
    if len(data) == 1 and isinstance(data[0], Minibatches | BatchStream):
        return data[0]
    for value in data:
        if isinstance(value, Minibatches | BatchStream):
            raise TypeError(
                f"{type(value).__name__} came with other data; pass all arrays inside it, nothing beside it"
            )
        if isinstance(value, Iterator | torch.utils.data.DataLoader):
            raise TypeError(f"data holds a {type(value).__name__}; wrap it as BatchStream(loader, plate=...)")
    return FullData(*data)
